//! Forged LUKS2 headers, each by a recipe of its own from a good one: what an array that is not to be trusted could put before
//! an agent. Shared by the unit tests of the header's reader and the tests on a real kernel (by `#[path]`).
//!
//! A forger makes checksums right: they protect against chance only. Sources: the LUKS2 On-Disk Format Specification 1.1.3,
//! CVE-2021-4122 (forged re-encryption), CVE-2025-59054 and CVE-2025-58356 (null ciphers), the limits of libcryptsetup 2.8.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Size of one copy in headers as cryptsetup makes them.
pub const COPY: usize = 0x4000;
/// Size of a copy's binary part.
const BINARY: usize = 4096;

/// What reading a forged header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It can be read and is objected to.
    Objected,
    /// It is not taken for a header at all.
    Damaged,
}

/// One forged header.
#[derive(Clone, Copy)]
pub struct Forgery {
    /// Name, for messages; each once.
    pub name: &'static str,
    /// What the answer must contain.
    pub sentence: &'static str,
    /// Kind of answer.
    pub verdict: Verdict,
    /// Changes the first two copies of a good header.
    pub forge: Recipe,
}

/// How a header is forged.
#[derive(Clone, Copy)]
pub enum Recipe {
    /// Metadata changed, in both copies.
    Metadata(fn(&mut Value)),
    /// The text of the metadata changed, in both copies.
    Text(fn(&str) -> String),
    /// Any bytes changed.
    Bytes(fn(&mut [u8])),
}

impl Forgery {
    /// Applies the recipe to the beginning of a device with a good header.
    pub fn apply(&self, head: &mut [u8]) {
        match self.forge {
            Recipe::Metadata(change) => {
                let mut json = metadata(head);
                change(&mut json);
                put_both(head, &json.to_string());
            }
            Recipe::Text(change) => {
                let text = change(&metadata(head).to_string());
                put_both(head, &text);
            }
            Recipe::Bytes(change) => change(head),
        }
    }
}

/// The metadata of the first copy.
pub fn metadata(head: &[u8]) -> Value {
    let area = &head[BINARY..COPY];
    let end = area.iter().position(|b| *b == 0).unwrap_or(area.len());
    serde_json::from_slice(&area[..end]).unwrap()
}

/// Puts text as metadata into one copy and makes its checksum right.
pub fn put(head: &mut [u8], copy: usize, text: &str) {
    let copy = &mut head[copy * COPY..(copy + 1) * COPY];
    copy[BINARY..].fill(0);
    copy[BINARY..BINARY + text.len()].copy_from_slice(text.as_bytes());
    seal(copy);
}

/// The same text in both copies.
pub fn put_both(head: &mut [u8], text: &str) {
    put(head, 0, text);
    put(head, 1, text);
}

/// Makes the checksum of a copy right.
pub fn seal(copy: &mut [u8]) {
    copy[448..512].fill(0);
    let sum = Sha256::digest(&*copy);
    copy[448..480].copy_from_slice(&sum);
}

/// Puts another metadata into the second copy, and raises its sequence number by so much.
fn second_copy(head: &mut [u8], newer: u8, change: impl FnOnce(&mut Value)) {
    let mut json = metadata(head);
    change(&mut json);
    put(head, 1, &json.to_string());
    let second = &mut head[COPY..2 * COPY];
    second[23] += newer;
    seal(second);
}

/// All of them.
pub const ALL: &[Forgery] = &[
    // Ciphers that encrypt nothing.
    objected(
        "null data cipher",
        "data cipher is \"cipher_null-ecb\"",
        |j| {
            j["segments"]["0"]["encryption"] = json!("cipher_null-ecb");
        },
    ),
    objected("no data cipher", "data cipher is \"\"", |j| {
        j["segments"]["0"]["encryption"] = json!("");
    }),
    objected(
        "null data cipher of the kernel's crypto API",
        "data cipher",
        |j| {
            j["segments"]["0"]["encryption"] = json!("capi:ecb(cipher_null)-plain");
        },
    ),
    objected("null key slot cipher", "not known to protect it", |j| {
        j["keyslots"]["0"]["area"]["encryption"] = json!("cipher_null-ecb");
    }),
    objected(
        "key slot cipher that nobody knows",
        "not known to protect it",
        |j| {
            j["keyslots"]["0"]["area"]["encryption"] = json!("capi:ecb(arc4)-plain");
        },
    ),
    objected(
        "key slot encrypted with a key of no length",
        "a key of 0 bytes",
        |j| {
            j["keyslots"]["0"]["area"]["key_size"] = json!(0);
        },
    ),
    objected(
        "key slot encrypted with a key of 2 GiB",
        "a key of 2147483647 bytes",
        |j| {
            j["keyslots"]["0"]["area"]["key_size"] = json!(i32::MAX);
        },
    ),
    // Re-encryption that nobody asked for.
    objected(
        "re-encryption requirement",
        "re-encryption for example",
        |j| {
            j["config"]["requirements"] = json!({"mandatory": ["online-reencrypt-v2"]});
        },
    ),
    objected("unknown requirement", "requirements", |j| {
        j["config"]["requirements"] = json!({"mandatory": ["something-new"]});
    }),
    objected("requirement of another form", "requirements", |j| {
        j["config"]["requirements"] = json!({"mandatory": "something new"});
    }),
    objected("re-encryption key slot", "type \"reencrypt\"", |j| {
        j["keyslots"]["1"] = json!({"type": "reencrypt", "key_size": 1, "mode": "encrypt", "direction": "forward",
            "area": {"type": "none", "offset": "290816", "size": "4096"}});
    }),
    objected("backup segment", "2 segments", |j| {
        let mut backup = j["segments"]["0"].clone();
        backup["flags"] = json!(["backup-previous"]);
        j["segments"]["1"] = backup;
    }),
    objected(
        "segment under re-encryption",
        "flags (in-reencryption)",
        |j| {
            j["segments"]["0"]["flags"] = json!(["in-reencryption"]);
        },
    ),
    // Key derivation that costs more than the node has.
    objected("PBKDF2 bomb", "4294967295 iterations", |j| {
        j["keyslots"]["0"]["kdf"]["iterations"] = json!(u32::MAX);
    }),
    objected("PBKDF2 without work", "with 1 iterations", |j| {
        j["keyslots"]["0"]["kdf"]["iterations"] = json!(1);
    }),
    objected("Argon2 memory bomb", "4194304 KiB of memory", |j| {
        j["keyslots"]["0"]["kdf"] = json!({"type": "argon2id", "time": 4, "memory": 4_194_304, "cpus": 4, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="});
    }),
    objected("Argon2 time bomb", "time 4294967295", |j| {
        j["keyslots"]["0"]["kdf"] = json!({"type": "argon2i", "time": u32::MAX, "memory": 64, "cpus": 1, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="});
    }),
    objected("Argon2 thread bomb", "2000000000 threads", |j| {
        j["keyslots"]["0"]["kdf"] = json!({"type": "argon2id", "time": 4, "memory": 64, "cpus": 2_000_000_000, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="});
    }),
    objected(
        "thirty-two costly key slots",
        "together cost more time",
        |j| {
            let mut slot = j["keyslots"]["0"].clone();
            slot["kdf"]["iterations"] = json!(9_000_000);
            for n in 0..32_u64 {
                slot["area"]["offset"] = json!((32_768 + n * 258_048).to_string());
                j["keyslots"][n.to_string()] = slot.clone();
            }
            j["digests"]["0"]["keyslots"] = (0..32).map(|n| json!(n.to_string())).collect();
        },
    ),
    objected(
        "digest bomb",
        "volume key digest is pbkdf2 sha256 with 4000000000",
        |j| {
            j["digests"]["0"]["iterations"] = json!(4_000_000_000_u32);
        },
    ),
    objected(
        "second digest of the same key slot",
        "bound to two digests",
        |j| {
            j["digests"]["1"] = j["digests"]["0"].clone();
            j["digests"]["1"]["segments"] = json!([]);
            j["digests"]["1"]["iterations"] = json!(30_000_000);
        },
    ),
    objected(
        "key derivation that nobody knows",
        "derives its key by \"scrypt\"",
        |j| {
            j["keyslots"]["0"]["kdf"]["type"] = json!("scrypt");
        },
    ),
    objected("anti-forensic bomb", "anti-forensic", |j| {
        j["keyslots"]["0"]["af"]["stripes"] = json!(4_000_000_000_u32);
    }),
    objected("volume key of 2 GiB", "a key of 2147483648 bytes", |j| {
        j["keyslots"]["0"]["key_size"] = json!(2_147_483_648_u32);
    }),
    // Places.
    objected("key slot in the data", "lies at 16777216", |j| {
        j["keyslots"]["0"]["area"]["offset"] = json!("16777216");
    }),
    objected("key slot over the metadata", "lies at 0", |j| {
        j["keyslots"]["0"]["area"]["offset"] = json!("0");
    }),
    objected("key slot beyond the device", "lies at 1099511627776", |j| {
        j["keyslots"]["0"]["area"]["offset"] = json!("1099511627776");
    }),
    objected(
        "key slot at the end of all numbers",
        "lies at 18446744073709547520",
        |j| {
            j["keyslots"]["0"]["area"]["offset"] = json!("18446744073709547520");
        },
    ),
    objected("huge key slot", "with 134217728 bytes", |j| {
        j["keyslots"]["0"]["area"]["size"] = json!("134217728");
    }),
    objected("overlapping key slots", "key slots overlap", |j| {
        j["keyslots"]["1"] = j["keyslots"]["0"].clone();
    }),
    objected("data over the key slots", "data begins at 32768", |j| {
        j["segments"]["0"]["offset"] = json!("32768");
    }),
    objected(
        "data beyond the device",
        "data begins at 1099511627776",
        |j| {
            j["segments"]["0"]["offset"] = json!("1099511627776");
        },
    ),
    objected(
        "data at the end of all numbers",
        "data begins at 18446744073709547520",
        |j| {
            j["segments"]["0"]["offset"] = json!("18446744073709547520");
        },
    ),
    objected("data at an odd place", "data begins at 16777217", |j| {
        j["segments"]["0"]["offset"] = json!("16777217");
    }),
    objected("huge key slot region", "bytes of key slots", |j| {
        j["config"]["keyslots_size"] = json!("99999999999");
    }),
    objected("metadata of another size", "bytes of metadata", |j| {
        j["config"]["json_size"] = json!("4096");
    }),
    // Segments.
    objected("two segments", "2 segments", |j| {
        j["segments"]["1"] = j["segments"]["0"].clone();
    }),
    objected("linear segment", "of type \"linear\"", |j| {
        j["segments"]["0"]["type"] = json!("linear");
    }),
    objected("segment that ends", "segment ends at 4096", |j| {
        j["segments"]["0"]["size"] = json!("4096");
    }),
    objected("IV offset", "IV offset", |j| {
        j["segments"]["0"]["iv_tweak"] = json!("8");
    }),
    objected("integrity", "integrity", |j| {
        j["segments"]["0"]["integrity"] = json!({"type": "hmac(sha256)"});
    }),
    objected(
        "integrity without a key",
        "integrity protection by \"none\"",
        |j| {
            j["segments"]["0"]["integrity"] =
                json!({"type": "none", "journal_encryption": "none", "journal_integrity": "none"});
        },
    ),
    objected("integrity with a short key", "a key of 16 bytes", |j| {
        j["segments"]["0"]["integrity"] = json!({
            "type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none", "key_size": 16
        });
    }),
    objected(
        "integrity with an encrypted journal",
        "a journal of \"ctr(aes)\"",
        |j| {
            j["segments"]["0"]["integrity"] = json!({"type": "hmac(sha256)", "journal_encryption": "ctr(aes)", "journal_integrity": "none"});
        },
    ),
    objected("odd sector size", "sector size is 3", |j| {
        j["segments"]["0"]["sector_size"] = json!(3);
    }),
    objected(
        "stored activation flags",
        "activation flags (allow-discards)",
        |j| {
            j["config"]["flags"] = json!(["allow-discards"]);
        },
    ),
    // Digests and key slots.
    objected("digest of a key slot that is not there", "not there", |j| {
        j["digests"]["0"]["keyslots"] = json!(["0", "7"]);
    }),
    objected("digest of no key slot", "no key slot in use", |j| {
        j["digests"]["0"]["keyslots"] = json!([]);
    }),
    objected("two digests of the segment", "one digest", |j| {
        j["digests"]["1"] = j["digests"]["0"].clone();
    }),
    objected("digest of one byte", "too short or too long", |j| {
        j["digests"]["0"]["digest"] = json!("AA==");
    }),
    objected(
        "key slots for keys of different sizes",
        "different sizes",
        |j| {
            let mut slot = j["keyslots"]["0"].clone();
            slot["area"]["offset"] = json!("290816");
            slot["key_size"] = json!(32);
            j["keyslots"]["1"] = slot;
            j["digests"]["0"]["keyslots"] = json!(["0", "1"]);
        },
    ),
    // Words of the array in our messages.
    objected("long words", "data cipher", |j| {
        j["segments"]["0"]["encryption"] = json!(format!("null{}", "x".repeat(8000)));
    }),
    // Two copies.
    Forgery {
        name: "two headers that claim to be equally new",
        sentence: "copies disagree",
        verdict: Verdict::Objected,
        forge: Recipe::Bytes(|head| {
            second_copy(head, 0, |j| j["segments"]["0"]["sector_size"] = json!(4096));
        }),
    },
    Forgery {
        name: "second copy newer than the first",
        sentence: "second copy is newer",
        verdict: Verdict::Objected,
        forge: Recipe::Bytes(|head| {
            second_copy(head, 1, |j| j["segments"]["0"]["sector_size"] = json!(4096));
        }),
    },
    Forgery {
        name: "first copy unreadable and a forged second one",
        sentence: "data cipher is \"cipher_null-ecb\"",
        verdict: Verdict::Objected,
        forge: Recipe::Bytes(|head| {
            second_copy(head, 0, |j| {
                j["segments"]["0"]["encryption"] = json!("cipher_null-ecb");
            });
            head[5000] ^= 1;
        }),
    },
    Forgery {
        name: "wrong checksums",
        sentence: "wrong checksum",
        verdict: Verdict::Damaged,
        forge: Recipe::Bytes(|head| {
            head[5000] ^= 1;
            head[COPY + 5000] ^= 1;
        }),
    },
    Forgery {
        name: "bytes behind the metadata",
        sentence: "behind the metadata",
        verdict: Verdict::Damaged,
        forge: Recipe::Bytes(|head| {
            for copy in 0..2 {
                head[(copy + 1) * COPY - 1] = 1;
                seal(&mut head[copy * COPY..(copy + 1) * COPY]);
            }
        }),
    },
    Forgery {
        name: "checksum algorithm that nobody knows",
        sentence: "checksum algorithm",
        verdict: Verdict::Damaged,
        forge: Recipe::Bytes(|head| {
            for copy in 0..2 {
                head[copy * COPY + 72..][..6].copy_from_slice(b"crc32\0");
                seal(&mut head[copy * COPY..(copy + 1) * COPY]);
            }
        }),
    },
    // Metadata that two readers could read differently.
    damaged("a section twice", "twice", |t| {
        t.replacen("\"keyslots\":{", "\"keyslots\":{},\"keyslots\":{", 1)
    }),
    damaged("a key slot twice", "twice", |t| {
        t.replacen("\"0\":{", "\"0\":{},\"0\":{", 1)
    }),
    damaged("a field twice", "twice", |t| {
        t.replacen(
            "\"encryption\":",
            "\"encryption\":\"cipher_null-ecb\",\"encryption\":",
            1,
        )
    }),
    damaged("a field that we do not read twice", "twice", |t| {
        t.replacen("\"kdf\":{", "\"priority\":1,\"priority\":0,\"kdf\":{", 1)
    }),
    damaged("requirements twice", "twice", |t| {
        t.replacen(
            "\"config\":{",
            "\"config\":{\"requirements\":{\"mandatory\":[],\"mandatory\":[\"online-reencrypt\"]},",
            1,
        )
    }),
    damaged("a name that ends early in C", "control characters", |t| {
        t.replacen(
            "\"segments\":{",
            "\"segments\\u0000x\":{},\"segments\":{",
            1,
        )
    }),
    damaged("a text that ends early in C", "control characters", |t| {
        t.replacen("aes-xts-plain64", "aes-xts-plain64\\u0000null", 1)
    }),
    damaged("number in another form", "no number", |t| {
        t.replacen("\"16777216\"", "\"+16777216\"", 1)
    }),
    damaged("number of another type", "invalid type", |t| {
        t.replacen("\"16777216\"", "16777216", 1)
    }),
    damaged("key slot 00", "no number below 32", |t| {
        t.replacen("\"0\":{", "\"00\":{", 1)
    }),
    damaged("key slot 33", "no number below 32", |t| {
        t.replacen("\"0\":{", "\"33\":{", 1)
    }),
    damaged("something behind the object", "trailing", |t| {
        format!("{t} {{}}")
    }),
    damaged("no metadata", "EOF", |_| String::new()),
    damaged("deep metadata", "deeper", |t| {
        format!(
            "{{\"x\":{}{},{}",
            "[".repeat(5000),
            "]".repeat(5000),
            t.get(1..).unwrap_or_default()
        )
    }),
    damaged("deep metadata without an end", "deeper", |_| {
        "[".repeat(11_000)
    }),
    damaged("long text where a number belongs", "invalid type", |t| {
        t.replacen(
            "\"key_size\":64",
            &format!("\"key_size\":\"{}\"", "x".repeat(7000)),
            1,
        )
    }),
];

const fn objected(name: &'static str, sentence: &'static str, change: fn(&mut Value)) -> Forgery {
    Forgery {
        name,
        sentence,
        verdict: Verdict::Objected,
        forge: Recipe::Metadata(change),
    }
}

const fn damaged(
    name: &'static str,
    sentence: &'static str,
    change: fn(&str) -> String,
) -> Forgery {
    Forgery {
        name,
        sentence,
        verdict: Verdict::Damaged,
        forge: Recipe::Text(change),
    }
}

/// Within the bounds that every header has, but other than what was pinned.
pub const DEARER: Forgery = objected(
    "key derivation that costs more than it did",
    "\"pbkdf2 sha256 9000000\", which it did not when it was pinned",
    |j| j["keyslots"]["0"]["kdf"]["iterations"] = json!(9_000_000),
);

/// Size of the largest copy of the format.
pub const LARGEST: usize = 0x40_0000;

/// A header with copies of the largest size and this text as metadata, made of the first two copies of a good one.
pub fn giant(good: &[u8], text: &str) -> Vec<u8> {
    let mut head = vec![0; 2 * LARGEST];
    for (at, source) in [(0, 0), (LARGEST, COPY)] {
        let copy = &mut head[at..at + LARGEST];
        copy[..BINARY].copy_from_slice(&good[source..source + BINARY]);
        copy[8..16].copy_from_slice(&(LARGEST as u64).to_be_bytes());
        copy[256..264].copy_from_slice(&(at as u64).to_be_bytes());
        copy[BINARY..BINARY + text.len()].copy_from_slice(text.as_bytes());
        seal(copy);
    }
    head
}

/// The good metadata with something very long behind it.
pub fn giant_metadata(good: &[u8], filler: &str) -> String {
    let json = metadata(good).to_string();
    let begin = json.strip_suffix('}').unwrap_or(&json);
    let text = format!("{begin},\"filler\":[{filler}0]}}");
    text.replacen("\"12288\"", "\"4190208\"", 1)
}

/// The forgery of this name.
pub fn by_name(name: &str) -> Option<&'static Forgery> {
    ALL.iter().find(|f| f.name == name)
}

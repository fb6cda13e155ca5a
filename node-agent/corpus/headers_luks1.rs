//! Forged LUKS1 headers, each by a recipe of its own from a good one. LUKS1 has no checksum: whatever is changed counts.
//!
//! Sources: the LUKS On-Disk Format Specification 1.2.3 and the checks of libcryptsetup 2.8.

/// Bytes that a header's place takes.
pub const BLOCK: usize = 4096;
/// First key slot, and bytes of one.
const SLOT: usize = 208;
const SLOT_SIZE: usize = 48;

/// One forged header.
#[derive(Clone, Copy)]
pub struct Forgery {
    /// Name, for messages; each once.
    pub name: &'static str,
    /// What the answer must contain.
    pub sentence: &'static str,
    /// Changes a good header.
    pub apply: fn(&mut [u8]),
}

const fn forgery(name: &'static str, sentence: &'static str, apply: fn(&mut [u8])) -> Forgery {
    Forgery {
        name,
        sentence,
        apply,
    }
}

/// Text of a field, filled up with NUL.
fn text(head: &mut [u8], at: usize, value: &str) {
    head[at..at + 32].fill(0);
    head[at..at + value.len()].copy_from_slice(value.as_bytes());
}

fn number(head: &mut [u8], at: usize, value: u32) {
    head[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Place of a member of a key slot.
fn slot(id: usize, member: usize) -> usize {
    SLOT + id * SLOT_SIZE + member
}

/// A good header as cryptsetup lays it out for keys of 512 bits, with one key slot in use that nobody has a key for.
pub fn good() -> Vec<u8> {
    let mut head = vec![0; BLOCK];
    head[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
    for (at, value) in [(8, "aes"), (40, "xts-plain64"), (72, "sha256")] {
        text(&mut head, at, value);
    }
    for (at, value) in [(104, 4096), (108, 64), (164, 1000)] {
        number(&mut head, at, value);
    }
    head[112..164].fill(7);
    head[168..204].copy_from_slice(b"0f6e6f0a-5a7c-4c0e-9a55-0c5a2f0d4e11");
    for id in 0..8 {
        let state = if id == 0 { 0x00ac_71f3 } else { 0x0000_dead };
        let place = 8 + 504 * u32::try_from(id).unwrap();
        for (member, value) in [(0, state), (4, 1000), (40, place), (44, 4000)] {
            number(&mut head, slot(id, member), value);
        }
    }
    head
}

/// Those that can be read and are objected to.
pub const OBJECTED: &[Forgery] = &[
    forgery("null cipher", "its cipher is \"cipher_null-ecb\"", |h| {
        text(h, 8, "cipher_null");
        text(h, 40, "ecb");
    }),
    forgery("no cipher", "its cipher is \"\"", |h| {
        text(h, 8, "");
        text(h, 40, "");
    }),
    forgery("cipher without a mode", "its cipher is \"aes\"", |h| {
        text(h, 40, "")
    }),
    forgery(
        "mode that shows equal blocks",
        "its cipher is \"aes-ecb\"",
        |h| {
            text(h, 40, "ecb");
        },
    ),
    forgery("cipher of the kernel's crypto API", "its cipher is", |h| {
        text(h, 8, "capi:ecb(cipher_null)");
    }),
    forgery("cipher with a line break", "its cipher is", |h| {
        text(h, 8, "aes\nx");
    }),
    forgery(
        "hash that nobody knows",
        "it derives its keys by \"crc32\"",
        |h| {
            text(h, 72, "crc32");
        },
    ),
    forgery("no hash", "it derives its keys by \"\"", |h| {
        text(h, 72, "")
    }),
    forgery("data over the header", "its data begins at 0", |h| {
        number(h, 104, 0)
    }),
    forgery("data over the key slots", "key slot 7 lies at", |h| {
        number(h, 104, 3072);
    }),
    forgery(
        "data behind the end of the device",
        "its data begins at 2199023255040",
        |h| {
            number(h, 104, u32::MAX);
        },
    ),
    forgery("data between blocks", "its data begins at 2097664", |h| {
        number(h, 104, 4097);
    }),
    forgery("key of no bytes", "it holds a key of 0 bytes", |h| {
        number(h, 108, 0)
    }),
    forgery("giant key", "it holds a key of 4294967295 bytes", |h| {
        number(h, 108, u32::MAX);
    }),
    forgery(
        "digest without cost",
        "its volume key digest has 0 iterations",
        |h| {
            number(h, 164, 0);
        },
    ),
    forgery(
        "digest bomb",
        "its volume key digest has 4294967295 iterations",
        |h| {
            number(h, 164, u32::MAX);
        },
    ),
    forgery(
        "key derivation bomb",
        "key slot 0 derives its key with 4294967295 iterations",
        |h| {
            number(h, slot(0, 4), u32::MAX);
        },
    ),
    forgery(
        "key derivation without cost",
        "key slot 0 derives its key with 1 iterations",
        |h| {
            number(h, slot(0, 4), 1);
        },
    ),
    forgery(
        "eight dear slots",
        "together cost more time than is allowed",
        |h| {
            for id in 0..8 {
                number(h, slot(id, 0), 0x00ac_71f3);
                number(h, slot(id, 4), 9_000_000);
            }
        },
    ),
    forgery("one stripe", "key slot 0 has 1 stripes", |h| {
        number(h, slot(0, 44), 1)
    }),
    forgery("slot in the header", "key slot 0 lies at 0 with", |h| {
        number(h, slot(0, 40), 0);
    }),
    forgery("slot in the data", "key slot 0 lies at 2097152 with", |h| {
        number(h, slot(0, 40), 4096);
    }),
    forgery(
        "free slot in the data",
        "key slot 5 lies at 2097152 with",
        |h| {
            number(h, slot(5, 40), 4096);
        },
    ),
    forgery(
        "slot behind all disks",
        "key slot 0 lies at 2199023255040 with",
        |h| {
            number(h, slot(0, 40), u32::MAX);
        },
    ),
    forgery("slot between blocks", "key slot 0 lies at 4608 with", |h| {
        number(h, slot(0, 40), 9);
    }),
    forgery("slots that overlap", "key slots overlap", |h| {
        let first = h[slot(0, 40)..slot(0, 44)].to_vec();
        h[slot(1, 40)..slot(1, 44)].copy_from_slice(&first);
    }),
    forgery("no slot in use", "it has no key slot in use", |h| {
        number(h, slot(0, 0), 0x0000_dead);
    }),
    forgery(
        "a LUKS2 header behind it",
        "a copy of a LUKS2 header lies behind it",
        |h| {
            h[0x4000..0x4006].copy_from_slice(b"SKUL\xba\xbe");
        },
    ),
];

/// Those that are not taken for a header at all.
pub const DAMAGED: &[Forgery] = &[
    forgery(
        "slot neither in use nor free",
        "key slot 3 is neither in use nor free",
        |h| {
            number(h, slot(3, 0), 0);
        },
    ),
    forgery("no UUID", "UUID not in its usual form", |h| {
        h[168..208].fill(0)
    }),
    forgery("UUID in capitals", "UUID not in its usual form", |h| {
        h[168..204].make_ascii_uppercase();
        h[168] = b'A';
    }),
    forgery("UUID without end", "text without end", |h| {
        h[168..208].fill(b'a')
    }),
    forgery("cipher without end", "text without end", |h| {
        h[8..40].fill(b'a')
    }),
    forgery("hash that is no text", "text is not UTF-8", |h| {
        h[72] = 0xff
    }),
];

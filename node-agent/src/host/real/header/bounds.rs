//! What a header may ask for, whatever its version: no more time and memory than an unlock is worth, and only ciphers that
//! protect.

pub use cryptvol_common::header::fingerprint_of as fingerprint;

/// More PBKDF2 iterations than anybody asks for, about 4 s: a forged header could ask for 2^32.
pub const MAX_PBKDF2_ITERATIONS: u32 = 10_000_000;
/// Most PBKDF2 iterations of all key slots and digests together: a wrong passphrase tries every slot.
pub const MAX_PBKDF2_TOTAL: u64 = 2 * MAX_PBKDF2_ITERATIONS as u64;
/// Fewest iterations that tools take for a key slot.
pub const MIN_PBKDF2_ITERATIONS: u32 = 1000;
/// Stripes of the anti-forensic splitter: LUKS knows no other number.
pub const STRIPES: u32 = 4000;
/// Bytes of a volume key: AES-128 to AES-256 in XTS.
pub const KEY_BYTES: std::ops::RangeInclusive<u32> = 16..=64;
/// Bytes of a volume key with that of an authentication behind it.
pub const MAX_KEY_BYTES: u32 = 64 + 32;
/// Hashes for key derivation and anti-forensic splitter.
pub const HASHES: [&str; 4] = ["sha1", "sha256", "sha384", "sha512"];

/// Ciphers and modes that tools encrypt key slots with. Not a list of what is bad: whatever leaves a key slot readable to
/// everybody lets a forger choose the volume key (CVE-2025-59054), and nobody knows all such names.
const AREA_CIPHERS: [&str; 6] = [
    "aes",
    "serpent",
    "twofish",
    "camellia",
    "xchacha12,aes",
    "xchacha20,aes",
];
const AREA_MODES: [&str; 4] = ["xts", "cbc", "lrw", "adiantum"];

/// Whether a cipher is known to protect a key slot.
pub fn protects(cipher: &str) -> bool {
    let mut parts = cipher.splitn(2, '-');
    let (name, mode) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let mode = mode.split('-').next().unwrap_or_default();
    AREA_CIPHERS.contains(&name) && AREA_MODES.contains(&mode)
}

/// A derivation by PBKDF2, where its hash is one of those that are known.
pub fn pbkdf2(hash: &str, iterations: u32) -> Option<String> {
    let known = HASHES.contains(&hash);
    known.then(|| format!("pbkdf2 {hash} {iterations}"))
}

/// No cipher at all, as in `cipher_null-ecb` or `null`.
pub fn is_null(cipher: &str) -> bool {
    cipher.is_empty() || cipher.contains("null") || cipher.contains("none")
}

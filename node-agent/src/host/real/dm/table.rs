//! Parameters of device-mapper targets as text: what is read from the kernel, and how a cipher with its authentication is named there.

use cryptvol_crds::v1alpha1::{Activation, Integrity};

use crate::host::CryptTable;

/// Reads a target's parameters: `<cipher> <key> <IV offset> <device> <offset> [<n> <option>…]`, or `<device> <offset>` of a
/// linear one.
pub(crate) fn crypt_table(target: &str, params: &str) -> CryptTable {
    let fields: Vec<_> = params.split(' ').collect();
    let field = |at: usize| fields.get(at).copied().unwrap_or_default();
    let crypt = target == "crypt";
    let (dev, offset) = match target {
        "crypt" => (field(3), field(4)),
        // Only with the journal: another mode would not be ours.
        "integrity" if field(3) == "J" => (field(0), field(1)),
        "linear" => (field(0), field(1)),
        _ => ("", ""),
    };
    let known = Integrity::HmacSha256;
    let tagged = format!("integrity:{}:aead", known.tag_bytes());
    let authenticated = plain_cipher(field(0), known)
        .filter(|_| crypt && fields.iter().skip(5).any(|o| **o == tagged));
    CryptTable {
        target_type: target.to_owned(),
        integrity: authenticated.is_some().then_some(known),
        cipher: match authenticated {
            Some(cipher) => cipher,
            None if crypt => field(0).to_owned(),
            None => String::new(),
        },
        key_in_keyring: crypt && field(1).starts_with(':'),
        dev: dev.to_owned(),
        data_offset: offset.parse::<u64>().unwrap_or(0).saturating_mul(512),
        sector_size: fields
            .iter()
            .skip(5)
            .find_map(|o| {
                let size = match target {
                    "integrity" => o.strip_prefix("block_size:"),
                    _ => o.strip_prefix("sector_size:"),
                };
                size?.parse().ok()
            })
            .unwrap_or(512),
        options: fields
            .iter()
            .skip(5)
            .filter(|o| crypt && Activation::OPTIONS.contains(o))
            .take(Activation::OPTIONS.len())
            .map(|o| (*o).to_owned())
            .collect(),
    }
}

/// A cipher with its authentication, as dm-crypt wants it: `aes-xts-plain64` is `capi:authenc(hmac(sha256),xts(aes))-plain64`.
pub(super) fn authenticated(cipher: &str, kind: Integrity) -> String {
    let mut parts = cipher.splitn(3, '-');
    let mut part = || parts.next().unwrap_or_default();
    let (name, mode, iv) = (part(), part(), part());
    format!("capi:authenc({},{mode}({name}))-{iv}", kind.kernel_name())
}

/// The cipher in one with authentication.
fn plain_cipher(cipher: &str, kind: Integrity) -> Option<String> {
    let rest = cipher.strip_prefix(&format!("capi:authenc({},", kind.kernel_name()))?;
    let (mode, rest) = rest.split_once('(')?;
    let (name, iv) = rest.split_once("))-")?;
    let plain = format!("{name}-{mode}-{iv}");
    (authenticated(&plain, kind) == cipher).then_some(plain)
}

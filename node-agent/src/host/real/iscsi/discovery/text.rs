//! Text of iSCSI: `key=value`, each ended by a NUL (RFC 7143 section 6.1).

use super::Problem;

/// Longest key in bytes (RFC 7143 section 6.1).
const MAX_KEY: usize = 63;

/// Writes pairs.
pub fn write(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in pairs {
        text.extend_from_slice(key.as_bytes());
        text.push(b'=');
        text.extend_from_slice(value.as_bytes());
        text.push(0);
    }
    text
}

/// Reads pairs, in order.
pub fn pairs(text: &[u8]) -> impl Iterator<Item = Result<(&str, &str), Problem>> {
    let pieces = text.split(|b| *b == 0).filter(|piece| !piece.is_empty());
    pieces.map(|piece| {
        let text = std::str::from_utf8(piece).map_err(|_| Problem::Malformed("no UTF-8"))?;
        let (key, value) = text
            .split_once('=')
            .ok_or(Problem::Malformed("a key without a value"))?;
        match key.len() {
            1..=MAX_KEY => Ok((key, value)),
            _ => Err(Problem::Malformed("a key of no known length")),
        }
    })
}

/// The value of a key that may stand there once.
///
/// # Errors
/// `Malformed` where it stands there twice, or anything is no pair.
pub fn value<'a>(text: &'a [u8], wanted: &str) -> Result<Option<&'a str>, Problem> {
    let mut found = None;
    for pair in pairs(text) {
        let (key, value) = pair?;
        if key == wanted && found.replace(value).is_some() {
            return Err(Problem::Malformed("a key that stands there twice"));
        }
    }
    Ok(found)
}

/// Reads a number of up to `most` bytes, as hexadecimal digits or in base64 (RFC 7143 section 6.1, large binary values).
pub fn binary(value: &str, most: usize) -> Option<Vec<u8>> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let is = |prefix: &str| value.get(..2).filter(|p| p.eq_ignore_ascii_case(prefix));
    // Both write at least one character for each byte.
    if value.len() > 2 * most + 2 {
        return None;
    }
    let bytes = match (is("0x"), is("0b")) {
        (Some(_), _) => hex::decode(&value[2..]).ok()?,
        (_, Some(_)) => STANDARD.decode(&value[2..]).ok()?,
        _ => return None,
    };
    (bytes.len() <= most).then_some(bytes)
}

/// Writes a number as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    format!("0x{}", hex::encode(bytes))
}

//! CHAP (RFC 7143 section 12.1.3, RFC 1994): both sides prove that they know a secret by its digest with the other's challenge.
//!
//! MD5 alone, as in the sessions that iscsid makes for this agent: it is the one algorithm that every target has. What it protects is a secret
//! of 12 bytes and more against one who hears an answer and would have to guess; it says nothing of the data.

use md5::{Digest, Md5};
use zeroize::Zeroizing;

use super::{Problem, text};
use crate::host::{Chap, TargetChap};

/// The number of MD5.
pub const MD5: &str = "5";
/// Longest challenge in bytes.
const MAX_CHALLENGE: usize = 1024;
/// Length of an MD5 in bytes.
const DIGEST: usize = 16;

/// What the target has to answer to.
#[derive(Clone, Copy, Debug)]
pub struct Challenge {
    /// Identifier.
    pub id: u8,
    /// What to take the digest with.
    pub bytes: [u8; DIGEST],
}

/// The digest that proves a secret.
fn proof(id: u8, secret: &str, challenge: &[u8]) -> [u8; DIGEST] {
    let mut text = Zeroizing::new(Vec::with_capacity(1 + secret.len() + challenge.len()));
    text.push(id);
    text.extend_from_slice(secret.as_bytes());
    text.extend_from_slice(challenge);
    Md5::digest(&*text).into()
}

/// The answer to the target's challenge; with mutual CHAP it carries ours.
///
/// # Errors
/// `Malformed`; `Refused` where the target wants another algorithm.
pub fn answer(theirs: &[u8], chap: &Chap, ours: Challenge) -> Result<Vec<u8>, Problem> {
    let value = |key| text::value(theirs, key);
    if value("CHAP_A")? != Some(MD5) {
        return Err(Problem::Refused(
            "it wants another algorithm of CHAP than MD5".to_owned(),
        ));
    }
    let id = value("CHAP_I")?.and_then(identifier);
    let id = id.ok_or(Problem::Malformed("a CHAP challenge without identifier"))?;
    let challenge = value("CHAP_C")?.and_then(|c| text::binary(c, MAX_CHALLENGE));
    let challenge = challenge.filter(|c| !c.is_empty() && c[..] != ours.bytes);
    let challenge = challenge.ok_or(Problem::Malformed("a CHAP challenge that is none"))?;
    let proof = text::hex(&proof(id, &chap.password, &challenge));
    let (own_id, own) = (ours.id.to_string(), text::hex(&ours.bytes));
    let mut pairs = vec![("CHAP_N", chap.username.as_str()), ("CHAP_R", &proof)];
    if chap.target.is_some() {
        pairs.extend([("CHAP_I", own_id.as_str()), ("CHAP_C", &own)]);
    }
    Ok(text::write(&pairs))
}

/// Whether the target proves that it knows its secret.
///
/// # Errors
/// `NotAuthentic`; `Malformed`.
pub fn check(theirs: &[u8], expected: &TargetChap, ours: Challenge) -> Result<(), Problem> {
    let name = text::value(theirs, "CHAP_N")?;
    let answer = text::value(theirs, "CHAP_R")?.and_then(|r| text::binary(r, DIGEST));
    let right = proof(ours.id, &expected.password, &ours.bytes);
    match answer {
        Some(found) if found == right && name == Some(expected.username.as_str()) => Ok(()),
        _ => Err(Problem::NotAuthentic),
    }
}

/// A number of one byte, decimal or hexadecimal.
fn identifier(value: &str) -> Option<u8> {
    match value.strip_prefix("0x").or(value.strip_prefix("0X")) {
        Some(hex) => u8::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    }
}

//! The method `totp`: a one-time password by time (RFC 6238) from a seed in a credential of the type `totp`. SHA-1, six digits,
//! thirty seconds, and the step before the present one still counts: as in Keystone.

use std::sync::Arc;

use data_encoding::BASE32_NOPAD;
use serde_json::Value;

use super::{
    methods::{admit, find_user},
    proof::{Failure, Proof},
};
use crate::{
    app::App,
    crypto::mac::{hmac_sha1, same},
    identity::{credentials, error::IdentityError, passwords},
    time::now_us,
    token::Method,
};

const STEP: i64 = 30;
/// Steps before the present one that still count.
const PREVIOUS: i64 = 1;

/// The password of a step (RFC 4226, section 5.3).
fn code(seed: &[u8], step: i64) -> String {
    let mac = hmac_sha1(seed, &step.to_be_bytes());
    let at = usize::from(mac.last().copied().unwrap_or_default() & 0x0f);
    let four = mac.iter().skip(at).take(4);
    let number = four.fold(0_u32, |number, byte| (number << 8) | u32::from(*byte));
    format!("{:06}", (number & 0x7fff_ffff) % 1_000_000)
}

/// Whether a password is that of the seed (base32, with or without padding) at a time in seconds.
fn matches(seed: &str, sent: &str, now: i64) -> bool {
    let Ok(seed) = BASE32_NOPAD.decode(seed.trim_end_matches('=').as_bytes()) else {
        return false;
    };
    if seed.is_empty() {
        return false;
    }
    // All of them, whichever is right.
    (0..=PREVIOUS).fold(false, |found, back| {
        same(sent, &code(&seed, now / STEP - back)) | found
    })
}

pub(super) async fn totp(app: &Arc<App>, details: &Value) -> Result<Proof, Failure> {
    let user = &details["user"];
    if !user.is_object() {
        return Err(IdentityError::BadRequest(
            "auth.identity.totp.user is required, with a passcode.".into(),
        )
        .into());
    }
    // As in Keystone, what is no text is a wrong passcode, and counts as one.
    let sent = user["passcode"].as_str().unwrap_or_default();
    admit(app, user)?;
    let user = find_user(app, user).await?;
    // Of nobody too: the time of a refusal tells nothing.
    let id = user.as_ref().map_or("", |user| &user.id);
    let seeds = credentials::blobs(app, id, "totp").await?;
    let now = now_us() / 1_000_000;
    let right = seeds
        .iter()
        .fold(false, |found, seed| matches(seed, sent, now) | found);
    let user = passwords::prove_code(app, user, right)
        .await?
        .map_err(Failure::denied)?;
    Ok(Proof::new(user, Method::Totp))
}

#[cfg(test)]
pub(in crate::identity) fn code_now(seed: &str) -> String {
    code(
        &BASE32_NOPAD.decode(seed.as_bytes()).unwrap_or_default(),
        now_us() / 1_000_000 / STEP,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6238, appendix B; the last six of its eight digits.
    #[test]
    fn known_answers() {
        let seed = b"12345678901234567890";
        for (time, wanted) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(code(seed, time / STEP), wanted, "{time}");
        }
    }

    #[test]
    fn the_step_before_counts_and_no_other() {
        let seed = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";
        assert!(matches(seed, "287082", 59));
        assert!(matches(&format!("{seed}===="), "287082", 60));
        assert!(matches(seed, "287082", 89));
        assert!(!matches(seed, "287082", 90));
        assert!(!matches(seed, "287082", 29));
        for bad in ["", "1", "not base32!", "===="] {
            assert!(!matches(bad, "287082", 59), "{bad}");
        }
    }
}

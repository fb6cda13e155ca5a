//! What is put into a request when it is sent: what it proves itself with, worked out anew each time (one-time passwords of RFC 6238,
//! signatures of OAuth 1.0a, RFC 5849), and texts that are too long for a line.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use data_encoding::BASE32;
use ring::hmac::{HMAC_SHA1_FOR_LEGACY_USE_ONLY, Key, sign};

/// Begins a one-time password in a script: `$totp(SEED)`.
const TOTP: &str = "$totp(";
/// Length of a step of time-based passwords, in seconds.
const STEP: u64 = 30;

/// Seconds since 1970.
pub(super) fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

pub(super) fn hmac_sha1(key: &[u8], message: &[u8]) -> Vec<u8> {
    let key = Key::new(HMAC_SHA1_FOR_LEGACY_USE_ONLY, key);
    sign(&key, message).as_ref().to_vec()
}

/// Puts one-time passwords of the moment `at` in the place of each `$totp(SEED)`.
///
/// # Errors
/// If a seed is not base32.
pub(super) fn with_passcodes(text: &str, at: u64) -> Result<String> {
    replaced(text, TOTP, |seed| passcode(seed, at))
}

/// Puts so many letters in the place of each `$long(NUMBER)`.
///
/// # Errors
/// If what is in brackets is no number.
pub(super) fn with_long_texts(text: &str) -> Result<String> {
    replaced(text, "$long(", |number| Ok("x".repeat(number.parse()?)))
}

/// Puts what `with` makes of its words in the place of each `OPENING…)`.
///
/// # Errors
/// If one has no end, or of `with`.
pub(super) fn replaced(
    text: &str,
    opening: &str,
    with: impl Fn(&str) -> Result<String>,
) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(opening) {
        let (words, after) = after
            .split_once(')')
            .with_context(|| format!("{opening} without an end"))?;
        out.push_str(before);
        out.push_str(&with(words)?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn passcode(seed: &str, at: u64) -> Result<String> {
    let seed = BASE32.decode(seed.as_bytes()).context(seed.to_owned())?;
    let mac = hmac_sha1(&seed, &(at / STEP).to_be_bytes());
    let from = usize::from(mac.last().copied().unwrap_or_default() & 0x0f);
    let four = mac.iter().skip(from).take(4);
    let number = four.fold(0_u32, |number, byte| (number << 8) | u32::from(*byte));
    Ok(format!("{:06}", (number & 0x7fff_ffff) % 1_000_000))
}

/// The value of the header `Authorization` for a request without a query. `words` are the consumer's key and secret, then, once there is
/// one, the token's key and secret, and the verifier where a request token is to become an access token.
///
/// # Errors
/// If these are not two, four or five words.
pub(super) fn authorization(
    method: &str,
    url: &str,
    words: &str,
    at: u64,
    nonce: &str,
) -> Result<String> {
    // What was refused is kept as an empty word.
    let words: Vec<&str> = words.split(' ').collect();
    let at = at.to_string();
    let &[consumer, secret, ref token @ ..] = words.as_slice() else {
        bail!("OAuth1 needs a consumer and its secret");
    };
    let mut pairs = vec![
        ("oauth_consumer_key", consumer),
        ("oauth_nonce", nonce),
        ("oauth_signature_method", "HMAC-SHA1"),
        ("oauth_timestamp", &at),
        ("oauth_version", "1.0"),
    ];
    let token_secret = match *token {
        // Whoever asks for a request token says where the verifier goes to: nowhere.
        [] => {
            pairs.push(("oauth_callback", "oob"));
            ""
        }
        [key, secret] => {
            pairs.push(("oauth_token", key));
            secret
        }
        [key, secret, verifier] => {
            pairs.extend([("oauth_token", key), ("oauth_verifier", verifier)]);
            secret
        }
        _ => bail!("OAuth1 takes a token, its secret and a verifier"),
    };
    pairs.sort_unstable();
    let signed: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={}", quoted(value)))
        .collect();
    let base = format!("{method}&{}&{}", quoted(url), quoted(&signed.join("&")));
    let key = format!("{}&{}", quoted(secret), quoted(token_secret));
    let signature = STANDARD.encode(hmac_sha1(key.as_bytes(), base.as_bytes()));
    pairs.push(("oauth_signature", &signature));
    let shown: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}=\"{}\"", quoted(value)))
        .collect();
    Ok(format!("OAuth {}", shown.join(", ")))
}

/// Percent-encoded as RFC 5849 (section 3.6) wants it: all but the unreserved characters.
pub(super) fn quoted(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6238, appendix B; the last six of its eight digits.
    #[test]
    fn passcodes_in_a_text() {
        let seed = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";
        let text = format!("a $totp({seed}) b $totp({seed})");
        assert_eq!(with_passcodes(&text, 59).unwrap(), "a 287082 b 287082");
        assert_eq!(
            with_passcodes(&text, 1_111_111_109).unwrap(),
            "a 081804 b 081804"
        );
        assert_eq!(with_passcodes("none", 0).unwrap(), "none");
        assert_eq!(with_long_texts("a$long(3)b").unwrap(), "axxxb");
        assert!(with_long_texts("$long(x)").is_err());
        assert!(with_passcodes("$totp(1)", 0).is_err());
    }

    /// The request for temporary credentials in RFC 5849, section 1.2, has another callback; this one was worked out with another
    /// implementation of the RFC.
    #[test]
    fn a_signature() {
        let header = |words: &str| {
            authorization(
                "POST",
                "http://h:1/v3/x",
                words,
                1_318_622_958,
                "kYjzVBB8Y0ZF",
            )
        };
        let first = header("xvz1evFS4wEEPTGEFPHBog kAcSOqF21Fu85e7").unwrap();
        assert!(first.contains("oauth_callback=\"oob\""), "{first}");
        assert!(
            first.contains("oauth_signature=\"8jBrHsZQjd82me9CBcJrZ%2FLMzNI%3D\""),
            "{first}"
        );
        let last = header("c s t u v").unwrap();
        assert!(last.contains("oauth_verifier=\"v\""), "{last}");
        assert!(
            last.contains("oauth_signature=\"TccsP7Du%2BpCBCEqNVtdtv08%2FnKw%3D\""),
            "{last}"
        );
        assert!(header("c").is_err() && header("c s t").is_err());
    }
}

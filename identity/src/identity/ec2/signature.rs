//! Signatures of EC2 and S3 requests, versions 2 and 4, over what a service passes on of a request. They are worked out as
//! Keystone does with `keystoneclient.contrib.ec2.utils` and in `api/s3tokens.py`, and as Amazon describes them.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD},
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::crypto::mac::{hmac_sha1, hmac_sha256, same};

const V4: &str = "AWS4-HMAC-SHA256";

/// Why there is no signature to compare with.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum SignatureError {
    /// A part that the signature is over was not sent, or is of another kind.
    #[error("The attribute {0} of the signed request is missing or of another kind.")]
    Missing(&'static str),
    /// Neither version 2 nor 4.
    #[error("Only the signature versions 2 and 4 are accepted.")]
    Version,
    /// Signed for another day than the request's.
    #[error("The date of the request is not that of its signature.")]
    Date,
    /// The text that was signed is not one of version 4.
    #[error("The text that was signed is not one of signature version 4 for S3.")]
    NotV4,
}

fn text<'a>(object: &'a Value, name: &'static str) -> Result<&'a str, SignatureError> {
    object[name].as_str().ok_or(SignatureError::Missing(name))
}

/// A value of the query as text: as Python would print it, which is what the other side signs.
fn printed(value: &Value) -> Result<String, SignatureError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(flag) => Ok(if *flag { "True" } else { "False" }.into()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(SignatureError::Missing("params")),
    }
}

/// Percent-encoding of everything but letters, digits, `_`, `.`, `-` and `~`.
pub(in crate::identity) fn quoted(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

/// The query, sorted by name and encoded.
fn canonical_query(params: &Map<String, Value>) -> Result<String, SignatureError> {
    let mut names: Vec<&String> = params.keys().collect();
    names.sort();
    let pairs: Result<Vec<String>, _> = names
        .into_iter()
        .map(|name| {
            Ok(format!(
                "{}={}",
                quoted(name),
                quoted(&printed(&params[name])?)
            ))
        })
        .collect();
    Ok(pairs?.join("&"))
}

/// The signature that the request should have.
///
/// # Errors
/// Any but `NotV4`.
fn expected(secret: &str, request: &Value, host: &str) -> Result<String, SignatureError> {
    let params = match &request["params"] {
        Value::Object(params) => params.clone(),
        _ => return Err(SignatureError::Missing("params")),
    };
    match params.get("SignatureVersion") {
        Some(version) if version == "2" => version_2(secret, request, host, params),
        Some(_) => Err(SignatureError::Version),
        None => version_4(secret, request, &params),
    }
}

fn version_2(
    secret: &str,
    request: &Value,
    host: &str,
    mut params: Map<String, Value>,
) -> Result<String, SignatureError> {
    params.insert("SignatureMethod".into(), "HmacSHA256".into());
    let signed = format!(
        "{}\n{host}\n{}\n{}",
        text(request, "verb")?,
        text(request, "path")?,
        canonical_query(&params)?
    );
    Ok(STANDARD.encode(hmac_sha256(secret.as_bytes(), signed.as_bytes())))
}

/// The key of a day, region and service.
fn key_of_scope(secret: &str, scope: [&str; 3]) -> Vec<u8> {
    let start = format!("AWS4{secret}").into_bytes();
    scope
        .iter()
        .chain(&["aws4_request"])
        .fold(start, |key, part| hmac_sha256(&key, part.as_bytes()))
}

fn version_4(
    secret: &str,
    request: &Value,
    params: &Map<String, Value>,
) -> Result<String, SignatureError> {
    let empty = Map::new();
    let headers = request["headers"].as_object().unwrap_or(&empty);
    let header = |name: &str| headers.get(name).and_then(Value::as_str);
    let param = |name: &str| params.get(name).and_then(Value::as_str);
    let authorization = header("Authorization");
    let of_version_4 = authorization.is_some_and(|text| text.starts_with(V4))
        || param("X-Amz-Algorithm") == Some(V4);
    if !of_version_4 {
        return Err(SignatureError::Version);
    }
    // Each is in the header, or in the query.
    let part = |name: &'static str| -> Result<String, SignatureError> {
        match authorization {
            Some(line) => Ok(line
                .split_once(&format!("{name}="))
                .and_then(|(_, rest)| rest.split(',').next())
                .unwrap_or_default()
                .to_owned()),
            None => param(&format!("X-Amz-{name}"))
                .map(str::to_owned)
                .ok_or(SignatureError::Missing(name)),
        }
    };
    let signed_headers = part("SignedHeaders")?;
    let lower: Map<String, Value> = headers
        .iter()
        .map(|(name, value)| (name.trim().to_lowercase(), value.clone()))
        .collect();
    let mut header_lines = Vec::new();
    for name in signed_headers.split(';') {
        if let Some(value) = lower.get(name) {
            let value = value.as_str().ok_or(SignatureError::Missing("headers"))?;
            header_lines.push(format!("{name}:{}", value.trim()));
        }
    }
    let verb = text(request, "verb")?.to_uppercase();
    let query = if verb == "POST" {
        String::new()
    } else {
        canonical_query(params)?
    };
    let canonical = format!(
        "{verb}\n{}\n{query}\n{}\n\n{signed_headers}\n{}",
        text(request, "path")?,
        header_lines.join("\n"),
        text(request, "body_hash")?
    );
    let credential = part("Credential")?;
    let (_, scope) = credential
        .split_once('/')
        .ok_or(SignatureError::Missing("Credential"))?;
    let mut pieces = scope.split('/');
    let (Some(day), Some(region), Some(service)) = (pieces.next(), pieces.next(), pieces.next())
    else {
        return Err(SignatureError::Missing("Credential"));
    };
    let date = header("X-Amz-Date")
        .or_else(|| param("X-Amz-Date"))
        .ok_or(SignatureError::Missing("X-Amz-Date"))?;
    if day.is_empty() || !date.starts_with(day) {
        return Err(SignatureError::Date);
    }
    let signed = format!(
        "{V4}\n{date}\n{scope}\n{}",
        hex::encode(Sha256::digest(canonical))
    );
    let key = key_of_scope(secret, [day, region, service]);
    Ok(hex::encode(hmac_sha256(&key, signed.as_bytes())))
}

/// Whether an EC2 request that a service passes on was signed with the secret. Some clients leave the port out of what they sign.
///
/// # Errors
/// Any but `NotV4`.
pub(super) fn ec2_is_signed(secret: &str, request: &Value) -> Result<bool, SignatureError> {
    let sent = text(request, "signature")?;
    let host = request["host"].as_str().unwrap_or_default();
    if same(sent, &expected(secret, request, host)?) {
        return Ok(true);
    }
    match host.rsplit_once(':') {
        Some((name, _)) => Ok(same(sent, &expected(secret, request, name)?)),
        None => Ok(false),
    }
}

/// Whether the text that an S3 request's signature is over (`token`, base64url) was signed with the secret.
///
/// # Errors
/// `Missing`, `NotV4`.
pub(super) fn s3_is_signed(secret: &str, request: &Value) -> Result<bool, SignatureError> {
    let sent = text(request, "signature")?;
    let token = text(request, "token")?;
    let signed = URL_SAFE
        .decode(token)
        .or_else(|_| URL_SAFE_NO_PAD.decode(token))
        .map_err(|_| SignatureError::NotV4)?;
    if !signed.starts_with(b"AWS4") {
        return Ok(same(
            sent,
            &STANDARD.encode(hmac_sha1(secret.as_bytes(), &signed)),
        ));
    }
    let whole = std::str::from_utf8(&signed).map_err(|_| SignatureError::NotV4)?;
    let [V4, _, scope, _] = whole.split('\n').collect::<Vec<_>>()[..] else {
        return Err(SignatureError::NotV4);
    };
    let [
        day,
        region,
        service @ ("s3" | "iam" | "sts"),
        "aws4_request",
    ] = scope.split('/').collect::<Vec<_>>()[..]
    else {
        return Err(SignatureError::NotV4);
    };
    let key = key_of_scope(secret, [day, region, service]);
    Ok(same(sent, &hex::encode(hmac_sha256(&key, &signed))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Amazon's own example of version 4 (documentation of IAM, `ListUsers`).
    fn list_users() -> Value {
        json!({
            "host": "iam.amazonaws.com", "verb": "GET", "path": "/",
            "params": {"Action": "ListUsers", "Version": "2010-05-08"},
            "headers": {
                "Host": "iam.amazonaws.com", "X-Amz-Date": "20150830T123600Z",
                "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
                "Authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
                    SignedHeaders=content-type;host;x-amz-date, Signature=x",
            },
            "body_hash": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "signature": "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
        })
    }

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    #[test]
    fn version_4_as_documented() {
        assert_eq!(ec2_is_signed(SECRET, &list_users()), Ok(true));
        assert_eq!(ec2_is_signed("other", &list_users()), Ok(false));
        for (name, value) in [
            ("verb", json!("PUT")),
            ("path", json!("/x")),
            (
                "params",
                json!({"Action": "DeleteUser", "Version": "2010-05-08"}),
            ),
            ("body_hash", json!("00")),
        ] {
            let mut request = list_users();
            request[name] = value;
            assert_eq!(ec2_is_signed(SECRET, &request), Ok(false), "{name}");
        }
        let mut request = list_users();
        request["headers"]["X-Amz-Date"] = "20150831T123600Z".into();
        assert_eq!(ec2_is_signed(SECRET, &request), Err(SignatureError::Date));
        for name in ["verb", "path", "params", "body_hash", "signature"] {
            let mut request = list_users();
            request[name] = json!(5);
            assert!(ec2_is_signed(SECRET, &request).is_err(), "{name}");
        }
    }

    /// The values were made with the official client's `Ec2Signer`.
    #[test]
    fn version_2_as_the_official_signer() {
        let request = json!({
            "host": "example.org:8773", "verb": "GET", "path": "/services/Cloud",
            "params": {"SignatureVersion": "2", "AWSAccessKeyId": "abc", "Action": "Describe Things", "Timestamp": "2026-01-02T03:04:05Z",
                "Filter.1.Value": "a/b~*+\u{e9}"},
            "signature": V2_WITH_PORT,
        });
        assert_eq!(ec2_is_signed("secret-text", &request), Ok(true));
        let mut without = request.clone();
        without["signature"] = V2_WITHOUT_PORT.into();
        assert_eq!(ec2_is_signed("secret-text", &without), Ok(true));
        let mut other = request.clone();
        other["host"] = "example.com:8773".into();
        assert_eq!(ec2_is_signed("secret-text", &other), Ok(false));
        for version in ["0", "1", "3"] {
            let mut other = request.clone();
            other["params"]["SignatureVersion"] = version.into();
            assert_eq!(
                ec2_is_signed("secret-text", &other),
                Err(SignatureError::Version)
            );
        }
    }

    const V2_WITH_PORT: &str = "XHOzqzsn6eIasS5HES1tEgMZVWopPfLdVMYzl7o+m2U=";
    const V2_WITHOUT_PORT: &str = "NJLKWLU3TwQyX1sj/ReYriguIyLRPFzmI/GZ9+33cOg=";

    #[test]
    fn s3_of_both_versions() {
        let request = |signed: &str, signature: &str| json!({"token": URL_SAFE.encode(signed), "signature": signature});
        // Amazon's example of the first version (documentation of S3, object GET).
        let signed =
            "GET\n\n\nTue, 27 Mar 2007 19:36:42 +0000\n/awsexamplebucket1/photos/puppy.jpg";
        let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        assert_eq!(
            s3_is_signed(secret, &request(signed, "qgk2+6Sv9/oM7G3qLEjTH1a1l1g=")),
            Ok(true)
        );
        assert_eq!(s3_is_signed(secret, &request(signed, "x")), Ok(false));
        let scope = "20130524/us-east-1/s3/aws4_request";
        let signed = format!(
            "{V4}\n20130524T000000Z\n{scope}\n7344ae5b7ee6c3e7e6b0fe0640412a37625d1fbfff95c48bbb2dc43964946972"
        );
        let right = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
        assert_eq!(s3_is_signed(secret, &request(&signed, right)), Ok(true));
        assert_eq!(s3_is_signed("other", &request(&signed, right)), Ok(false));
        for bad in [
            format!("{V4}\n20130524T000000Z\n20130524/us-east-1/ec2/aws4_request\nx"),
            format!("{V4}\nx\n{scope}"),
            "AWS4\n".to_owned(),
        ] {
            assert_eq!(
                s3_is_signed(secret, &request(&bad, "x")),
                Err(SignatureError::NotV4),
                "{bad}"
            );
        }
    }
}

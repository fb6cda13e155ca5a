//! What a service that speaks Amazon's protocols shows of a request that a user signed: `$ec2(VERSION SECRET [AGE])` and
//! `$s3(VERSION SECRET [SERVICE])` in a body stand for the attributes of such a request, with its signature.

use anyhow::{Context, Result, bail};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use ring::hmac::{HMAC_SHA256, Key, sign};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::proof::{hmac_sha1, quoted, replaced};

const V4: &str = "AWS4-HMAC-SHA256";
const REGION: &str = "RegionOne";
const HOST: &str = "example.org:8773";
/// Where the services of EC2 listen.
const PATH: &str = "/services/Cloud";

/// Puts the attributes of signed requests in the place of each `$ec2(…)` and `$s3(…)`; `at` in seconds since 1970.
///
/// # Errors
/// If what is in brackets is none of both.
pub(super) fn with_requests(text: &str, at: u64) -> Result<String> {
    let text = replaced(text, "$ec2(", |words| {
        let (version, secret, age) = three(words)?;
        let age = if age.is_empty() { 0 } else { age.parse()? };
        let time = Time::of(at.checked_sub(age).context("an age before 1970")?);
        attributes(match version {
            "4" => ec2_4(secret, &time),
            _ => ec2_2(version, secret, &time),
        })
    })?;
    replaced(&text, "$s3(", |words| {
        let (version, secret, service) = three(words)?;
        let time = Time::of(at);
        attributes(match version {
            "2" => {
                let signed = format!("GET\n\n\n{}\n/bucket/photo", time.long);
                s3(&signed, &s3_2(secret, &signed))
            }
            "4" => {
                let service = if service.is_empty() { "s3" } else { service };
                let hash = hex::encode(Sha256::digest("a request"));
                let (scope, name) = (time.scope(service), &time.short);
                let signed = format!("{V4}\n{name}\n{scope}\n{hash}");
                s3(&signed, &version_4(secret, &scope, &signed))
            }
            _ => bail!("S3 signs by version 2 or 4"),
        })
    })
}

/// Version, secret (empty where a request for one was refused), and what else there is.
fn three(words: &str) -> Result<(&str, &str, &str)> {
    let mut words = words.split(' ');
    let version = words.next().unwrap_or_default();
    let secret = words.next().context("no secret to sign with")?;
    Ok((version, secret, words.next().unwrap_or_default()))
}

/// The attributes of an object, without its brackets.
fn attributes(object: Value) -> Result<String> {
    let text = object.to_string();
    let inner = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'));
    inner.map(str::to_owned).context("no object")
}

/// One moment, as the protocols write it.
struct Time {
    /// `2026-01-02T03:04:05Z`
    long: String,
    /// `20260102T030405Z`
    short: String,
}

impl Time {
    /// Seconds since 1970.
    fn of(at: u64) -> Self {
        let (days, rest) = (at / 86_400, at % 86_400);
        // The calendar in eras of 400 years, which begin with March, so that the day of a leap year is the last one.
        let days = days + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, next) = if month < 10 {
            (month + 3, 0)
        } else {
            (month - 9, 1)
        };
        let year = era * 400 + year + next;
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        Self {
            long: format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"),
            short: format!("{year}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z"),
        }
    }

    /// Day, region and service that a key of version 4 is for.
    fn scope(&self, service: &str) -> String {
        let day = self.short.split('T').next().unwrap_or_default();
        format!("{day}/{REGION}/{service}/aws4_request")
    }
}

fn hmac_sha256(key: &[u8], text: &str) -> Vec<u8> {
    let key = Key::new(HMAC_SHA256, key);
    sign(&key, text.as_bytes()).as_ref().to_vec()
}

/// The query in the order of its names, percent-encoded.
fn query(params: &Map<String, Value>) -> String {
    let mut params: Vec<(&String, &Value)> = params.iter().collect();
    params.sort_unstable_by_key(|(name, _)| *name);
    let pairs = params
        .into_iter()
        .map(|(name, value)| format!("{}={}", quoted(name), quoted(value.as_str().unwrap_or(""))));
    pairs.collect::<Vec<_>>().join("&")
}

/// A signature of version 2; whoever signs says so in the query.
fn version_2(secret: &str, host: &str, path: &str, params: &Map<String, Value>) -> String {
    let mut params = params.clone();
    params.insert("SignatureMethod".into(), "HmacSHA256".into());
    let signed = format!("GET\n{host}\n{path}\n{}", query(&params));
    STANDARD.encode(hmac_sha256(secret.as_bytes(), &signed))
}

/// A signature of version 4 over a text that names its scope.
fn version_4(secret: &str, scope: &str, signed: &str) -> String {
    let start = format!("AWS4{secret}").into_bytes();
    let key = scope
        .split('/')
        .fold(start, |key, part| hmac_sha256(&key, part));
    hex::encode(hmac_sha256(&key, signed))
}

fn ec2_2(version: &str, secret: &str, time: &Time) -> Value {
    let params =
        json!({"Action": "DescribeInstances", "SignatureVersion": version, "Timestamp": time.long});
    let signature = version_2(
        secret,
        HOST,
        PATH,
        params.as_object().unwrap_or(&Map::new()),
    );
    json!({"host": HOST, "verb": "GET", "path": PATH, "params": params, "headers": {}, "body_hash": "", "signature": signature})
}

fn ec2_4(secret: &str, time: &Time) -> Value {
    let (scope, hash) = (time.scope("ec2"), hex::encode(Sha256::digest("")));
    let names = "host;x-amz-date";
    let canonical = format!(
        "GET\n{PATH}\nAction=DescribeInstances\nhost:{HOST}\nx-amz-date:{}\n\n{names}\n{hash}",
        time.short
    );
    let signed = format!(
        "{V4}\n{}\n{scope}\n{}",
        time.short,
        hex::encode(Sha256::digest(canonical))
    );
    let signature = version_4(secret, &scope, &signed);
    let authorization =
        format!("{V4} Credential=key/{scope}, SignedHeaders={names}, Signature={signature}");
    json!({
        "host": HOST, "verb": "GET", "path": PATH, "params": {"Action": "DescribeInstances"}, "body_hash": hash,
        "headers": {"Host": HOST, "X-Amz-Date": time.short, "Authorization": authorization}, "signature": signature,
    })
}

fn s3_2(secret: &str, signed: &str) -> String {
    STANDARD.encode(hmac_sha1(secret.as_bytes(), signed.as_bytes()))
}

fn s3(signed: &str, signature: &str) -> Value {
    json!({"token": URL_SAFE.encode(signed), "signature": signature})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Amazon's examples: S3's first version (object GET), S3's version 4 (GET of an object), IAM's version 4 (`ListUsers`).
    #[test]
    fn signatures_as_documented() {
        let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        let signed =
            "GET\n\n\nTue, 27 Mar 2007 19:36:42 +0000\n/awsexamplebucket1/photos/puppy.jpg";
        assert_eq!(s3_2(secret, signed), "qgk2+6Sv9/oM7G3qLEjTH1a1l1g=");
        let scope = "20130524/us-east-1/s3/aws4_request";
        let hash = "7344ae5b7ee6c3e7e6b0fe0640412a37625d1fbfff95c48bbb2dc43964946972";
        let signed = format!("{V4}\n20130524T000000Z\n{scope}\n{hash}");
        assert_eq!(
            version_4(secret, scope, &signed),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }

    /// Made with the official client's `Ec2Signer`.
    #[test]
    fn version_2_as_the_official_signer() {
        let params = json!({"SignatureVersion": "2", "AWSAccessKeyId": "abc", "Action": "Describe Things",
            "Timestamp": "2026-01-02T03:04:05Z", "Filter.1.Value": "a/b~*+\u{e9}"});
        assert_eq!(
            version_2("secret-text", HOST, PATH, params.as_object().unwrap()),
            "XHOzqzsn6eIasS5HES1tEgMZVWopPfLdVMYzl7o+m2U="
        );
    }

    #[test]
    fn times() {
        let time = Time::of(1_767_323_045);
        assert_eq!(
            (time.long.as_str(), time.short.as_str()),
            ("2026-01-02T03:04:05Z", "20260102T030405Z")
        );
        assert_eq!(Time::of(1_709_164_800).short, "20240229T000000Z");
        assert_eq!(Time::of(1_709_251_200).short, "20240301T000000Z");
        assert_eq!(time.scope("ec2"), "20260102/RegionOne/ec2/aws4_request");
    }

    #[test]
    fn requests_in_a_body() {
        let read = |text: &str| -> Value {
            let text = with_requests(text, 1_767_323_045).unwrap();
            serde_json::from_str(&text).unwrap()
        };
        let body = read(r#"{"credentials": {"access": "a", $ec2(2 secret 5)}}"#);
        let shown = &body["credentials"];
        assert_eq!(shown["params"]["Timestamp"], "2026-01-02T03:04:00Z");
        assert_eq!(
            (&shown["access"], &shown["host"]),
            (&"a".into(), &HOST.into())
        );
        let body = read(r#"{$s3(4 secret sqs)}"#);
        let token = URL_SAFE.decode(body["token"].as_str().unwrap()).unwrap();
        let token = String::from_utf8(token).unwrap();
        assert!(token.contains("/sqs/aws4_request\n"), "{token}");
        // Without a secret, as after a refusal, it is signed all the same.
        assert_ne!(read("{$s3(2 )}")["signature"], Value::Null);
        for bad in [
            "$s3(2)",
            "$s3(3 secret)",
            "$ec2(2 secret old)",
            "$ec2(2 secret",
        ] {
            assert!(with_requests(bad, 1_767_323_045).is_err(), "{bad}");
        }
    }
}

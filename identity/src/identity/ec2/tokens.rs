//! `/v3/ec2tokens` and `/v3/s3tokens`: a service shows a request that a user signed, and learns who it was by a token.

use std::sync::Arc;

use axum::{body::Bytes, extract::State, http::StatusCode};
use serde_json::Value;

use super::{
    id_of_access, keys_of,
    signature::{SignatureError, ec2_is_signed, s3_is_signed},
};
use crate::{
    app::App,
    audit,
    identity::{
        auth::{Failure, Proof, issue, issued, token_body},
        credentials,
        error::{ApiResult, IdentityError},
        support::Caller,
    },
    policy::Target,
    time::{now_us, parse_time},
    token::{AuthContext, Method, TokenScope},
};

/// How old a signed request may be: a quarter of an hour, in microseconds.
const AGE: i64 = 900 * 1_000_000;

type Signed = fn(&str, &Value) -> Result<bool, SignatureError>;

pub(super) async fn ec2(State(app): State<Arc<App>>, caller: Caller, bytes: Bytes) -> ApiResult {
    caller.may(&app, "identity:ec2tokens_validate", &Target::new())?;
    let (context, text) = answered(&app, &bytes, ec2_is_signed).await?;
    let body = token_body(&app, &context, true).await?;
    Ok(issued(StatusCode::OK, &context, body, Some(&text)))
}

/// Without the token itself: who stores objects needs to know who it is, and no more.
pub(super) async fn s3(State(app): State<Arc<App>>, caller: Caller, bytes: Bytes) -> ApiResult {
    caller.may(&app, "identity:s3tokens_validate", &Target::new())?;
    let (context, _) = answered(&app, &bytes, s3_is_signed).await?;
    let body = token_body(&app, &context, true).await?;
    Ok(issued(StatusCode::OK, &context, body, None))
}

async fn answered(
    app: &App,
    bytes: &[u8],
    signed: Signed,
) -> Result<(AuthContext, String), IdentityError> {
    let body: Value = serde_json::from_slice(bytes).map_err(|error| {
        IdentityError::BadRequest(format!("The request body is not valid JSON: {error}."))
    })?;
    if matches!(&body, Value::Object(map) if map.is_empty()) || !body.is_object() {
        return Err(IdentityError::BadRequest(
            "The request body must hold a signed request under the name credentials.".into(),
        ));
    }
    // The names that clients have used over the years.
    let request = ["credentials", "credential", "ec2Credentials"]
        .iter()
        .map(|name| &body[*name])
        .find(|value| value.is_object())
        .unwrap_or(&Value::Null);
    match check(app, request, signed).await {
        Ok(made) => {
            app.metrics.login(true);
            Ok(made)
        }
        Err(failure) => {
            app.metrics.login(false);
            let access = request["access"].as_str().unwrap_or_default();
            let claimed: String = access.chars().take(64).collect();
            audit::failed_login(&format!("EC2 access key {claimed}"), failure.reason);
            Err(failure.error)
        }
    }
}

async fn check(
    app: &App,
    request: &Value,
    signed: Signed,
) -> Result<(AuthContext, String), Failure> {
    let access = request["access"]
        .as_str()
        .ok_or_else(|| Failure::denied("NoSignature"))?;
    let unknown = || Failure {
        reason: "UnknownCredential",
        error: IdentityError::NotFound("EC2 access key", access.chars().take(64).collect()),
    };
    let document = credentials::find(app, &id_of_access(access))
        .await?
        .ok_or_else(unknown)?;
    let keys = keys_of(app, &document)?.ok_or_else(unknown)?;
    let right = signed(&keys.secret, request).map_err(|error| Failure {
        reason: "NoSignature",
        error: match error {
            SignatureError::Date | SignatureError::NotV4 | SignatureError::Missing("signature") => {
                IdentityError::Unauthorized
            }
            other => IdentityError::BadRequest(other.to_string()),
        },
    })?;
    if !right {
        return Err(Failure::denied("WrongSignature"));
    }
    fresh(request)?;
    let (Some(user_id), Some(project_id)) = (&document.user_id, document.project_id) else {
        return Err(unknown());
    };
    let user = app
        .store
        .user(user_id)
        .await?
        .ok_or_else(|| Failure::denied("UnknownUser"))?;
    let proof = Proof::new(user, Method::Ec2Credential);
    let (context, text, _) = issue(app, proof, TokenScope::Project(project_id).into()).await?;
    Ok((context, text))
}

/// Refuses a request that is too old. Who signed none of the times that there are wanted it so.
fn fresh(request: &Value) -> Result<(), Failure> {
    let times = [
        &request["params"]["Timestamp"],
        &request["headers"]["X-Amz-Date"],
        &request["params"]["X-Amz-Date"],
    ];
    let Some(time) = times.iter().find(|time| !time.is_null()) else {
        return Ok(());
    };
    let at = time
        .as_str()
        .and_then(|text| parse_time(&spelt_out(text)))
        .ok_or_else(|| Failure::denied("BadTimestamp"))?;
    if at.saturating_add(AGE) < now_us() {
        return Err(Failure::denied("OldSignature"));
    }
    Ok(())
}

/// `20260102T030405Z` as `2026-01-02T03:04:05Z`; anything else as it is.
fn spelt_out(text: &str) -> String {
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    match text.strip_suffix('Z').and_then(|rest| rest.split_once('T')) {
        Some((day, time)) if day.len() == 8 && time.len() == 6 && digits(day) && digits(time) => {
            format!(
                "{}-{}-{}T{}:{}:{}Z",
                &day[..4],
                &day[4..6],
                &day[6..],
                &time[..2],
                &time[2..4],
                &time[4..]
            )
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_both_protocols() {
        let at = parse_time("2026-01-02T03:04:05Z");
        assert!(at.is_some());
        assert_eq!(parse_time(&spelt_out("20260102T030405Z")), at);
        assert_eq!(parse_time(&spelt_out("2026-01-02T03:04:05Z")), at);
        for bad in ["", "Z", "T", "20260102TZ", "2026010éT030405Z"] {
            assert_eq!(parse_time(&spelt_out(bad)), None, "{bad}");
        }
    }
}

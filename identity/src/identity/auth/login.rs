//! `POST /v3/auth/tokens`: who is it, what for, and the token.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode},
    response::{IntoResponse, Json, Response},
};
use serde_json::Value;

use super::{
    issue::issue,
    methods,
    proof::{Failure, Proof},
    receipt,
    scope::scope,
    token_body::{body_with, token_body},
    totp::totp,
};
use crate::{
    app::App,
    audit::{self, Outcome},
    http::{Base, Query},
    identity::{
        error::{ApiResult, IdentityError},
        fields, oauth1,
    },
    store::users::User,
    token::{AuthContext, Method},
};

/// What a login came to.
enum Login {
    /// A token, and its catalog if that was read already.
    Token(Box<AuthContext>, String, Option<Value>),
    /// These methods were proved, and are not enough for this user.
    NotEnough(User, Vec<Method>),
}

pub(super) async fn login(
    State(app): State<Arc<App>>,
    query: Query,
    base: Base,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    let auth = Value::Object(fields::body(&bytes, "auth")?);
    match attempt(&app, &auth, &headers, &base).await {
        Ok(Login::Token(context, text, catalog)) => {
            app.metrics.login(true);
            let body = match (query.get("nocatalog"), catalog) {
                (None, Some(catalog)) => body_with(&context, Some(catalog)),
                (nocatalog, _) => token_body(&app, &context, nocatalog.is_none()).await?,
            };
            Ok(issued(StatusCode::CREATED, &context, body, Some(&text)))
        }
        Ok(Login::NotEnough(user, methods)) => {
            app.metrics.login(false);
            audit::failed_login(&user.name, "MoreMethodsRequired");
            receipt::answer(&app, &user, methods).await
        }
        Err(failure) => {
            app.metrics.login(false);
            audit::failed_login(&claimed(&auth), failure.reason);
            Err(failure.error)
        }
    }
}

/// The answer with a new token, and its line in the audit trail.
pub(in crate::identity) fn issued(
    status: StatusCode,
    context: &AuthContext,
    body: Value,
    text: Option<&str>,
) -> Response {
    let id = context.payload.audit_ids.first().map_or("", String::as_str);
    audit::record(
        context,
        "authenticate",
        "data/security/token",
        id,
        Outcome::Success,
        "",
    );
    let mut response = (status, Json(body)).into_response();
    if let Some(Ok(value)) = text.map(HeaderValue::from_str) {
        response.headers_mut().insert("X-Subject-Token", value);
    }
    response
}

/// Who the client said it was, for the audit trail.
fn claimed(auth: &Value) -> String {
    let identity = &auth["identity"];
    for user in [
        &identity["password"]["user"],
        &identity["totp"]["user"],
        &identity["application_credential"]["user"],
    ] {
        for name in ["name", "id"] {
            if let Some(text) = user[name].as_str() {
                return text.chars().take(255).collect();
            }
        }
    }
    let id = identity["application_credential"]["id"].as_str();
    id.map(|id| {
        format!(
            "application credential {}",
            id.chars().take(64).collect::<String>()
        )
    })
    .unwrap_or_default()
}

async fn attempt(
    app: &Arc<App>,
    auth: &Value,
    headers: &HeaderMap,
    base: &Base,
) -> Result<Login, Failure> {
    let identity = &auth["identity"];
    let names = identity["methods"]
        .as_array()
        .ok_or_else(|| IdentityError::BadRequest("auth.identity.methods must be a list.".into()))?;
    let mut proof: Option<Proof> = None;
    for name in names {
        let name = name.as_str().ok_or_else(|| {
            IdentityError::BadRequest("auth.identity.methods must be names.".into())
        })?;
        let details = &identity[name];
        let next = match Method::of_login(name) {
            Some(Method::Password) => methods::password(app, details, auth.get("scope")).await?,
            Some(Method::Token) => methods::token(app, details, auth.get("scope")).await?,
            Some(Method::ApplicationCredential) => {
                methods::application_credential(app, details).await?
            }
            Some(Method::Totp) => totp(app, details).await?,
            Some(Method::OAuth1) => oauth1::prove(app, headers, base).await?,
            Some(Method::Ec2Credential) | None => {
                return Err(IdentityError::UnsupportedMethod.into());
            }
        };
        proof = Some(match proof {
            None => next,
            Some(first) => first.and(next)?,
        });
    }
    let mut proof = proof.ok_or_else(|| Failure::denied("NoMethods"))?;
    for method in receipt::shown(app, headers, &proof.user)? {
        if !proof.methods.contains(&method) {
            proof.methods.push(method);
        }
    }
    if !receipt::enough(&proof.user, &proof.methods) {
        // Who could not have a token with whatever more methods is told no more than anybody.
        if !proof.user.enabled {
            return Err(Failure::denied("UserDisabled"));
        }
        return Ok(Login::NotEnough(proof.user, proof.methods));
    }
    let wanted = scope(app, auth.get("scope"), &proof).await?;
    let (context, text, catalog) = issue(app, proof, wanted).await?;
    Ok(Login::Token(Box::new(context), text, catalog))
}

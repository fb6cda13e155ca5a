//! Logins by several methods: a user's rules say which sets of methods are enough, and a receipt keeps what was proved so far, so
//! that the rest can follow in another request (`Openstack-Auth-Receipt`).

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode},
    response::{IntoResponse, Json, Response},
};
use serde_json::json;

use super::proof::Failure;
use crate::{
    app::App,
    http::RECEIPT,
    identity::{error::IdentityError, fields::MFA_RULES},
    store::{json_object, users::User},
    time::{now_us, token_time},
    token::{Method, ReceiptPayload},
};

const LIFETIME: i64 = 300 * 1_000_000;
const ENABLED: &str = "multi_factor_auth_enabled";

/// The methods that a receipt in the request stands for, if there is one.
///
/// # Errors
/// 401 for one that is not ours, is over, or is another user's.
pub(super) fn shown(app: &App, headers: &HeaderMap, user: &User) -> Result<Vec<Method>, Failure> {
    let Some(text) = headers.get(RECEIPT) else {
        return Ok(Vec::new());
    };
    let refused = || Failure::denied("ReceiptRefused");
    let text = text.to_str().map_err(|_| refused())?;
    let receipt = app
        .token_keys()
        .open_receipt(text.trim())
        .map_err(|_| refused())?;
    let good = receipt.user_id == user.id
        && receipt.expires_at > now_us()
        // A new password makes void what the old one proved.
        && receipt.valid_after == user.tokens_valid_after;
    if good {
        Ok(receipt.methods)
    } else {
        Err(refused())
    }
}

/// The user's rules, as far as there are methods for them; none, if the user has none or they are switched off.
fn rules(user: &User) -> Vec<Vec<Method>> {
    let options = json_object(&user.options);
    if options.get(ENABLED).is_some_and(|flag| flag == false) {
        return Vec::new();
    }
    let rules: Vec<Vec<String>> = options
        .get(MFA_RULES)
        .and_then(|rules| serde_json::from_value(rules.clone()).ok())
        .unwrap_or_default();
    rules
        .iter()
        // Methods that do not exist here are left out, and rules of nothing else: nobody is locked out by a slip of the pen.
        .map(|rule| {
            rule.iter()
                .filter_map(|name| Method::of_login(name))
                .collect()
        })
        .filter(|rule: &Vec<Method>| !rule.is_empty())
        .collect()
}

/// Whether these methods are enough for the user.
pub(super) fn enough(user: &User, methods: &[Method]) -> bool {
    let rules = rules(user);
    rules.is_empty()
        || rules
            .iter()
            .any(|rule| rule.iter().all(|method| methods.contains(method)))
}

/// The answer to a login that is not enough: 401 with a receipt and the rules that what was proved is part of.
///
/// # Errors
/// From the store, or if nothing can be sealed.
pub(super) async fn answer(
    app: &App,
    user: &User,
    methods: Vec<Method>,
) -> Result<Response, IdentityError> {
    let issued_at = now_us();
    let receipt = ReceiptPayload {
        user_id: user.id.clone(),
        methods,
        valid_after: user.tokens_valid_after,
        expires_at: issued_at + LIFETIME,
    };
    let names = |methods: &[Method]| -> Vec<&'static str> {
        methods.iter().map(|method| method.as_str()).collect()
    };
    let required: Vec<Vec<&str>> = rules(user)
        .iter()
        .filter(|rule| rule.iter().any(|method| receipt.methods.contains(method)))
        .map(|rule| names(rule))
        .collect();
    let domain = app.store.domain(&user.domain_id).await?;
    let body = json!({
        "receipt": {
            "methods": names(&receipt.methods),
            "user": {
                "id": user.id, "name": user.name,
                "domain": {"id": user.domain_id, "name": domain.map(|domain| domain.name)},
            },
            "expires_at": token_time(receipt.expires_at), "issued_at": token_time(issued_at),
        },
        "required_auth_methods": required,
    });
    let text = app.token_keys().seal_receipt(&receipt)?;
    let mut response = (StatusCode::UNAUTHORIZED, Json(body)).into_response();
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().insert(RECEIPT, value);
    }
    Ok(response)
}

//! The body of a token.

use axum::body::Bytes;
use serde_json::{Value, json};

use crate::{
    app::App,
    identity::error::IdentityError,
    time::token_time,
    token::{AuthContext, Scope},
};

const SECOND: i64 = 1_000_000;

/// What [`token_body`] gives, as bytes; worked out once for each context.
pub(super) async fn told(
    app: &App,
    context: &AuthContext,
    with_catalog: bool,
) -> Result<Bytes, IdentityError> {
    let place = &context.told[usize::from(with_catalog)];
    if let Some(told) = place.get() {
        return Ok(told.clone());
    }
    let body = token_body(app, context, with_catalog).await?;
    let told = Bytes::from(body.to_string());
    Ok(place.get_or_init(|| told).clone())
}

/// Everything that a token says about itself, as `{"token": {…}}`.
pub(in crate::identity) async fn token_body(
    app: &App,
    context: &AuthContext,
    with_catalog: bool,
) -> Result<Value, IdentityError> {
    let catalog = if with_catalog && !matches!(context.scope, Scope::Unscoped) {
        Some(crate::identity::catalog::catalog(app, context.project_id()).await?)
    } else {
        None
    };
    Ok(body_with(context, catalog))
}

/// The same with this catalog.
pub(super) fn body_with(context: &AuthContext, catalog: Option<Value>) -> Value {
    let payload = &context.payload;
    let whole = |us: i64| token_time(us - us.rem_euclid(SECOND));
    let mut token = json!({
        "methods": payload.method_names(),
        "user": {
            "domain": context.user.domain.to_json(), "id": context.user.id, "name": context.user.name,
            "password_expires_at": context.user.password_expires_at.map(crate::time::zoneless_time),
        },
        "audit_ids": payload.audit_ids,
        "expires_at": whole(payload.expires_at),
        "issued_at": whole(payload.issued_at),
    });
    match &context.scope {
        Scope::Unscoped => {}
        Scope::System => token["system"] = json!({"all": true}),
        Scope::Domain(domain) => token["domain"] = domain.to_json(),
        Scope::Project(project, domain) => {
            token["project"] =
                json!({"domain": domain.to_json(), "id": project.id, "name": project.name});
            if context.trust.is_none() {
                token["is_domain"] = false.into();
            }
        }
    }
    if let Some(trust) = &context.trust {
        token["OS-TRUST:trust"] = json!({
            "id": trust.id, "trustor_user": {"id": trust.trustor_id}, "trustee_user": {"id": trust.trustee_id},
            "impersonation": trust.impersonation,
        });
    }
    if !matches!(context.scope, Scope::Unscoped) {
        token["roles"] = context
            .roles
            .iter()
            .map(|role| json!({"id": role.id, "name": role.name}))
            .collect();
        if let Some(catalog) = catalog {
            token["catalog"] = catalog;
        }
    }
    if let Some(access) = &context.access_token {
        token["OS-OAUTH1"] =
            json!({"access_token_id": access.id, "consumer_id": access.consumer_id});
    }
    if let Some(credential) = &context.app_credential {
        let mut shown = json!({
            "id": credential.id, "name": credential.name, "restricted": !credential.unrestricted,
        });
        if !credential.access_rules.is_empty() {
            shown["access_rules"] = credential
                .access_rules
                .iter()
                .map(|rule| json!({"id": rule.id, "service": rule.service, "path": rule.path, "method": rule.method}))
                .collect();
        }
        token["application_credential"] = shown;
    }
    json!({ "token": token })
}

//! The caller of the key manager: a project-scoped token, and what it may do.

use std::sync::Arc;

use axum::{extract::FromRequestParts, http::request::Parts};
use serde_json::json;

use super::{error::KeyManagerError, microversion::Microversion};
use crate::{
    app::App,
    audit::{self, Outcome},
    policy::Target,
    store::{acls::Acl, containers::Container, secrets::Secret},
    token::{AuthContext, TokenError, permits},
};

/// The caller, its project and the version it speaks.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) context: Arc<AuthContext>,
    pub(super) project_id: String,
    pub(super) version: Microversion,
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = KeyManagerError;

    async fn from_request_parts(
        parts: &mut Parts,
        app: &Arc<App>,
    ) -> Result<Self, KeyManagerError> {
        let token = parts
            .headers
            .get("X-Auth-Token")
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
            .ok_or(KeyManagerError::Unauthorized)?;
        let context = app
            .validate(token, false)
            .await
            .map_err(|error| match error {
                TokenError::Store(error) => KeyManagerError::Store(error),
                TokenError::Directory(error) => KeyManagerError::Directory(error),
                _ => KeyManagerError::Unauthorized,
            })?;
        audit::caller(&context);
        if let Some(credential) = &context.app_credential {
            // Access rules name the path below the service's root.
            let path = match parts.uri.path() {
                versioned if versioned.starts_with("/v1") => versioned.to_owned(),
                inner => format!("/v1{inner}"),
            };
            if !permits(
                &credential.access_rules,
                "key-manager",
                parts.method.as_str(),
                &path,
            ) {
                audit::record(
                    &context,
                    "access",
                    "service/security",
                    &path,
                    Outcome::Failure,
                    "AccessRules",
                );
                return Err(KeyManagerError::Unauthorized);
            }
        }
        let project_id = context
            .project_id()
            .ok_or(KeyManagerError::NoProject)?
            .to_owned();
        let version = parts
            .extensions
            .get::<Microversion>()
            .copied()
            .unwrap_or(Microversion(0));
        Ok(Self {
            context,
            project_id,
            version,
        })
    }
}

impl Caller {
    /// Asks the policy about the collection or the caller's own project.
    ///
    /// # Errors
    /// 403.
    pub(super) fn may(&self, app: &App, rule: &'static str) -> Result<(), KeyManagerError> {
        self.ask(app, rule, target(), "")
    }

    /// Asks the policy about one secret. The target is built from stored data only (CVE-2022-3100).
    ///
    /// # Errors
    /// 403.
    pub(super) fn may_secret(
        &self,
        app: &App,
        rule: &'static str,
        secret: &Secret,
        acl: Option<&Acl>,
    ) -> Result<(), KeyManagerError> {
        let target = guarded("secret", &secret.project_id, &secret.creator_id, acl, self);
        self.ask(app, rule, target, &secret.id)
    }

    /// Asks the policy about one container.
    ///
    /// # Errors
    /// 403.
    pub(super) fn may_container(
        &self,
        app: &App,
        rule: &'static str,
        container: &Container,
        acl: Option<&Acl>,
    ) -> Result<(), KeyManagerError> {
        let (project, creator) = (&container.project_id, &container.creator_id);
        let target = guarded("container", project, creator, acl, self);
        self.ask(app, rule, target, &container.id)
    }

    /// Asks the policy about one order of the caller's project.
    ///
    /// # Errors
    /// 403.
    pub(super) fn may_order(
        &self,
        app: &App,
        rule: &'static str,
        id: &str,
        project_id: &str,
    ) -> Result<(), KeyManagerError> {
        self.ask(
            app,
            rule,
            target().text("target.order.project_id", project_id),
            id,
        )
    }

    fn ask(
        &self,
        app: &App,
        rule: &'static str,
        target: Target,
        id: &str,
    ) -> Result<(), KeyManagerError> {
        if app.key_policy.authorize(rule, &target, &self.context.creds) {
            return Ok(());
        }
        let what = format!("{rule} {id}");
        audit::record(
            &self.context,
            "authorize",
            "service/security/policy",
            what.trim(),
            Outcome::Failure,
            "PolicyRefused",
        );
        Err(KeyManagerError::Policy(rule))
    }

    /// Whether this version of the API shows who uses a secret.
    pub(super) fn knows_consumers(&self) -> bool {
        self.version.0 >= 1
    }

    /// Writes an audit line about a success.
    pub(super) fn audit(&self, action: &str, kind: &str, id: &str) {
        audit::record(&self.context, action, kind, id, Outcome::Success, "");
    }
}

fn target() -> Target {
    Target::new().with("enforce_new_defaults", &json!(true))
}

/// The target for an object that has an access list. Without one, the project's members have access.
fn guarded(
    kind: &str,
    project_id: &str,
    creator_id: &str,
    acl: Option<&Acl>,
    caller: &Caller,
) -> Target {
    let shared = acl.is_none_or(|acl| acl.project_access);
    let target = target()
        .text(&format!("target.{kind}.project_id"), project_id)
        .text(&format!("target.{kind}.creator_id"), creator_id)
        .with(
            &format!("target.{kind}.read_project_access"),
            &json!(shared),
        );
    if acl.is_some_and(|acl| acl.users.contains(&caller.context.user.id)) {
        return target.text(&format!("target.{kind}.read"), "read");
    }
    target
}

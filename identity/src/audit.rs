//! The audit trail: one line for every login and every change or read of something that matters, in the
//! terms of CADF (action, outcome, initiator, target). Never a secret, a password or a token.

use std::{cell::RefCell, sync::Arc};

use axum::http::{Method, StatusCode};

use crate::token::{AuthContext, Scope};

/// What is known of the running request.
#[derive(Default)]
struct Running {
    caller: Option<Arc<AuthContext>>,
    recorded: bool,
}

tokio::task_local! {
    static RUNNING: RefCell<Running>;
}

/// Runs a request. A change that succeeded and that its handler did not record is recorded here, by its path: no
/// act is missing from the trail because somebody forgot a line.
pub async fn watch<T>(
    method: &Method,
    path: &str,
    status: impl Fn(&T) -> StatusCode,
    request: impl Future<Output = T>,
) -> T {
    let watched = async {
        let answer = request.await;
        let (caller, recorded) = RUNNING.with(|running| {
            let mut running = running.borrow_mut();
            (running.caller.take(), running.recorded)
        });
        if let Some(caller) = caller
            && !recorded
            && status(&answer).is_success()
            && let Some(action) = action(method)
        {
            let what: String = path.chars().take(255).collect();
            record(&caller, action, "service", &what, Outcome::Success, "");
        }
        answer
    };
    RUNNING.scope(RefCell::default(), watched).await
}

/// The verb for a method that changes something.
fn action(method: &Method) -> Option<&'static str> {
    match *method {
        Method::POST => Some("create"),
        Method::PUT | Method::PATCH => Some("update"),
        Method::DELETE => Some("delete"),
        _ => None,
    }
}

/// Remembers who makes the running request.
pub fn caller(context: &Arc<AuthContext>) {
    // Outside of a request there is nothing to remember it for.
    let _ = RUNNING.try_with(|running| running.borrow_mut().caller = Some(Arc::clone(context)));
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Success,
    /// Refused or failed.
    Failure,
}

/// One line about an action of a known caller. `action` is a verb of CADF (`create`, `read`, `delete`,
/// `update`, `authenticate`, …), `kind` the type of the target.
pub fn record(
    caller: &AuthContext,
    action: &str,
    kind: &str,
    target_id: &str,
    outcome: Outcome,
    reason: &str,
) {
    let (scope_type, scope_id) = match &caller.scope {
        Scope::Unscoped => ("none", ""),
        Scope::System => ("system", "all"),
        Scope::Domain(domain) => ("domain", domain.id.as_str()),
        Scope::Project(project, _) => ("project", project.id.as_str()),
    };
    let credential = caller
        .app_credential
        .as_ref()
        .map_or("", |credential| credential.id.as_str());
    let access_token = caller
        .access_token
        .as_ref()
        .map_or("", |token| token.id.as_str());
    // Who logged in is in the trail even where a trust makes it appear as somebody else.
    let (trust, trustee) = caller.trust.as_ref().map_or(("", ""), |trust| {
        (trust.id.as_str(), trust.trustee_id.as_str())
    });
    write(&Line {
        action,
        outcome,
        reason,
        user_id: &caller.user.id,
        user_name: &caller.user.name,
        credential,
        access_token,
        trust,
        trustee,
        scope_type,
        scope_id,
        kind,
        target_id,
    });
}

/// One line about what a program did that showed nothing but its own signature (OAuth1).
pub fn by_consumer(consumer_id: &str, action: &str, kind: &str, target_id: &str) {
    write(&Line {
        action,
        outcome: Outcome::Success,
        reason: "",
        user_id: "",
        user_name: &format!("OAuth1 consumer {consumer_id}"),
        credential: "",
        access_token: "",
        trust: "",
        trustee: "",
        scope_type: "none",
        scope_id: "",
        kind,
        target_id,
    });
}

/// One line about a login that failed: only what the client claimed is known.
pub fn failed_login(claimed_user: &str, reason: &str) {
    write(&Line {
        action: "authenticate",
        outcome: Outcome::Failure,
        reason,
        user_id: "",
        user_name: claimed_user,
        credential: "",
        access_token: "",
        trust: "",
        trustee: "",
        scope_type: "none",
        scope_id: "",
        kind: "service/security/identity/token",
        target_id: "",
    });
}

/// One line about the lock-out of a user.
pub fn locked_out(user_id: &str, user_name: &str, failures: u32) {
    write(&Line {
        action: "disable",
        outcome: Outcome::Success,
        reason: &format!("LockedOut: {failures} failed logins"),
        user_id: "",
        user_name: "",
        credential: "",
        access_token: "",
        trust: "",
        trustee: "",
        scope_type: "none",
        scope_id: "",
        kind: "data/security/account/user",
        target_id: &format!("{user_id} {user_name}"),
    });
}

struct Line<'a> {
    action: &'a str,
    outcome: Outcome,
    reason: &'a str,
    user_id: &'a str,
    user_name: &'a str,
    credential: &'a str,
    access_token: &'a str,
    trust: &'a str,
    trustee: &'a str,
    scope_type: &'a str,
    scope_id: &'a str,
    kind: &'a str,
    target_id: &'a str,
}

fn write(line: &Line<'_>) {
    let _ = RUNNING.try_with(|running| running.borrow_mut().recorded = true);
    let outcome = match line.outcome {
        Outcome::Success => "success",
        Outcome::Failure => "failure",
    };
    tracing::info!(
        target: crate::log::AUDIT,
        event_type_uri = "http://schemas.dmtf.org/cloud/audit/1.0/event",
        event_id = %crate::ids::key_manager_id(),
        event_time = %crate::time::token_time(crate::time::now_us()),
        action = line.action,
        outcome = outcome,
        reason = line.reason,
        initiator_user_id = line.user_id,
        initiator_user_name = line.user_name,
        initiator_application_credential_id = line.credential,
        initiator_access_token_id = line.access_token,
        initiator_trust_id = line.trust,
        initiator_trustee_user_id = line.trustee,
        initiator_scope_type = line.scope_type,
        initiator_scope_id = line.scope_id,
        target_type_uri = line.kind,
        target_id = line.target_id,
        "audit"
    );
}

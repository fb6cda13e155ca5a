//! KeyServices: whether they answer, and which versions. Asked every minute, written only when the answer changes.

use std::{sync::Arc, time::Duration};

use cryptvol_crds::{
    KeyService,
    conditions::{Is, READY, Reason, set},
    names,
    v1alpha1::KeyServiceStatus,
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::Notify;

use crate::{
    context::Context,
    keymanager::{KeyError, barbican, identity},
};

/// How often services are asked when all of them answer.
const LOOK: Duration = Duration::from_secs(60);
/// How soon one that did not answer is asked again; the time doubles up to `LOOK`.
const SOON: Duration = Duration::from_secs(2);

/// What a service answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Identity version, or why there is no answer.
    pub identity: Result<Option<String>, KeyError>,
    /// Key-manager version; none where its address is not known without a login, or it does not say.
    pub key_manager: Result<Option<String>, KeyError>,
}

/// The status after a probe.
pub fn status(service: &KeyService, probe: &Probe, now: Timestamp) -> KeyServiceStatus {
    let mut status = service.status.clone().unwrap_or_default();
    let generation = service.metadata.generation;
    status.observed_generation = generation;
    let before = status.clone();
    match (&probe.identity, &probe.key_manager) {
        (Ok(identity), Ok(key_manager)) => {
            status.identity_version.clone_from(identity);
            if key_manager.is_some() {
                status.key_manager_version.clone_from(key_manager);
            }
            set(
                &mut status.conditions,
                READY,
                Is::True,
                Reason::AsDesired,
                "the service answers",
                generation,
                now,
            );
        }
        (Err(e), _) | (_, Err(e)) => {
            set(
                &mut status.conditions,
                READY,
                Is::False,
                e.reason(),
                &e.to_string(),
                generation,
                now,
            );
        }
    }
    if status != before {
        status.last_transition = Some(Time(now));
    }
    status
}

/// Asks all services, for ever, and at once when one of them changes.
pub async fn run(ctx: Arc<Context>, changed: Arc<Notify>) {
    let _ = ctx.stores.key_services.0.wait_until_ready().await;
    let mut soon = SOON;
    loop {
        let mut all_answer = true;
        for service in ctx.stores.key_services.all() {
            let probe = probe(&ctx, &service).await;
            all_answer &= probe.identity.is_ok() && probe.key_manager.is_ok();
            let now = crate::volume::effects::now();
            let status = status(&service, &probe, now);
            if service.status.as_ref() != Some(&status)
                && let Err(e) = write(&ctx, &service, &status).await
            {
                tracing::warn!(key_service = %service.name_any(), error = %e, "status not written");
            }
        }
        let pause = if all_answer { LOOK } else { soon };
        soon = if all_answer { SOON } else { LOOK.min(soon * 2) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = changed.notified() => {}
        }
    }
}

async fn probe(ctx: &Context, service: &KeyService) -> Probe {
    let http = match ctx.tenants.sessions.http(service) {
        Ok(http) => http,
        Err(e) => {
            return Probe {
                identity: Err(e),
                key_manager: Ok(None),
            };
        }
    };
    let identity = identity::version(&http, &service.spec.auth_url).await;
    let key_manager = match ctx.tenants.sessions.key_manager_url(service) {
        Some(url) if identity.is_ok() => barbican::version(&http, &url).await,
        _ => Ok(None),
    };
    Probe {
        identity,
        key_manager,
    }
}

async fn write(
    ctx: &Context,
    service: &KeyService,
    status: &KeyServiceStatus,
) -> Result<(), kube::Error> {
    let patch = json!({
        "apiVersion": KeyService::api_version(&()),
        "kind": KeyService::kind(&()),
        "metadata": {"name": service.name_any(), "uid": service.uid()},
        "status": status,
    });
    ctx.metrics.writes.inc();
    Api::<KeyService>::all(ctx.client.clone())
        .patch_status(
            &service.name_any(),
            &PatchParams::apply(names::OPERATOR_MANAGER).force(),
            &Patch::Apply(patch),
        )
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptvol_crds::conditions::{get, is_true};

    #[test]
    fn the_status_changes_only_with_the_answer() {
        let spec = serde_json::from_value(json!({"authUrl": "https://k/v3"})).unwrap();
        let mut service = KeyService::new("k", spec);
        let at = |s| Timestamp::from_second(s).unwrap();
        let good = Probe {
            identity: Ok(Some("v3.14".into())),
            key_manager: Ok(Some("1.2".into())),
        };
        let first = status(&service, &good, at(1));
        assert!(is_true(&first.conditions, READY));
        assert_eq!(first.key_manager_version.as_deref(), Some("1.2"));
        service.status = Some(first.clone());
        assert_eq!(
            status(&service, &good, at(2)),
            first,
            "no write for the same answer"
        );
        let bad = Probe {
            identity: Err(KeyError::Unreachable {
                url: "https://k".into(),
                why: "refused".into(),
            }),
            key_manager: Ok(None),
        };
        let down = status(&service, &bad, at(3));
        let ready = get(&down.conditions, READY).unwrap();
        assert_eq!(
            (ready.status.as_str(), ready.reason.as_str()),
            ("False", "KeyServiceUnavailable")
        );
        assert_eq!(down.last_transition, Some(Time(at(3))));
        assert_eq!(
            down.identity_version.as_deref(),
            Some("v3.14"),
            "what was known stays"
        );
    }
}

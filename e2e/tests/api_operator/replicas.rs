//! Two replicas: one leads, both release keys, and a crash of either changes nothing for a volume.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cryptvol_crds::names;
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::system::SYSTEM;
use cryptvol_e2e::volumes::PATIENCE;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::ground::{Ground, request_id};

impl Ground {
    /// Who holds the lease; nobody, before the first one took it and after it was given back.
    async fn leader(&self) -> Result<String> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), SYSTEM);
        let spec = api
            .get_opt(names::OPERATOR_LEASE)
            .await?
            .and_then(|lease| lease.spec);
        Ok(spec.and_then(|s| s.holder_identity).unwrap_or_default())
    }

    async fn led_by(&self, pod: &str, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        while !self.leader().await?.starts_with(pod) {
            ensure!(
                begun.elapsed() < limit,
                "led by {} after {limit:?}",
                self.leader().await?
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

#[tokio::test]
async fn one_leads_and_each_releases() -> Result<()> {
    let mut ground = Ground::start("operator-replicas").await?;
    let mut first = ground.operator("replica-a").await?;
    ground.led_by("replica-a", PATIENCE).await?;
    let second = ground.operator("replica-b").await?;
    ground.apply(&ground.volume("v", 1, &json!({}))).await?;
    let nv = ground.handed_over("v", "node-1", |_| true).await?;
    let token = ground
        .agent_token("node-1", Some(names::KEY_RELEASE_AUDIENCE))
        .await?;
    for replica in [&first, &second] {
        let (code, _) = ground
            .ask(replica, &token, &nv, "Passphrase", &request_id())
            .await?;
        assert_eq!(code, 200);
    }

    // A crash: the other leads when the lease is over, and not before.
    first.daemon.kill()?;
    let begun = Instant::now();
    ground.led_by("replica-b", PATIENCE).await?;
    ensure!(
        begun.elapsed() > Duration::from_secs(15),
        "taken from a living holder"
    );
    ground.apply(&ground.volume("w", 2, &json!({}))).await?;
    ground.handed_over("w", "node-1", |_| true).await?;

    // The API server away for longer than the lease: the leader ends, for it cannot know who leads.
    ground.plane.stop_api_server()?;
    let begun = Instant::now();
    while second.daemon.is_running() {
        ensure!(begun.elapsed() < PATIENCE, "leads on without a lease");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ground.plane.start_api_server().await?;

    // An orderly end gives the lease back before the process is gone: the next one need not wait for it to run out.
    let third = ground.operator("replica-c").await?;
    ground.led_by("replica-c", PATIENCE).await?;
    let fourth = ground.operator("replica-d").await?;
    third.daemon.signal(Signal::SIGTERM)?;
    wait_for(
        "replica-c to end",
        PATIENCE,
        || async { Ok((!third.daemon.is_running()).then_some(())) },
        || third.daemon.log_tail(20),
    )
    .await?;
    let holder = ground.leader().await?;
    ensure!(
        !holder.starts_with("replica-c"),
        "{holder} ended and kept the lease"
    );
    ground.led_by("replica-d", PATIENCE).await?;
    let keys = ground.keystone.secrets(&ground.tenant).await?;
    assert_eq!(keys.len(), 2, "one key a volume, whoever led: {keys:?}");
    fourth.daemon.check()?;
    ground.work.passed()
}

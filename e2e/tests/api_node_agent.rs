//! The node agent against a real API server: what it reports, how often it writes, restarts, and objects made anew. The
//! machine's own device-mapper is hidden from it, so that it finds the node unfit everywhere and touches nothing.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::NodeVolume;
use cryptvol_e2e::audit_log::AuditEvent;
use cryptvol_e2e::control_plane::{ControlPlane, Options};
use cryptvol_e2e::identity_service::product_binary;
use cryptvol_e2e::parts::{Parts, Set};
use cryptvol_e2e::process::{Daemon, free_port, wait_for};
use cryptvol_e2e::volumes::PATIENCE;
use cryptvol_e2e::workdir::WorkDir;
use kube::{Api, CustomResourceExt};
use serde_json::{Value, json};

const UID: &str = "00000000-0000-4000-8000-000000000001";

/// An empty `/dev/mapper` in which nothing can be made, then the program and its arguments.
const WITHOUT_DEVICE_MAPPER: &str =
    "mkdir -p /dev/mapper && mount -t tmpfs -o ro tmpfs /dev/mapper && exec \"$0\" \"$@\"";

fn node_volume(name: &str, node: &str, desired: &str) -> Value {
    json!({
        "apiVersion": "cryptvol.dev/v1alpha1", "kind": "NodeVolume",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeName": node,
            "volumeRef": {"name": name, "uid": UID},
            "desired": desired,
            "source": {"iscsi": {"portals": ["192.0.2.1:3260"], "iqn": "iqn.2026-11.dev.cryptvol:none", "lun": 1}},
            "encryption": {},
            "luksUuid": UID,
            "link": format!("/dev/cryptvol/default/{name}"),
        },
    })
}

struct Ground {
    plane: ControlPlane,
    volumes: Api<NodeVolume>,
    work: WorkDir,
    node: String,
}

impl Ground {
    async fn start() -> Result<Self> {
        let work = WorkDir::new("node-agent")?;
        let parts = Parts::locate(Set::ControlPlane)?;
        let plane =
            ControlPlane::start(&work.dir("control-plane")?, &parts, Options::default()).await?;
        plane
            .apply(&serde_json::to_string(&NodeVolume::crd())?)
            .await?;
        // `kubectl wait` fails on an object that has no conditions yet.
        let served = async || {
            let list = ["get", "nodevolumes", "--all-namespaces"];
            Ok(plane.kubectl(&list).await.ok())
        };
        wait_for("NodeVolumes", PATIENCE, served, String::new).await?;
        // Agents of one node exclude each other on a machine, so each run of this test has a node of its own.
        let node = format!("node-{}", std::process::id());
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
        plane.apply(&object.to_string()).await?;
        Ok(Self {
            volumes: Api::namespaced(plane.client()?, "default"),
            plane,
            work,
            node,
        })
    }

    fn agent(&self, name: &str) -> Result<Daemon> {
        let mut command = Command::new("unshare");
        let admin = format!("127.0.0.1:{}", free_port()?);
        command
            .args(["--mount", "sh", "-c", WITHOUT_DEVICE_MAPPER])
            .arg(product_binary("cryptvol-node-agent")?)
            .args(["run", "--node-name", &self.node, "--admin-listen", &admin])
            .args([
                "--release-url",
                "https://127.0.0.1:1",
                "--token-file",
                "/dev/null",
            ])
            .env(
                "KUBECONFIG",
                self.plane
                    .write_kubeconfig("agent", "agent", &["system:masters"])?,
            );
        Daemon::spawn(&self.work.dir(name)?, name, command)
    }

    /// Waits until the status of a volume is as it should be.
    async fn status(&self, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let seen = async || {
            let volume = self.volumes.get(name).await.ok()?;
            let generation = volume.metadata.generation;
            let status = serde_json::to_value(volume.status?).ok()?;
            (status["observedGeneration"].as_i64() == generation && is(&status)).then_some(status)
        };
        for _ in 0..1200 {
            if let Some(status) = seen().await {
                return Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let found = self.volumes.get(name).await?.status;
        anyhow::bail!("{name} is not {what}: {found:?}")
    }

    /// What the agent wrote since then, when it has come to rest: the API server notes a request after it was answered.
    async fn writes_since(&self, mark: u64) -> Result<Vec<String>> {
        let by_agent = |e: &AuditEvent| e.user.username == "agent" && e.is_write();
        let log = self.plane.audit_log();
        log.quiet(by_agent).await?;
        let events = log.since(mark)?;
        let writes = events.iter().filter(|e| by_agent(e));
        Ok(writes
            .map(|e| format!("{} {}", e.verb, e.resource()))
            .collect())
    }
}

fn is_detached(status: &Value) -> bool {
    status["stage"] == "Detached" && status["error"].is_null()
}

#[tokio::test]
async fn the_agent_reports_once_and_then_is_silent() -> Result<()> {
    let mut ground = Ground::start().await?;
    ground
        .plane
        .apply(&node_volume("here", &ground.node, "Detached").to_string())
        .await?;
    ground
        .plane
        .apply(&node_volume("there", "another-node", "Detached").to_string())
        .await?;
    let mut agent = ground.agent("agent")?;
    ground.status("here", "detached", is_detached).await?;
    ensure!(
        ground.volumes.get("there").await?.status.is_none(),
        "another node's volume was written"
    );

    // The node's condition, and what it means for a volume.
    let condition = wait_for(
        "the node's condition",
        PATIENCE,
        async || {
            let path = "-o=jsonpath={.status.conditions[?(@.type==\"CryptvolReady\")].status}";
            let out = ground
                .plane
                .kubectl(&["get", "node", &ground.node, path])
                .await?;
            Ok((!out.is_empty()).then_some(out))
        },
        || agent.log_tail(20),
    )
    .await?;
    ensure!(condition == "False", "{condition}");
    ground
        .plane
        .apply(&node_volume("unfit", &ground.node, "Attached").to_string())
        .await?;
    let status = ground
        .status("unfit", "unfit", |s| s["error"]["reason"] == "NodeUnfit")
        .await?;
    let message = status["error"]["message"].as_str().context("a message")?;
    ensure!(
        message.contains("lacks device-mapper, dm-crypt")
            && message.contains("kubectl describe node"),
        "{message}"
    );
    // What is no error any more goes from the status.
    ground
        .plane
        .apply(&node_volume("unfit", &ground.node, "Detached").to_string())
        .await?;
    ground.status("unfit", "detached", is_detached).await?;

    // Idle: nothing is written, not even now and then.
    let mark = ground
        .plane
        .audit_log()
        .quiet(|e| e.user.username == "agent" && e.is_write())
        .await?;
    tokio::time::sleep(Duration::from_secs(25)).await;
    let writes = ground.writes_since(mark).await?;
    // An unfit node is looked at every 20 s, and still not written.
    ensure!(writes.is_empty(), "an idle agent wrote: {writes:?}");

    // Made anew under the same name: another object, another report, one write.
    let mark = ground.plane.audit_log().mark()?;
    ground
        .plane
        .kubectl(&["delete", "nodevolume", "here"])
        .await?;
    ground
        .plane
        .apply(&node_volume("here", &ground.node, "Detached").to_string())
        .await?;
    ground.status("here", "detached", is_detached).await?;
    let writes = ground.writes_since(mark).await?;
    ensure!(writes == ["patch nodevolumes/status"], "{writes:?}");

    // The API server away and back: the watch goes on.
    ground.plane.stop_api_server()?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ground.plane.start_api_server().await?;
    ground
        .plane
        .apply(&node_volume("later", &ground.node, "Detached").to_string())
        .await?;
    ground.status("later", "detached", is_detached).await?;

    // A second agent of the same node waits for the first, which ends at once when asked.
    let mut second = ground.agent("second")?;
    wait_for(
        "the second agent to wait",
        PATIENCE,
        async || {
            Ok(second
                .log_tail(5)
                .contains("another agent runs")
                .then_some(()))
        },
        || second.log_tail(5),
    )
    .await?;
    let rss = resident(agent.pid())?;
    agent.signal(nix::sys::signal::Signal::SIGTERM)?;
    wait_for(
        "the end of the agent",
        PATIENCE,
        async || Ok((!agent.is_running()).then_some(())),
        || agent.log_tail(10),
    )
    .await?;
    let mark = ground.plane.audit_log().mark()?;
    ground
        .plane
        .apply(&node_volume("last", &ground.node, "Detached").to_string())
        .await?;
    ground.status("last", "detached", is_detached).await?;
    let writes = ground.writes_since(mark).await?;
    ensure!(
        writes == ["patch nodevolumes/status"],
        "a restart writes: {writes:?}"
    );
    println!("agent: {rss} KiB resident");
    ensure!(
        cfg!(debug_assertions) || rss < 30 << 10,
        "{rss} KiB resident"
    );
    second.kill()?;
    agent.kill()?;
    ground.work.passed()
}

/// Resident memory in KiB.
fn resident(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|l| l.starts_with("VmRSS:"))
        .context("VmRSS")?;
    Ok(line
        .split_whitespace()
        .nth(1)
        .context("a number")?
        .parse()?)
}

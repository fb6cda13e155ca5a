//! The charts on kind, the second ground. What a volume does there is up to the machine's kernel.

mod whole;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cryptvol_e2e::identity_service::product_binary;
use cryptvol_e2e::images;
use cryptvol_e2e::keystone::Keystone;
use cryptvol_e2e::kind::initiator::Initiator;
use cryptvol_e2e::kind::machine::{Kernel, Settings};
use cryptvol_e2e::kind::{Kind, KindSpec};
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::release::NAMESPACE as SYSTEM;
use cryptvol_e2e::workdir::{WorkDir, workspace_root};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(90);

#[tokio::test]
async fn on_kind_the_charts_install_and_a_volume_goes_as_far_as_the_kernel_can() -> Result<()> {
    let work = WorkDir::new("kind")?;
    let before = Settings::read();
    let images = product_images(&work)?;
    let kind = Kind::start(work.path(), KindSpec::default()).await?;
    let initiator = Initiator::ensure(work.path(), kind.kernel()).await?;
    let clock = Instant::now();
    let told = |what: &str| eprintln!("{what}: {:.1} s after kind", clock.elapsed().as_secs_f32());

    for image in &images {
        kind.load(image).await?;
    }
    told("images loaded");
    install(&kind).await?;
    told("operator, identity service and agent are ready");
    let node = kind.control_plane();
    let verdict = verdict(&kind, &node).await?;
    told("the agent looked at its node");
    let (keystone, _forward) = whole::identity(&kind, work.path()).await?;
    if initiator.is_some() {
        assert!(
            matches!(verdict, Verdict::Fit),
            "this machine has all that is needed, and the agent says otherwise: {verdict:?}"
        );
    }
    match &verdict {
        Verdict::Fit => {
            eprintln!("RAN: the whole scenario, because the agent finds this machine's kernel fit");
            whole::scenario(&kind, &keystone, &node, work.path()).await?;
        }
        Verdict::Unfit(why) => {
            eprintln!(
                "RAN: the refusal, because the agent finds this machine's kernel unfit: {why}"
            );
            agrees(why, kind.kernel());
            apply_volume(&kind, &keystone, &node).await?;
            refused(&kind, &node, why).await?;
        }
    }
    told("the volume went as far as it can");
    bad_volumes_are_refused(&kind, &node).await?;
    told("done");

    kind.stop()?;
    // The kernel of the nodes is this machine's.
    assert_eq!(Settings::read(), before);
    work.passed()
}

/// What the agent itself says about its node.
#[derive(Debug)]
enum Verdict {
    Fit,
    Unfit(String),
}

/// Made anew from the programs, which takes two seconds.
fn product_images(work: &WorkDir) -> Result<Vec<PathBuf>> {
    let operator = product_binary("cryptvol-operator")?;
    let bin = operator.parent().context("no folder of programs")?;
    let made = images::build(bin, &work.dir("images")?)?;
    Ok(made.into_iter().map(|image| image.archive).collect())
}

async fn install(kind: &Kind) -> Result<()> {
    let root = workspace_root();
    let text = |path: &Path| -> Result<String> { Ok(path.to_str().context("a path")?.to_owned()) };
    let crds = text(&root.join("charts/cryptvol-crds"))?;
    let chart = text(&root.join("charts/cryptvol"))?;
    let values = text(&root.join("e2e/assets/kind/values.yaml"))?;
    let namespace = [
        "--namespace",
        SYSTEM,
        "--create-namespace",
        "--wait",
        "--timeout",
        "180s",
    ];
    kind.helm(&[&["install", "cryptvol-crds", &crds][..], &namespace].concat())
        .await?;
    let installed = kind
        .helm(
            &[
                &["install", "cryptvol", &chart, "--values", &values][..],
                &namespace,
            ]
            .concat(),
        )
        .await;
    if let Err(error) = installed {
        return Err(error.context(kind.explain(SYSTEM).await));
    }
    // `--wait` means Ready; said once more, by name, because this is what the chart promises.
    for what in [
        "deployment/cryptvol-operator",
        "daemonset/cryptvol-node-agent",
    ] {
        kind.kubectl(&["-n", SYSTEM, "rollout", "status", what, "--timeout=60s"])
            .await?;
    }
    let pods = kind.get(&["pods", "-n", SYSTEM]).await?;
    let ready = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array();
        conditions.is_some_and(|all| {
            all.iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
    };
    let ready: Vec<String> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| ready(pod))
        .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    for name in [
        "cryptvol-operator",
        "cryptvol-identity",
        "cryptvol-node-agent",
    ] {
        assert!(
            ready.iter().any(|pod| pod.starts_with(name)),
            "{name} among {ready:?}"
        );
    }
    Ok(())
}

async fn verdict(kind: &Kind, node: &str) -> Result<Verdict> {
    let condition = wait_for(
        "the agent's verdict on its node",
        LIMIT,
        || async {
            let node = kind.get(&["node", node]).await?;
            Ok(condition(&node, "CryptvolReady").filter(|c| c["status"] != "Unknown"))
        },
        String::new,
    )
    .await;
    let condition = match condition {
        Ok(condition) => condition,
        Err(error) => return Err(error.context(kind.explain(SYSTEM).await)),
    };
    if condition["status"] == "True" {
        return Ok(Verdict::Fit);
    }
    assert_eq!(condition["reason"], "NodeUnfit", "{condition}");
    let message = condition["message"].as_str().context("a message")?;
    Ok(Verdict::Unfit(message.to_owned()))
}

/// The agent's own check must name what the harness knows to be missing, with the next step, and nothing that is there.
fn agrees(why: &str, kernel: Kernel) {
    assert_eq!(
        why.contains("device-mapper: "),
        !kernel.device_mapper,
        "{kernel:?}, but: {why}"
    );
    assert_eq!(
        why.contains("iscsi-tcp: "),
        !kernel.iscsi,
        "{kernel:?}, but: {why}"
    );
    if !kernel.device_mapper {
        assert!(why.contains("modprobe dm_mod"), "{why}");
    }
    if !kernel.iscsi {
        assert!(why.contains("modprobe iscsi_tcp"), "{why}");
    }
}

async fn apply_volume(kind: &Kind, keystone: &Keystone, node: &str) -> Result<()> {
    let tenant = keystone.tenant("demo", "member").await?;
    kind.kubectl(&["create", "namespace", "demo"]).await?;
    let credentials = tenant.secret_manifest("demo", "keystone", &tenant.clouds_yaml());
    kind.apply(&credentials.to_string()).await?;
    kind.apply(&volume("db-0", node).to_string()).await?;
    Ok(())
}

fn volume(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptedVolume",
        "metadata": {"name": name, "namespace": "demo"},
        "spec": {
            "source": {"iscsi": {"portals": ["192.0.2.1:3260"], "iqn": "iqn.2026-11.dev.cryptvol:db-0", "lun": 1}},
            "credentials": {"secretName": "keystone", "cloudName": "demo"},
            "attachments": [{"nodeName": node}],
        },
    })
}

/// The volume stops, says what is missing and what to do, and goes when it is deleted.
async fn refused(kind: &Kind, node: &str, why: &str) -> Result<()> {
    let stopped = wait_for(
        "the volume to stop",
        LIMIT,
        || async {
            let volume = kind.get(&["encryptedvolume", "-n", "demo", "db-0"]).await?;
            Ok(condition(&volume, "Ready").filter(|c| c["reason"] == "NodeUnfit"))
        },
        String::new,
    )
    .await;
    let stopped = match stopped {
        Ok(condition) => condition,
        Err(error) => {
            let volume = kind.get(&["encryptedvolume", "-n", "demo", "db-0"]).await?;
            return Err(error.context(format!("{volume:#}\n{}", kind.explain(SYSTEM).await)));
        }
    };
    assert_eq!(stopped["status"], "False");
    let message = stopped["message"].as_str().unwrap_or_default();
    eprintln!("the volume says: {message}");
    assert!(message.contains(node), "{message}");
    // The first thing that is missing, and the step that mends it.
    let first = why.split(". ").next().unwrap_or_default();
    assert!(
        message.contains(first) && message.contains("modprobe"),
        "{first:?} in {message:?}"
    );

    kind.kubectl(&[
        "delete",
        "encryptedvolume",
        "-n",
        "demo",
        "db-0",
        "--timeout=60s",
    ])
    .await?;
    Ok(())
}

/// Admission is the API server's: it works on every ground.
async fn bad_volumes_are_refused(kind: &Kind, node: &str) -> Result<()> {
    let mut two = volume("two-sources", node);
    two["spec"]["source"]["device"] = json!({"path": "/dev/sdz"});
    let mut far = volume("far-lun", node);
    far["spec"]["source"]["iscsi"]["lun"] = json!(16384);
    for bad in [two, far] {
        let error = kind.apply(&bad.to_string()).await.err();
        let error = error
            .with_context(|| format!("the API server takes {bad}"))?
            .to_string();
        assert!(error.contains("is invalid"), "{error}");
    }
    Ok(())
}

fn condition(object: &Value, kind: &str) -> Option<Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == kind).cloned()
}

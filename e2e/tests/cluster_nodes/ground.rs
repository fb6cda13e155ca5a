//! The cluster itself: what scenarios take for granted. Runs on a kept cluster too (`CRYPTVOL_E2E_CLUSTER=dev`).

use std::time::Duration;

use anyhow::{Context, Result};
use cryptvol_e2e::cluster::Cluster;
use cryptvol_e2e::image::ImageBuilder;
use cryptvol_e2e::process::{run, wait_for};
use cryptvol_e2e::workdir::WorkDir;

/// A pod that ends well once the name resolves through the cluster's DNS.
const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "resolve", "namespace": "ground"}, "spec": {
  "nodeName": "@NODE@", "restartPolicy": "OnFailure", "containers": [{"name": "getent", "image": "cryptvol.test/getent:1",
  "imagePullPolicy": "Never", "args": ["ahostsv4", "kube-dns.kube-system.svc.cluster.local"]}]}}"#;

/// `getent` of this machine with the libraries that it names.
fn image(work: &WorkDir) -> Result<std::path::PathBuf> {
    let mut image = ImageBuilder::new("cryptvol.test/getent:1")
        .file("/usr/bin/getent", "/getent", 0o755)
        .entrypoint(["/getent"]);
    for word in run("ldd", &["/usr/bin/getent"])?.split_whitespace() {
        if word.starts_with('/') {
            image = image.file(std::fs::canonicalize(word)?, word, 0o755);
        }
    }
    let out = work.path().join("getent.tar");
    image.write(&out)?;
    Ok(out)
}

async fn resolve_on(cluster: &Cluster, node: &str) -> Result<String> {
    cluster.plane.apply(&POD.replace("@NODE@", node)).await?;
    cluster
        .plane
        .kubectl(&[
            "wait",
            "-n",
            "ground",
            "--for=jsonpath={.status.phase}=Succeeded",
            "--timeout=120s",
            "pod/resolve",
        ])
        .await
        .with_context(|| format!("on {node}"))?;
    let answer = cluster
        .plane
        .kubectl(&["logs", "-n", "ground", "resolve"])
        .await?;
    cluster
        .plane
        .kubectl(&["delete", "pod", "-n", "ground", "resolve"])
        .await?;
    Ok(answer)
}

#[tokio::test]
async fn pods_resolve_names_and_a_node_comes_back_after_a_power_cut() -> Result<()> {
    let work = WorkDir::new("cluster")?;
    let mut cluster = Cluster::shared(&[]).await?;
    cluster.load_image(&image(&work)?).await?;
    let namespace = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ground"}}"#;
    cluster.plane.apply(namespace).await?;
    cluster.plane.wait_for_service_account("ground").await?;
    for node in ["node-1", "node-2"] {
        let answer = resolve_on(&cluster, node).await?;
        assert!(answer.contains("10.96.0.10"), "{answer}");
    }

    cluster.node_mut("node-2")?.power_cut().await?;
    cluster.start_node("node-2").await?;
    // The image is there again, and so are the network and the proxy.
    wait_for(
        "DNS on the node that was off",
        Duration::from_secs(240),
        || async { Ok(resolve_on(&cluster, "node-2").await.ok()) },
        String::new,
    )
    .await?;
    cluster
        .plane
        .kubectl(&["delete", "namespace", "ground", "--wait=false"])
        .await?;
    work.passed()
}

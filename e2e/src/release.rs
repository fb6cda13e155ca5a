//! The product in a cluster as a user installs it: images, charts, Helm.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::ground::{Ground, OnNode};
use crate::keystone::Keystone;
use crate::process::wait_for;
use crate::workdir::workspace_root;

/// Namespace of the release.
pub const NAMESPACE: &str = "cryptvol-system";
/// Host name of the embedded identity service in the cluster.
const IDENTITY_HOST: &str = "cryptvol-identity.cryptvol-system.svc";
const IDENTITY_PORT: u16 = 5000;

/// Archives of the product's images, as `cargo xtask images` makes them.
pub fn image_archives() -> Vec<PathBuf> {
    ["operator", "node-agent", "identity"]
        .map(|name| workspace_root().join(format!("target/images/{name}.tar")))
        .to_vec()
}

/// Values of the release that most scenarios use. The nodes' disks are gone with a power cut, and there is no storage class: the
/// identity service keeps its records in memory, away from the node whose power is cut.
pub const VALUES: [&str; 2] = [
    "identity.persistence.enabled=false",
    "identity.nodeSelector.kubernetes\\.io/hostname=node-2",
];

/// What Helm is told for a release with these values, one command a chart, from the root of the checkout.
pub fn helm<'a>(values: &[&'a str]) -> [Vec<&'a str>; 2] {
    let chart = |name| vec!["upgrade", "--install", name];
    let mut crds = chart("cryptvol-crds");
    crds.extend(["charts/cryptvol-crds", "--namespace", NAMESPACE]);
    crds.push("--create-namespace");
    let mut product = chart("cryptvol");
    product.extend(["charts/cryptvol", "--namespace", NAMESPACE]);
    product.extend(["--wait", "--timeout", "5m"]);
    product.extend(values.iter().flat_map(|value| ["--set", value]));
    [crds, product]
}

/// Gives the product's images to every node that runs.
pub async fn load_images(cluster: &Cluster) -> Result<()> {
    for image in image_archives() {
        cluster.load_image(&image).await?;
    }
    Ok(())
}

/// Installs both charts, or upgrades them, and waits until operator, identity service and agents run.
pub async fn install(cluster: &Cluster) -> Result<()> {
    install_with(cluster, &VALUES).await
}

/// The same with other values.
pub async fn install_with(cluster: &Cluster, values: &[&str]) -> Result<()> {
    for command in helm(values) {
        cluster.helm(&command).await?;
    }
    Ok(())
}

/// The administrator of the release's identity service.
pub async fn keystone(cluster: &Cluster) -> Result<Keystone> {
    let address = cluster
        .plane
        .kubectl(&[
            "get",
            "service",
            "-n",
            NAMESPACE,
            "cryptvol-identity",
            "-o",
            "jsonpath={.spec.clusterIP}",
        ])
        .await?;
    keystone_at(cluster, address.parse()?).await
}

/// The same at one replica, by its pod's address.
pub async fn keystone_at(cluster: &Cluster, address: IpAddr) -> Result<Keystone> {
    let ground = OnNode { cluster, node: "" };
    let password = secret(&ground, "cryptvol-identity-admin", "password").await?;
    let ca = secret(&ground, "cryptvol-identity-tls", "ca.crt").await?;
    let address = SocketAddr::new(address, IDENTITY_PORT);
    Keystone::at(
        &format!("https://{IDENTITY_HOST}:{IDENTITY_PORT}/identity/v3"),
        String::from_utf8(password)?.trim(),
        &ca,
        Some((IDENTITY_HOST, address)),
    )
}

/// All audit records of key release, from the logs of all replicas, oldest first.
pub async fn audit(cluster: &Cluster) -> Result<Vec<Value>> {
    let pods = cluster
        .plane
        .kubectl(&[
            "get",
            "pods",
            "-n",
            NAMESPACE,
            "-l",
            "app.kubernetes.io/component=operator",
            "-o",
            "name",
        ])
        .await?;
    let mut records = Vec::new();
    for pod in pods.split_whitespace() {
        let log = cluster
            .plane
            .kubectl(&["logs", "-n", NAMESPACE, pod])
            .await?;
        records.extend(log.lines().filter_map(audit_record));
    }
    records.sort_by_key(|r| r["time"].as_str().unwrap_or_default().to_owned());
    Ok(records)
}

/// An audit record is a line of its own: a JSON object that is chained to the one before.
fn audit_record(line: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(line).ok()?;
    value.get("hash")?;
    Some(value)
}

/// Waits until all pods of a node's agent run again.
pub async fn wait_agent(cluster: &Cluster, node: &str, limit: Duration) -> Result<()> {
    let selector = format!("spec.nodeName={node}");
    wait_for(
        &format!("the agent on {node} to be ready"),
        limit,
        || async {
            let ready = cluster
                .plane
                .kubectl(&[
                    "get",
                    "pods",
                    "-n",
                    NAMESPACE,
                    "-l",
                    "app.kubernetes.io/component=node-agent",
                    "--field-selector",
                    &selector,
                    "-o",
                    "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}",
                ])
                .await?;
            Ok((ready.trim() == "True").then_some(()))
        },
        String::new,
    )
    .await
}

/// One entry of a Secret of the release.
pub async fn secret(ground: &impl Ground, name: &str, key: &str) -> Result<Vec<u8>> {
    let text = ground
        .kubectl(&["get", "secret", "-n", NAMESPACE, name, "-o", "json"])
        .await?;
    let object: Value = serde_json::from_str(&text)?;
    let data = object["data"][key]
        .as_str()
        .with_context(|| format!("the Secret {name} has no {key}"))?;
    Ok(base64::engine::general_purpose::STANDARD.decode(data)?)
}

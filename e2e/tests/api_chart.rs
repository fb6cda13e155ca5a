//! The charts on a real API server: what Helm installs, what an upgrade keeps, and what an agent's token is worth.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::{KeyService, NodeVolume, names};
use cryptvol_e2e::control_plane::{ControlPlane, Options};
use cryptvol_e2e::parts::{Parts, Set};
use cryptvol_e2e::workdir::{WorkDir, workspace_root};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

const NAMESPACE: &str = "cryptvol-system";

fn helm(plane: &ControlPlane, args: &[&str]) -> Result<String> {
    let parts = Parts::locate(Set::Full)?;
    let output = Command::new(parts.path("helm"))
        .args(args)
        .envs(plane.env())
        .current_dir(workspace_root())
        .output()
        .context("start helm")?;
    ensure!(
        output.status.success(),
        "helm {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn installed(work: &WorkDir) -> Result<ControlPlane> {
    let parts = Parts::locate(Set::Full)?;
    let plane =
        ControlPlane::start(&work.dir("control-plane")?, &parts, Options::default()).await?;
    helm(
        &plane,
        &["install", "cryptvol-crds", "charts/cryptvol-crds", "--wait"],
    )?;
    install(&plane)?;
    Ok(plane)
}

fn install(plane: &ControlPlane) -> Result<String> {
    helm(
        plane,
        &[
            "install",
            "cryptvol",
            "charts/cryptvol",
            "-n",
            NAMESPACE,
            "--create-namespace",
        ],
    )
}

/// The Secrets that must not change by themselves, name and data.
async fn secrets(client: &Client) -> Result<Vec<(String, Vec<(String, ByteString)>)>> {
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let mut found = Vec::new();
    for name in [
        "cryptvol-identity-kek",
        "cryptvol-identity-admin",
        "cryptvol-operator-tls",
        "cryptvol-identity-tls",
    ] {
        if let Some(secret) = api.get_opt(name).await? {
            found.push((
                name.to_owned(),
                secret.data.unwrap_or_default().into_iter().collect(),
            ));
        }
    }
    Ok(found)
}

#[tokio::test]
async fn upgrading_and_installing_again_keep_what_opens_the_keys() -> Result<()> {
    let work = WorkDir::new("chart")?;
    let plane = installed(&work).await?;
    let client = plane.client()?;
    let first = secrets(&client).await?;
    assert_eq!(first.len(), 4);

    // The KeyService must trust the certificate that the identity service shows.
    let service = Api::<KeyService>::all(client.clone())
        .get("default")
        .await?;
    let ca = &first[3]
        .1
        .iter()
        .find(|(key, _)| key == "ca.crt")
        .context("ca.crt")?
        .1
        .0;
    assert_eq!(
        service.spec.ca_bundle.unwrap_or_default().trim(),
        String::from_utf8_lossy(ca).trim()
    );

    helm(
        &plane,
        &[
            "upgrade",
            "cryptvol",
            "charts/cryptvol",
            "-n",
            NAMESPACE,
            "--set",
            "operator.replicas=3",
        ],
    )?;
    assert!(
        secrets(&client).await? == first,
        "an upgrade changed a Secret"
    );
    // The records stay where they are: a StatefulSet does not let go of its volume.
    let moved = helm(
        &plane,
        &[
            "upgrade",
            "cryptvol",
            "charts/cryptvol",
            "-n",
            NAMESPACE,
            "--set",
            "identity.database.urlSecret=database",
        ],
    );
    let told = moved.err().context("an upgrade took the volume away")?;
    ensure!(
        told.to_string().contains("updates to statefulset spec"),
        "{told}"
    );

    helm(&plane, &["uninstall", "cryptvol", "-n", NAMESPACE])?;
    let kept = secrets(&client).await?;
    assert!(
        kept == first[..2],
        "uninstalling must keep what opens the keys, and nothing else"
    );
    on_postgresql(&plane).await?;
    install(&plane)?;
    assert!(
        secrets(&client).await?[..2] == first[..2],
        "a second install made new Secrets"
    );

    // A default class is there, and what the quick start applies is accepted.
    plane
        .kubectl(&["get", "encryptionclass", "luks2-aes-xts"])
        .await?;
    plane.kubectl(&["create", "namespace", "demo"]).await?;
    for folder in [
        "",
        "restore",
        "sources",
        "in-use",
        "integrity",
        "detached-header",
    ] {
        let examples = workspace_root().join("examples").join(folder);
        let args = ["apply", "--dry-run=server", "-f"];
        plane
            .kubectl(&[&args[..], &[&*examples.to_string_lossy()]].concat())
            .await?;
    }

    // With the CRDs all volumes would go, so uninstalling their chart keeps them.
    helm(&plane, &["uninstall", "cryptvol-crds"])?;
    plane
        .kubectl(&["get", "crd", "encryptedvolumes.cryptvol.dev"])
        .await?;
    plane.check()?;
    drop(plane);
    work.passed()
}

/// Installs with several replicas of the identity service, which need a database, and uninstalls.
async fn on_postgresql(plane: &ControlPlane) -> Result<()> {
    let base = ["install", "cryptvol", "charts/cryptvol", "-n", NAMESPACE];
    let several = ["--set", "identity.replicas=3"];
    let database = ["--set", "identity.database.urlSecret=database"];
    let told = helm(plane, &[&base[..], &several].concat())
        .err()
        .context("several replicas on SQLite")?;
    ensure!(
        told.to_string()
            .contains("needs identity.database.urlSecret"),
        "{told}"
    );
    helm(plane, &[&base[..], &several, &database].concat())?;
    let set = ["get", "statefulset", "cryptvol-identity", "-n", NAMESPACE];
    let set = plane.kubectl(&[&set[..], &["-o", "json"]].concat()).await?;
    let spec = serde_json::from_str::<Value>(&set)?["spec"].take();
    assert_eq!(spec["replicas"], 3);
    assert_eq!(spec["updateStrategy"]["type"], "RollingUpdate");
    assert_eq!(spec["volumeClaimTemplates"], Value::Null);
    let pod = &spec["template"]["spec"];
    for container in [&pod["initContainers"][0], &pod["containers"][0]] {
        let args = container["args"].to_string();
        assert!(
            args.contains("--database-url-file=/etc/cryptvol/database/url"),
            "{args}"
        );
        assert!(!args.contains("--data-dir"), "{args}");
    }
    // Until all nodes send to the others only.
    let ending = &pod["containers"][0]["lifecycle"]["preStop"];
    assert_eq!(ending["sleep"]["seconds"], 5);
    // On nodes of their own where there are any, and an eviction takes one at a time.
    let apart = &pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        [0]["podAffinityTerm"];
    assert_eq!(apart["topologyKey"], "kubernetes.io/hostname");
    let labels = &spec["selector"]["matchLabels"];
    assert_eq!(&apart["labelSelector"]["matchLabels"], labels);
    let budget = ["get", "pdb", "cryptvol-identity", "-n", NAMESPACE];
    let budget = plane
        .kubectl(&[&budget[..], &["-o", "json"]].concat())
        .await?;
    let budget = serde_json::from_str::<Value>(&budget)?["spec"].take();
    assert_eq!(budget["maxUnavailable"], 1);
    assert_eq!(&budget["selector"]["matchLabels"], labels);
    helm(plane, &["uninstall", "cryptvol", "-n", NAMESPACE])?;
    Ok(())
}

#[tokio::test]
async fn a_stolen_agent_token_is_worth_one_node_and_status_only() -> Result<()> {
    let work = WorkDir::new("agent-token")?;
    let plane = installed(&work).await?;
    plane.wait_for_service_account(NAMESPACE).await?;
    for node in ["node-1", "node-2"] {
        let labels = json!({"rack": "a"});
        plane.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}}).to_string()).await?;
        plane.apply(&node_volume(node).to_string()).await?;
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent", "namespace": NAMESPACE},
        "spec": {"nodeName": "node-1", "serviceAccountName": names::AGENT_SERVICE_ACCOUNT, "containers": [{"name": "c", "image": "none.test/none:1"}]},
    });
    plane.apply(&pod.to_string()).await?;
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", "agent"];
    let agent = plane.client_with_token(&token(&plane, &bound).await?)?;
    let unbound = plane.client_with_token(&token(&plane, &[]).await?)?;
    let session = json!({"status": {"stage": "Session"}});

    // Its own node's volume: status yes, the rest no.
    let volumes: Api<NodeVolume> = Api::namespaced(agent.clone(), "default");
    let (own, other) = ("db-0.node-1", "db-0.node-2");
    let merge = |patch: &Value| Patch::Merge(patch.clone());
    let params = PatchParams::default();
    // A policy is in force a moment after it was made.
    let to_session = merge(&session);
    eventually_refused(|| volumes.patch_status(other, &params, &to_session)).await?;
    volumes.patch_status(own, &params, &merge(&session)).await?;
    let spec = json!({"spec": {"desired": "Detached"}});
    let after = volumes.patch_status(own, &params, &merge(&spec)).await?;
    assert_eq!(
        serde_json::to_value(after.spec.desired)?,
        "Attached",
        "the status of an object carries no spec"
    );
    refused(
        "cannot patch",
        volumes.patch(own, &params, &merge(&spec)).await,
    )?;
    refused(
        "the token is of node node-1",
        volumes.patch_status(other, &params, &merge(&session)).await,
    )?;

    // Not bound to a node, a token writes nothing.
    let without_node: Api<NodeVolume> = Api::namespaced(unbound, "default");
    refused(
        "not bound to a node",
        without_node
            .patch_status(own, &params, &merge(&session))
            .await,
    )?;

    // Its own node: one condition and one annotation.
    let nodes: Api<Node> = Api::all(agent.clone());
    let condition = |type_: &str| {
        let condition =
            json!({"type": type_, "status": "True", "reason": "AsDesired", "message": "m"});
        let patch = json!({"metadata": {"annotations": {names::NODE_CHECK_ANNOTATION: "[]"}}, "status": {"conditions": [condition]}});
        Patch::Strategic(patch)
    };
    nodes
        .patch_status("node-1", &params, &condition(names::NODE_CONDITION))
        .await?;
    refused(
        "its own node only",
        nodes
            .patch_status("node-2", &params, &condition(names::NODE_CONDITION))
            .await,
    )?;
    refused(
        "no condition of a node but",
        nodes
            .patch_status("node-1", &params, &condition("Ready"))
            .await,
    )?;
    for patch in [
        json!({"metadata": {"labels": {"rack": "b"}}}),
        json!({"status": {"capacity": {"example.com/x": "1"}}}),
        json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
    ] {
        refused(
            "nothing of a node but",
            nodes.patch_status("node-1", &params, &merge(&patch)).await,
        )?;
    }

    // Events: on its own node only, and none that is there can be changed.
    let events: Api<Event> = Api::namespaced(agent.clone(), "default");
    let event = |name: &str, kind: &str, of: &str| -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default"}, "type": "Warning", "reason": "OrphanFound", "note": "n", "action": "Look",
            "regarding": {"kind": kind, "name": of}, "reportingController": "c", "reportingInstance": "i", "eventTime": "2026-11-29T08:00:00.000000Z",
        }))
        .expect("an Event")
    };
    let create = PostParams::default();
    // A policy is in force a moment after it was made.
    let attempts = std::cell::Cell::new(0);
    eventually_refused(|| {
        attempts.set(attempts.get() + 1);
        let strange = event(&format!("other-{}", attempts.get()), "Node", "node-2");
        let events = &events;
        async move { events.create(&PostParams::default(), &strange).await }
    })
    .await?;
    events
        .create(&create, &event("own", "Node", "node-1"))
        .await?;
    for strange in [
        event("other", "Node", "node-2"),
        event("pod", "Pod", "node-1"),
    ] {
        refused(
            "tell of its own node only",
            events.create(&create, &strange).await,
        )?;
    }
    refused(
        "cannot patch",
        events
            .patch("own", &params, &merge(&json!({"note": "m"})))
            .await,
    )?;
    refused("cannot list", events.list(&Default::default()).await)?;
    let elsewhere: Api<Event> = Api::namespaced(agent.clone(), NAMESPACE);
    let mut strange = event("own", "Node", "node-1");
    strange.metadata.namespace = Some(NAMESPACE.to_owned());
    refused("cannot create", elsewhere.create(&create, &strange).await)?;
    refused(
        "cannot list",
        Api::<Secret>::all(agent.clone())
            .list(&Default::default())
            .await,
    )?;

    // Even with all rights, by somebody's mistake, the policy holds for everything of cryptvol.
    plane
        .kubectl(&[
            "create",
            "clusterrolebinding",
            "mistake",
            "--clusterrole=cluster-admin",
            &format!(
                "--serviceaccount={NAMESPACE}:{}",
                names::AGENT_SERVICE_ACCOUNT
            ),
        ])
        .await?;
    eventually_allowed(|| async {
        Api::<Secret>::all(agent.clone())
            .list(&Default::default())
            .await
    })
    .await?;
    refused(
        "nothing but the status",
        volumes.patch(own, &params, &merge(&spec)).await,
    )?;
    refused(
        "nothing but the status",
        volumes.delete(own, &DeleteParams::default()).await,
    )?;
    let services: Api<KeyService> = Api::all(agent.clone());
    refused(
        "nothing but the status",
        services.delete("default", &DeleteParams::default()).await,
    )?;
    plane.check()?;
    drop(plane);
    work.passed()
}

fn node_volume(node: &str) -> Value {
    json!({
        "apiVersion": "cryptvol.dev/v1alpha1", "kind": "NodeVolume",
        "metadata": {"name": names::node_volume_name("db-0", node), "namespace": "default"},
        "spec": {
            "nodeName": node, "volumeRef": {"name": "db-0", "uid": "u"}, "desired": "Attached", "encryption": {},
            "source": {"iscsi": {"portals": ["192.0.2.10:3260"], "iqn": "iqn.2026-11.com.example:db-0", "lun": 1}},
            "link": names::link_path("default", "db-0"),
        },
    })
}

async fn token(plane: &ControlPlane, bound: &[&str]) -> Result<String> {
    let mut args = vec![
        "create",
        "token",
        names::AGENT_SERVICE_ACCOUNT,
        "-n",
        NAMESPACE,
    ];
    args.extend(bound);
    Ok(plane.kubectl(&args).await?.trim().to_owned())
}

fn refused<T>(says: &str, outcome: kube::Result<T>) -> Result<()> {
    match outcome {
        Ok(_) => anyhow::bail!("accepted, where {says:?} was expected"),
        Err(kube::Error::Api(status)) if status.code == 403 && status.message.contains(says) => {
            Ok(())
        }
        Err(error) => Err(error).context(format!("expected a refusal that says {says:?}")),
    }
}

async fn eventually_refused<T, F: Future<Output = kube::Result<T>>>(
    attempt: impl Fn() -> F,
) -> Result<()> {
    for _ in 0..100 {
        if attempt().await.is_err() {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    anyhow::bail!("still accepted after 10 s")
}

async fn eventually_allowed<T, F: Future<Output = kube::Result<T>>>(
    attempt: impl Fn() -> F,
) -> Result<()> {
    for _ in 0..100 {
        if attempt().await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    anyhow::bail!("still refused after 10 s")
}

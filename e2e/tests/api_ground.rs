//! The control plane itself: what other tests of the tier `api` take for granted.

use anyhow::Result;
use cryptvol_e2e::control_plane::{ControlPlane, Options};
use cryptvol_e2e::parts::{Parts, Set};
use cryptvol_e2e::workdir::WorkDir;
use serde_json::json;

#[tokio::test]
async fn a_token_names_its_node_and_writes_are_counted_and_a_restart_loses_nothing() -> Result<()> {
    let work = WorkDir::new("control-plane")?;
    let parts = Parts::locate(Set::ControlPlane)?;
    let mut plane =
        ControlPlane::start(&work.dir("control-plane")?, &parts, Options::default()).await?;

    // Idle watchers aside, nobody writes but the controllers; one apply is one create.
    let mark = plane.audit_log().mark()?;
    plane
        .apply(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-a"}})
                .to_string(),
        )
        .await?;
    let by_us: Vec<String> = plane
        .audit_log()
        .since(mark)?
        .iter()
        .filter(|e| e.user.username == "admin" && e.is_stored_write())
        .map(|e| format!("{} {}", e.verb, e.resource()))
        .collect();
    assert_eq!(by_us, ["create namespaces"]);
    plane.wait_for_service_account("team-a").await?;

    // A token bound to a pod on a node carries the node's name through TokenReview.
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent", "namespace": "team-a"},
        "spec": {"nodeName": "node-7", "containers": [{"name": "c", "image": "none.test/none:1"}]},
    });
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-7"}});
    plane.apply(&node.to_string()).await?;
    plane.apply(&pod.to_string()).await?;
    let token = plane
        .kubectl(&[
            "create",
            "token",
            "default",
            "-n",
            "team-a",
            "--audience",
            "cryptvol-key-release",
            "--bound-object-kind",
            "Pod",
            "--bound-object-name",
            "agent",
        ])
        .await?;
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token.trim(), "audiences": ["cryptvol-key-release"]},
    });
    let output = plane
        .kubectl_output(
            &["create", "-f", "-", "-o", "json"],
            Some(&review.to_string()),
        )
        .await?;
    let review: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(
        review["status"]["user"]["extra"]["authentication.kubernetes.io/node-name"][0], "node-7",
        "{review}"
    );

    plane.stop_api_server()?;
    assert!(
        plane
            .kubectl(&["get", "namespace", "team-a", "--request-timeout=2s"])
            .await
            .is_err()
    );
    plane.start_api_server().await?;
    plane.kubectl(&["get", "namespace", "team-a"]).await?;
    plane.check()?;
    drop(plane);
    work.passed()
}

//! `kubectl cryptvol check`: what the agents found of their nodes, and whether the key services answer.

use anyhow::{Context, Result, bail};
use cryptvol_crds::conditions::{self};
use cryptvol_crds::{KeyService, names};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::Value;

use crate::connect::Cluster;
use crate::orphans;
use crate::text::table;

/// Prints both tables; fails when a node is unfit or a service does not answer.
pub async fn run(cluster: &Cluster) -> Result<()> {
    let every = ListParams::default();
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let nodes = nodes.list(&every).await.context("list the nodes")?;
    let services: Api<KeyService> = Api::all(cluster.client.clone());
    let services = services
        .list(&every)
        .await
        .context("list the KeyServices: is the chart cryptvol-crds installed?")?;
    let (text, bad) = report(&nodes.items, &services.items);
    print!("{text}");
    if bad > 0 {
        bail!("{bad} of these need attention");
    }
    Ok(())
}

/// The report, and how many nodes and services need attention.
fn report(nodes: &[Node], services: &[KeyService]) -> (String, usize) {
    let mut bad = 0;
    let mut rows = vec![words(["NODE", "FIT", "REASON", "WHAT"])];
    for node in nodes {
        let found = node.status.as_ref().and_then(|s| {
            s.conditions
                .as_ref()?
                .iter()
                .find(|c| c.type_ == names::NODE_CONDITION)
        });
        match found {
            Some(c) => {
                bad += usize::from(c.status != "True");
                let fit = if c.status == "True" { "yes" } else { "no" };
                let (reason, message) = (c.reason.as_deref(), c.message.as_deref());
                rows.push(words([
                    &node.name_any(),
                    fit,
                    reason.unwrap_or_default(),
                    message.unwrap_or_default(),
                ]));
            }
            // Not every node is a hypervisor.
            None => rows.push(words([
                &node.name_any(),
                "-",
                "",
                "no node agent has looked at it",
            ])),
        }
        for failed in failed_checks(node) {
            rows.push(words(["", "", "", &format!("- {failed}")]));
        }
        // They hold nobody up.
        let orphans = orphans::of(node).map_or(0, |o| o.orphans.len() + o.more);
        if orphans > 0 {
            let said = format!("- belongs to no volume: {orphans} (kubectl cryptvol orphans)");
            rows.push(words(["", "", "", &said]));
        }
    }
    let mut out = table(&rows);
    let mut rows = vec![words(["KEY SERVICE", "READY", "REASON", "WHAT"])];
    for service in services {
        let list = service
            .status
            .as_ref()
            .map(|s| s.conditions.as_slice())
            .unwrap_or_default();
        let ready = conditions::get(list, conditions::READY);
        bad += usize::from(ready.is_none_or(|c| c.status != "True"));
        rows.push(match ready {
            Some(c) if c.status == "True" => words([
                &service.name_any(),
                "yes",
                &c.reason,
                &service.spec.auth_url,
            ]),
            Some(c) => words([&service.name_any(), "no", &c.reason, &c.message]),
            None => words([
                &service.name_any(),
                "?",
                "",
                "no operator has looked at it yet",
            ]),
        });
    }
    out.push('\n');
    out += &table(&rows);
    if services.is_empty() {
        bad += 1;
        out += "  none: volumes need one (the chart makes one; kubectl explain keyservice.spec)\n";
    }
    (out, bad)
}

/// What failed in the annotation: a JSON list of objects with `name`, `ok`, `detail` and `nextStep`.
fn failed_checks(node: &Node) -> Vec<String> {
    let Some(text) = node.annotations().get(names::NODE_CHECK_ANNOTATION) else {
        return Vec::new();
    };
    let list: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
    list.iter()
        .filter(|check| check["ok"] == Value::Bool(false))
        .map(|check| {
            let part = |key: &str| check[key].as_str().unwrap_or_default();
            format!("{}: {}. {}", part("name"), part("detail"), part("nextStep"))
        })
        .collect()
}

fn words<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, status: Option<&str>, checks: &str) -> Node {
        let conditions = status.map(
            |s| json!([{"type": "CryptvolReady", "status": s, "reason": "R", "message": "M"}]),
        );
        serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": {"cryptvol.dev/node-check": checks}},
            "status": {"conditions": conditions.unwrap_or_else(|| json!([]))},
        }))
        .unwrap()
    }

    fn service(status: &str) -> KeyService {
        serde_json::from_value(json!({
            "apiVersion": "cryptvol.dev/v1alpha1", "kind": "KeyService", "metadata": {"name": "default"},
            "spec": {"authUrl": "https://x/v3"},
            "status": {"conditions": [{"type": "Ready", "status": status, "reason": "R", "message": "M", "lastTransitionTime": "2026-11-22T10:00:05Z"}]},
        }))
        .unwrap()
    }

    #[test]
    fn fit_nodes_and_an_answering_service_are_fine() {
        let (text, bad) = report(
            &[node("a", Some("True"), "[]"), node("b", None, "no json")],
            &[service("True")],
        );
        assert_eq!(bad, 0, "{text}");
        assert!(text.contains("no node agent"), "{text}");
    }

    #[test]
    fn what_fails_is_named_and_counted() {
        let checks = r#"[{"name":"device-mapper","ok":false,"detail":"no control device","nextStep":"Load it."},{"name":"udev","ok":true}]"#;
        let (text, bad) = report(&[node("a", Some("False"), checks)], &[service("False")]);
        assert_eq!(bad, 2);
        assert!(
            text.contains("- device-mapper: no control device. Load it.") && !text.contains("udev"),
            "{text}"
        );
        assert_eq!(report(&[], &[]).1, 1, "no service at all");
    }

    #[test]
    fn what_belongs_to_no_volume_is_counted_and_holds_nobody_up() {
        let mut with = node("a", Some("True"), "[]");
        let said = r#"{"orphans":[],"more":3}"#.to_owned();
        with.annotations_mut()
            .insert(names::ORPHANS_ANNOTATION.into(), said);
        let (text, bad) = report(&[with], &[service("True")]);
        assert_eq!(bad, 0);
        assert!(text.contains("no volume: 3"), "{text}");
    }
}

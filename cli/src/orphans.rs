//! `kubectl cryptvol orphans`: what of cryptvol's is on the nodes and belongs to no NodeVolume, as the agents have written it down.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use cryptvol_crds::{
    EncryptedVolume, names,
    orphans::{Orphan, Orphans},
};
use k8s_openapi::{api::core::v1::Node, jiff::Timestamp};
use kube::{Api, ResourceExt, api::ListParams};

use crate::{connect::Cluster, text::ago};

/// Prints them all, or those of one node.
pub async fn run(cluster: &Cluster, node: Option<&str>) -> Result<()> {
    let every = ListParams::default();
    let api: Api<Node> = Api::all(cluster.client.clone());
    let nodes = match node {
        Some(name) => vec![
            api.get(name)
                .await
                .with_context(|| format!("read node {name}: see `kubectl get nodes`"))?,
        ],
        None => api.list(&every).await.context("list the nodes")?.items,
    };
    // Who may not list all volumes sees the UIDs alone.
    let volumes: Api<EncryptedVolume> = Api::all(cluster.client.clone());
    let volumes = volumes.list(&every).await.map(|list| {
        let named = list.items.iter();
        named
            .map(|v| (v.uid().unwrap_or_default(), names::display(v)))
            .collect()
    });
    print!(
        "{}",
        report(&nodes, volumes.ok().as_ref(), Timestamp::now())
    );
    Ok(())
}

/// What a Node says; nothing where it says nothing.
///
/// # Errors
/// When the annotation is not what an agent of this version writes.
pub fn of(node: &Node) -> Result<Orphans, serde_json::Error> {
    match node.annotations().get(names::ORPHANS_ANNOTATION) {
        Some(text) => serde_json::from_str(text),
        None => Ok(Orphans::default()),
    }
}

fn report(nodes: &[Node], volumes: Option<&BTreeMap<String, String>>, now: Timestamp) -> String {
    let mut out = String::new();
    for node in nodes {
        let name = node.name_any();
        match of(node) {
            Err(error) => {
                out += &format!(
                    "{name}: its annotation {} cannot be read ({error}): use a kubectl-cryptvol of the agent's version\n",
                    names::ORPHANS_ANNOTATION
                );
            }
            Ok(found) => {
                for orphan in &found.orphans {
                    out += &block(&name, orphan, volumes, now);
                }
                if found.more > 0 {
                    out += &format!(
                        "{name}: {} more, for which the annotation has no room\n",
                        found.more
                    );
                }
            }
        }
    }
    if out.is_empty() {
        out += "Nothing of cryptvol's is on a node without a NodeVolume.\n";
    }
    out
}

fn block(
    node: &str,
    o: &Orphan,
    volumes: Option<&BTreeMap<String, String>>,
    now: Timestamp,
) -> String {
    let age = o.since.parse().map_or_else(
        |_| String::new(),
        |then| format!(", for {}", ago(then, now)),
    );
    let record = match (&o.volume_uid, volumes) {
        (Some(uid), Some(volumes)) => match volumes.get(uid) {
            Some(volume) => format!(
                "  record: EncryptedVolume {volume} has that UID (kubectl cryptvol status {volume})\n"
            ),
            None => "  record: no EncryptedVolume of this cluster has that UID\n".to_owned(),
        },
        _ => String::new(),
    };
    format!(
        "{node}: {}{age}\n  whose:  {}\n{record}  do:     {}\n",
        o.what, o.whose, o.next_step
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptvol_crds::orphans::OrphanKind;
    use serde_json::json;

    fn node(annotation: Option<&str>) -> Node {
        let annotations = annotation.map(|text| json!({names::ORPHANS_ANNOTATION: text}));
        serde_json::from_value(json!({"metadata": {"name": "node-1", "annotations": annotations}}))
            .unwrap()
    }

    fn orphans(more: usize) -> String {
        let orphan = Orphan {
            kind: OrphanKind::Mapping,
            name: "cryptvol-u".into(),
            what: "mapping cryptvol-u (/dev/dm-0)".into(),
            volume_uid: Some("u".into()),
            whose: "It was made for the volume with UID u".into(),
            next_step: "If no guest is to use it any more: dmsetup remove cryptvol-u".into(),
            since: "2026-11-29T08:00:00Z".into(),
        };
        let all = Orphans {
            orphans: vec![orphan],
            more,
        };
        serde_json::to_string(&all).unwrap()
    }

    fn now() -> Timestamp {
        "2026-11-29T08:05:00Z".parse().unwrap()
    }

    #[test]
    fn each_has_what_it_is_whose_and_what_to_do() {
        let nodes = [node(Some(&orphans(0))), node(None)];
        let text = report(&nodes, None, now());
        assert_eq!(
            text,
            "node-1: mapping cryptvol-u (/dev/dm-0), for 5 min\n  whose:  It was made for the volume with UID u\n  \
             do:     If no guest is to use it any more: dmsetup remove cryptvol-u\n"
        );
        for (volumes, says) in [
            (BTreeMap::new(), "no EncryptedVolume of this cluster has"),
            (
                BTreeMap::from([("u".to_owned(), "shop/db-0".to_owned())]),
                "EncryptedVolume shop/db-0 has that UID",
            ),
        ] {
            let text = report(&nodes, Some(&volumes), now());
            assert!(text.contains(says), "{text}");
        }
    }

    #[test]
    fn none_many_and_what_cannot_be_read_are_said() {
        assert!(report(&[node(None)], None, now()).starts_with("Nothing"));
        assert!(report(&[node(Some(&orphans(7)))], None, now()).contains("7 more"));
        let text = report(&[node(Some("no json"))], None, now());
        assert!(text.contains("cannot be read"), "{text}");
    }
}

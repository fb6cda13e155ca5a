//! `kubectl cryptvol status`: one volume in words. Reading is in `run`, saying in `explain`.

use anyhow::{Context, Result};
use cryptvol_crds::conditions::{self, Reason};
use cryptvol_crds::paths::{PathsHealth, is_standby};
use cryptvol_crds::v1alpha1::{AttachmentStatus, EncryptedVolumeStatus, PermitState};
use cryptvol_crds::{EncryptedVolume, NodeVolume, names};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use crate::connect::Volume;
use crate::text::{ago, bytes, table};

/// Reads the volume and its NodeVolumes and prints the explanation.
pub async fn run(volume: &Volume) -> Result<()> {
    let object = volume.get().await?;
    let of_volume =
        ListParams::default().labels(&format!("{}={}", names::VOLUME_LABEL, volume.name));
    let handed: Api<NodeVolume> = Api::namespaced(volume.client.clone(), &volume.namespace);
    let handed = handed
        .list(&of_volume)
        .await
        .context("list the NodeVolumes")?;
    print!("{}", explain(&object, &handed.items, Timestamp::now()));
    Ok(())
}

/// The explanation.
pub fn explain(volume: &EncryptedVolume, handed: &[NodeVolume], now: Timestamp) -> String {
    let nothing = EncryptedVolumeStatus::default();
    let status = volume.status.as_ref().unwrap_or(&nothing);
    let mut out = headline(volume, status);
    if status.observed_generation != volume.metadata.generation {
        out += "\nThe operator has not looked at the last change yet. If this stays so: kubectl get pods -A -l \
                app.kubernetes.io/component=operator\n";
    }
    section(&mut out, "Conditions", &condition_rows(status, now));
    section(&mut out, "Nodes", &node_rows(status, handed, now));
    section(&mut out, "Paths", &path_rows(status));
    section(&mut out, "Disk", &disk_rows(volume, status));
    section(&mut out, "Key", &key_rows(status));
    section(&mut out, "History", &history(volume, status));
    out
}

fn section(out: &mut String, title: &str, rows: &[Vec<String>]) {
    if !rows.is_empty() {
        *out += &format!("\n{title}\n{}", table(rows));
    }
}

fn headline(volume: &EncryptedVolume, status: &EncryptedVolumeStatus) -> String {
    let name = format!(
        "{}/{}",
        volume.namespace().unwrap_or_default(),
        volume.name_any()
    );
    if volume.metadata.deletion_timestamp.is_some() {
        let what = conditions::get(&status.conditions, conditions::READY)
            .map(|c| c.message.as_str())
            .unwrap_or_default();
        return format!(
            "{name} is being deleted ({:?}). {what}\n",
            volume.spec.deletion_policy
        );
    }
    let Some(ready) = conditions::get(&status.conditions, conditions::READY) else {
        return format!("{name} is new: no operator has looked at it yet.\n");
    };
    if ready.status == "True" {
        let mut out = status
            .attachments
            .iter()
            .find_map(|a| {
                Some(format!(
                    "{name} is ready on {}: {}\n",
                    a.node_name,
                    a.link.as_ref()?
                ))
            })
            .unwrap_or_else(|| format!("{name} is ready.\n"));
        let degraded =
            |a: &AttachmentStatus| PathsHealth::of(&a.paths, false) == Some(PathsHealth::Degraded);
        if status.attachments.iter().any(degraded) {
            out += "  Not all paths to the disk work (see Paths below); I/O goes on through the others.\n";
        }
        return out;
    }
    let mut out = format!("{name} is not ready: {}\n", ready.reason);
    if !ready.message.is_empty() {
        out += &format!("  {}\n", ready.message);
    }
    // Operators newer than this program may know reasons that it does not; their message says the next step too.
    if let Some(reason) = Reason::parse(&ready.reason) {
        let step = reason.next_step();
        if !step.is_empty() && !ready.message.contains(step) {
            out += &format!("  What to do: {step}\n");
        }
        if reason.is_transient()
            && !ready.message.contains("by itself")
            && !step.contains("by itself")
        {
            out += "  cryptvol tries again by itself.\n";
        }
    }
    out
}

fn condition_rows(status: &EncryptedVolumeStatus, now: Timestamp) -> Vec<Vec<String>> {
    // One cause shows in several conditions; the headline has said it already.
    let said = conditions::get(&status.conditions, conditions::READY).map(|c| c.message.as_str());
    status
        .conditions
        .iter()
        .map(|c| {
            let mark = match (c.type_.as_str(), c.status.as_str()) {
                // Progressing is good news either way.
                (conditions::PROGRESSING, "True") => "...",
                (conditions::PROGRESSING, _) => "-",
                (_, "True") => "yes",
                (_, "False") => "no",
                _ => "?",
            };
            let since = ago(c.last_transition_time.0, now);
            let message = if said == Some(c.message.as_str()) {
                String::new()
            } else {
                c.message.clone()
            };
            vec![
                mark.into(),
                c.type_.clone(),
                c.reason.clone(),
                since,
                message,
            ]
        })
        .collect()
}

fn node_rows(
    status: &EncryptedVolumeStatus,
    handed: &[NodeVolume],
    now: Timestamp,
) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let said = conditions::get(&status.conditions, conditions::READY).map(|c| c.message.as_str());
    for attachment in &status.attachments {
        let since = attachment
            .since
            .as_ref()
            .map(|t| ago(t.0, now))
            .unwrap_or_default();
        let device = attachment.device.clone().unwrap_or_default();
        rows.push(vec![
            attachment.node_name.clone(),
            format!("{:?}", attachment.stage),
            since,
            device,
            attachment.link.clone().unwrap_or_default(),
        ]);
    }
    for node in handed {
        if let Some(error) = node.status.as_ref().and_then(|s| s.error.as_ref()) {
            rows.push(vec![
                node.spec.node_name.clone(),
                format!("stopped: {}", error.reason),
                ago(error.time.0, now),
                String::new(),
                if said == Some(error.message.as_str()) {
                    String::new()
                } else {
                    error.message.clone()
                },
            ]);
        }
    }
    rows
}

/// Ways to the disk, where there are several.
fn path_rows(status: &EncryptedVolumeStatus) -> Vec<Vec<String>> {
    let attachments = status.attachments.iter();
    let paths = attachments.flat_map(|a| a.paths.iter().map(move |p| (a, p)));
    paths
        .map(|(attachment, path)| {
            let state = match (&path.why, path.up, &path.access) {
                (_, true, Some(access)) => format!("up, {access}"),
                (_, true, None) => "up".to_owned(),
                (Some(why), false, _) => format!("down: {why}"),
                (None, false, _) if is_standby(path) => "standby".to_owned(),
                (None, false, _) => "down".to_owned(),
            };
            vec![
                attachment.node_name.clone(),
                path.portal.clone(),
                path.device.clone().unwrap_or_default(),
                state,
            ]
        })
        .collect()
}

fn disk_rows(volume: &EncryptedVolume, status: &EncryptedVolumeStatus) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    if let Some(iscsi) = &volume.spec.source.iscsi {
        row(
            "iSCSI",
            format!(
                "{} LUN {} at {}",
                iscsi.iqn,
                iscsi.lun,
                iscsi.portals.join(", ")
            ),
        );
    }
    if let Some(file) = &volume.spec.source.file {
        row("File", format!("{} ({})", file.path, file.size));
    }
    if let Some(device) = &volume.spec.source.device {
        row("Device", device.path.clone());
    }
    if let Some(wwid) = &status.wwid {
        row("WWID", wwid.clone());
    }
    if let Some(size) = status.size_bytes {
        row("raw size", bytes(size));
    }
    if let Some(size) = status.usable_bytes {
        row("usable size", bytes(size));
    }
    if let Some(uuid) = &status.luks_uuid {
        row("LUKS UUID", uuid.clone());
    }
    if let Some(header) = &status.header {
        row(
            "cipher",
            format!(
                "{}, {} bit, sectors of {}",
                header.cipher, header.key_size, header.sector_size
            ),
        );
    }
    if let Some(permit) = &status.format_permit {
        let meaning = match permit.state {
            PermitState::Issued => "issued: a blank disk will be formatted, once",
            PermitState::Spent => {
                "spent: the disk is never formatted again without a person's word"
            }
            PermitState::Void => "void: the disk is never formatted again",
        };
        row("format permit", meaning.into());
    }
    rows
}

fn key_rows(status: &EncryptedVolumeStatus) -> Vec<Vec<String>> {
    let Some(key) = &status.key else {
        return Vec::new();
    };
    let origin = if key.generated {
        "made by cryptvol"
    } else {
        "named by the user"
    };
    let mut rows = vec![
        vec![
            "id".into(),
            format!("{} ({origin}, version {})", key.id, key.version),
        ],
        vec!["KeyService".into(), key.key_service_name.clone()],
    ];
    if let Some(project) = &key.project_id {
        rows.push(vec!["project".into(), project.clone()]);
    }
    rows
}

fn history(volume: &EncryptedVolume, status: &EncryptedVolumeStatus) -> Vec<Vec<String>> {
    let mut events: Vec<(Timestamp, String)> = Vec::new();
    let mut add = |at: Option<Timestamp>, what: String| events.extend(at.map(|at| (at, what)));
    add(
        volume.metadata.creation_timestamp.as_ref().map(|t| t.0),
        "created".into(),
    );
    if let Some(key) = &status.key {
        add(
            Some(key.since.0),
            if key.generated {
                "key made"
            } else {
                "key first seen"
            }
            .into(),
        );
    }
    if let Some(permit) = &status.format_permit {
        add(Some(permit.issued_at.0), "format permit issued".into());
        let by = permit.spent_by.as_deref().unwrap_or("a node");
        add(
            permit.spent_at.as_ref().map(|t| t.0),
            format!("format permit spent by {by}"),
        );
    }
    add(
        status.first_opened.as_ref().map(|t| t.0),
        "opened for the first time".into(),
    );
    add(
        status.last_rotation.as_ref().map(|t| t.0),
        "passphrase rotated".into(),
    );
    for attachment in &status.attachments {
        let what = format!("{:?} on {}", attachment.stage, attachment.node_name);
        add(attachment.since.as_ref().map(|t| t.0), what);
    }
    if let Some(error) = &status.last_error {
        add(
            Some(error.time.0),
            format!("{}: {}", error.reason, error.message),
        );
    }
    if let Some(erased) = &status.erased {
        let proof = if erased.verified {
            "read back and found without key slots"
        } else {
            "NOT verified"
        };
        add(
            Some(erased.at.0),
            format!(
                "{} key slots wiped by {}, {proof}",
                erased.key_slots_wiped, erased.node_name
            ),
        );
    }
    add(
        volume.metadata.deletion_timestamp.as_ref().map(|t| t.0),
        "deletion asked for".into(),
    );
    events.sort_by_key(|(at, _)| *at);
    events
        .into_iter()
        .map(|(at, what)| vec![at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(), what])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn volume(status: Value) -> EncryptedVolume {
        serde_json::from_value(json!({
            "apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptedVolume",
            "metadata": {"name": "db-0", "namespace": "demo", "generation": 1, "creationTimestamp": "2026-11-22T10:00:00Z"},
            "spec": {
                "source": {"iscsi": {"portals": ["192.0.2.1:3260"], "iqn": "iqn.2026-11.com.example:db-0", "lun": 1}},
                "credentials": {"secretName": "s", "cloudName": "c"},
            },
            "status": status,
        }))
        .unwrap()
    }

    fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-11-22T10:00:05Z"})
    }

    fn now() -> Timestamp {
        "2026-11-22T10:01:00Z".parse().unwrap()
    }

    #[test]
    fn a_ready_volume_says_where() {
        let text = explain(
            &volume(json!({
                "observedGeneration": 1,
                "conditions": [condition("Ready", "True", "AsDesired", "")],
                "attachments": [{"nodeName": "node-1", "stage": "Attached", "link": "/dev/cryptvol/demo/db-0", "since": "2026-11-22T10:00:04Z"}],
                "formatPermit": {"id": "x", "state": "Void", "issuedAt": "2026-11-22T10:00:01Z", "spentAt": "2026-11-22T10:00:02Z", "spentBy": "node-1"},
            })),
            &[],
            now(),
        );
        assert!(
            text.starts_with("demo/db-0 is ready on node-1: /dev/cryptvol/demo/db-0\n"),
            "{text}"
        );
        let order = [
            "created",
            "permit issued",
            "permit spent by node-1",
            "Attached on node-1",
        ];
        let places: Vec<_> = order.iter().map(|w| text.rfind(w).unwrap()).collect();
        assert!(places.is_sorted(), "history is in order of time: {text}");
        assert!(!text.contains("has not looked"), "{text}");
    }

    #[test]
    fn a_volume_that_lost_a_path_is_ready_and_says_which() {
        let of = |second: Value| {
            let paths =
                json!([{"portal": "192.0.2.1:3260", "up": true, "device": "/dev/sda"}, second]);
            let status = json!({
                "observedGeneration": 1,
                "conditions": [condition("Ready", "True", "AsDesired", "")],
                "attachments": [{"nodeName": "node-1", "stage": "Attached", "link": "/dev/cryptvol/demo/db-0", "paths": paths}],
            });
            explain(&volume(status), &[], now())
        };
        let down = json!({"portal": "192.0.2.2:3260", "up": false, "why": "no session"});
        let text = of(down);
        for part in [
            "is ready on node-1",
            "Not all paths to the disk work",
            "down: no session",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let text = of(json!({"portal": "192.0.2.2:3260", "up": true}));
        assert!(!text.contains("Not all paths"), "{text}");
        let text = of(json!({"portal": "192.0.2.2:3260", "up": false, "access": "standby"}));
        assert!(
            !text.contains("Not all paths") && text.contains("standby"),
            "{text}"
        );
    }

    #[test]
    fn every_reason_comes_with_its_next_step() {
        for reason in Reason::ALL {
            let text = explain(
                &volume(
                    json!({"observedGeneration": 1, "conditions": [condition("Ready", "False", reason.as_str(), "x")]}),
                ),
                &[],
                now(),
            );
            assert!(
                text.contains(reason.as_str()) && text.contains(reason.next_step()),
                "{text}"
            );
        }
    }

    #[test]
    fn one_cause_in_several_conditions_is_told_once() {
        let message = conditions::message(Reason::PortalUnreachable, "no answer");
        let text = explain(
            &volume(json!({"observedGeneration": 1, "conditions": [
                condition("DeviceVerified", "False", "PortalUnreachable", &message),
                condition("Ready", "False", "PortalUnreachable", &message),
            ]})),
            &[],
            now(),
        );
        assert_eq!(text.matches("no answer").count(), 1, "{text}");
        assert_eq!(text.matches("by itself").count(), 1, "{text}");
    }

    #[test]
    fn a_next_step_is_said_once() {
        let message = conditions::message(Reason::ChapRejected, "login refused");
        let text = explain(
            &volume(
                json!({"observedGeneration": 1, "conditions": [condition("Ready", "False", "ChapRejected", &message)]}),
            ),
            &[],
            now(),
        );
        assert!(!text.contains("What to do"), "{text}");
    }

    #[test]
    fn a_volume_without_status_and_an_unknown_reason_are_no_trouble() {
        assert!(explain(&volume(Value::Null), &[], now()).contains("no operator has looked"));
        let text = explain(
            &volume(
                json!({"conditions": [condition("Ready", "False", "FromTheFuture", "do this")]}),
            ),
            &[],
            now(),
        );
        assert!(
            text.contains("FromTheFuture")
                && text.contains("do this")
                && text.contains("has not looked"),
            "{text}"
        );
    }
}

//! A volume from `kubectl apply` to `kubectl delete`, and what its key is given for.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::{READY, get, is_true};
use cryptvol_crds::names;
use cryptvol_crds::v1alpha1::{
    Desired, DeviceStatus, HeaderFacts, MappingStatus, PermitReceipt, PermitState, Stage,
};
use cryptvol_e2e::identity_service::product_binary;
use kube::api::DeleteParams;
use serde_json::json;

use crate::ground::{Ground, TEAM, erase_receipt, now, request_id};

#[tokio::test]
async fn from_apply_to_delete() -> Result<()> {
    let ground = Ground::start("operator-life").await?;
    let operator = ground.operator("operator-0").await?;

    // Up: key, claim, permit, hand-over.
    ground
        .apply(&ground.volume("v", 1, &json!({"deletionPolicy": "Erase"})))
        .await?;
    let nv = ground
        .handed_over("v", "node-1", |nv| nv.spec.format_permit.is_some())
        .await?;
    let volume = ground.volumes().get("v").await?;
    let status = volume.status.clone().unwrap_or_default();
    let key = status.key.clone().context("no key on record")?;
    let uid = volume.metadata.uid.clone().unwrap_or_default();
    assert_eq!(
        ground.keystone.secrets(&ground.tenant).await?,
        [(names::key_name(TEAM, "v", &uid), key.id.clone())],
        "one key, under the volume's name"
    );
    assert_eq!(nv.spec.luks_uuid, status.luks_uuid);
    assert_eq!(
        nv.spec.source.iscsi.as_ref().unwrap().portals,
        ["192.0.2.1:3260"]
    );

    // The key, for this node, this attachment, this request, now.
    let passphrase = ground.keystone.passphrase(&ground.tenant, &key.id).await?;
    let audience = Some(names::KEY_RELEASE_AUDIENCE);
    let token = ground.agent_token("node-1", audience).await?;
    let id = request_id();
    let (code, body) = ground
        .ask(&operator, &token, &nv, "Passphrase", &id)
        .await?;
    assert_eq!(
        (code, body["passphrase"].as_str()),
        (200, Some(passphrase.as_str()))
    );
    let (code, _) = ground
        .ask(&operator, &token, &nv, "Passphrase", &id)
        .await?;
    assert_eq!(code, 409, "a repeated request");
    let other_node = ground.agent_token("node-2", audience).await?;
    let (code, body) = ground
        .ask(&operator, &other_node, &nv, "Passphrase", &request_id())
        .await?;
    assert_eq!(
        (code, body["reason"].as_str()),
        (403, Some("KeyReleaseRefused"))
    );
    let other_audience = ground.agent_token("node-1", None).await?;
    let (code, _) = ground
        .ask(&operator, &other_audience, &nv, "Passphrase", &request_id())
        .await?;
    assert_eq!(code, 401, "a token for the API server");
    let not_the_agent = ground
        .plane
        .kubectl(&[
            "create",
            "token",
            names::OPERATOR_SERVICE_ACCOUNT,
            "-n",
            "cryptvol-system",
            "--audience",
            names::KEY_RELEASE_AUDIENCE,
        ])
        .await?;
    let (code, _) = ground
        .ask(
            &operator,
            not_the_agent.trim(),
            &nv,
            "Passphrase",
            &request_id(),
        )
        .await?;
    assert_eq!(code, 401);
    let (code, body) = ground
        .ask(&operator, &token, &nv, "ChapCredentials", &request_id())
        .await?;
    assert_eq!(
        (code, body["reason"].as_str()),
        (422, Some("ChapSecretInvalid"))
    );
    // A purpose that is refused for what the volume is; each is counted by its word, as it is recorded.
    for (purpose, result) in [
        ("NextPassphrase", "KeyReleaseRefused"),
        ("DiscoveryChapCredentials", "ChapSecretInvalid"),
    ] {
        let (code, _) = ground
            .ask(&operator, &token, &nv, purpose, &request_id())
            .await?;
        assert_eq!(code, 422, "{purpose}");
        let counter = format!(
            "cryptvol_operator_key_releases_total{{purpose=\"{purpose}\",result=\"{result}\"}}"
        );
        assert_eq!(operator.metric(&counter).await?, 1);
    }
    let mut another = nv.clone();
    another.metadata.uid = Some("00000000-0000-0000-0000-000000000000".into());
    let (code, _) = ground
        .ask(&operator, &token, &another, "Passphrase", &request_id())
        .await?;
    assert_eq!(code, 403, "another object of the same name");

    // The agent spends the permit: it is taken back.
    let permit = nv.spec.format_permit.clone().context("permit")?;
    ground
        .report(&nv, |s| {
            s.stage = Stage::Identity;
            s.permit = Some(PermitReceipt {
                id: permit.id.clone(),
                spent_at: Some(now()),
            });
        })
        .await?;
    let nv = ground
        .handed_over("v", "node-1", |nv| {
            nv.spec.format_permit.is_none() && nv.spec.formatted_before
        })
        .await?;
    let header = HeaderFacts {
        luks_uuid: permit.luks_uuid.clone(),
        cipher: "aes-xts-plain64".into(),
        key_size: 512,
        sector_size: 512,
        data_offset: 16 << 20,
        digest: "ab".repeat(32),
        ..HeaderFacts::default()
    };
    ground
        .report(&nv, |s| {
            s.stage = Stage::Attached;
            s.device = Some(DeviceStatus {
                path: "/dev/sda".into(),
                wwid: Some("naa.6001405".into()),
                size_bytes: 1 << 30,
            });
            s.header = Some(header.clone());
            s.mapping = Some(MappingStatus {
                name: "cryptvol-x".into(),
                path: "/dev/dm-0".into(),
                size_bytes: (1 << 30) - (16 << 20),
                ..MappingStatus::default()
            });
            s.link = Some(nv.spec.link.clone());
            s.first_opened = Some(now());
        })
        .await?;
    let status = ground
        .until("v", "Ready", |s| is_true(&s.conditions, READY))
        .await?;
    assert_eq!(status.wwid.as_deref(), Some("naa.6001405"));
    assert_eq!(status.header.as_ref(), Some(&header));
    assert_eq!(
        status.format_permit.map(|p| p.state),
        Some(PermitState::Void)
    );
    let nv = ground
        .handed_over("v", "node-1", |nv| {
            nv.spec.header.is_some() && nv.spec.size_bytes.is_some()
        })
        .await?;
    ground.report(&nv, |_| {}).await?;

    // An idle cluster: for a minute nothing is written but the lease.
    let log = ground.plane.audit_log();
    let mark = log
        .quiet(|e| e.is_stored_write() && !e.resource().contains("leases"))
        .await?;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let written: Vec<_> = log
        .since(mark)?
        .iter()
        .filter(|e| e.is_stored_write())
        .map(|e| format!("{} {} by {}", e.verb, e.resource(), e.user.username))
        .collect();
    let leases = written
        .iter()
        .filter(|w| w.contains("leases") && w.contains("cryptvol-operator"))
        .count();
    let others: Vec<_> = written
        .iter()
        // The API server renews its own identity lease.
        .filter(|w| !w.contains("leases"))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    assert!((4..=8).contains(&leases), "{leases} renewals in a minute");

    // Detaching takes the right to the key away before the node has let go.
    let none = json!({"spec": {"attachments": []}}).to_string();
    ground
        .plane
        .kubectl(&[
            "patch",
            "encryptedvolume",
            "v",
            "-n",
            TEAM,
            "--type=merge",
            "-p",
            &none,
        ])
        .await?;
    let nv = ground
        .handed_over("v", "node-1", |nv| nv.spec.desired == Desired::Detached)
        .await?;
    let (code, _) = ground
        .ask(&operator, &token, &nv, "Passphrase", &request_id())
        .await?;
    assert_eq!(code, 403);
    ground.lets_go(&nv).await?;
    ground
        .until("v", "Detached", |s| {
            s.attachments.is_empty()
                && get(&s.conditions, READY).is_some_and(|c| c.reason == "Detached")
        })
        .await?;

    // Deleted: erased by the last node, then the key goes, then the object.
    ground
        .volumes()
        .delete("v", &DeleteParams::default())
        .await?;
    let nv = ground
        .handed_over("v", "node-1", |nv| nv.spec.desired == Desired::Erased)
        .await?;
    let (code, _) = ground
        .ask(&operator, &token, &nv, "Passphrase", &request_id())
        .await?;
    assert_eq!(code, 403, "erasing needs no key");
    assert!(ground.keystone.has_secret(&ground.tenant, &key.id).await?);
    ground
        .report(&nv, |s| {
            s.stage = Stage::Erased;
            s.erased = Some(erase_receipt(permit.luks_uuid.clone()));
        })
        .await?;
    ground.gone("v").await?;
    assert!(!ground.keystone.has_secret(&ground.tenant, &key.id).await?);
    assert!(
        ground
            .node_volumes()
            .list(&kube::api::ListParams::default())
            .await?
            .items
            .is_empty()
    );

    // Events tell the story; the audit log is whole and says who got the key.
    let events = ground
        .plane
        .kubectl(&[
            "get",
            "events",
            "-n",
            TEAM,
            "-o",
            "jsonpath={.items[*].reason}",
        ])
        .await?;
    for reason in [
        "KeyReady",
        "Formatting",
        "Attached",
        "Detached",
        "Erased",
        "KeyDestroyed",
    ] {
        assert!(events.contains(reason), "{reason} in {events}");
    }
    let verified = Command::new(product_binary("cryptvol-operator")?)
        .args(["audit", "verify"])
        .arg(&operator.audit_file)
        .output()?;
    ensure!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stderr)
    );
    let audit = std::fs::read_to_string(&operator.audit_file)?;
    assert_eq!(audit.matches("\"result\":\"Released\"").count(), 1);
    for word in [
        "OtherNode",
        "WrongAccount",
        "RepeatedRequest",
        "NotWanted",
        "NoSuchVolume",
    ] {
        assert!(audit.contains(word), "{word} in {audit}");
    }

    // The passphrase is nowhere but in the answer, whatever the log level.
    let log = std::fs::read_to_string(operator.daemon.log_path())?;
    let raw = hex::decode(&passphrase)?;
    for (place, bytes) in [
        ("log", log.into_bytes()),
        ("audit", audit.into_bytes()),
        ("API audit", std::fs::read(ground.plane.audit_log().path())?),
    ] {
        ensure!(
            !contains(&bytes, passphrase.as_bytes()) && !contains(&bytes, &raw),
            "the passphrase is in the {place}"
        );
    }
    for file in walk(&ground.plane.etcd_dir())? {
        let bytes = std::fs::read(&file)?;
        ensure!(
            !contains(&bytes, passphrase.as_bytes()) && !contains(&bytes, &raw),
            "the passphrase is in {}",
            file.display()
        );
    }
    ground.work.passed()
}

#[tokio::test]
async fn chap_credentials_go_to_the_node_of_the_volume() -> Result<()> {
    let ground = Ground::start("operator-chap").await?;
    let operator = ground.operator("operator-0").await?;
    let mut volume = ground.volume("v", 1, &json!({}));
    volume["spec"]["source"]["iscsi"]["chapSecretRef"] = json!({"name": "chap"});
    ground.apply(&volume).await?;
    let nv = ground
        .handed_over("v", "node-1", |nv| {
            nv.spec.source.iscsi.as_ref().is_some_and(|i| i.chap)
        })
        .await?;
    let token = ground
        .agent_token("node-1", Some(names::KEY_RELEASE_AUDIENCE))
        .await?;
    let (code, body) = ground
        .ask(&operator, &token, &nv, "ChapCredentials", &request_id())
        .await?;
    assert_eq!(
        (code, body["reason"].as_str()),
        (422, Some("ChapSecretInvalid"))
    );
    ground
        .apply(&json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/iscsi-chap", "metadata": {"name": "chap", "namespace": TEAM},
            "stringData": {"node.session.auth.username": "u", "node.session.auth.password": "correct horse"}}))
        .await?;
    let (code, body) = ground
        .ask(&operator, &token, &nv, "ChapCredentials", &request_id())
        .await?;
    assert_eq!(
        (code, body),
        (200, json!({"username": "u", "password": "correct horse"}))
    );
    ground.work.passed()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

fn walk(dir: &std::path::Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = vec![];
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(walk(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

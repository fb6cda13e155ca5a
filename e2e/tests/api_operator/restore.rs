//! The machine of the embedded service is lost with all that was on it; its backup and the key-encryption key, which were
//! elsewhere, bring it back on another one. The operator runs through all of it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_crds::v1alpha1::KeyReferenceStatus;
use cryptvol_e2e::identity_service::product_binary;
use cryptvol_e2e::workdir::workspace_root;
use serde_json::{Value, json};

use crate::ground::Ground;

impl Ground {
    async fn key_of(&self, volume: &str) -> Result<KeyReferenceStatus> {
        let status = self.volumes().get(volume).await?.status;
        status.unwrap_or_default().key.context("no key on record")
    }

    /// What the pod of the example does, with its own arguments, on the files that it would have mounted.
    async fn restore(&self, backup: &Path) -> Result<()> {
        let example = workspace_root().join("examples/restore/identity-restore.yaml");
        let example = example.to_string_lossy();
        let shown = ["create", "--dry-run=client", "-o", "json", "-f", &*example];
        let pod: Value = serde_json::from_str(&self.plane.kubectl(&shown).await?)?;
        let mounted = [
            ("/var/lib/cryptvol-identity/data", self.identity.data_dir()),
            (
                "/etc/cryptvol/kek/kek",
                self.identity.secrets_dir().join("kek"),
            ),
        ];
        let args = pod["spec"]["containers"][0]["args"]
            .as_array()
            .context("no arguments")?
            .iter()
            .map(|arg| {
                let mut arg = arg.as_str().unwrap_or_default().to_owned();
                for (from, to) in &mounted {
                    arg = arg.replace(from, &to.to_string_lossy());
                }
                arg
            });
        let done = Command::new(product_binary("cryptvol-identity")?)
            .args(args)
            .stdin(fs::File::open(backup)?)
            .output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "{said}");
        Ok(())
    }
}

fn refused(reason: Reason, answer: &(u16, Value)) -> Result<()> {
    ensure!(
        answer.0 != 200 && answer.1["reason"] == reason.as_str(),
        "{answer:?}"
    );
    Ok(())
}

#[tokio::test]
async fn volumes_get_the_same_keys_from_a_service_restored_on_another_machine() -> Result<()> {
    let mut ground = Ground::start("operator-restore").await?;
    let operator = ground.operator("operator-0").await?;
    let erase = json!({"deletionPolicy": "Erase"});
    let backup = ground.work.path().join("identity.backup");
    let mut handed_over = Vec::new();
    for (lun, volume) in (1..).zip(["one", "two", "late"]) {
        if volume == "late" {
            // What comes after the backup is not in it.
            let (data, kek) = (
                ground.identity.data_dir(),
                ground.identity.secrets_dir().join("kek"),
            );
            let options = [
                ("--data-dir", &data),
                ("--kek-file", &kek),
                ("--out", &backup),
            ]
            .map(|(name, path)| format!("{name}={}", path.display()));
            let mut args = vec!["backup"];
            args.extend(options.iter().map(String::as_str));
            ground.identity.command(&args)?;
        }
        ground.apply(&ground.volume(volume, lun, &erase)).await?;
        ground.comes_up(volume).await?;
        let nv = ground.handed_over(volume, "node-1", |_| true).await?;
        let answer = ground.passphrase(&operator, &nv).await?;
        ensure!(
            answer.0 == 200,
            "{volume}: {} {}",
            answer.0,
            answer.1["reason"]
        );
        handed_over.push((nv, answer.1, ground.key_of(volume).await?));
    }
    let before = ground.keystone.tenant_token(&ground.tenant).await?;
    assert_eq!(ground.keystone.status_of(&before).await?, 200);

    // The machine is gone. What is left: the backup, the key-encryption key, and what the cluster has in Secrets.
    let kek = fs::read(ground.identity.secrets_dir().join("kek"))?;
    let other = ground.work.dir("other-machine")?;
    ground.identity.move_to(&other)?;
    let lost = ground.work.path().join("identity");
    fs::remove_dir_all(lost.join("data"))?;
    fs::remove_file(lost.join("secrets/kek"))?;
    let answer = ground.passphrase(&operator, &handed_over[0].0).await?;
    refused(Reason::KeyServiceUnavailable, &answer)?;

    // Started without its records it is an empty service, with a key-encryption key of its own: nobody is known, and the
    // operator makes no other keys for the volumes that have one.
    let new_kek = other.join("secrets/kek").to_string_lossy().into_owned();
    ground
        .identity
        .command(&["kek", "generate", "--out", &new_kek])?;
    ground.identity.bootstrap()?;
    ground.identity.launch()?;
    for (nv, _, _) in &handed_over {
        let answer = ground.passphrase(&operator, nv).await?;
        refused(Reason::CredentialsRejected, &answer)?;
    }
    ground.apply(&ground.volume("new", 4, &erase)).await?;
    ground
        .stops("new", Reason::CredentialsRejected.as_str())
        .await?;
    ground.identity.stop()?;

    // Restored, with the key of the machine that is gone.
    fs::write(&new_kek, kek)?;
    ground.restore(&backup).await?;
    ground.identity.bootstrap()?;
    ground.identity.launch()?;

    // The same operator logs in anew by itself, and has for each volume what it had before.
    for (volume, (nv, had, key)) in ["one", "two"].into_iter().zip(&handed_over) {
        let (status, has) = ground.passphrase(&operator, nv).await?;
        ensure!(
            status == 200 && has["passphrase"] == had["passphrase"],
            "{status} {}",
            has["reason"]
        );
        ensure!(
            ground.key_of(volume).await? == *key,
            "another key of {volume}"
        );
    }
    // A key that was made after the backup is gone. That is said, and no other one takes its place.
    let (late, _, key) = &handed_over[2];
    let answer = ground.passphrase(&operator, late).await?;
    refused(Reason::KeyNotFound, &answer)?;
    ensure!(ground.key_of("late").await? == *key, "another key");
    // The volume that waited goes on; deleting works for what has a key and for what has none any more.
    ground.comes_up("new").await?;
    ensure!(ground.keystone.secrets(&ground.tenant).await?.len() == 3);
    for volume in ["one", "late"] {
        ground.erased(volume).await?;
    }
    let left = ground.keystone.secrets(&ground.tenant).await?;
    let left: Vec<_> = left.into_iter().map(|(_, id)| id).collect();
    ensure!(
        left.len() == 2 && !left.contains(&handed_over[0].2.id),
        "{left:?}"
    );
    ensure!(left.contains(&handed_over[1].2.id), "{left:?}");

    // Which tokens were revoked since the backup is not known: all have ended. A new login is good.
    assert_eq!(ground.keystone.status_of(&before).await?, 401);
    let now = ground.keystone.tenant_token(&ground.tenant).await?;
    assert_eq!(ground.keystone.status_of(&now).await?, 200);
    ground.work.passed()
}

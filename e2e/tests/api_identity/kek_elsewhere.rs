//! The key-encryption key of one service is a secret of another one.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cryptvol_e2e::identity_service::{IdentityService, Options};

use crate::ground::{Ground, text};

const PATIENCE: Duration = Duration::from_secs(120);
/// Nothing else looks like it.
const KEY: &[u8; 32] = b"the key of the keys, elsewhere 1";

impl Ground {
    /// Stores a key. Where it is.
    fn key(&self, bytes: &[u8]) -> Result<String> {
        let stored = self.json(&[
            "secret",
            "store",
            "--secret-type",
            "symmetric",
            "--payload-content-type",
            "application/octet-stream",
            "--payload-content-encoding",
            "base64",
            "--payload",
            &STANDARD.encode(bytes),
        ])?;
        Ok(text(&stored, "Secret href")?.to_owned())
    }

    /// What is in the file: where the key is, and a new application credential that may read it.
    fn reference(&self, secret: &str, credential: &str) -> Result<String> {
        let made = self.json(&[
            "application",
            "credential",
            "create",
            "--role",
            "member",
            credential,
        ])?;
        Ok(format!(
            "authUrl: {}\napplicationCredentialId: {}\napplicationCredentialSecret: {}\ncaFile: {}\nsecretRefs:\n- {secret}\n",
            self.service.auth_url(),
            text(&made, "ID")?,
            text(&made, "Secret")?,
            self.service.ca_path().display(),
        ))
    }
}

/// Waits until `/readyz` has this status and says `word`.
fn ready(service: &IdentityService, status: u16, word: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let answer = service.admin("/readyz");
        if matches!(&answer, Ok((got, body)) if *got == status && body.contains(word)) {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("not {status} {word:?} but {answer:?}:\n{}", service.log()?);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_key_of_the_keys_is_in_another_key_manager() -> Result<()> {
    let mut keeper = Ground::new("identity-kek-elsewhere")?;
    let secret = keeper.key(KEY)?;
    let options = Options {
        kek: Some(keeper.reference(&secret, "first")?),
        ..Options::default()
    };
    let mut service = IdentityService::start(&keeper.work.dir("second")?, options)?;
    let cloud = service.admin_cloud()?;
    let kept = keeper.client.json(
        &cloud,
        &[
            "secret",
            "store",
            "--payload-content-type",
            "text/plain",
            "--payload",
            "still here",
        ],
    )?;
    let href = text(&kept, "Secret href")?.to_owned();
    let readable = |keeper: &Ground| -> Result<()> {
        let payload = keeper
            .client
            .json(&cloud, &["secret", "get", "--payload", &href])?;
        assert_eq!(text(&payload, "Payload")?, "still here");
        Ok(())
    };

    // A service that runs does not need the other one; one that starts waits for it, alive and not ready.
    keeper.service.kill()?;
    readable(&keeper)?;
    service.kill()?;
    service.spawn()?;
    ready(&service, 503, "KekUnreachable")?;
    assert_eq!(service.admin("/livez")?.0, 200);
    keeper.service.launch()?;
    ready(&service, 200, "ok")?;
    readable(&keeper)?;

    // The credential is gone; another one, in the file, is taken without a restart.
    keeper.ok(&["application", "credential", "delete", "first"])?;
    service.stop()?;
    service.spawn()?;
    ready(&service, 503, "KekRefused")?;
    let file = service.secrets_dir().join("kek");
    fs::write(&file, keeper.reference(&secret, "second")?)?;
    ready(&service, 200, "ok")?;
    readable(&keeper)?;

    // A rotation is begun over there, not from here.
    let (data, kek) = (service.data_dir(), file.to_string_lossy().into_owned());
    let rekey = [
        "rekey",
        "--data-dir",
        &data.to_string_lossy(),
        "--kek-file",
        &kek,
    ];
    let refused = service.command(&rekey).err().map(|error| error.to_string());
    ensure!(
        refused
            .as_ref()
            .is_some_and(|said| said.contains("another key manager")),
        "{refused:?}"
    );
    let newer = keeper.key(&[7; 32])?;
    let both =
        fs::read_to_string(&file)?.replace("secretRefs:\n", &format!("secretRefs:\n- {newer}\n"));
    fs::write(&file, &both)?;
    service.command(&rekey)?;
    fs::write(&file, both.replace(&format!("- {secret}\n"), ""))?;
    service.stop()?;
    service.launch()?;
    readable(&keeper)?;

    // Neither key is on the second one's disk.
    for key in [KEY.as_slice(), &[7; 32]] {
        for file in fs::read_dir(service.data_dir())? {
            let bytes = fs::read(file?.path())?;
            ensure!(
                !bytes.windows(32).any(|window| window == key),
                "a key on disk"
            );
        }
    }
    service.stop()?;
    keeper.passed()
}

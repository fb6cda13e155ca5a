//! A volume's life on kind, where the machine's kernel can do it: the machine is the hypervisor, its loopback the network.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cryptvol_e2e::array::{Array, Lun};
use cryptvol_e2e::keystone::Keystone;
use cryptvol_e2e::kind::Kind;
use cryptvol_e2e::process::{Daemon, run, wait_for};
use serde_json::{Value, json};

use crate::{SYSTEM, condition, secret, volume};

const IQN: &str = "iqn.2026-11.dev.cryptvol:kind-db-0";
const LINK: &str = "/dev/cryptvol/demo/db-0";
const TEXT: &[u8] = b"written on the machine through the link";
/// Where the text is written on the volume, in bytes.
const AT: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(240);
/// The port of the identity service, which its catalog names; so it is forwarded at an address of the loopback that nobody uses.
const IDENTITY_ADDRESS: &str = "127.0.77.1";
const IDENTITY_PORT: u16 = 5000;

/// From an empty LUN to a mapping that survives its agent, and back to nothing: no session, no header, no key.
pub async fn scenario(kind: &Kind, node: &str, dir: &Path) -> Result<()> {
    let mut array = Array::start_on_loopback(&dir.join("array")).await?;
    array.create_target(IQN)?;
    let lun = array.create_lun(IQN, 1, 64 << 20)?;
    let identity = Identity::reach(kind, dir).await?;
    let tenant = identity.keystone.tenant("demo", "member").await?;
    let credentials = tenant.secret_manifest("demo", "demo-keystone", &tenant.clouds_yaml());
    kind.apply(&credentials.to_string()).await?;
    let mut manifest = volume("db-0", node);
    manifest["spec"]["credentials"] =
        json!({"secretName": "demo-keystone", "cloudName": tenant.name});
    manifest["spec"]["source"]["iscsi"] =
        json!({"portals": [array.portal()], "iqn": IQN, "lun": 1, "wwid": lun.wwid()});
    manifest["spec"]["deletionPolicy"] = json!("Erase");
    kind.apply(&manifest.to_string()).await?;

    let ready = until_ready(kind).await?;
    let key = ready["status"]["key"]["id"]
        .as_str()
        .context("the status names no key")?
        .to_owned();
    write(dir)?;
    ensure!(
        read()? == TEXT,
        "the link does not give back what was written"
    );
    ensure!(!lun.contains(TEXT)?, "the array holds the plaintext");
    ensure!(
        lun.read_at(0, 6)? == b"LUKS\xba\xbe",
        "there is no LUKS header on the array"
    );

    // Another agent finds all as it is, and changes nothing.
    let before = lun.sha256()?;
    kind.kubectl(&[
        "delete",
        "pod",
        "-n",
        SYSTEM,
        "-l",
        "app.kubernetes.io/component=node-agent",
    ])
    .await?;
    kind.kubectl(&[
        "rollout",
        "status",
        "-n",
        SYSTEM,
        "daemonset/cryptvol-node-agent",
        "--timeout=90s",
    ])
    .await?;
    until_ready(kind).await?;
    ensure!(
        read()? == TEXT,
        "the data is gone after the agent's restart"
    );
    ensure!(lun.sha256()? == before, "a new agent wrote to the disk");

    ensure!(
        identity.keystone.has_secret(&tenant, &key).await?,
        "the key is gone too early"
    );
    kind.kubectl(&[
        "delete",
        "encryptedvolume",
        "-n",
        "demo",
        "db-0",
        "--timeout=120s",
    ])
    .await?;
    nothing_left(&lun)?;
    ensure!(
        !identity.keystone.has_secret(&tenant, &key).await?,
        "the key is still in the key manager"
    );
    Ok(())
}

async fn until_ready(kind: &Kind) -> Result<Value> {
    let mut last = String::new();
    let ready = wait_for(
        "the volume to be Ready",
        LIMIT,
        || async {
            let volume = kind.get(&["encryptedvolume", "-n", "demo", "db-0"]).await?;
            let now = condition(&volume, "Ready");
            Ok(now.is_some_and(|c| c["status"] == "True").then_some(volume))
        },
        String::new,
    )
    .await;
    if ready.is_err() {
        let volume = kind.get(&["encryptedvolume", "-n", "demo", "db-0"]).await?;
        last = format!("{volume:#}\n{}", kind.explain(SYSTEM).await);
    }
    ready.context(last)
}

/// The link on this machine: the agent's `/dev` is the machine's.
fn write(dir: &Path) -> Result<()> {
    let file = dir.join("text");
    let mut block = TEXT.to_vec();
    block.resize(4096, 0);
    std::fs::write(&file, block)?;
    let (input, output, seek) = (
        format!("if={}", file.display()),
        format!("of={LINK}"),
        format!("seek={}", AT / 4096),
    );
    run(
        "dd",
        &[
            &input,
            &output,
            "bs=4096",
            &seek,
            "oflag=direct",
            "conv=fsync",
            "status=none",
        ],
    )
    .map(|_| ())
}

fn read() -> Result<Vec<u8>> {
    let output = Command::new("dd")
        .arg(format!("if={LINK}"))
        .args(["bs=4096", "count=1", "iflag=direct", "status=none"])
        .arg(format!("skip={}", AT / 4096))
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout.get(..TEXT.len()).unwrap_or_default().to_vec())
}

fn nothing_left(lun: &Lun) -> Result<()> {
    ensure!(!Path::new(LINK).exists(), "{LINK} is still there");
    let any = |glob: &str, what: &str| -> Result<bool> {
        let found = run("sh", &["-c", &format!("cat {glob} 2>/dev/null || true")])?;
        Ok(found.lines().any(|line| line.starts_with(what)))
    };
    ensure!(
        !any("/sys/block/dm-*/dm/name", "cryptvol-")?,
        "a mapping is left"
    );
    ensure!(
        !any("/sys/class/iscsi_session/*/targetname", IQN)?,
        "a session is left"
    );
    ensure!(
        lun.read_at(0, 1 << 20)?.iter().all(|b| *b == 0),
        "the header area is not wiped"
    );
    Ok(())
}

/// The key manager, through a port that kubectl forwards.
struct Identity {
    keystone: Keystone,
    _forward: Daemon,
}

impl Identity {
    async fn reach(kind: &Kind, dir: &Path) -> Result<Self> {
        let host = format!("cryptvol-identity.{SYSTEM}.svc");
        let forward = kind.port_forward(
            dir,
            &["-n", SYSTEM, "service/cryptvol-identity"],
            IDENTITY_ADDRESS,
            IDENTITY_PORT,
        )?;
        let address = SocketAddr::new(IDENTITY_ADDRESS.parse()?, IDENTITY_PORT);
        wait_for(
            "the forwarded port",
            Duration::from_secs(30),
            || async {
                forward.check()?;
                Ok(tokio::net::TcpStream::connect(address)
                    .await
                    .ok()
                    .map(|_| ()))
            },
            || forward.log_tail(5),
        )
        .await?;
        let password = secret(kind, "cryptvol-identity-admin", "password").await?;
        let keystone = Keystone::at(
            &format!("https://{host}:{IDENTITY_PORT}/identity/v3"),
            String::from_utf8(password)?.trim(),
            &secret(kind, "cryptvol-identity-tls", "ca.crt").await?,
            Some((&host, address)),
        )?;
        Ok(Self {
            keystone,
            _forward: forward,
        })
    }
}

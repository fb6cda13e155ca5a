//! os-brick's volume encryptors, run on a node: what Nova and Cinder do with a volume, by their own library.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::node::Node;
use crate::process::run;
use crate::python::Environment;

const ENVIRONMENT: Environment = Environment {
    what: "os-brick",
    requirements: include_str!("../requirements-os-brick.txt"),
};
/// Drives the encryptors.
const SCRIPT: &str = include_str!("../assets/os-brick.py");
/// Attaches and detaches with its connector too, and tells the time.
const ROUNDS: &str = include_str!("../assets/os-brick-rounds.py");
/// Two key derivations of two seconds by its default, on a machine that has others to serve.
const LIMIT: Duration = Duration::from_secs(300);

/// The installed library.
#[derive(Debug, Clone)]
pub struct OsBrick {
    python: PathBuf,
}

/// A volume as Cinder's volume type and Barbican describe it.
#[derive(Debug, Clone)]
pub struct BrickVolume {
    /// `luks`, `luks2` or `plain`.
    pub provider: &'static str,
    /// Bits of the volume key.
    pub key_size: u32,
    /// The key's bytes, in hex.
    pub key: String,
}

/// What os-brick found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrickFound {
    /// The first bytes of the decrypted device.
    pub text: String,
    /// Its size in bytes.
    pub size: u64,
}

impl OsBrick {
    /// Installs it where it is not there yet; see [`Environment::ensure`].
    pub fn ensure() -> Result<Self> {
        let python = ENVIRONMENT.ensure()?.join("bin/python3");
        Ok(Self { python })
    }

    /// Attaches and detaches a LUN with a LUKS2 header again and again, by its connector and its encryptor; what it printed, lines
    /// `STEP brick_… milliseconds`. `key` is hex, and so the passphrase.
    pub async fn rounds(
        &self,
        node: &Node,
        portal: &str,
        iqn: &str,
        lun: u16,
        key: &str,
        rounds: u32,
    ) -> Result<String> {
        let order = json!({"portal": portal, "iqn": iqn, "lun": lun, "key": key, "rounds": rounds});
        let python = self.python.to_str().context("path of Python")?;
        let limit = LIMIT + Duration::from_secs(60) * rounds;
        node.exec_with(
            &[python, "-c", ROUNDS],
            &[],
            order.to_string().as_bytes(),
            limit,
        )
        .await?
        .ok()
        .context("os-brick")
    }

    /// Attaches a device of the node (formatting it where os-brick would), reads its first bytes, writes where asked, and
    /// detaches.
    pub async fn visit(
        &self,
        node: &Node,
        device: &str,
        volume: &BrickVolume,
        read: usize,
        write: Option<&str>,
    ) -> Result<BrickFound> {
        let order = json!({
            "device": device, "provider": volume.provider, "cipher": "aes-xts-plain64", "key_size": volume.key_size,
            "key": volume.key, "read": read, "write": write,
        });
        let output = node
            .exec_with(
                &[
                    self.python.to_str().context("path of Python")?,
                    "-c",
                    SCRIPT,
                ],
                &[],
                order.to_string().as_bytes(),
                LIMIT,
            )
            .await?
            .ok()?;
        let found: Value = serde_json::from_str(output.trim())
            .with_context(|| format!("os-brick printed no JSON: {output}"))?;
        let bytes = hex::decode(found["read"].as_str().context("read")?)?;
        Ok(BrickFound {
            text: String::from_utf8_lossy(&bytes).into_owned(),
            size: found["size"].as_u64().context("size")?,
        })
    }
}

/// How the machine's cryptsetup makes keys of plain volumes when nobody says: os-brick never does. It changed with 2.7.
pub fn plain_hash() -> Result<&'static str> {
    let help = run("cryptsetup", &["--help"])?;
    let line = help
        .lines()
        .find(|l| l.trim_start().starts_with("plain:"))
        .context("cryptsetup does not tell its defaults")?;
    let known = ["ripemd160", "sha256"];
    let found = known.into_iter().find(|h| line.ends_with(h));
    ensure!(found.is_some(), "another hash by default: {line}");
    found.context("hash")
}

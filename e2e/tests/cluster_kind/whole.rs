//! A volume's life on kind, where the machine's kernel can do it: the machine is the hypervisor, its loopback the network.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use cryptvol_e2e::array::Array;
use cryptvol_e2e::ground::Ground;
use cryptvol_e2e::keystone::Keystone;
use cryptvol_e2e::kind::Kind;
use cryptvol_e2e::process::{Daemon, run, wait_for};
use cryptvol_e2e::release::secret;
use cryptvol_e2e::scenario::volume_life;

use crate::SYSTEM;

/// The port of the identity service, which its catalog names; so it is forwarded at an address of the loopback that nobody uses.
const IDENTITY_ADDRESS: &str = "127.0.77.1";
const IDENTITY_PORT: u16 = 5000;

/// The nodes are containers of this machine.
struct Machine<'a>(&'a Kind);

impl Ground for Machine<'_> {
    async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.0.kubectl(args).await
    }

    async fn apply(&self, manifest: &str) -> Result<String> {
        self.0.apply(manifest).await
    }

    async fn on_hypervisor(&self, script: &str) -> Result<String> {
        run("sh", &["-c", script])
    }
}

/// The scenario with an array on the loopback.
pub async fn scenario(kind: &Kind, keystone: &Keystone, node: &str, dir: &Path) -> Result<()> {
    let mut array = Array::start_on_loopback(&dir.join("array")).await?;
    volume_life(&Machine(kind), keystone, &mut array, node, "whole").await
}

/// The identity service, through a port that kubectl forwards until the second value is dropped.
pub async fn identity(kind: &Kind, dir: &Path) -> Result<(Keystone, Daemon)> {
    let service = ["-n", SYSTEM, "service/cryptvol-identity"];
    let forward = kind.port_forward(dir, &service, IDENTITY_ADDRESS, IDENTITY_PORT)?;
    let address = SocketAddr::new(IDENTITY_ADDRESS.parse()?, IDENTITY_PORT);
    wait_for(
        "the forwarded port",
        Duration::from_secs(30),
        || async {
            forward.check()?;
            let answer = tokio::net::TcpStream::connect(address).await;
            Ok(answer.ok().map(|_| ()))
        },
        || forward.log_tail(5),
    )
    .await?;
    let host = format!("cryptvol-identity.{SYSTEM}.svc");
    let password = secret(&Machine(kind), "cryptvol-identity-admin", "password").await?;
    let keystone = Keystone::at(
        &format!("https://{host}:{IDENTITY_PORT}/identity/v3"),
        String::from_utf8(password)?.trim(),
        &secret(&Machine(kind), "cryptvol-identity-tls", "ca.crt").await?,
        Some((&host, address)),
    )?;
    Ok((keystone, forward))
}

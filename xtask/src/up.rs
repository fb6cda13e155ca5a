//! `cargo xtask up`: a cluster with the charts installed, that stays.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Result;

use crate::{build, run};

/// Where the archives of the images go.
pub const IMAGES: &str = "target/images";

/// Makes the images, starts the cluster in the background and installs the charts.
pub fn run(arguments: &[OsString]) -> Result<()> {
    run::check(build::e2e().args(["images", "--out", IMAGES]))?;
    let mut up = build::e2e();
    up.args(["up", "--detach"]);
    for name in ["operator", "node-agent", "identity"] {
        up.arg("--image")
            .arg(Path::new(IMAGES).join(format!("{name}.tar")));
    }
    run::check(up.args(arguments))?;
    install("cryptvol-crds", &[])?;
    // The nodes' disks are gone with a power cut, and there is no storage class: the keys live as long as the cluster.
    install("cryptvol", &["--set", "identity.persistence.enabled=false"])?;
    eprintln!(
        "\nThe cluster stays. Look around:\n  cargo xtask kubectl -- get pods -A\n  cargo xtask kubectl -- get nodes\n\
         Take it down:\n  cargo xtask down"
    );
    Ok(())
}

fn install(chart: &str, more: &[&str]) -> Result<()> {
    let path = std::path::absolute(format!("charts/{chart}"))?;
    run::check(
        build::e2e()
            .args([
                "exec",
                "--",
                "helm",
                "upgrade",
                "--install",
                "--wait",
                "--timeout",
                "5m",
                chart,
            ])
            .arg(path)
            .args(["--namespace", "cryptvol-system", "--create-namespace"])
            .args(more),
    )
}

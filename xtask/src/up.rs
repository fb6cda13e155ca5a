//! `cargo xtask up`: a cluster with the charts installed, that stays.

use std::ffi::OsString;

use anyhow::Result;

use crate::{build, run};

/// Where the archives of the images go.
pub const IMAGES: &str = "target/images";

/// Makes the images, starts the cluster in the background and installs the charts.
pub fn run(arguments: &[OsString]) -> Result<()> {
    run::check(build::e2e().args(["images", "--out", IMAGES]))?;
    run::check(
        build::e2e()
            .args(["up", "--detach", "--install"])
            .args(arguments),
    )?;
    eprintln!(
        "\nThe cluster stays. Look around:\n  cargo xtask kubectl -- get pods -A\n  cargo xtask kubectl -- get nodes\n\
         Take it down:\n  cargo xtask down"
    );
    Ok(())
}

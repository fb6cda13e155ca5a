//! Benchmarks live in the harness; they print both sides and write JSON.

use std::ffi::OsString;

use anyhow::Result;

use crate::{build, run, setup};

/// Builds and runs one.
pub fn start(name: &str, arguments: &[OsString]) -> Result<()> {
    if ["failed-logins", "identity", "kills", "rekey"].contains(&name) {
        identity_alone()?;
        if name == "rekey" || arguments.iter().any(|argument| argument == "--large") {
            // What fills its records.
            run::check(run::cargo().args([
                "build",
                "--release",
                "-p",
                "cryptvol-identity",
                "--example",
                "seed_site",
            ]))?;
        }
        return hand_over(name, arguments);
    }
    setup::ensure(setup::For::Clusters)?;
    build::products()?;
    // What one side of the benchmark `attach` is: the steps alone, beside the least that can be done.
    run::check(run::cargo().args([
        "build",
        "--release",
        "-p",
        "cryptvol-node-agent",
        "--example",
        "host_walk",
    ]))?;
    hand_over(name, arguments)
}

/// The identity service beside the real ones: what they answer.
pub fn compare() -> Result<()> {
    identity_alone()?;
    build::become_e2e("compare", None)
}

/// The identity service and the harness; neither a cluster nor the rest of the product. Where that was built, it is built again in
/// seconds, while the two alone would want most of what they depend on with other features, anew.
fn identity_alone() -> Result<()> {
    setup::ensure(setup::For::Images)?;
    if build::program("cryptvol-node-agent").is_file() {
        return build::products();
    }
    let packages = ["-p", "cryptvol-identity", "-p", "cryptvol-e2e"];
    run::check(run::cargo().args(["build", "--release"]).args(packages))
}

fn hand_over(name: &str, arguments: &[OsString]) -> Result<()> {
    let all = std::iter::once(OsString::from(name)).chain(arguments.iter().cloned());
    build::become_e2e("bench", all)
}

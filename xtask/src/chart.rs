//! What can be said of the charts without a cluster.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build, run};

const CHARTS: &[&str] = &["charts/cryptvol-crds", "charts/cryptvol"];

/// Values that switch on what is off by default, so that every template is rendered.
const EVERYTHING: &str = "charts/cryptvol/ci/everything-values.yaml";

/// Lints and renders the charts, with the defaults and with everything on.
pub fn check() -> Result<()> {
    let helm = helm()?;
    for chart in CHARTS {
        run::check(Command::new(&helm).args(["lint", "--strict", chart]))?;
        render(&helm, chart, &[])?;
    }
    render(&helm, "charts/cryptvol", &["--values", EVERYTHING])?;
    for values in ["tls.mode=job", "tls.mode=existing,tls.caBundle=PEM"] {
        render(&helm, "charts/cryptvol", &["--set", values])?;
    }
    refuses(
        &helm,
        "identity.replicas=2",
        "identity.replicas over 1 needs identity.database.urlSecret",
    )?;
    refuses(&helm, "tls.mode=existing", "caBundle")?;
    refuses(&helm, "operator.replicaz=2", "replicaz")
}

fn render(helm: &Path, chart: &str, more: &[&str]) -> Result<()> {
    let mut command = Command::new(helm);
    command
        .args([
            "template",
            "cryptvol",
            chart,
            "--namespace",
            "cryptvol-system",
        ])
        .args(more);
    run::say(&run::words(&command));
    let text = run::output(&mut command)?;
    if !text.contains("\nkind: ") {
        bail!("{chart} renders nothing");
    }
    Ok(())
}

/// The chart must refuse values that cannot be meant, and say why.
fn refuses(helm: &Path, value: &str, says: &str) -> Result<()> {
    let out = Command::new(helm)
        .args(["template", "cryptvol", "charts/cryptvol", "--set", value])
        .output()
        .context("start helm")?;
    if out.status.success() {
        bail!("the chart takes --set {value}");
    }
    let told = String::from_utf8_lossy(&out.stderr);
    if !told.contains(says) {
        bail!("the chart refuses --set {value} and does not say {says:?}: {told}");
    }
    Ok(())
}

/// Helm from `HELM`, from `PATH`, or as the harness builds it.
fn helm() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HELM") {
        return Ok(path.into());
    }
    if run::has("helm") {
        return Ok("helm".into());
    }
    let dir = run::output(build::e2e().args(["parts", "--set", "full"]))?;
    Ok(PathBuf::from(dir.trim()).join("helm"))
}

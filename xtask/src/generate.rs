//! Writes the generated files, or tells how they differ from what would be written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// Generates, or only compares.
pub fn run(check: bool) -> Result<()> {
    let files = wanted()?;
    let mut differing = 0;
    for (path, content) in &files {
        if fs::read_to_string(path).is_ok_and(|old| old == *content) {
            continue;
        }
        differing += 1;
        if check {
            diff(path, content)?;
        } else {
            write(Path::new(path), content)?;
            eprintln!("wrote {path}");
        }
    }
    // A kind that was renamed must not leave its old CRD in the chart.
    for path in stale(&files)? {
        differing += 1;
        if check {
            eprintln!("{path} is generated no more");
        } else {
            fs::remove_file(&path).with_context(|| format!("remove {path}"))?;
            eprintln!("removed {path}");
        }
    }
    match (check, differing) {
        (true, 1..) => bail!(
            "{differing} generated files differ from the Rust types: run `cargo xtask generate` and commit"
        ),
        (_, 0) => eprintln!(
            "all {} generated files are as the Rust types say",
            files.len()
        ),
        _ => {}
    }
    Ok(())
}

fn wanted() -> Result<BTreeMap<String, String>> {
    let mut cargo = run::cargo();
    cargo.args([
        "run",
        "--quiet",
        "-p",
        "cryptvol-crds",
        "--example",
        "crdgen",
    ]);
    run::say(&run::words(&cargo));
    serde_json::from_str(&run::output(&mut cargo)?).context("the output of crdgen")
}

fn stale(files: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let dir = "charts/cryptvol-crds/templates";
    let mut stale = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = format!("{dir}/{}", entry?.file_name().to_string_lossy());
        if path.ends_with(".yaml") && !files.contains_key(&path) {
            stale.push(path);
        }
    }
    Ok(stale)
}

fn write(path: &Path, content: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}

fn diff(path: &str, content: &str) -> Result<()> {
    let wanted = Path::new("target/generate").join(path);
    write(&wanted, content)?;
    let old = if Path::new(path).is_file() {
        path
    } else {
        "/dev/null"
    };
    // Its exit status says that files differ, which is known.
    Command::new("diff")
        .args(["-u", "--label", path, "--label", "generated", old])
        .arg(wanted)
        .status()
        .context("start diff")?;
    Ok(())
}

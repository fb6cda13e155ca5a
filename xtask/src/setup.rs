//! What the machine must have: Debian packages, Go, rustup components. Looks first, installs only what is missing.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

const PACKAGES: &str = include_str!("../debian-packages.txt");
/// Oldest Go that builds Kubernetes 1.36; an older one may fetch it by itself unless `GOTOOLCHAIN` forbids it.
const GO: (u32, u32) = (1, 26);

/// What the machine is set up for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// Make images.
    Images,
    /// Control planes, nodes, arrays.
    Clusters,
}

/// Installs what is missing.
pub fn ensure(what: For) -> Result<()> {
    packages()?;
    components()?;
    if what == For::Clusters {
        go()?;
    }
    Ok(())
}

fn packages() -> Result<()> {
    let wanted = parse(PACKAGES, run::has);
    if !run::has("dpkg-query") {
        eprintln!(
            "This is not a Debian or Ubuntu machine, so nothing is installed. What is needed, by its Debian names:\n  {}",
            wanted.iter().copied().collect::<Vec<_>>().join(" ")
        );
        return Ok(());
    }
    let missing = missing(&wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    run::say(&format!(
        "installing {} Debian packages: {list}",
        missing.len()
    ));
    // /proc/self belongs to the effective user.
    if std::fs::metadata("/proc/self")
        .context("look at /proc/self")?
        .uid()
        != 0
    {
        bail!(
            "packages are missing and only root installs them. Run: sudo apt-get install --no-install-recommends {list}"
        );
    }
    let apt = |arguments: &[&str]| {
        run::check(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                // Another apt at work is waited for, not failed upon.
                .args([
                    "-q",
                    "-o",
                    "DPkg::Lock::Timeout=600",
                    "-o",
                    "Dpkg::Use-Pty=0",
                ])
                .args(arguments),
        )
    };
    apt(&["update"])?;
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(missing.iter().map(String::as_str));
    apt(&install)
}

/// `name # why` a line, or `name unless PROGRAM # why` where other packages bring the same and would have to go.
fn parse(text: &'static str, has: impl Fn(&str) -> bool) -> BTreeSet<&'static str> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter_map(|entry| match entry.split_once(" unless ") {
            Some((name, program)) => (!has(program.trim())).then_some(name.trim()),
            None => Some(entry),
        })
        .filter(|name| !name.is_empty())
        .collect()
}

fn missing(wanted: &BTreeSet<&str>) -> Result<Vec<String>> {
    // Fails for names it does not know and prints the others; only what it prints counts.
    let out = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(wanted)
        .output()
        .context("start dpkg-query")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let there: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    Ok(wanted
        .difference(&there)
        .map(|name| (*name).to_owned())
        .collect())
}

fn components() -> Result<()> {
    // Without rustup, the distribution's own cargo must have brought them.
    for (component, program) in [("clippy", "cargo-clippy"), ("rustfmt", "cargo-fmt")] {
        let works = run::cargo()
            .arg(program.trim_start_matches("cargo-"))
            .arg("--version")
            .output();
        if works.is_ok_and(|out| out.status.success()) {
            continue;
        }
        if !run::has("rustup") {
            bail!("{program} is missing: install the component {component} of your Rust toolchain");
        }
        run::check(Command::new("rustup").args(["component", "add", component]))?;
    }
    Ok(())
}

fn go() -> Result<()> {
    const ADVICE: &str = "Go builds the Kubernetes that tests and demo run on: install Go 1.26 or newer from https://go.dev/dl/ \
                          and have it in PATH";
    if !run::has("go") {
        // Debian installs it outside the usual PATH of a shell that is not a login shell.
        if Path::new("/usr/local/go/bin/go").is_file() {
            bail!(
                "Go is in /usr/local/go/bin, which is not in PATH: export PATH=$PATH:/usr/local/go/bin"
            );
        }
        bail!("{ADVICE}");
    }
    let version = run::output(Command::new("go").args(["env", "GOVERSION"]))?;
    if !new_enough(version.trim()) {
        let toolchain = run::output(Command::new("go").args(["env", "GOTOOLCHAIN"]))?;
        if !toolchain.trim().ends_with("auto") {
            bail!(
                "{} is too old and GOTOOLCHAIN={} keeps it from fetching a newer one. {ADVICE}",
                version.trim(),
                toolchain.trim()
            );
        }
    }
    Ok(())
}

fn new_enough(version: &str) -> bool {
    let mut numbers = version
        .trim_start_matches("go")
        .split(['.', '-', 'r', 'b', ' '])
        .map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= GO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_says_why() {
        let lines: Vec<_> = PACKAGES.lines().filter(|l| !l.starts_with('#')).collect();
        assert!(!lines.is_empty());
        for pair in lines.windows(2) {
            assert!(pair[0] < pair[1], "{} comes after {}", pair[0], pair[1]);
        }
        for line in lines {
            assert!(
                line.split_once(" # ").is_some_and(|(_, why)| why.len() > 5),
                "no reason: {line}"
            );
        }
    }

    #[test]
    fn comments_are_no_packages() {
        assert_eq!(
            parse("# head\nclang # why\n\nb # x\n", |_| false),
            BTreeSet::from(["b", "clang"])
        );
    }

    #[test]
    fn what_another_package_brought_is_not_replaced() {
        let list = "docker.io unless dockerd # why\nrunc unless runc # why\n";
        assert_eq!(
            parse(list, |program| program == "dockerd"),
            BTreeSet::from(["runc"])
        );
    }

    #[test]
    fn go_versions() {
        for (version, good) in [
            ("go1.26", true),
            ("go1.26.3", true),
            ("go1.27rc1", true),
            ("go1.25.9", false),
            ("", false),
        ] {
            assert_eq!(new_enough(version), good, "{version}");
        }
    }
}

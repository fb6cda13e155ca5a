//! Commands of the documentation, run as they stand there, so that what a user copies is what was tried.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::workdir::workspace_root;

const LIMIT: Duration = Duration::from_secs(300);

/// The one block of commands of a page, such as `backup.md`, that has a text in it.
pub fn block(page: &str, with: &str) -> Result<String> {
    let path = workspace_root().join("docs").join(page);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut found: Vec<_> = blocks(&text)
        .into_iter()
        .filter(|block| block.contains(with))
        .collect();
    ensure!(
        found.len() == 1,
        "{} blocks of {page} have {with:?} in them",
        found.len()
    );
    found.pop().context("no block")
}

/// What stands between ```` ```sh ```` and ```` ``` ````, also within a list.
fn blocks(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<String> = None;
    for line in page.lines() {
        match (line.trim(), &mut open) {
            ("```sh", None) => open = Some(String::new()),
            ("```", Some(_)) => found.extend(open.take()),
            (_, Some(block)) => {
                block.push_str(line.trim_start());
                block.push('\n');
            }
            _ => {}
        }
    }
    found
}

/// Runs a block of commands with a shell, as somebody does who stands in a checkout and has the files of `dir` beside it. Any
/// command that fails is an error.
pub async fn run(cluster: &Cluster, dir: &Path, commands: &str) -> Result<String> {
    for name in ["charts", "examples"] {
        let link = dir.join(name);
        if !link.exists() {
            std::os::unix::fs::symlink(workspace_root().join(name), link)?;
        }
    }
    let output = tokio::process::Command::new("bash")
        .args(["-euo", "pipefail", "-c", commands])
        .current_dir(dir)
        .envs(cluster.plane.env())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, output)
        .await
        .with_context(|| format!("did not end in {LIMIT:?}:\n{commands}"))??;
    ensure!(
        output.status.success(),
        "{}{}\n{commands}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::blocks;

    #[test]
    fn blocks_of_commands_are_found_also_in_lists() {
        let page =
            "text\n```sh\na \\\n  b\n```\n1. list\n\n   ```sh\n   c\n   ```\n```yaml\nd\n```\n";
        assert_eq!(blocks(page), ["a \\\nb\n", "c\n"]);
    }
}

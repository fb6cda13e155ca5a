//! The official `openstack` command line, in a Python environment of its own under the cache folder.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::python::Environment;

const ENVIRONMENT: Environment = Environment {
    what: "the openstack client",
    requirements: include_str!("../requirements.txt"),
};

/// The installed client.
#[derive(Debug, Clone)]
pub struct OpenStackClient {
    program: PathBuf,
}

/// Whose credentials a command uses: a `clouds.yaml` and the name of a cloud in it.
#[derive(Debug, Clone)]
pub struct Cloud {
    /// The file.
    pub file: PathBuf,
    /// The cloud.
    pub name: String,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Exit status; -1 after a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Nothing of the caller's own clouds may get in.
fn without_clouds(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OS_") {
            command.env_remove(name);
        }
    }
}

impl OpenStackClient {
    /// The client, installed when it is not there yet. That needs a package registry, so do it before entering a sandbox.
    pub fn ensure() -> Result<Self> {
        Ok(Self {
            program: ENVIRONMENT.ensure()?.join("bin/openstack"),
        })
    }

    /// Runs a program of ours in the client's Python environment; `input` is its standard input.
    pub fn python(&self, script: &str, args: &[&str], input: &str) -> Result<Answer> {
        let python = self.program.with_file_name("python");
        let mut command = Command::new(&python);
        without_clouds(&mut command);
        let mut child = command
            .args(["-c", script])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", python.display()))?;
        child
            .stdin
            .take()
            .context("no standard input")?
            .write_all(input.as_bytes())?;
        Ok(Answer::of(&child.wait_with_output()?))
    }

    /// Runs one command to its end.
    pub fn run(&self, cloud: &Cloud, args: &[&str]) -> Result<Answer> {
        let mut command = Command::new(&self.program);
        without_clouds(&mut command);
        let output = command
            .env("OS_CLIENT_CONFIG_FILE", &cloud.file)
            .env("OS_CLOUD", &cloud.name)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start {}", self.program.display()))?;
        Ok(Answer::of(&output))
    }

    /// Runs a command that must succeed and prints nothing of interest.
    pub fn ok(&self, cloud: &Cloud, args: &[&str]) -> Result<String> {
        let answer = self.run(cloud, args)?;
        ensure!(
            answer.code == 0,
            "openstack {} ended with {}:\n{}{}",
            args.join(" "),
            answer.code,
            answer.stdout,
            answer.stderr
        );
        Ok(answer.stdout)
    }

    /// Runs a command that must succeed and reads what it prints, as JSON.
    pub fn json(&self, cloud: &Cloud, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.extend(["-f", "json"]);
        let text = self.ok(cloud, &all)?;
        serde_json::from_str(&text)
            .with_context(|| format!("openstack {} printed no JSON: {text}", args.join(" ")))
    }

    /// Runs a command that must fail with `text` in its message.
    pub fn refused(&self, cloud: &Cloud, args: &[&str], text: &str) -> Result<()> {
        let answer = self.run(cloud, args)?;
        let said = format!("{}{}", answer.stdout, answer.stderr);
        if answer.code == 0 {
            bail!(
                "openstack {} should have been refused, but printed:\n{said}",
                args.join(" ")
            );
        }
        ensure!(
            said.contains(text),
            "openstack {} was refused without the words {text:?}:\n{said}",
            args.join(" ")
        );
        Ok(())
    }
}

impl Cloud {
    /// Writes a `clouds.yaml` with one cloud into `dir` and returns it. `auth` are the lines below `auth:`, as pairs.
    pub fn write(
        dir: &Path,
        name: &str,
        auth_type: &str,
        auth: &[(&str, &str)],
        ca: &Path,
    ) -> Result<Self> {
        let auth: serde_json::Map<String, Value> = auth
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Value::from(*value)))
            .collect();
        // JSON is YAML, and quotes whatever needs it.
        let text = serde_json::json!({"clouds": {name: {
            "auth_type": auth_type, "auth": auth, "region_name": "RegionOne", "interface": "public",
            "identity_api_version": 3, "cacert": ca,
        }}});
        let file = dir.join(format!("clouds-{name}.yaml"));
        fs::write(&file, serde_json::to_string_pretty(&text)?)?;
        Ok(Self {
            file,
            name: name.to_owned(),
        })
    }
}

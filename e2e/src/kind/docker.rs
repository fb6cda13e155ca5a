//! The docker daemon that kind works with: the machine's, or one of our own inside the sandbox.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Uid;
use serde_json::json;

use super::node_image::NodeImage;
use super::{machine, oci_runtime, timed};
use crate::parts::Parts;
use crate::process::{Daemon, wait_for};
use crate::sandbox;

/// Socket of our own daemon; the sandbox has a `/run` of its own.
const SOCKET: &str = "/run/cryptvol-docker.sock";
const START_LIMIT: Duration = Duration::from_secs(60);
/// What kind v0.33 pulls when it is not told otherwise, without the digest.
const ORDINARY_NODE_IMAGE: &str = "kindest/node:v1.37.0";

/// A docker daemon.
#[derive(Debug)]
pub(super) enum Docker {
    /// The one that answered before anything was started. Its containers are outside of the sandbox, and so must be the test.
    Machine,
    /// Started here; all that it does stays in the sandbox, apart from its control group.
    Own {
        daemon: Daemon,
        dir: PathBuf,
        cgroup: String,
        modules: machine::Modules,
    },
}

/// Which image the nodes run, and whether it is ours.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    pub reference: String,
    pub from_parts: bool,
}

/// True if the machine has a docker daemon that this user may use.
pub(super) fn machine_has_one() -> bool {
    timed(
        10,
        "docker",
        &["version", "--format", "{{.Server.Version}}"],
    )
    .is_ok()
}

impl Docker {
    /// Starts a daemon with its files in `dir`.
    pub async fn start(dir: &Path) -> Result<Self> {
        sandbox::require()?;
        ensure!(
            Uid::effective().is_root(),
            "kind needs a docker daemon: start the machine's, or run as root, so that one can be started in the sandbox"
        );
        machine::sweep();
        let modules = machine::note_modules()?;
        let cgroup = format!(
            "{}{}",
            machine::CGROUP_PREFIX,
            dir.parent()
                .and_then(Path::file_name)
                .unwrap_or_default()
                .to_string_lossy()
        );
        let mut config = json!({
            "hosts": [format!("unix://{SOCKET}")],
            "data-root": dir.join("data"),
            "exec-root": "/run/cryptvol-docker",
            "pidfile": "/run/cryptvol-docker.pid",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "cgroup-parent": format!("/{cgroup}"),
        });
        if !oci_runtime::has_all_capabilities()? {
            // A path alone: dockerd changed what it makes of arguments between its versions.
            let program = dir.join("oci-runtime");
            fs::write(
                &program,
                format!(
                    "#!/bin/sh\nexec {} oci-runtime \"$@\"\n",
                    sandbox::plain_path(&sandbox::binary()?)?
                ),
            )?;
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
            config["runtimes"] = json!({"fewer-capabilities": {"path": program}});
            config["default-runtime"] = json!("fewer-capabilities");
        }
        let config_path = dir.join("daemon.json");
        fs::write(&config_path, serde_json::to_vec_pretty(&config)?)?;
        let mut command = Command::new("dockerd");
        command.arg("--config-file").arg(&config_path);
        let daemon = Daemon::spawn(dir, "dockerd", command)
            .context("start dockerd (Debian package docker.io)")?;
        let docker = Self::Own {
            daemon,
            dir: dir.into(),
            cgroup,
            modules,
        };
        wait_for(
            "dockerd to answer",
            START_LIMIT,
            || async {
                docker.check()?;
                Ok(docker.run(10, &["version"]).ok().map(|_| ()))
            },
            || docker.log_tail(20),
        )
        .await?;
        Ok(docker)
    }

    /// `DOCKER_HOST` for our own; the machine's is found as its user finds it.
    pub fn env(&self) -> Option<(String, String)> {
        match self {
            Self::Machine => None,
            Self::Own { .. } => Some(("DOCKER_HOST".into(), format!("unix://{SOCKET}"))),
        }
    }

    /// `docker ARGS`, at most so many seconds.
    pub fn run(&self, seconds: u32, args: &[&str]) -> Result<String> {
        let host = format!("unix://{SOCKET}");
        let mut all = Vec::new();
        if let Self::Own { .. } = self {
            all.extend(["--host", &host]);
        }
        all.extend(args);
        timed(seconds, "docker", &all)
    }

    /// Decides what the nodes run, and has it there.
    pub fn node_image(&self, parts: &Parts) -> Result<Chosen> {
        let given = std::env::var("CRYPTVOL_KIND_NODE_IMAGE").unwrap_or_default();
        let wanted = match (given.as_str(), self) {
            ("", Self::Machine) => Some(ORDINARY_NODE_IMAGE),
            ("", Self::Own { .. }) => None,
            (given, Self::Machine) => Some(given),
            (given, Self::Own { .. }) => bail!(
                "CRYPTVOL_KIND_NODE_IMAGE={given} needs a docker daemon of this machine, and none answers"
            ),
        };
        if let Some(reference) = wanted {
            let chosen = Chosen {
                reference: reference.into(),
                from_parts: false,
            };
            if self.run(10, &["image", "inspect", reference]).is_ok() {
                return Ok(chosen);
            }
            match self.run(300, &["pull", "--quiet", reference]) {
                Ok(_) => return Ok(chosen),
                Err(error) if !given.is_empty() => return Err(error),
                Err(error) => {
                    eprintln!(
                        "{reference} cannot be pulled, the image from parts is taken: {error:#}"
                    );
                }
            }
        }
        let image = NodeImage::locate(parts)?;
        if self
            .run(10, &["image", "inspect", &image.reference])
            .is_err()
        {
            self.run(
                180,
                &[
                    "import",
                    "--change",
                    "ENTRYPOINT [\"/kind/bin/keep-settings.sh\", \"/usr/local/bin/entrypoint\", \"/sbin/init\"]",
                    "--change",
                    "ENV container=docker",
                    sandbox::plain_path(&image.archive)?,
                    &image.reference,
                ],
            )
            .with_context(|| self.log_tail(10))?;
        }
        Ok(Chosen {
            reference: image.reference,
            from_parts: true,
        })
    }

    /// The end of our own daemon's log.
    pub fn log_tail(&self, lines: usize) -> String {
        match self {
            Self::Machine => String::new(),
            Self::Own { daemon, .. } => daemon.log_tail(lines),
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::Machine => Ok(()),
            Self::Own { daemon, .. } => daemon.check(),
        }
    }

    /// Ends our own daemon and what is left of its containers. The machine's is left alone.
    pub fn stop(&mut self) -> Result<()> {
        let Self::Own {
            daemon,
            dir,
            cgroup,
            modules,
        } = self
        else {
            return Ok(());
        };
        daemon.signal(Signal::SIGTERM)?;
        for _ in 0..150 {
            if !daemon.is_running() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        daemon.kill()?;
        machine::remove_cgroup(cgroup);
        modules.release();
        let _ = fs::remove_dir_all(dir.join("data"));
        Ok(())
    }
}

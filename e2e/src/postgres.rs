//! PostgreSQL's server from Debian's package, started for one test: own folder, loopback port.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::process::{Daemon, free_port, run};

const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
const OWNER: &str = "keys";
const LIMIT: Duration = Duration::from_secs(60);

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Postgres {
    dir: PathBuf,
    port: u16,
    daemon: Daemon,
}

impl Postgres {
    /// Makes a server in `dir` (empty), starts it, and waits until it answers.
    pub fn start(dir: &Path) -> Result<Self> {
        let data = dir.join("data");
        let made = as_nobody("initdb")
            .args(["--auth=trust", "--encoding=UTF8", "--no-sync"])
            .args(["--username", OWNER, "--pgdata"])
            .arg(&data)
            .env("LC_ALL", "C")
            .output()
            .context("start unshare (Debian package util-linux)")?;
        ensure!(
            made.status.success(),
            "initdb (Debian package postgresql-15) failed: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let port = free_port()?;
        let mut command = as_nobody("postgres");
        command
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=127.0.0.1"])
            .args(["-c", &format!("port={port}")])
            .args(["-c", "unix_socket_directories="])
            // The machine does not lose its power here.
            .args(["-c", "fsync=off"]);
        let server = Self {
            dir: dir.to_path_buf(),
            port,
            daemon: Daemon::spawn(dir, "postgres", command)?,
        };
        let start = Instant::now();
        while server.sql("SELECT 1").is_err() {
            server.daemon.check()?;
            ensure!(
                start.elapsed() < LIMIT,
                "PostgreSQL does not answer after {LIMIT:?}:\n{}",
                server.daemon.log_tail(25)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// A file with the URL of the database.
    pub fn url_file(&self) -> Result<PathBuf> {
        let file = self.dir.join("url");
        let url = format!(
            "postgres://{OWNER}@127.0.0.1:{}/postgres?sslmode=disable",
            self.port
        );
        fs::write(&file, url)?;
        Ok(file)
    }

    /// What a statement gives, as psql(1) prints it without any ornament.
    pub fn sql(&self, statement: &str) -> Result<String> {
        let program = Path::new(PROGRAMS).join("psql");
        let port = self.port.to_string();
        let text = run(
            program,
            &[
                "-XAtq",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-U",
                OWNER,
                "-d",
                "postgres",
                "-c",
                statement,
            ],
        )?;
        Ok(text.trim().to_owned())
    }

    /// What the server logged.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.daemon.log_path())?)
    }

    /// Ends it, with all its sessions.
    pub fn stop(self) -> Result<()> {
        self.daemon.signal(Signal::SIGQUIT)?;
        let start = Instant::now();
        while self.daemon.is_running() {
            ensure!(
                start.elapsed() < LIMIT,
                "PostgreSQL does not end:\n{}",
                self.daemon.log_tail(10)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// A program of the server's that will not run as root: it sees itself as nobody, and files are still ours.
fn as_nobody(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-user=65534", "--map-group=65534", "--"])
        .arg(Path::new(PROGRAMS).join(program));
    command
}

//! PostgreSQL's server from Debian's package, started for one test: own folder, a port of the loopback, or of the bridge.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::identity_service::random_bytes;
use crate::pki::Authority;
use crate::process::{Daemon, free_port, run};
use crate::sandbox::BRIDGE_IP;

const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
const OWNER: &str = "keys";
/// The database that a new server has.
const FIRST: &str = "postgres";
/// Where the files of a server are in its folder.
const DATA: &str = "data";
const LIMIT: Duration = Duration::from_secs(60);

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Postgres {
    dir: PathBuf,
    port: u16,
    /// What it is started with, besides.
    further: Vec<String>,
    daemon: Daemon,
    password: String,
}

impl Postgres {
    /// Makes a server in `dir` (empty) that the loopback reaches, without TLS, starts it, and waits until it answers.
    pub fn start(dir: &Path) -> Result<Self> {
        make(dir, &[])?;
        Self::launch(dir, &["-c", "listen_addresses=127.0.0.1"])
    }

    /// As [`Postgres::start`], with its write-ahead log in another folder (empty), in files of a mebibyte that are kept: both folders, `DIR/data`
    /// and that one, may be small disks.
    pub fn start_on_small_disks(dir: &Path, log: &Path) -> Result<Self> {
        make(
            dir,
            &["--wal-segsize=1", "--waldir", &log.to_string_lossy()],
        )?;
        let settings = [
            // Files of the log are made anew and kept, so that it grows: else a checkpoint makes room in a full disk.
            "wal_recycle=off",
            "wal_keep_size=1GB",
            "min_wal_size=2MB",
            "max_wal_size=4MB",
            "listen_addresses=127.0.0.1",
        ];
        let further: Vec<&str> = settings.into_iter().flat_map(|one| ["-c", one]).collect();
        Self::launch(dir, &further)
    }

    /// As [`Postgres::start`], and for machines and pods as well: at the bridge, where it shows a certificate of `authority` and asks
    /// for a password.
    pub fn start_for_pods(dir: &Path, authority: &Authority) -> Result<Self> {
        let data = make(dir, &[])?;
        authority
            .server(&[BRIDGE_IP])?
            .write(&data, "server")
            .context("write the server's certificate")?;
        fs::set_permissions(data.join("server.key"), Permissions::from_mode(0o600))?;
        let mut rules = fs::read_to_string(data.join("pg_hba.conf"))?;
        rules += "hostssl all all 10.0.0.0/8 scram-sha-256\n";
        fs::write(data.join("pg_hba.conf"), rules)?;
        let addresses = format!("listen_addresses=127.0.0.1,{BRIDGE_IP}");
        let server = Self::launch(dir, &["-c", &addresses, "-c", "ssl=on"])?;
        server.sql(&format!(
            "ALTER ROLE {OWNER} PASSWORD '{}'",
            server.password
        ))?;
        Ok(server)
    }

    fn launch(dir: &Path, further: &[&str]) -> Result<Self> {
        let further: Vec<String> = further.iter().map(|&word| word.to_owned()).collect();
        let port = free_port()?;
        let server = Self {
            dir: dir.to_path_buf(),
            port,
            daemon: spawn(dir, port, &further)?,
            further,
            password: format!("Pg-{}", hex::encode(random_bytes()?)),
        };
        server.answers()?;
        Ok(server)
    }

    /// Whether it runs; on a full disk it may end by itself.
    pub fn is_running(&self) -> bool {
        self.daemon.is_running()
    }

    /// Starts it on its port once more after it ended, as whoever looks after it does.
    pub fn start_again(&mut self) -> Result<()> {
        self.daemon = spawn(&self.dir, self.port, &self.further)?;
        self.answers()
    }

    /// Waits until it does.
    fn answers(&self) -> Result<()> {
        let start = Instant::now();
        while self.sql("SELECT 1").is_err() {
            self.daemon.check()?;
            ensure!(
                start.elapsed() < LIMIT,
                "PostgreSQL does not answer after {LIMIT:?}:\n{}",
                self.daemon.log_tail(25)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The URL of a database for pods, which have the authority's certificate in the file `ca`.
    pub fn url_for_pods(&self, database: &str, ca: &str) -> String {
        format!(
            "postgres://{OWNER}:{}@{BRIDGE_IP}:{}/{database}?sslrootcert={ca}",
            self.password, self.port
        )
    }

    /// Writes a database into a file, as pg_dump(1) does it in its own format.
    pub fn dump(&self, database: &str, file: &Path) -> Result<()> {
        let file = file.to_string_lossy();
        let args = ["--format=custom", "--file", &*file, database];
        self.client("pg_dump", &args).map(drop)
    }

    /// Brings what [`Postgres::dump`] wrote into an empty database.
    pub fn restore(&self, database: &str, file: &Path) -> Result<()> {
        let file = file.to_string_lossy();
        let args = [
            "--exit-on-error",
            "--no-owner",
            "--dbname",
            database,
            &*file,
        ];
        self.client("pg_restore", &args).map(drop)
    }

    /// A program of the server's that talks to it.
    fn client(&self, program: &str, args: &[&str]) -> Result<String> {
        let port = self.port.to_string();
        let server = ["-h", "127.0.0.1", "-p", &port, "-U", OWNER];
        run(
            Path::new(PROGRAMS).join(program),
            &[&server[..], args].concat(),
        )
    }

    /// A file with the URL of the server's first database.
    pub fn url_file(&self) -> Result<PathBuf> {
        self.url_file_of(FIRST)
    }

    /// A file with the URL of a new, empty database.
    pub fn new_database(&self, name: &str) -> Result<PathBuf> {
        self.sql(&format!("CREATE DATABASE {name}"))?;
        self.url_file_of(name)
    }

    fn url_file_of(&self, database: &str) -> Result<PathBuf> {
        let file = self.dir.join(format!("url-of-{database}"));
        let url = format!(
            "postgres://{OWNER}@127.0.0.1:{}/{database}?sslmode=disable",
            self.port
        );
        fs::write(&file, url)?;
        Ok(file)
    }

    /// What a statement gives in the first database, as psql(1) prints it without any ornament.
    pub fn sql(&self, statement: &str) -> Result<String> {
        self.sql_in(FIRST, statement)
    }

    /// The same in another database.
    pub fn sql_in(&self, database: &str, statement: &str) -> Result<String> {
        let quiet = ["-XAtq", "-v", "ON_ERROR_STOP=1"];
        let text = self.client(
            "psql",
            &[&quiet[..], &["-d", database, "-c", statement]].concat(),
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

fn spawn(dir: &Path, port: u16, further: &[String]) -> Result<Daemon> {
    let mut command = as_nobody("postgres");
    command
        .arg("-D")
        .arg(dir.join(DATA))
        .args(["-c", &format!("port={port}")])
        .args(["-c", "unix_socket_directories="])
        // The machine does not lose its power here.
        .args(["-c", "fsync=off"])
        .args(further);
    Daemon::spawn(dir, "postgres", command)
}

/// Makes the files of a server in `dir`: where they are.
fn make(dir: &Path, further: &[&str]) -> Result<PathBuf> {
    let data = dir.join(DATA);
    let made = as_nobody("initdb")
        .args(["--auth=trust", "--encoding=UTF8", "--no-sync"])
        .args(["--username", OWNER, "--pgdata"])
        .arg(&data)
        .args(further)
        .env("LC_ALL", "C")
        .output()
        .context("start unshare (Debian package util-linux)")?;
    ensure!(
        made.status.success(),
        "initdb (Debian package postgresql-15) failed: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    Ok(data)
}

/// A program of the server's that will not run as root: it sees itself as nobody, and files are still ours.
fn as_nobody(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-user=65534", "--map-group=65534", "--"])
        .arg(Path::new(PROGRAMS).join(program));
    command
}

//! The embedded identity/keys service as it ships, started for one test: own data, own certificate, bootstrapped.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::openstack_client::Cloud;
use crate::pki::Authority;
use crate::process::{Daemon, free_port, resident_kib};
use crate::workdir::workspace_root;

/// Region of the endpoints.
pub const REGION: &str = "RegionOne";
const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// How to start the service.
#[derive(Debug, Clone)]
pub struct Options {
    /// IP address to serve on, and in the URLs of the catalog.
    pub ip: String,
    /// Further DNS names and addresses for the certificate.
    pub names: Vec<String>,
    /// Cost of password hashes; low, so that tests do not wait for them.
    pub password_rounds: u8,
    /// Whether clients reach it over TLS; without, it serves on loopback only.
    pub tls: bool,
    /// Further arguments of `serve`.
    pub serve_args: Vec<String>,
    /// What is in the file of the key-encryption key; `None`: a new key.
    pub kek: Option<String>,
    /// File with the URL of a PostgreSQL database for the records; `None`: they are in the data directory.
    pub database: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ip: "127.0.0.1".into(),
            names: vec!["localhost".into()],
            password_rounds: 4,
            tls: true,
            serve_args: Vec::new(),
            kek: None,
            database: None,
        }
    }
}

/// A running service. Dropping it kills it; its files are the caller's.
#[derive(Debug)]
pub struct IdentityService {
    dir: PathBuf,
    options: Options,
    port: u16,
    admin_port: u16,
    password: String,
    daemon: Option<Daemon>,
}

/// A binary of the product: in `$CRYPTVOL_BIN_DIR`, else the release build, else the debug build of this checkout.
pub fn product_binary(name: &str) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CRYPTVOL_BIN_DIR") {
        let path = PathBuf::from(dir).join(name);
        ensure!(
            path.exists(),
            "CRYPTVOL_BIN_DIR is set, but there is no {}",
            path.display()
        );
        return Ok(path);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace_root().join("target"), PathBuf::from);
    for profile in ["release", "debug"] {
        let path = target.join(profile).join(name);
        if path.exists() {
            return Ok(path);
        }
    }
    bail!(
        "{name} is not built: run `cargo build -p {name}` first, or set CRYPTVOL_BIN_DIR to the folder that holds it"
    )
}

impl IdentityService {
    /// Makes key, certificate and data in `dir` (empty), bootstraps, starts, and waits until it is ready.
    pub fn start(dir: &Path, options: Options) -> Result<Self> {
        let mut service = Self::prepare(dir, options)?;
        service.bootstrap()?;
        service.launch()?;
        Ok(service)
    }

    /// Makes key and certificate in `dir` (empty); there are no records yet.
    pub fn prepare(dir: &Path, options: Options) -> Result<Self> {
        let service = Self {
            dir: dir.to_path_buf(),
            port: free_port()?,
            admin_port: free_port()?,
            password: format!("Adm1n-{}", hex::encode(random_bytes()?)),
            options,
            daemon: None,
        };
        fs::create_dir_all(service.secrets_dir())?;
        service.renew_certificate()?;
        fs::write(service.secrets_dir().join("password"), &service.password)?;
        let kek = service.secrets_dir().join("kek");
        match &service.options.kek {
            Some(text) => fs::write(kek, text)?,
            None => service.command(&["kek", "generate", "--out", &kek.to_string_lossy()])?,
        }
        Ok(service)
    }

    /// Another replica on the same database, at ports of its own, with the certificate and the key-encryption key of this one, and its
    /// logs in `dir` (empty).
    pub fn replica(&self, dir: &Path) -> Result<Self> {
        ensure!(
            self.options.database.is_some(),
            "replicas share a database, and this service has its records in a folder"
        );
        let mut service = Self {
            dir: dir.to_path_buf(),
            port: free_port()?,
            admin_port: free_port()?,
            password: self.password.clone(),
            options: self.options.clone(),
            daemon: None,
        };
        fs::create_dir_all(service.secrets_dir())?;
        for file in ["tls.crt", "tls.key", "password", "kek"] {
            fs::copy(
                self.secrets_dir().join(file),
                service.secrets_dir().join(file),
            )?;
        }
        fs::create_dir_all(dir.join("ca"))?;
        fs::copy(self.ca_path(), service.ca_path())?;
        service.launch()?;
        Ok(service)
    }

    /// `bootstrap` once more, as every start of a pod does.
    pub fn bootstrap(&self) -> Result<()> {
        succeeds(self.bootstrap_command()?.spawn()?)
    }

    /// `bootstrap` by so many processes at the same time, all of which must succeed.
    pub fn bootstrap_at_once(&self, processes: usize) -> Result<()> {
        let mut commands = (0..processes)
            .map(|_| self.bootstrap_command())
            .collect::<Result<Vec<_>>>()?;
        let running = commands
            .iter_mut()
            .map(Command::spawn)
            .collect::<io::Result<Vec<_>>>()?;
        // All of them are waited for, whatever the first one says.
        let ended: Vec<_> = running.into_iter().map(succeeds).collect();
        ended.into_iter().collect()
    }

    fn bootstrap_command(&self) -> Result<Command> {
        let mut command = Command::new(product_binary("cryptvol-identity")?);
        command
            .arg("bootstrap")
            .arg("--password-file")
            .arg(self.secrets_dir().join("password"))
            .args(["--public-url", &self.base_url(), "--region", REGION])
            .args(self.data_args())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        clean_env(&mut command);
        Ok(command)
    }

    /// Goes on in `dir` (empty) of another machine, at the same address: with certificate and password, as a cluster has them
    /// in its Secrets; without data and without the key-encryption key. Not running afterwards.
    pub fn move_to(&mut self, dir: &Path) -> Result<()> {
        self.kill()?;
        let secrets = dir.join("secrets");
        fs::create_dir_all(&secrets)?;
        for file in ["tls.crt", "tls.key", "password"] {
            fs::copy(self.secrets_dir().join(file), secrets.join(file))?;
        }
        self.dir = dir.to_path_buf();
        Ok(())
    }

    /// Writes a certificate of a new authority; the running service takes it over by itself within seconds.
    pub fn renew_certificate(&self) -> Result<()> {
        let ca = self.dir.join("ca");
        if ca.exists() {
            fs::remove_dir_all(&ca)?;
        }
        fs::create_dir_all(&ca)?;
        let mut names = vec![self.options.ip.as_str()];
        names.extend(self.options.names.iter().map(String::as_str));
        Authority::open(&ca)?
            .server(&names)?
            .write(&self.secrets_dir(), "tls")
    }

    /// Starts the process and waits until it is ready.
    pub fn launch(&mut self) -> Result<()> {
        self.spawn()?;
        let daemon = self.daemon.as_ref().context("not running")?;
        let start = Instant::now();
        while !matches!(self.admin("/readyz"), Ok((200, _))) {
            daemon.check()?;
            ensure!(
                start.elapsed() < START_LIMIT,
                "the identity service is not ready after {START_LIMIT:?}:\n{}",
                daemon.log_tail(25)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Starts the process and returns at once.
    pub fn spawn(&mut self) -> Result<()> {
        let mut command = Command::new(product_binary("cryptvol-identity")?);
        command
            .args(["serve", "--listen"])
            .arg(format!("{}:{}", self.options.ip, self.port))
            .arg("--admin-listen")
            .arg(format!("127.0.0.1:{}", self.admin_port))
            .args(self.data_args())
            .args(&self.options.serve_args);
        if self.options.tls {
            command
                .arg("--tls-cert")
                .arg(self.secrets_dir().join("tls.crt"))
                .arg("--tls-key")
                .arg(self.secrets_dir().join("tls.key"));
        } else {
            command.arg("--no-tls");
        }
        clean_env(&mut command);
        self.daemon = Some(Daemon::spawn(&self.dir, "identity", command)?);
        Ok(())
    }

    /// SIGTERM, then waits for the orderly end.
    pub fn stop(&mut self) -> Result<()> {
        let Some(daemon) = self.daemon.take() else {
            return Ok(());
        };
        daemon.signal(Signal::SIGTERM)?;
        let start = Instant::now();
        while daemon.is_running() {
            ensure!(
                start.elapsed() < STOP_LIMIT,
                "the identity service does not end after SIGTERM:\n{}",
                daemon.log_tail(10)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        match self.daemon.take() {
            Some(mut daemon) => daemon.kill(),
            None => Ok(()),
        }
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.daemon.as_ref().context("not running")?.signal(signal)
    }

    /// `https://IP:PORT`.
    pub fn base_url(&self) -> String {
        let scheme = if self.options.tls { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.options.ip, self.port)
    }

    /// The port of both APIs.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process, while it runs.
    pub fn pid(&self) -> Result<i32> {
        Ok(self.daemon.as_ref().context("not running")?.pid())
    }

    /// What clients call the authentication URL.
    pub fn auth_url(&self) -> String {
        format!("{}/identity/v3", self.base_url())
    }

    /// Password of the user admin (project admin, domain Default).
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Certificate of the authority, PEM.
    pub fn ca_path(&self) -> PathBuf {
        self.dir.join("ca/ca.crt")
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where the records are: the data directory, or the file with the database's URL.
    pub fn place(&self) -> PathBuf {
        self.options
            .database
            .clone()
            .unwrap_or_else(|| self.data_dir())
    }

    /// Key-encryption key, certificate and password file.
    pub fn secrets_dir(&self) -> PathBuf {
        self.dir.join("secrets")
    }

    /// Everything that it logged, over all its starts.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.join("identity.log"))?)
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        resident_kib(self.pid()?)
    }

    /// Status and body of a page of the administrator's listener.
    pub fn admin(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin_port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text
            .split_once("\r\n\r\n")
            .context("an answer without a head")?;
        let status = head
            .split_whitespace()
            .nth(1)
            .and_then(|word| word.parse().ok());
        Ok((
            status.context("an answer without a status")?,
            body.to_owned(),
        ))
    }

    /// The administrator's cloud.
    pub fn admin_cloud(&self) -> Result<Cloud> {
        self.password_cloud("admin", "admin", &self.password, Some("admin"))
    }

    /// A user of the domain Default, with a project or without a scope.
    pub fn password_cloud(
        &self,
        name: &str,
        user: &str,
        password: &str,
        project: Option<&str>,
    ) -> Result<Cloud> {
        let url = self.auth_url();
        let mut auth = vec![
            ("auth_url", url.as_str()),
            ("username", user),
            ("password", password),
            ("user_domain_name", "Default"),
        ];
        if let Some(project) = project {
            auth.extend([
                ("project_name", project),
                ("project_domain_name", "Default"),
            ]);
        }
        Cloud::write(&self.dir, name, "v3password", &auth, &self.ca_path())
    }

    /// A user of a domain, with a token for that domain.
    pub fn domain_cloud(
        &self,
        name: &str,
        user: &str,
        password: &str,
        domain: &str,
    ) -> Result<Cloud> {
        let url = self.auth_url();
        let auth = [
            ("auth_url", url.as_str()),
            ("username", user),
            ("password", password),
            ("user_domain_name", domain),
            ("domain_name", domain),
        ];
        Cloud::write(&self.dir, name, "v3password", &auth, &self.ca_path())
    }

    /// An application credential.
    pub fn credential_cloud(&self, name: &str, id: &str, secret: &str) -> Result<Cloud> {
        let url = self.auth_url();
        let auth = [
            ("auth_url", url.as_str()),
            ("application_credential_id", id),
            ("application_credential_secret", secret),
        ];
        Cloud::write(
            &self.dir,
            name,
            "v3applicationcredential",
            &auth,
            &self.ca_path(),
        )
    }

    /// Runs a command of the service's binary that must succeed.
    pub fn command(&self, args: &[&str]) -> Result<()> {
        let mut command = Command::new(product_binary("cryptvol-identity")?);
        command.args(args);
        clean_env(&mut command);
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "cryptvol-identity {} failed: {}",
            args.first().unwrap_or(&""),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn data_args(&self) -> [String; 6] {
        let (place, path) = match &self.options.database {
            Some(file) => ("--database-url-file", file.clone()),
            None => ("--data-dir", self.data_dir()),
        };
        [
            place.into(),
            path.to_string_lossy().into_owned(),
            "--kek-file".into(),
            self.secrets_dir()
                .join("kek")
                .to_string_lossy()
                .into_owned(),
            "--password-rounds".into(),
            self.options.password_rounds.to_string(),
        ]
    }
}

/// Waits for the end of a command, which must be a good one.
fn succeeds(command: Child) -> Result<()> {
    let output = command.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Only the options above count.
fn clean_env(command: &mut Command) {
    let ours: Vec<OsString> = std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| name.to_string_lossy().starts_with("CRYPTVOL_IDENTITY_"))
        .collect();
    for name in ours {
        command.env_remove(name);
    }
}

/// Enough for a password that nobody guesses.
pub(crate) fn random_bytes() -> Result<[u8; 12]> {
    let mut bytes = [0; 12];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

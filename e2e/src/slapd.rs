//! OpenLDAP's server from Debian's package `slapd`, started for one test: own folder, own certificates, loopback ports.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::pki::{Authority, Identity};
use crate::process::{Daemon, free_port, run};

/// Root of the tree.
pub const SUFFIX: &str = "dc=example,dc=org";
/// The account that the service asks with.
pub const READER: &str = "cn=reader,dc=example,dc=org";
/// Its password.
pub const READER_PASSWORD: &str = "reader-Pw-1";
/// The largest number of entries that the server gives at once; more only in pages.
pub const SIZE_LIMIT: usize = 8;

const ROOT: &str = "cn=admin,dc=example,dc=org";
const ROOT_PASSWORD: &str = "root-Pw-1";
const PROGRAM: &str = "/usr/sbin/slapd";
const SCHEMAS: [&str; 4] = ["core", "cosine", "nis", "inetorgperson"];
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Slapd {
    dir: PathBuf,
    port: u16,
    tls_port: u16,
    daemon: Option<Daemon>,
}

impl Slapd {
    /// Loads `entries` (LDIF below [`SUFFIX`], which is made) and starts with a certificate for 127.0.0.1.
    pub fn start(dir: &Path, authority: &Authority, entries: &str) -> Result<Self> {
        let mut server = Self {
            dir: dir.to_path_buf(),
            port: free_port()?,
            tls_port: free_port()?,
            daemon: None,
        };
        fs::create_dir_all(dir.join("db"))?;
        // Run from here: Ubuntu confines the program at its own place to the system's folders.
        // And copied by a process of its own: a file that this one has open for writing, other threads' children have too.
        run("cp", &[PROGRAM, &dir.join("slapd").to_string_lossy()])
            .with_context(|| format!("{PROGRAM}: on Debian it is in the package slapd"))?;
        fs::write(dir.join("slapd.conf"), server.config())?;
        server.certificate(&authority.server(&["127.0.0.1"])?)?;
        let base = format!(
            "dn: {SUFFIX}\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: Example\n\n\
             dn: {READER}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: reader\n\
             userPassword: {READER_PASSWORD}\n\n{entries}"
        );
        let file = dir.join("entries.ldif");
        fs::write(&file, base)?;
        let config = dir.join("slapd.conf");
        run(
            dir.join("slapd"),
            &[
                "-Tadd",
                "-q",
                "-f",
                &config.to_string_lossy(),
                "-l",
                &file.to_string_lossy(),
            ],
        )
        .context("load the directory")?;
        server.launch()?;
        Ok(server)
    }

    fn config(&self) -> String {
        let dir = self.dir.display();
        let mut text = String::new();
        for schema in SCHEMAS {
            let _ = writeln!(text, "include /etc/ldap/schema/{schema}.schema");
        }
        let _ = write!(
            text,
            "modulepath /usr/lib/ldap\nmoduleload back_mdb\npidfile {dir}/slapd.run\n\
             TLSCertificateFile {dir}/tls.crt\nTLSCertificateKeyFile {dir}/tls.key\n\
             database mdb\nsuffix {SUFFIX}\nrootdn {ROOT}\nrootpw {ROOT_PASSWORD}\ndirectory {dir}/db\n\
             maxsize 16777216\ndbnosync\n\
             limits dn.exact=\"{READER}\" size.soft={SIZE_LIMIT} size.hard={SIZE_LIMIT} size.prtotal=unlimited\n\
             access to attrs=userPassword by anonymous auth by * none\n\
             access to * by dn.exact=\"{READER}\" read by * none\n"
        );
        text
    }

    /// Another certificate; it counts from the next [`Slapd::launch`].
    pub fn certificate(&self, identity: &Identity) -> Result<()> {
        identity.write(&self.dir, "tls")
    }

    /// Starts the process and waits until it answers.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = Command::new(self.dir.join("slapd"));
        command
            .arg("-f")
            .arg(self.dir.join("slapd.conf"))
            .args(["-d", "stats", "-h"])
            .arg(format!(
                "ldap://127.0.0.1:{} ldaps://127.0.0.1:{}",
                self.port, self.tls_port
            ));
        let daemon = Daemon::spawn(&self.dir, "slapd", command)?;
        let start = Instant::now();
        while run("ldapwhoami", &["-x", "-H", &self.clear_url()]).is_err() {
            daemon.check()?;
            ensure!(
                start.elapsed() < START_LIMIT,
                "slapd does not answer after {START_LIMIT:?}:\n{}",
                daemon.log_tail(20)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// SIGKILL: connections end at once, and nothing answers any more.
    pub fn kill(&mut self) -> Result<()> {
        match self.daemon.take() {
            Some(mut daemon) => daemon.kill(),
            None => Ok(()),
        }
    }

    /// Stops the process where it is, so that it takes connections and says nothing; or lets it go on.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let daemon = self.daemon.as_ref().context("slapd does not run")?;
        daemon.signal(if frozen {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        })
    }

    /// `ldaps://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("ldaps://127.0.0.1:{}", self.tls_port)
    }

    /// `ldap://127.0.0.1:PORT`, which speaks StartTLS.
    pub fn clear_url(&self) -> String {
        format!("ldap://127.0.0.1:{}", self.port)
    }

    /// Changes entries: LDIF with `changetype` lines.
    pub fn modify(&self, ldif: &str) -> Result<()> {
        let file = self.dir.join("change.ldif");
        fs::write(&file, ldif)?;
        run(
            "ldapmodify",
            &[
                "-x",
                "-H",
                &self.clear_url(),
                "-D",
                ROOT,
                "-w",
                ROOT_PASSWORD,
                "-f",
                &file.to_string_lossy(),
            ],
        )
        .map(|_| ())
        .with_context(|| format!("change the directory:\n{ldif}"))
    }

    /// What it was asked, line by line.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.join("slapd.log"))?)
    }
}

//! PostgreSQL's server from Debian's package, for one test: own folder, reached by a socket in it or by TLS on the loopback.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    app::App,
    crypto::Kek,
    store::{Place, PostgresUrl},
    testing::{Bench, config},
};

const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// The server does not run as root: then it is nobody's.
const NOBODY: u32 = 65_534;
/// PostgreSQL's own port, by which the socket is named too.
const PORT: u16 = 5432;
/// How often another port is tried if somebody else has taken the one that was free.
const PORTS: u32 = 5;

/// A running server; ends with the value.
pub(super) struct Server {
    dir: TempDir,
    port: AtomicU16,
}

impl Server {
    /// On a socket only.
    pub(super) fn start() -> Self {
        let server = Self::new();
        server.up();
        server
    }

    /// The same, and every statement is in its log before it is executed.
    pub(super) fn start_logging_statements() -> Self {
        let server = Self::new();
        let further = "-c listen_addresses= -c log_statement=all";
        server.launch(further).unwrap();
        server
    }

    /// What it logged.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap()
    }

    fn log_path(&self) -> PathBuf {
        self.data().join("log")
    }

    /// A folder for a server that does not run.
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data = dir.path().join("server");
        fs::create_dir(&data).unwrap();
        give_away(&data);
        let server = Self {
            dir,
            port: AtomicU16::new(PORT),
        };
        server.run(
            "initdb",
            &[
                "--auth=trust",
                "--username=keys",
                "--encoding=UTF8",
                "--no-sync",
            ],
        );
        server
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("server")
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.try_run(program, arguments)
            .unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(Path::new(PROGRAMS).join(program));
        command
            .env("PGDATA", self.data())
            .env("PGHOST", self.data())
            .env("PGPORT", self.port.load(Ordering::Relaxed).to_string())
            .current_dir(self.data())
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    fn try_run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let output = self
            .command(program)
            .args(arguments)
            .output()
            .expect("PostgreSQL 15; `cargo xtask setup` installs it");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(text)
        } else {
            Err(text + &String::from_utf8_lossy(&output.stderr))
        }
    }

    /// Starts it on its socket.
    pub(super) fn up(&self) {
        self.launch("-c listen_addresses=").unwrap();
    }

    /// Starts it on a port of the loopback too: its number.
    pub(super) fn up_on_loopback(&self, further: &str) -> u16 {
        let mut tries = 0;
        loop {
            let port = TcpListener::bind(("127.0.0.1", 0))
                .and_then(|free| free.local_addr())
                .unwrap()
                .port();
            self.port.store(port, Ordering::Relaxed);
            match self.launch(&on_port(port, further)) {
                Ok(()) => return port,
                Err(error) => assert!(tries < PORTS, "{error}"),
            }
            tries += 1;
        }
    }

    /// Starts it once more on its port.
    pub(super) fn up_again(&self, further: &str) {
        let port = self.port.load(Ordering::Relaxed);
        self.launch(&on_port(port, further)).unwrap();
    }

    fn launch(&self, further: &str) -> Result<(), String> {
        let socket = self.data();
        let options = format!(
            "-c unix_socket_directories={} -c fsync=off {further}",
            socket.display()
        );
        let log = self.log_path();
        let started = self.try_run(
            "pg_ctl",
            &[
                "-w",
                "-t",
                "120",
                "-l",
                log.to_str().unwrap(),
                "-o",
                &options,
                "start",
            ],
        );
        started
            .map(|_| ())
            .map_err(|error| error + &fs::read_to_string(log).unwrap_or_default())
    }

    /// Ends it as a crash does.
    pub(super) fn down(&self) {
        self.run("pg_ctl", &["-w", "-t", "120", "-m", "immediate", "stop"]);
    }

    /// Writes one of its files; it counts from the next start.
    pub(super) fn put(&self, name: &str, text: &str) {
        let path = self.data().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        give_away(&path);
    }

    /// Puts the certificate of the server and its key where `ssl=on` looks for them.
    pub(super) fn certificate(&self, (certificate, key): &(String, String)) {
        self.put("server.crt", certificate);
        self.put("server.key", key);
    }

    /// What a statement gives, run by its own client as its owner.
    pub(super) fn sql(&self, statement: &str) -> String {
        let arguments = ["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "keys", "-d"];
        let text = self.run(
            "psql",
            &[&arguments[..], &["postgres", "-c", statement]].concat(),
        );
        text.trim().to_owned()
    }

    /// A session of its own client that has executed this statement in a transaction, which ends with the session.
    pub(super) fn amid_transaction(&self, statement: &str) -> Session {
        let mut command = self.command("psql");
        command
            .args([
                "-XAtq",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "keys",
                "-d",
                "postgres",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut psql = command.spawn().unwrap();
        let input = psql.stdin.as_mut().unwrap();
        writeln!(input, "BEGIN; {statement}; SELECT 'there';").unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(psql.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "there", "{statement}");
        Session(psql)
    }

    /// The database as statements, as pg_dump(1) writes it.
    pub(super) fn dump(&self) -> String {
        self.run("pg_dump", &["-U", "keys", "postgres"])
    }

    /// Every file of the server's folder: its tables, its write-ahead log, its log.
    pub(super) fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut folders = vec![self.data()];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let kind = fs::symlink_metadata(&path).unwrap().file_type();
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_file() {
                    let bytes = fs::read(&path).unwrap();
                    found.push((path, bytes));
                }
            }
        }
        found
    }

    /// A file with a URL.
    pub(super) fn url_file(&self, url: &str) -> PathBuf {
        let file = self.dir.path().join("url");
        fs::write(&file, url).unwrap();
        file
    }

    /// Where the records are: by the socket.
    pub(super) fn place(&self) -> Place {
        let url = format!(
            "postgres://keys@localhost/postgres?host={}",
            self.data().display()
        );
        Place::Postgres(PostgresUrl::read(&self.url_file(&url)).unwrap())
    }

    /// A bootstrapped service.
    pub(super) async fn bench(&self) -> Bench {
        let place = self.place();
        Bench::with(|config| config.place = place).await
    }

    /// Another replica of a service, with this key-encryption key.
    pub(super) async fn replica(&self, of: &Bench, kek: Kek) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir);
        config.place = self.place();
        Bench {
            app: App::open(config, kek).await.unwrap(),
            admin: of.admin.clone(),
            dir,
        }
    }
}

/// See [`Server::amid_transaction`].
pub(super) struct Session(Child);

impl Drop for Session {
    fn drop(&mut self) {
        // Its input ends, and so does it.
        drop(self.0.stdin.take());
        let ended = self.0.wait();
        assert!(ended.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.data().join("postmaster.pid").exists() {
            let arguments = ["-w", "-t", "120", "-m", "immediate", "stop"];
            let stopped = self.try_run("pg_ctl", &arguments);
            assert!(stopped.is_ok() || std::thread::panicking(), "{stopped:?}");
        }
    }
}

fn on_port(port: u16, further: &str) -> String {
    format!("-c listen_addresses=127.0.0.1 -c port={port} {further}")
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").unwrap().uid() == 0
}

fn give_away(path: &Path) {
    if is_root() {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// Waits until a token is good again after the server was away.
pub(super) async fn comes_back(bench: &Bench, token: &str) {
    let mut status = 0;
    for _ in 0..1200 {
        status = bench.status_of(token).await;
        if status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("still {status}");
}

/// The key-encryption key of [`Bench`].
pub(super) fn kek() -> Kek {
    Kek::from_bytes(&[9; 32])
}

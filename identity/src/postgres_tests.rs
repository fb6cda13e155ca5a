//! The service on a real PostgreSQL server, which the test starts in a folder of its own on a socket there: the APIs, two replicas,
//! a server that stops and comes back.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    app::App,
    crypto::Kek,
    store::{Place, PostgresUrl, Store, StoreError},
    testing::{Bench, config},
    token_keys,
};

const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// The server does not run as root: then it is nobody's.
const NOBODY: u32 = 65_534;

struct Server {
    dir: TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data = dir.path().join("server");
        fs::create_dir(&data).unwrap();
        if is_root() {
            std::os::unix::fs::chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let server = Self { dir };
        server.run(
            "initdb",
            &[
                "--auth=trust",
                "--username=keys",
                "--encoding=UTF8",
                "--no-sync",
            ],
        );
        server.up();
        server
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("server")
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(Path::new(PROGRAMS).join(program));
        command
            .arg("-D")
            .arg(self.data())
            .args(arguments)
            .current_dir(self.data())
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let output = command
            .output()
            .expect("PostgreSQL 15; `cargo xtask setup` installs it");
        assert!(
            output.status.success(),
            "{program}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    fn up(&self) {
        let socket = self.data();
        let options = format!(
            "-c listen_addresses= -c unix_socket_directories={} -c fsync=off",
            socket.display()
        );
        let log = socket.join("log");
        self.run(
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
    }

    fn down(&self) {
        self.run("pg_ctl", &["-w", "-t", "120", "-m", "immediate", "stop"]);
    }

    fn place(&self) -> Place {
        let file = self.dir.path().join("url");
        let socket = self.data();
        let url = format!(
            "postgres://keys@localhost/postgres?host={}",
            socket.display()
        );
        fs::write(&file, url).unwrap();
        Place::Postgres(PostgresUrl::read(&file).unwrap())
    }

    async fn bench(&self) -> Bench {
        let place = self.place();
        Bench::with(|config| config.place = place).await
    }

    /// Another replica of a service.
    async fn replica(&self, of: &Bench) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir);
        config.place = self.place();
        Bench {
            app: App::open(config, kek()).await.unwrap(),
            admin: of.admin.clone(),
            dir,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.data().join("postmaster.pid").exists() && !std::thread::panicking() {
            self.down();
        } else if self.data().join("postmaster.pid").exists() {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.down()));
        }
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").unwrap().uid() == 0
}

fn kek() -> Kek {
    Kek::from_bytes(&[9; 32])
}

async fn stored(bench: &Bench, token: &str, name: &str) -> (u16, String) {
    let body =
        json!({"name": name, "payload": "of a tenant", "payload_content_type": "text/plain"});
    let answer = bench
        .call("POST", "/key-manager/v1/secrets", token, body)
        .await;
    let path = answer.json()["secret_ref"]
        .as_str()
        .unwrap_or_default()
        .split_once("/key-manager")
        .map(|(_, path)| format!("/key-manager{path}"))
        .unwrap_or_default();
    (answer.status, path)
}

/// All that a service does, on one server, for the server takes its time to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replicas_on_one_server() {
    let server = Server::start();
    let bench = server.bench().await;
    let second = server.replica(&bench).await;

    // Every kind of question.
    let project = bench.project("p").await;
    let token = bench.member("u", ("p", &project), "member").await;
    for path in [
        "/identity/v3/users?name=u",
        "/identity/v3/projects",
        "/identity/v3/domains",
        "/identity/v3/groups",
        "/identity/v3/roles",
        "/identity/v3/role_inferences",
        "/identity/v3/role_assignments?effective&include_names",
        "/identity/v3/services",
        "/identity/v3/endpoints",
        "/identity/v3/regions",
        "/identity/v3/registered_limits",
        "/identity/v3/limits",
        "/identity/v3/policies",
        "/identity/v3/credentials",
        "/identity/v3/OS-TRUST/trusts",
        "/identity/v3/auth/projects",
        "/identity/v3/auth/domains",
        "/identity/v3/auth/catalog",
    ] {
        for one in [&bench, &second] {
            one.admin("GET", path, Value::Null, 200).await;
        }
    }
    let (status, path) = stored(&bench, &token, "50%_of").await;
    assert_eq!(status, 201);
    let read = second
        .call("GET", &format!("{path}/payload"), &token, Value::Null)
        .await;
    assert_eq!(
        (read.status, read.bytes.as_slice()),
        (200, &b"of a tenant"[..])
    );
    for query in [
        "",
        "?name=50%25_OF",
        "?name=a%5C",
        "?sort=bit_length:desc,name",
        "?alg=x",
    ] {
        let list = second
            .call(
                "GET",
                &format!("/key-manager/v1/secrets{query}"),
                &token,
                Value::Null,
            )
            .await;
        assert_eq!(list.status, 200, "{query}");
    }
    for path in ["/orders", "/containers", "/secret-stores"] {
        let list = second
            .call(
                "GET",
                &format!("/key-manager/v1{path}"),
                &token,
                Value::Null,
            )
            .await;
        assert!(list.status < 500, "{path}: {}", list.status);
    }
    assert_eq!(
        second
            .call("DELETE", &path, &token, Value::Null)
            .await
            .status,
        204
    );
    assert_eq!(
        bench.call("GET", &path, &token, Value::Null).await.status,
        404
    );

    // A token that one replica ends is refused by the other at once, also if it knew it.
    for round in 0..20 {
        let (one, other) = if round % 2 == 0 {
            (&bench, &second)
        } else {
            (&second, &bench)
        };
        let token = one.login("u", "u-pw", Some("p")).await.unwrap();
        assert_eq!(other.status_of(&token).await, 200);
        let headers = [
            ("X-Auth-Token", token.as_str()),
            ("X-Subject-Token", token.as_str()),
        ];
        let ended = one
            .raw("DELETE", "/identity/v3/auth/tokens", &headers, Vec::new())
            .await;
        assert_eq!(ended.status, 204);
        assert_eq!(other.status_of(&token).await, 404);
    }

    // A quota holds with writers on both.
    let quota = json!({"project_quotas": {"secrets": 7, "orders": -1, "containers": -1, "consumers": -1, "cas": -1}});
    let path = format!("/key-manager/v1/project-quotas/{project}");
    bench.admin("PUT", &path, quota, 204).await;
    let replicas = [Arc::new(bench), Arc::new(second)];
    let tasks: Vec<_> = (0..30)
        .map(|number| {
            let bench = Arc::clone(&replicas[number % 2]);
            let token = token.clone();
            tokio::spawn(async move { stored(&bench, &token, &format!("s{number}")).await.0 })
        })
        .collect();
    let mut made = 0;
    for task in tasks {
        match task.await.unwrap() {
            201 => made += 1,
            403 => {}
            other => panic!("status {other}"),
        }
    }
    assert_eq!(made, 7);

    // A server that is gone is told, and nothing has to be done when it is back.
    let [bench, second] = &replicas;
    server.down();
    assert_eq!(bench.status_of(&token).await, 503);
    assert_eq!(stored(second, &token, "lost").await.0, 503);
    server.up();
    for one in [bench, second] {
        let mut status = 0;
        for _ in 0..600 {
            status = one.status_of(&token).await;
            if status == 200 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(status, 200);
    }

    // Keys of tokens that are forgotten because they became known end all tokens, everywhere, at once.
    token_keys::run(server.place(), &kek(), true).await.unwrap();
    assert_ne!(bench.status_of(&token).await, 200);
    assert_ne!(second.status_of(&token).await, 200);

    // A database that a later release has written is refused.
    bench.app.store.later_release(9_999).await.unwrap();
    assert!(matches!(
        Store::open_at(&server.place()).await,
        Err(StoreError::Migrate(_))
    ));
    for one in [bench, second] {
        one.app.store.close().await;
    }
}

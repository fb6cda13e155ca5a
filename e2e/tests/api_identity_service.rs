//! The embedded identity/keys service as a process: killed in the middle of writes, on a full disk, with policy files that
//! change under it, with the official client as a regional administrator.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cryptvol_e2e::http1::{Address, JSON, login_body};
use cryptvol_e2e::identity_http::Http;
use cryptvol_e2e::identity_service::{IdentityService, Options};
use cryptvol_e2e::openstack_client::{Cloud, OpenStackClient};
use cryptvol_e2e::postgres::Postgres;
use cryptvol_e2e::workdir::{WorkDir, workspace_root};
use cryptvol_e2e::{identity_kills, identity_replicas, sandbox};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::json;
use sha2::{Digest, Sha256};

/// As many kills as continuous integration has time for; `cargo xtask bench kills --rounds 1000` does more of the same list.
const FEW_KILLS: u32 = 25;

/// SIGKILL at many moments while four clients write.
#[test]
fn killed_in_the_middle_of_writes_nothing_answered_is_lost() -> Result<()> {
    let done = identity_kills::run(FEW_KILLS, |line| println!("{line}"))?;
    ensure!(
        done.secrets > 0 && done.deletions > 0 && done.edits > 0 && done.orders > 0,
        "the writers got nowhere: {done:?}"
    );
    Ok(())
}

/// SIGKILLs under load, and one replica that stands still.
const FEW_REPLICA_KILLS: u32 = 6;

/// Two replicas on one PostgreSQL: one is killed at many moments, and one stands still in the midst of a change.
#[test]
fn one_of_two_replicas_is_killed_under_load_and_nothing_answered_is_lost() -> Result<()> {
    sandbox::require()?;
    let done = identity_replicas::run(FEW_REPLICA_KILLS, |line| println!("{line}"))?;
    ensure!(
        done.held.secrets > 0 && done.held.deletions > 0 && done.held.orders > 0 && done.ended > 0,
        "the writers got nowhere: {done:?}"
    );
    Ok(())
}

/// Rounds of processes that start at once on an empty database; a first start is over in a second.
const FIRST_STARTS: usize = 4;
/// What a first start makes, counted; and when the administrator's tokens were ended, which is never.
const MADE: &str = "SELECT (SELECT count(*) FROM domains), (SELECT count(*) FROM projects), (SELECT count(*) FROM users),
    (SELECT count(*) FROM roles), (SELECT count(*) FROM implied_roles), (SELECT count(*) FROM assignments),
    (SELECT count(*) FROM regions), (SELECT count(*) FROM services), (SELECT count(*) FROM endpoints),
    (SELECT count(*) FROM token_keys), (SELECT tokens_valid_after FROM users)";

/// Four replicas that nothing starts one after the other: on PostgreSQL, and the same with the folder of SQLite.
#[test]
fn several_bootstrap_an_empty_database_at_once_and_make_the_same() -> Result<()> {
    sandbox::require()?;
    let work = WorkDir::new("identity-first-start")?;
    let postgres = Postgres::start(&work.dir("postgres")?)?;
    for round in 0..FIRST_STARTS {
        let name = format!("round_{round}");
        let options = Options {
            database: Some(postgres.new_database(&name)?),
            ..Options::default()
        };
        let mut first = IdentityService::prepare(&work.dir(&name)?, options)?;
        first.bootstrap_at_once(4)?;
        let made = postgres.sql_in(&name, MADE)?;
        ensure!(made == "1|1|1|5|3|2|1|2|6|1|0", "round {round}: {made}");
        // With what all of them made, and again, while two of them work on it.
        first.launch()?;
        let mut second = first.replica(&work.dir(&format!("{name}_second"))?)?;
        let runtime = tokio::runtime::Runtime::new()?;
        let http = runtime.block_on(Http::login(&first))?;
        first.bootstrap_at_once(4)?;
        let (status, _) = runtime.block_on(http.at(&second.base_url()).json(
            Method::GET,
            "/identity/v3/users",
            None,
        ))?;
        ensure!(status == StatusCode::OK, "the token of before: {status}");
        ensure!(postgres.sql_in(&name, MADE)? == made);
        first.stop()?;
        second.stop()?;
    }
    for round in 0..FIRST_STARTS {
        let dir = work.dir(&format!("folder_{round}"))?;
        let mut service = IdentityService::prepare(&dir, Options::default())?;
        service.bootstrap_at_once(4)?;
        service.launch()?;
        let runtime = tokio::runtime::Runtime::new()?;
        let http = runtime.block_on(Http::login(&service))?;
        for (family, count) in [("services", 2), ("endpoints", 6), ("roles", 5)] {
            let path = format!("/identity/v3/{family}");
            let (_, list) = runtime.block_on(http.json(Method::GET, &path, None))?;
            let there = list[family].as_array().map(Vec::len);
            ensure!(there == Some(count), "round {round}: {list}");
        }
        service.stop()?;
    }
    postgres.stop()?;
    work.passed()
}

/// A small file system of its own; gone with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(path: PathBuf, size: &str) -> Result<Self> {
        fs::create_dir_all(&path)?;
        let options = format!("size={size},mode=0700");
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .context("mount a tmpfs")?;
        Ok(Self(path))
    }

    /// Fills what is left, but for so many bytes.
    fn fill(&self, spare: u64) -> Result<()> {
        let stat = nix::sys::statvfs::statvfs(&self.0)?;
        let free = stat.blocks_available() * stat.fragment_size();
        fs::write(
            self.0.join("filler"),
            vec![1; usize::try_from(free.saturating_sub(spare))?],
        )?;
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("filler"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Users that are made, each with a name of its own.
struct Makes<'a> {
    runtime: tokio::runtime::Runtime,
    service: &'a mut IdentityService,
    http: Http,
    /// The ids of those that were answered.
    made: Vec<String>,
    names: u32,
}

impl<'a> Makes<'a> {
    fn new(service: &'a mut IdentityService) -> Result<Self> {
        let runtime = tokio::runtime::Runtime::new()?;
        let http = runtime.block_on(Http::login(service))?;
        Ok(Self {
            runtime,
            service,
            http,
            made: Vec::new(),
            names: 0,
        })
    }

    /// Whether one was made; else it is 503.
    fn one(&mut self) -> Result<bool> {
        self.names += 1;
        let name = format!("u{}", self.names);
        let description = incompressible(&name);
        let body =
            json!({"user": {"name": name, "domain_id": "default", "description": description}});
        let asked = self
            .http
            .json(Method::POST, "/identity/v3/users", Some(&body));
        let (status, answer) = self.runtime.block_on(asked)?;
        match status {
            StatusCode::CREATED => {
                let id = answer["user"]["id"].as_str().context("no id")?;
                self.made.push(id.to_owned());
                Ok(true)
            }
            StatusCode::SERVICE_UNAVAILABLE => Ok(false),
            other => bail!("on a full disk: {other} {answer}"),
        }
    }

    /// Until it was said five times that it cannot be done.
    fn until_full(&mut self) -> Result<()> {
        let mut told = 0;
        for _ in 0..4000 {
            told += u32::from(!self.one()?);
            if told == 5 {
                return Ok(());
            }
        }
        bail!("the disk was never full")
    }

    fn status_of(&self, path: &str) -> Result<StatusCode> {
        let asked = self.http.send(Method::GET, path, None);
        Ok(self.runtime.block_on(asked)?.0)
    }

    /// All that were answered are there for a service that was killed and started again.
    fn hold(self) -> Result<usize> {
        self.service.kill()?;
        self.service.launch()?;
        for id in &self.made {
            let status = self.status_of(&format!("/identity/v3/users/{id}"))?;
            ensure!(
                status == StatusCode::OK,
                "{id} was acknowledged, and is {status}"
            );
        }
        self.service.stop()?;
        Ok(self.made.len())
    }
}

/// Four kilobytes that take as many on a disk: PostgreSQL compresses what it can.
fn incompressible(seed: &str) -> String {
    let part = |n: u32| hex::encode(Sha256::digest(format!("{seed} {n}")));
    (0..64).map(part).collect()
}

/// A full disk is 503 and passes by itself, also for the process that met it.
#[test]
fn a_full_disk_is_told_and_passes_by_itself() -> Result<()> {
    sandbox::require()?;
    let work = WorkDir::new("identity-full")?;
    let dir = work.dir("identity")?;
    let disk = SmallDisk::new(dir.join("data"), "8m")?;
    let mut service = IdentityService::start(&dir, Options::default())?;
    let mut users = Makes::new(&mut service)?;
    for _ in 0..3 {
        disk.fill(64 * 1024)?;
        users.until_full()?;
        let status = users.status_of("/identity/v3/users?limit=1")?;
        ensure!(status == StatusCode::OK, "reading on a full disk: {status}");
        disk.free()?;
        ensure!(users.one()?, "503 after there was room");
    }
    println!(
        "{} users were answered on a disk that was full three times; all of them hold",
        users.hold()?
    );
    drop(disk);
    work.passed()
}

/// The same of PostgreSQL's disks: the one of its tables, where it refuses what it cannot write, and the one of its write-ahead log,
/// where it ends. Who looks after it starts it again; the service goes on by itself.
#[test]
fn a_full_disk_of_postgresql_is_told_and_passes_by_itself() -> Result<()> {
    sandbox::require()?;
    let work = WorkDir::new("identity-full-postgresql")?;
    let dir = work.dir("postgres")?;
    let tables = SmallDisk::new(dir.join("data"), "96m")?;
    let log = SmallDisk::new(dir.join("log"), "24m")?;
    let mut postgres = Postgres::start_on_small_disks(&dir, &log.0)?;
    let options = Options {
        database: Some(postgres.url_file()?),
        ..Options::default()
    };
    let mut service = IdentityService::start(&work.dir("identity")?, options)?;
    let mut users = Makes::new(&mut service)?;
    let mut ended = 0;
    for (disk, reads) in [
        (&tables, true),
        (&log, false),
        (&tables, true),
        (&log, false),
    ] {
        disk.fill(64 * 1024)?;
        users.until_full()?;
        if reads {
            let status = users.status_of("/identity/v3/users?limit=1")?;
            ensure!(status == StatusCode::OK, "reading on a full disk: {status}");
        }
        disk.free()?;
        let start = Instant::now();
        while !users.one()? {
            // It may still be about to end, for want of room that there is by now.
            if !postgres.is_running() {
                ended += 1;
                postgres.start_again()?;
            }
            ensure!(start.elapsed() < SILENCE, "503 after there was room");
        }
    }
    let logged = postgres.log()?;
    for sign in ["could not extend file", "PANIC:  could not"] {
        ensure!(logged.contains(sign), "no {sign:?}: {logged}");
    }
    println!(
        "{} users were answered on disks of PostgreSQL that were full four times; it ended {ended} times; all of them hold",
        users.hold()?
    );
    postgres.stop()?;
    drop((tables, log));
    work.passed()
}

/// The longest silence of a service that is to answer, or to let go.
const SILENCE: Duration = Duration::from_secs(60);

fn connected(address: &Address) -> Result<TcpStream> {
    let stream = TcpStream::connect(address.socket())?;
    stream.set_read_timeout(Some(SILENCE))?;
    Ok(stream)
}

/// What the service says until there is `end` in it, or until it closes.
fn said(stream: &mut TcpStream, end: &str) -> Result<String> {
    let mut bytes = Vec::new();
    let mut some = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if text.contains(end) {
            return Ok(text);
        }
        match stream.read(&mut some)? {
            0 => return Ok(text),
            got => bytes.extend_from_slice(&some[..got]),
        }
    }
}

/// Who never ends the head of a request is let go, one that is too long is refused, and at an orderly end what runs is answered
/// while nobody new is let in.
#[test]
fn requests_are_bounded_and_those_that_run_are_answered_before_the_end() -> Result<()> {
    let work = WorkDir::new("identity-end")?;
    let options = Options {
        tls: false,
        ..Options::default()
    };
    let mut service = IdentityService::start(&work.dir("identity")?, options)?;
    let address = Address::new(service.port(), "/identity/v3");
    let mut silent = connected(&address)?;
    silent.write_all(b"GET /identity/v3 HTTP/1.1\r\nHost: h\r\n")?;
    let mut long = connected(&address)?;
    // As many bytes as the service takes, and not at its end yet: it has read all of them before it closes.
    let head = "GET /identity/v3 HTTP/1.1\r\nHost: h\r\nX-Long: ";
    long.write_all(head.as_bytes())?;
    long.write_all(&vec![b'x'; 64 * 1024 - head.len()])?;
    let answer = said(&mut long, "\r\n\r\n")?;
    ensure!(answer.starts_with("HTTP/1.1 431 "), "{answer:?}");
    let answer = said(&mut silent, "\r\n\r\n")?;
    ensure!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 408 "),
        "{answer:?}"
    );

    // A login of which the last letter is not there yet; that it asks for the rest shows that it runs.
    let body = login_body("admin", service.password(), "admin");
    let headers = [JSON, ("Expect", "100-continue")];
    let request = address.request("POST", "/auth/tokens", &headers, &body);
    let (most, last) = request.split_at(request.len() - 1);
    let mut running = connected(&address)?;
    running.write_all(most)?;
    said(&mut running, "100 Continue\r\n\r\n")?;
    service.signal(Signal::SIGTERM)?;
    let start = Instant::now();
    while TcpStream::connect(address.socket()).is_ok() {
        ensure!(start.elapsed() < SILENCE, "it lets in whoever comes");
        std::thread::sleep(Duration::from_millis(10));
    }
    running.write_all(last)?;
    let answer = said(&mut running, "\r\n\r\n")?;
    ensure!(answer.starts_with("HTTP/1.1 201 "), "{answer:?}");
    service.stop()?;
    let log = service.log()?;
    ensure!(
        log.contains("stopped") && !log.contains("\"ERROR\""),
        "{log}"
    );
    work.passed()
}

/// What a person sees: the figures of the study of delegated administration, with the official client.
struct Figures {
    client: OpenStackClient,
}

impl Figures {
    fn run(&self, cloud: &Cloud, args: &[&str], refused: bool) -> Result<()> {
        println!("$ openstack {}", args.join(" "));
        if refused {
            self.client.refused(cloud, args, "403")?;
            println!("You are not authorized to perform the requested action. (HTTP 403)\n");
        } else {
            println!("{}", self.client.ok(cloud, args)?);
        }
        Ok(())
    }
}

/// The regional administrator: creates, lists and deletes users and projects of the own domain, and is refused elsewhere. The
/// policy comes as a file into the running service.
#[test]
fn regional_administrator_with_the_official_client() -> Result<()> {
    let client = OpenStackClient::ensure()?;
    let work = WorkDir::new("identity-regional")?;
    let policy = work.dir("policy")?;
    let options = Options {
        serve_args: vec!["--policy-dir".into(), policy.to_string_lossy().into_owned()],
        ..Options::default()
    };
    let mut service = IdentityService::start(&work.dir("identity")?, options)?;
    let admin = service.admin_cloud()?;
    for domain in ["north", "south"] {
        client.ok(&admin, &["domain", "create", domain])?;
    }
    client.ok(&admin, &["role", "create", "Radmin"])?;
    client.ok(
        &admin,
        &[
            "user",
            "create",
            "--domain",
            "north",
            "--password",
            "Alice-77",
            "alice",
        ],
    )?;
    client.ok(&admin, &["user", "create", "--domain", "south", "sven"])?;
    client.ok(
        &admin,
        &[
            "role",
            "add",
            "--domain",
            "north",
            "--user",
            "alice",
            "--user-domain",
            "north",
            "Radmin",
        ],
    )?;
    let alice = service.domain_cloud("alice", "alice", "Alice-77", "north")?;
    let figures = Figures { client };
    // Without the file she may nothing.
    figures.client.refused(&alice, &["user", "list"], "403")?;
    let example = workspace_root().join("examples/policy/regional-administrator/identity.yaml");
    fs::copy(example, policy.join("identity.yaml"))?;
    let start = Instant::now();
    while !service.log()?.contains("policy files taken") {
        ensure!(
            start.elapsed() < Duration::from_secs(60),
            "the policy file is not taken"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let id = |args: &[&str]| -> Result<String> {
        let shown = figures.client.json(&admin, args)?;
        Ok(shown["id"].as_str().context("no id")?.to_owned())
    };
    let (north, south) = (
        id(&["domain", "show", "north"])?,
        id(&["domain", "show", "south"])?,
    );
    let sven = id(&["user", "show", "--domain", &south, "sven"])?;
    println!("Figure 3: creating");
    figures.run(
        &alice,
        &["project", "create", "--domain", &north, "quay"],
        false,
    )?;
    figures.run(
        &alice,
        &["user", "create", "--domain", &north, "bob"],
        false,
    )?;
    figures.run(&alice, &["user", "create", "--domain", &south, "eve"], true)?;
    figures.run(
        &alice,
        &["project", "create", "--domain", &south, "pier"],
        true,
    )?;
    println!("Figure 4: listing");
    figures.run(&alice, &["user", "list"], false)?;
    let users = figures.client.ok(&alice, &["user", "list"])?;
    ensure!(
        users.contains("bob") && !users.contains("sven") && !users.contains("admin"),
        "{users}"
    );
    figures.run(&alice, &["project", "list"], false)?;
    println!("Figure 5: roles");
    let bob = id(&["user", "show", "--domain", &north, "bob"])?;
    let quay = id(&["project", "show", "--domain", &north, "quay"])?;
    let add = ["role", "add", "--user", &bob];
    let project = ["--project", quay.as_str()];
    figures.run(
        &alice,
        &[&add[..], &project[..], &["member"]].concat(),
        false,
    )?;
    // The client ends with 0 here whatever the service answers; what counts is what was given.
    for place in [project, ["--domain", north.as_str()]] {
        for role in ["admin", "manager", "Radmin"] {
            let _ = figures
                .client
                .run(&alice, &[&add[..], &place[..], &[role]].concat())?;
        }
    }
    let list = ["role", "assignment", "list", "--names", "--user", &bob];
    figures.run(&alice, &list, false)?;
    let given = figures.client.json(&admin, &list)?;
    ensure!(
        given
            .as_array()
            .is_some_and(|rows| rows.len() == 1 && rows[0]["Role"] == "member"),
        "{given}"
    );
    println!("Figure 6: deleting");
    // Who may not see it, cannot find it either.
    let delete = ["user", "delete", sven.as_str()];
    println!("$ openstack {}", delete.join(" "));
    figures.client.refused(&alice, &delete, "No User found")?;
    figures.client.ok(&admin, &["user", "show", &sven])?;
    figures.run(&alice, &["user", "delete", &bob], false)?;
    figures.run(&alice, &["project", "delete", &quay], false)?;
    figures.run(&alice, &["domain", "create", "east"], true)?;
    // A slip in the file changes nothing but what the probe says.
    fs::write(
        policy.join("identity.yaml"),
        "\"identity:list_users\": \"role:Radmin and\"\n",
    )?;
    let start = Instant::now();
    loop {
        let (status, text) = service.admin("/readyz")?;
        ensure!(status == 200, "{status} {text}");
        if text.starts_with("degraded") {
            println!("{text}");
            break;
        }
        ensure!(
            start.elapsed() < Duration::from_secs(60),
            "the broken file is not told"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    figures.client.ok(&alice, &["user", "list"])?;
    service.stop()?;
    // Without rules of before it does not start.
    ensure!(
        service.launch().is_err(),
        "started with a broken policy file"
    );
    ensure!(
        service.log()?.contains("something is missing behind `and`"),
        "{}",
        service.log()?
    );
    work.passed()
}

/// The commands that need no data.
#[test]
fn policy_on_the_command_line() -> Result<()> {
    let binary = cryptvol_e2e::identity_service::product_binary("cryptvol-identity")?;
    let run = |args: &[&str]| -> Result<(bool, String, String)> {
        let output = Command::new(&binary).args(args).output()?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((
            output.status.success(),
            text(output.stdout),
            text(output.stderr),
        ))
    };
    let (ok, sample, _) = run(&["policy", "sample", "key-manager"])?;
    ensure!(ok && sample.contains("#\"secret:decrypt\": "), "{sample}");
    let example = workspace_root().join("examples/policy/regional-administrator");
    let dir = example.to_string_lossy();
    let (ok, text, _) = run(&["policy", "check", "--policy-dir", &dir])?;
    ensure!(ok && !text.contains("doubtful"), "{text}");
    let caller = [
        "policy",
        "check",
        "--policy-dir",
        &dir,
        "--role",
        "Radmin",
        "--domain",
        "north",
        "--rule",
        "identity:create_grant",
        "--explain",
    ];
    let target = [
        "--target",
        "target.user.domain_id=north",
        "--target",
        "target.domain.id=north",
        "--target",
        "target.role.domain_id=null",
    ];
    let (ok, text, _) = run(&[
        &caller[..],
        &target[..],
        &["--target", "target.role.name=Admin"],
    ]
    .concat())?;
    ensure!(
        ok && text.contains("identity:create_grant: refused (policy file)")
            && text.contains("target.role.name is Admin"),
        "{text}"
    );
    println!("{text}");
    let (ok, text, _) = run(&[
        &caller[..],
        &target[..],
        &["--target", "target.role.name=member"],
    ]
    .concat())?;
    ensure!(
        ok && text.contains("identity:create_grant: allowed (policy file)"),
        "{text}"
    );
    let (ok, _, error) = run(&["policy", "check", "--rule", "identity:nosuch"])?;
    ensure!(
        !ok && error.contains("there is no rule identity:nosuch"),
        "{error}"
    );
    Ok(())
}

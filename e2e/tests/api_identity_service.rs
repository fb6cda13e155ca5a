//! The embedded identity/keys service as a process: killed in the middle of writes, on a full disk, with policy files that
//! change under it, with the official client as a regional administrator.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cryptvol_e2e::identity_service::{IdentityService, Options};
use cryptvol_e2e::openstack_client::{Cloud, OpenStackClient};
use cryptvol_e2e::workdir::{WorkDir, workspace_root};
use cryptvol_e2e::{control_plane, sandbox};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Moments at which the process is killed.
const KILLS: u64 = 25;
/// Writers beside each other.
const WRITERS: usize = 4;

/// An HTTP client with the administrator's token, which outlives restarts.
#[derive(Clone)]
struct Http {
    client: reqwest::Client,
    base: String,
    token: String,
}

impl Http {
    async fn login(service: &IdentityService) -> Result<Self> {
        control_plane::init_tls();
        let ca = reqwest::Certificate::from_pem(&fs::read(service.ca_path())?)?;
        let client = reqwest::Client::builder()
            .tls_certs_only([ca])
            .timeout(Duration::from_secs(20))
            .build()?;
        let domain = json!({"id": "default"});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": "admin", "domain": domain, "password": service.password()}}},
            "scope": {"project": {"name": "admin", "domain": domain}},
        }});
        let url = format!("{}/auth/tokens", service.auth_url());
        let answer = client
            .post(url)
            .json(&body)
            .send()
            .await?
            .error_for_status()?;
        let token = answer
            .headers()
            .get("x-subject-token")
            .context("no token")?
            .to_str()?
            .to_owned();
        Ok(Self {
            client,
            base: service.base_url(),
            token,
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Vec<u8>)> {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.base))
            .header("X-Auth-Token", &self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        Ok((answer.status(), answer.bytes().await?.to_vec()))
    }

    async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value)> {
        let (status, bytes) = self.send(method, path, body).await?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }
}

/// What was answered with success, and must be there ever after.
#[derive(Default)]
struct Acknowledged {
    /// Path of a secret and its payload.
    secrets: Vec<(String, String)>,
    users: Vec<String>,
    /// Paths of secrets that were deleted.
    deleted: Vec<String>,
}

/// Writes until the service is gone: a user and a secret each time, and every third secret is deleted again.
async fn write_until_gone(http: Http, label: String) -> Acknowledged {
    let mut done = Acknowledged::default();
    for number in 0_u64.. {
        let name = format!("{label}-{number}");
        let user = json!({"user": {"name": name, "domain_id": "default"}});
        match http
            .json(Method::POST, "/identity/v3/users", Some(&user))
            .await
        {
            Ok((StatusCode::CREATED, body)) => done
                .users
                .push(body["user"]["id"].as_str().unwrap_or_default().to_owned()),
            _ => break,
        }
        let payload = format!("payload of {name}");
        let secret =
            json!({"name": name, "payload": payload, "payload_content_type": "text/plain"});
        let path = match http
            .json(Method::POST, "/key-manager/v1/secrets", Some(&secret))
            .await
        {
            Ok((StatusCode::CREATED, body)) => {
                let url = body["secret_ref"].as_str().unwrap_or_default();
                format!(
                    "/key-manager/v1/secrets/{}",
                    url.rsplit('/').next().unwrap_or_default()
                )
            }
            _ => break,
        };
        if number % 3 == 2 {
            match http.send(Method::DELETE, &path, None).await {
                Ok((StatusCode::NO_CONTENT, _)) => done.deleted.push(path),
                // Asked for, not answered: both are right.
                _ => break,
            }
        } else {
            done.secrets.push((path, payload));
        }
    }
    done
}

/// SIGKILL at many moments while four clients write: what was answered is there, what was deleted is not, and nothing
/// half-written is seen.
#[test]
fn killed_in_the_middle_of_writes_nothing_answered_is_lost() -> Result<()> {
    let work = WorkDir::new("identity-killed")?;
    let mut service = IdentityService::start(&work.dir("identity")?, Options::default())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let http = runtime.block_on(Http::login(&service))?;
    let mut all = Acknowledged::default();
    let mut seed = 20_261_128_u64;
    for round in 0..KILLS {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                runtime.spawn(write_until_gone(
                    http.clone(),
                    format!("r{round}-w{writer}"),
                ))
            })
            .collect();
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros(20_000 + (seed >> 33) % 150_000));
        service.kill()?;
        let before = (all.users.len(), all.secrets.len());
        for writer in writers {
            let done = runtime.block_on(writer)?;
            all.users.extend(done.users);
            all.secrets.extend(done.secrets);
            all.deleted.extend(done.deleted);
        }
        service.launch()?;
        // Those of this round; all of them once more at the end.
        runtime.block_on(verify(&http, &all, before))?;
    }
    runtime.block_on(verify(&http, &all, (0, 0)))?;
    println!(
        "{KILLS} kills: {} users, {} secrets and {} deletions were answered; all of them hold",
        all.users.len(),
        all.secrets.len(),
        all.deleted.len()
    );
    ensure!(
        all.secrets.len() > 50 && !all.deleted.is_empty(),
        "the writers got nowhere"
    );
    runtime.block_on(nothing_half_written(&http))?;
    service.stop()?;
    work.passed()
}

async fn verify(http: &Http, all: &Acknowledged, from: (usize, usize)) -> Result<()> {
    for id in &all.users[from.0..] {
        let (status, _) = http
            .send(Method::GET, &format!("/identity/v3/users/{id}"), None)
            .await?;
        ensure!(
            status == StatusCode::OK,
            "user {id} was acknowledged, and is {status}"
        );
    }
    for (path, payload) in &all.secrets[from.1..] {
        let (status, bytes) = http
            .send(Method::GET, &format!("{path}/payload"), None)
            .await?;
        ensure!(
            status == StatusCode::OK && bytes == payload.as_bytes(),
            "{path} was acknowledged, and is {status}"
        );
    }
    for path in &all.deleted {
        let (status, _) = http.send(Method::GET, path, None).await?;
        ensure!(
            status == StatusCode::NOT_FOUND,
            "{path} was deleted, and is {status}"
        );
    }
    Ok(())
}

/// Every secret that the list shows has its whole payload.
async fn nothing_half_written(http: &Http) -> Result<()> {
    let mut seen = 0;
    loop {
        let (status, page) = http
            .json(
                Method::GET,
                &format!("/key-manager/v1/secrets?limit=100&offset={seen}"),
                None,
            )
            .await?;
        ensure!(status == StatusCode::OK, "{status}");
        let list = page["secrets"].as_array().cloned().unwrap_or_default();
        if list.is_empty() {
            ensure!(seen > 0, "no secrets at all");
            return Ok(());
        }
        seen += list.len();
        for secret in list {
            let url = secret["secret_ref"].as_str().context("no reference")?;
            let path = format!(
                "/key-manager/v1/secrets/{}/payload",
                url.rsplit('/').next().unwrap_or_default()
            );
            let (status, bytes) = http.send(Method::GET, &path, None).await?;
            let wanted = format!("payload of {}", secret["name"].as_str().unwrap_or_default());
            ensure!(
                status == StatusCode::OK && bytes == wanted.as_bytes(),
                "{path}: {status}"
            );
        }
    }
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

/// A full disk is 503 and passes by itself, also for the process that met it.
#[test]
fn a_full_disk_is_told_and_passes_by_itself() -> Result<()> {
    sandbox::require()?;
    let work = WorkDir::new("identity-full")?;
    let dir = work.dir("identity")?;
    let disk = SmallDisk::new(dir.join("data"), "8m")?;
    let mut service = IdentityService::start(&dir, Options::default())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let http = runtime.block_on(Http::login(&service))?;
    let mut made = Vec::new();
    for round in 0..3 {
        disk.fill(64 * 1024)?;
        let mut told = 0;
        for number in 0..400 {
            let body = json!({"user": {"name": format!("u{round}-{number}"), "domain_id": "default", "description": "d".repeat(4000)}});
            let (status, answer) =
                runtime.block_on(http.json(Method::POST, "/identity/v3/users", Some(&body)))?;
            match status {
                StatusCode::CREATED => {
                    made.push(answer["user"]["id"].as_str().context("no id")?.to_owned())
                }
                StatusCode::SERVICE_UNAVAILABLE => told += 1,
                other => bail!("on a full disk: {other} {answer}"),
            }
            if told == 5 {
                break;
            }
        }
        ensure!(told == 5, "the disk was never full");
        let (status, _) =
            runtime.block_on(http.send(Method::GET, "/identity/v3/users?limit=1", None))?;
        ensure!(status == StatusCode::OK, "reading on a full disk: {status}");
        disk.free()?;
        let body = json!({"user": {"name": format!("after-{round}"), "domain_id": "default"}});
        let (status, answer) =
            runtime.block_on(http.json(Method::POST, "/identity/v3/users", Some(&body)))?;
        ensure!(
            status == StatusCode::CREATED,
            "after there was room: {status} {answer}"
        );
    }
    service.kill()?;
    service.launch()?;
    for id in &made {
        let (status, _) =
            runtime.block_on(http.send(Method::GET, &format!("/identity/v3/users/{id}"), None))?;
        ensure!(
            status == StatusCode::OK,
            "{id} was acknowledged, and is {status}"
        );
    }
    println!(
        "{} users were answered on a disk that was full three times; all of them hold",
        made.len()
    );
    service.stop()?;
    drop(disk);
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

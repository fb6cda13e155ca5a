//! The official `openstack` client against the embedded identity/keys service, over TLS.
//!
//! Each test has a service of its own. They need no sandbox, only the built `cryptvol-identity` and the client, which is installed
//! at first use.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cryptvol_e2e::identity_service::{IdentityService, Options, product_binary};
use cryptvol_e2e::openstack_client::{Cloud, OpenStackClient};
use cryptvol_e2e::workdir::WorkDir;
use serde_json::Value;

struct Ground {
    work: WorkDir,
    service: IdentityService,
    client: OpenStackClient,
    admin: Cloud,
}

impl Ground {
    fn new(name: &str) -> Result<Self> {
        let client = OpenStackClient::ensure()?;
        let work = WorkDir::new(name)?;
        let service = IdentityService::start(&work.dir("identity")?, Options::default())?;
        let admin = service.admin_cloud()?;
        Ok(Self {
            work,
            service,
            client,
            admin,
        })
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        self.client.json(&self.admin, args)
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        self.client.ok(&self.admin, args)
    }

    fn refused(&self, args: &[&str], text: &str) -> Result<()> {
        self.client.refused(&self.admin, args, text)
    }

    /// A user with a role on a project; its cloud.
    fn user(&self, user: &str, project: &str, role: Option<&str>) -> Result<Cloud> {
        let password = format!("Pw-of-{user}-77");
        self.ok(&["user", "create", "--password", &password, user])?;
        if let Some(role) = role {
            self.ok(&["role", "add", "--user", user, "--project", project, role])?;
        }
        self.service
            .password_cloud(user, user, &password, Some(project))
    }

    fn passed(mut self) -> Result<()> {
        self.service.stop()?;
        self.work.passed()
    }
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name]
        .as_str()
        .with_context(|| format!("no text {name} in {value}"))
}

fn names(list: &Value, column: &str) -> Vec<String> {
    let rows = list.as_array().cloned().unwrap_or_default();
    rows.iter()
        .filter_map(|row| row[column].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn token_and_catalog() -> Result<()> {
    let ground = Ground::new("identity-token")?;
    let token = ground.json(&["token", "issue"])?;
    ensure!(text(&token, "id")?.len() > 100, "{token}");
    for name in ["expires", "project_id", "user_id"] {
        text(&token, name)?;
    }
    let catalog = ground.json(&["catalog", "list"])?;
    let mut types = names(&catalog, "Type");
    types.sort();
    assert_eq!(types, ["identity", "key-manager"]);
    let endpoints = catalog.to_string();
    for path in ["/identity", "/key-manager"] {
        let url = format!("{}{path}", ground.service.base_url());
        ensure!(endpoints.contains(&url), "{url} is not in {endpoints}");
    }
    let wrong =
        ground
            .service
            .password_cloud("wrong", "admin", "not-the-password", Some("admin"))?;
    ground.client.refused(&wrong, &["token", "issue"], "401")?;
    let unknown = ground
        .service
        .password_cloud("unknown", "nobody", "x", Some("admin"))?;
    ground
        .client
        .refused(&unknown, &["token", "issue"], "401")?;
    // Revoked means dead, for the one who revokes too.
    ground.ok(&["token", "revoke", text(&token, "id")?])?;
    ground.refused(&["token", "revoke", text(&token, "id")?], "404")?;
    // Bootstrap again, as every start of a pod does, changes nothing.
    ground.service.bootstrap()?;
    assert_eq!(names(&ground.json(&["endpoint", "list"])?, "URL").len(), 6);
    ground.passed()
}

#[test]
fn projects_users_and_roles() -> Result<()> {
    let ground = Ground::new("identity-roles")?;
    let project = ground.json(&[
        "project",
        "create",
        "--description",
        "first",
        "--tag",
        "red",
        "team-a",
    ])?;
    assert_eq!(text(&project, "name")?, "team-a");
    assert_eq!(text(&project, "parent_id")?, "default");
    ground.refused(&["project", "create", "team-a"], "409")?;
    let child = ground.json(&["project", "create", "--parent", "team-a", "team-a-lab"])?;
    assert_eq!(child["parent_id"], project["id"]);
    ground.refused(&["project", "delete", "team-a"], "403")?;
    ensure!(names(&ground.json(&["project", "list"])?, "Name").contains(&"team-a-lab".to_owned()));
    assert_eq!(
        ground.json(&["project", "show", "team-a"])?["id"],
        project["id"]
    );
    ground.refused(&["project", "show", "nosuch"], "nosuch")?;

    let user = ground.json(&[
        "user",
        "create",
        "--password",
        "Pw-1",
        "--email",
        "a@example.org",
        "alice",
    ])?;
    assert_eq!(text(&user, "email")?, "a@example.org");
    assert_eq!(user["enabled"], true);
    ground.refused(&["user", "create", "--password", "x", "alice"], "409")?;
    assert_eq!(ground.json(&["user", "show", "alice"])?["id"], user["id"]);
    assert_eq!(
        names(&ground.json(&["user", "list"])?, "Name"),
        ["admin", "alice"]
    );

    let role = ground.json(&["role", "create", "auditor"])?;
    ground.refused(&["role", "create", "auditor"], "409")?;
    assert_eq!(ground.json(&["role", "show", "auditor"])?["id"], role["id"]);
    let mut roles = names(&ground.json(&["role", "list"])?, "Name");
    roles.sort();
    assert_eq!(
        roles,
        ["admin", "auditor", "manager", "member", "reader", "service"]
    );
    ground.refused(&["role", "delete", "admin"], "immutable")?;

    // No role, no token; then a role, and only that one.
    let alice = ground
        .service
        .password_cloud("alice", "alice", "Pw-1", Some("team-a"))?;
    ground.client.refused(&alice, &["token", "issue"], "401")?;
    ground.ok(&[
        "role",
        "add",
        "--user",
        "alice",
        "--project",
        "team-a",
        "member",
    ])?;
    ground.client.ok(&alice, &["token", "issue"])?;
    ground.client.refused(
        &alice,
        &["user", "create", "--password", "x", "mallory"],
        "403",
    )?;
    // The client ends with 0 here although it is told 403; what counts is that nothing came of it.
    ground.client.run(
        &alice,
        &[
            "role",
            "add",
            "--user",
            "alice",
            "--project",
            "team-a",
            "admin",
        ],
    )?;
    let ids = [text(&user, "id")?, text(&project, "id")?];
    let admin_role = ground.json(&["role", "show", "admin"])?;
    let by_id = [
        "role",
        "add",
        "--user",
        ids[0],
        "--project",
        ids[1],
        text(&admin_role, "id")?,
    ];
    ground.client.run(&alice, &by_id)?;
    let assignments = ground.json(&[
        "role",
        "assignment",
        "list",
        "--user",
        "alice",
        "--names",
        "--effective",
    ])?;
    assert_eq!(names(&assignments, "Role"), ["member", "reader"]);
    assert_eq!(
        names(&assignments, "Project"),
        ["team-a@Default", "team-a@Default"]
    );
    let implied = ground.json(&["implied", "role", "list"])?;
    assert_eq!(implied.as_array().map(Vec::len), Some(3));

    // What ends access: the role gone, the password changed, the user disabled.
    ground.ok(&[
        "role",
        "remove",
        "--user",
        "alice",
        "--project",
        "team-a",
        "member",
    ])?;
    ground.client.refused(&alice, &["token", "issue"], "401")?;
    ground.ok(&[
        "role",
        "add",
        "--user",
        "alice",
        "--project",
        "team-a",
        "member",
    ])?;
    ground.client.ok(
        &alice,
        &[
            "user",
            "password",
            "set",
            "--original-password",
            "Pw-1",
            "--password",
            "Pw-2",
        ],
    )?;
    ground.client.refused(&alice, &["token", "issue"], "401")?;
    let alice = ground
        .service
        .password_cloud("alice", "alice", "Pw-2", Some("team-a"))?;
    ground.client.ok(&alice, &["token", "issue"])?;
    ground.ok(&["user", "set", "--disable", "alice"])?;
    ground.client.refused(&alice, &["token", "issue"], "401")?;

    for delete in [
        ["user", "delete", "alice"],
        ["role", "delete", "auditor"],
        ["project", "delete", "team-a-lab"],
    ] {
        ground.ok(&delete)?;
    }
    ground.refused(&["user", "show", "alice"], "alice")?;
    ground.refused(&["role", "show", "auditor"], "auditor")?;
    ground.refused(&["user", "delete", "alice"], "alice")?;
    ground.passed()
}

#[test]
fn application_credentials() -> Result<()> {
    let ground = Ground::new("identity-appcred")?;
    ground.ok(&["project", "create", "team-a"])?;
    let bob = ground.user("bob", "team-a", Some("member"))?;
    let made = ground.client.json(
        &bob,
        &[
            "application",
            "credential",
            "create",
            "agent",
            "--role",
            "member",
        ],
    )?;
    ground.client.refused(
        &bob,
        &["application", "credential", "create", "agent"],
        "409",
    )?;
    ground.client.refused(
        &bob,
        &[
            "application",
            "credential",
            "create",
            "more",
            "--role",
            "admin",
        ],
        "role",
    )?;
    let (id, secret) = (text(&made, "ID")?, text(&made, "Secret")?);
    let agent = ground.service.credential_cloud("agent", id, secret)?;
    let token = ground.client.json(&agent, &["token", "issue"])?;
    assert_eq!(token["project_id"], made["Project ID"]);
    ground.client.ok(
        &agent,
        &[
            "secret",
            "store",
            "--payload-content-type",
            "text/plain",
            "--name",
            "by-agent",
            "--payload",
            "x1",
        ],
    )?;
    // A restricted credential cannot make itself another one; a wrong secret is no login.
    ground.client.refused(
        &agent,
        &["application", "credential", "create", "copy"],
        "403",
    )?;
    let forged = ground
        .service
        .credential_cloud("forged", id, "wrong-secret")?;
    ground.client.refused(&forged, &["token", "issue"], "401")?;
    // It never gives more than its user has, and outlives a password change.
    ground.ok(&["user", "set", "--password", "Pw-new", "bob"])?;
    ground.client.ok(&agent, &["token", "issue"])?;
    ground.ok(&[
        "role",
        "remove",
        "--user",
        "bob",
        "--project",
        "team-a",
        "member",
    ])?;
    ground.client.refused(&agent, &["token", "issue"], "401")?;
    ground.ok(&[
        "role",
        "add",
        "--user",
        "bob",
        "--project",
        "team-a",
        "member",
    ])?;
    ground.client.ok(&agent, &["token", "issue"])?;
    let bob = ground
        .service
        .password_cloud("bob", "bob", "Pw-new", Some("team-a"))?;
    assert_eq!(
        names(
            &ground
                .client
                .json(&bob, &["application", "credential", "list"])?,
            "Name"
        ),
        ["agent"]
    );
    // A credential that may fetch payloads and nothing else.
    let store = ground.client.json(
        &bob,
        &[
            "secret",
            "store",
            "--payload-content-type",
            "text/plain",
            "--name",
            "volume",
            "--payload",
            "passphrase-1",
        ],
    )?;
    let href = text(&store, "Secret href")?;
    let rules = r#"[{"service": "key-manager", "method": "GET", "path": "/v1/secrets/*/payload"}, {"service": "key-manager", "method": "GET", "path": "/v1"}]"#;
    let made = ground.client.json(
        &bob,
        &[
            "application",
            "credential",
            "create",
            "reader",
            "--access-rules",
            rules,
        ],
    )?;
    let reader =
        ground
            .service
            .credential_cloud("reader", text(&made, "ID")?, text(&made, "Secret")?)?;
    let payload = ground
        .client
        .json(&reader, &["secret", "get", "--payload", href])?;
    assert_eq!(text(&payload, "Payload")?, "passphrase-1");
    // The client has no words for a 401 of the key manager, with any server; its exit status tells.
    ground.client.refused(&reader, &["secret", "list"], "")?;
    ground
        .client
        .refused(&reader, &["secret", "delete", href], "")?;
    assert_eq!(
        names(
            &ground
                .client
                .json(&bob, &["secret", "list", "--name", "volume"])?,
            "Name"
        ),
        ["volume"]
    );
    ground
        .client
        .ok(&bob, &["application", "credential", "delete", "agent"])?;
    ground.client.refused(&agent, &["token", "issue"], "404")?;
    ground.passed()
}

#[test]
fn secrets_and_orders() -> Result<()> {
    let ground = Ground::new("identity-secrets")?;
    ground.ok(&["project", "create", "team-a"])?;
    ground.ok(&["project", "create", "team-b"])?;
    let owner = ground.user("owner", "team-a", Some("member"))?;
    let viewer = ground.user("viewer", "team-a", Some("reader"))?;
    let other = ground.user("other", "team-b", Some("member"))?;
    let client = &ground.client;

    let stored = client.json(
        &owner,
        &[
            "secret",
            "store",
            "--payload-content-type",
            "text/plain",
            "--name",
            "pass",
            "--payload",
            "open sesame",
        ],
    )?;
    let href = text(&stored, "Secret href")?;
    ensure!(
        href.starts_with(&format!(
            "{}/key-manager/v1/secrets/",
            ground.service.base_url()
        )),
        "{href}"
    );
    let shown = client.json(&owner, &["secret", "get", href])?;
    assert_eq!(
        (text(&shown, "Name")?, text(&shown, "Status")?),
        ("pass", "ACTIVE")
    );
    let payload = client.json(&owner, &["secret", "get", "--payload", href])?;
    assert_eq!(text(&payload, "Payload")?, "open sesame");
    assert_eq!(
        names(&client.json(&owner, &["secret", "list"])?, "Name"),
        ["pass"]
    );
    assert_eq!(
        names(
            &client.json(&owner, &["secret", "list", "--name", "nosuch"])?,
            "Name"
        )
        .len(),
        0
    );

    client.refused(
        &owner,
        &[
            "secret",
            "get",
            "--payload",
            "--payload_content_type",
            "application/octet-stream",
            href,
        ],
        "Not Acceptable",
    )?;

    // Two steps: first the record, then the payload, once.
    let later = client.json(&owner, &["secret", "store", "--name", "later"])?;
    let later = text(&later, "Secret href")?;
    client.ok(&owner, &["secret", "update", later, "second step"])?;
    client.refused(
        &owner,
        &["secret", "update", later, "third step"],
        "Conflict",
    )?;

    // Others: a reader may not, another project may not, unless the access list says so.
    client.refused(&viewer, &["secret", "get", "--payload", href], "Forbidden")?;
    client.refused(&viewer, &["secret", "store", "--name", "x"], "Forbidden")?;
    client.refused(&other, &["secret", "get", "--payload", href], "Forbidden")?;
    client.refused(&other, &["secret", "delete", href], "Forbidden")?;
    let other_id = ground.json(&["user", "show", "other"])?;
    client.ok(
        &owner,
        &["acl", "submit", "--user", text(&other_id, "id")?, href],
    )?;
    let payload = client.json(&other, &["secret", "get", "--payload", href])?;
    assert_eq!(text(&payload, "Payload")?, "open sesame");
    client.refused(&other, &["secret", "delete", href], "Forbidden")?;
    client.ok(&owner, &["acl", "delete", href])?;
    client.refused(&other, &["secret", "get", "--payload", href], "Forbidden")?;

    // A secret in use stays.
    let consumer = [
        "--service-type-name",
        "block-storage",
        "--resource-type",
        "volume",
        "--resource-id",
        "v-1",
        href,
    ];
    let mut create = vec!["secret", "consumer", "create"];
    create.extend(consumer);
    client.ok(&owner, &create)?;
    client.refused(&owner, &["secret", "delete", href], "consumers")?;
    let mut delete = vec!["secret", "consumer", "delete"];
    delete.extend(consumer);
    client.ok(&owner, &delete)?;

    // An order: final at the first look, the key random and of the length asked for.
    let order = [
        "secret",
        "order",
        "create",
        "--name",
        "luks",
        "--algorithm",
        "aes",
        "--mode",
        "xts",
    ];
    let mut keys = Vec::new();
    for (bits, bytes) in [("256", 32), ("512", 64)] {
        let mut create = order.to_vec();
        create.extend(["--bit-length", bits, "key"]);
        let ordered = client.json(&owner, &create)?;
        let done = client.json(
            &owner,
            &["secret", "order", "get", text(&ordered, "Order href")?],
        )?;
        assert_eq!(text(&done, "Status")?, "ACTIVE");
        let key = text(&done, "Secret href")?.to_owned();
        let file = ground.work.path().join(format!("key-{bits}"));
        client.ok(
            &owner,
            &[
                "secret",
                "get",
                "--payload_content_type",
                "application/octet-stream",
                "--file",
                &file.to_string_lossy(),
                &key,
            ],
        )?;
        let key = fs::read(&file)?;
        assert_eq!(key.len(), bytes);
        ensure!(
            !keys.contains(&key) && key.iter().any(|byte| *byte != key[0]),
            "the key is not random"
        );
        keys.push(key);
        client.ok(
            &owner,
            &["secret", "order", "delete", text(&ordered, "Order href")?],
        )?;
        client.refused(
            &owner,
            &["secret", "order", "get", text(&ordered, "Order href")?],
            "Not Found",
        )?;
    }
    client.refused(
        &owner,
        &[
            "secret",
            "order",
            "create",
            "--algorithm",
            "aes",
            "--bit-length",
            "33",
            "key",
        ],
        "Bad Request",
    )?;

    // Deleted is deleted.
    client.ok(&owner, &["secret", "delete", href])?;
    client.refused(&owner, &["secret", "get", "--payload", href], "Not Found")?;
    client.refused(&owner, &["secret", "get", href], "Not Found")?;
    client.refused(&owner, &["secret", "delete", href], "Not Found")?;
    let missing = format!(
        "{}/key-manager/v1/secrets/00000000-0000-4000-8000-000000000000",
        ground.service.base_url()
    );
    client.refused(
        &owner,
        &["secret", "get", "--payload", &missing],
        "Not Found",
    )?;
    ground.passed()
}

/// Every file below `dir`.
fn files(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push((path.display().to_string(), fs::read(&path)?));
        }
    }
    Ok(found)
}

fn holds(bytes: &[u8], needle: &str) -> bool {
    bytes
        .windows(needle.len())
        .any(|window| window == needle.as_bytes())
}

#[test]
fn nothing_readable_lies_in_the_files_or_the_log() -> Result<()> {
    let mut ground = Ground::new("identity-at-rest")?;
    let (payload, encoded) = (
        "plaintext-canary-payload-9431",
        "cGxhaW50ZXh0LWNhbmFyeS1wYXlsb2FkLTk0MzE",
    );
    let (kept, kept_encoded) = (
        "kept-canary-payload-5512",
        "a2VwdC1jYW5hcnktcGF5bG9hZC01NTEy",
    );
    let password = "canary-Passw0rd-7766";
    ground.ok(&["user", "create", "--password", password, "carol"])?;
    let made = ground.json(&["application", "credential", "create", "canary"])?;
    let token = ground.json(&["token", "issue"])?;
    let secret = ground.json(&[
        "secret",
        "store",
        "--payload-content-type",
        "text/plain",
        "--name",
        "deleted-canary-name",
        "--payload",
        payload,
    ])?;
    let href = text(&secret, "Secret href")?;
    ground.json(&[
        "secret",
        "store",
        "--payload-content-type",
        "text/plain",
        "--name",
        "kept",
        "--payload",
        kept,
    ])?;
    ground.json(&["secret", "get", "--payload", href])?;
    // The name is stored in the clear, so it shows that the search can find something.
    ensure!(
        files(&ground.service.data_dir())?
            .iter()
            .any(|(_, bytes)| holds(bytes, "deleted-canary-name"))
    );
    ground.ok(&["secret", "delete", href])?;
    let admin_password = ground.service.password().to_owned();
    let needles = [
        payload,
        encoded,
        kept,
        kept_encoded,
        password,
        &admin_password,
        text(&made, "Secret")?,
        text(&token, "id")?,
    ];
    let check = |service: &IdentityService, state: &str| -> Result<()> {
        for (path, bytes) in files(&service.data_dir())? {
            for needle in needles {
                ensure!(!holds(&bytes, needle), "{state}: {path} holds {needle:?}");
            }
            ensure!(
                !holds(&bytes, "deleted-canary-name"),
                "{state}: {path} still holds a deleted record"
            );
        }
        let log = service.log()?;
        for needle in needles {
            ensure!(!log.contains(needle), "{state}: the log holds {needle:?}");
        }
        Ok(())
    };
    check(&ground.service, "running")?;
    // The audit trail says who did what.
    let log = ground.service.log()?;
    for (action, kind) in [
        ("create", "data/security/secret"),
        ("read", "data/security/secret"),
        ("delete", "data/security/secret"),
    ] {
        let id = href.rsplit('/').next().unwrap_or_default();
        ensure!(
            log.lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .any(|line| {
                    line["target"] == "audit"
                        && line["action"] == action
                        && line["target_type_uri"] == kind
                        && line["target_id"] == id
                        && line["outcome"] == "success"
                        && line["initiator_user_name"] == "admin"
                }),
            "no audit line for {action} of {id}"
        );
    }
    let memory = ground.service.resident_kib()?;
    eprintln!("resident memory: {memory} KiB");
    ground.service.kill()?;
    check_killed(&ground)?;
    ground.service.launch()?;
    ground.service.stop()?;
    check(&ground.service, "stopped")?;
    ground.work.passed()
}

/// After a kill the write-ahead log still lies there; even that holds no payload.
fn check_killed(ground: &Ground) -> Result<()> {
    for (path, bytes) in files(&ground.service.data_dir())? {
        ensure!(
            !holds(&bytes, "canary-payload"),
            "killed: {path} holds a payload"
        );
    }
    Ok(())
}

#[test]
fn what_was_acknowledged_outlives_a_kill_and_needs_its_key() -> Result<()> {
    let mut ground = Ground::new("identity-restart")?;
    let secret = ground.json(&[
        "secret",
        "store",
        "--payload-content-type",
        "text/plain",
        "--name",
        "kept",
        "--payload",
        "still here",
    ])?;
    let href = text(&secret, "Secret href")?.to_owned();
    ground.service.kill()?;
    ground.service.launch()?;
    let payload = ground.json(&["secret", "get", "--payload", &href])?;
    assert_eq!(text(&payload, "Payload")?, "still here");
    ground.service.stop()?;

    // Another key-encryption key is told apart from damage, and nothing is served.
    let kek = ground.service.secrets_dir().join("other-kek");
    ground
        .service
        .command(&["kek", "generate", "--out", &kek.to_string_lossy()])?;
    let data = ground.service.data_dir();
    let output = std::process::Command::new(product_binary("cryptvol-identity")?)
        .args([
            "serve",
            "--no-tls",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
        ])
        .arg("--data-dir")
        .arg(&data)
        .arg("--kek-file")
        .arg(&kek)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && said.contains("does not belong to"),
        "{said}"
    );
    // In the clear only on a loopback address.
    let output = std::process::Command::new(product_binary("cryptvol-identity")?)
        .args([
            "serve",
            "--no-tls",
            "--listen",
            "0.0.0.0:0",
            "--admin-listen",
            "127.0.0.1:0",
        ])
        .arg("--data-dir")
        .arg(&data)
        .arg("--kek-file")
        .arg(ground.service.secrets_dir().join("kek"))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && said.contains("loopback"),
        "{said}"
    );
    ground.work.passed()
}

#[test]
fn a_new_certificate_is_taken_over_without_a_restart() -> Result<()> {
    let ground = Ground::new("identity-certificate")?;
    ground.ok(&["token", "issue"])?;
    let old = ground.work.path().join("old-ca.crt");
    fs::copy(ground.service.ca_path(), &old)?;
    ground.service.renew_certificate()?;
    let start = Instant::now();
    while ground.client.run(&ground.admin, &["token", "issue"])?.code != 0 {
        ensure!(
            start.elapsed() < Duration::from_secs(40),
            "the new certificate is not served"
        );
        std::thread::sleep(Duration::from_secs(1));
    }
    let (url, password) = (ground.service.auth_url(), ground.service.password());
    let auth = [
        ("auth_url", url.as_str()),
        ("username", "admin"),
        ("password", password),
        ("user_domain_name", "Default"),
        ("project_name", "admin"),
        ("project_domain_name", "Default"),
    ];
    let stale = Cloud::write(ground.work.path(), "stale", "v3password", &auth, &old)?;
    ground
        .client
        .refused(&stale, &["token", "issue"], "certificate verify failed")?;
    let (status, metrics) = ground.service.admin("/metrics")?;
    ensure!(
        status == 200 && metrics.contains("cryptvol_identity_logins_total{outcome=\"success\"}"),
        "{metrics}"
    );
    assert_eq!(ground.service.admin("/livez")?.0, 200);
    ground.passed()
}

//! What users give away, with the official `openstack` client: trusts, EC2 credentials, access rules, consumers of OAuth1; and the rotation of the
//! keys that seal tokens under a running service.

use anyhow::{Context, Result, ensure};
use cryptvol_e2e::identity_service::{IdentityService, Options};
use cryptvol_e2e::openstack_client::{Cloud, OpenStackClient};
use cryptvol_e2e::workdir::WorkDir;
use serde_json::Value;

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name]
        .as_str()
        .with_context(|| format!("no text {name} in {value}"))
}

fn count(list: &Value) -> usize {
    list.as_array().map_or(0, Vec::len)
}

#[test]
fn trusts_and_ec2_credentials() -> Result<()> {
    let client = OpenStackClient::ensure()?;
    let work = WorkDir::new("identity-given-away")?;
    let mut service = IdentityService::start(&work.dir("identity")?, Options::default())?;
    let admin = service.admin_cloud()?;
    let as_admin = |args: &[&str]| client.json(&admin, args);
    client.ok(&admin, &["project", "create", "quay"])?;
    for user in ["alice", "bob"] {
        client.ok(
            &admin,
            &["user", "create", "--password", "Pw-4-given-away", user],
        )?;
    }
    client.ok(
        &admin,
        &[
            "role",
            "add",
            "--user",
            "alice",
            "--project",
            "quay",
            "manager",
        ],
    )?;
    let alice = service.password_cloud("alice", "alice", "Pw-4-given-away", Some("quay"))?;
    let bob = service.password_cloud("bob", "bob", "Pw-4-given-away", None)?;
    let ids = |kind: &str, name: &str| -> Result<String> {
        Ok(text(&as_admin(&[kind, "show", name])?, "id")?.to_owned())
    };
    let (alice_id, bob_id, quay) = (
        ids("user", "alice")?,
        ids("user", "bob")?,
        ids("project", "quay")?,
    );

    // Trusts. The client looks names up; what it may not look up it takes for an id.
    let (member, admin_role) = (ids("role", "member")?, ids("role", "admin")?);
    let with = |role| {
        vec![
            "trust",
            "create",
            "--project",
            &quay,
            "--role",
            role,
            &alice_id,
            &bob_id,
        ]
    };
    let trust = client.json(&alice, &with(member.as_str()))?;
    assert_eq!(text(&trust, "trustee_user_id")?, bob_id);
    let trust_id = text(&trust, "id")?;
    client.refused(&alice, &with(admin_role.as_str()), "404")?;
    assert_eq!(count(&as_admin(&["trust", "list"])?), 1);
    let shown = client.json(&bob, &["trust", "show", trust_id])?;
    assert_eq!(text(&shown, "trustor_user_id")?, alice_id);
    let auth_url = service.auth_url();
    let auth = [
        ("auth_url", auth_url.as_str()),
        ("username", "bob"),
        ("password", "Pw-4-given-away"),
        ("user_domain_name", "Default"),
        ("trust_id", trust_id),
    ];
    let by_trust = Cloud::write(
        &work.dir("trust")?,
        "by-trust",
        "v3password",
        &auth,
        &service.ca_path(),
    )?;
    let token = client.json(&by_trust, &["token", "issue"])?;
    assert_eq!(
        (text(&token, "project_id")?, text(&token, "user_id")?),
        (quay.as_str(), bob_id.as_str())
    );
    client.ok(
        &by_trust,
        &[
            "secret",
            "store",
            "--name",
            "of-the-trust",
            "--payload",
            "x",
        ],
    )?;
    client.refused(&by_trust, &["user", "list"], "403")?;
    client.refused(&bob, &["trust", "delete", trust_id], "")?;
    client.ok(&alice, &["trust", "delete", trust_id])?;
    client.refused(&by_trust, &["token", "issue"], "401")?;
    assert_eq!(count(&as_admin(&["trust", "list"])?), 0);

    // EC2 credentials.
    let keys = client.json(&alice, &["ec2", "credentials", "create"])?;
    let access = text(&keys, "access")?;
    assert_eq!(text(&keys, "project_id")?, quay);
    let list = client.json(&alice, &["ec2", "credentials", "list"])?;
    assert_eq!(text(&list[0], "Access")?, access);
    let shown = client.json(&alice, &["ec2", "credentials", "show", access])?;
    assert_eq!(text(&shown, "secret")?, text(&keys, "secret")?);
    client.ok(&alice, &["ec2", "credentials", "delete", access])?;
    client.refused(&alice, &["ec2", "credentials", "show", access], "404")?;

    service.stop()?;
    work.passed()
}

#[test]
fn access_rules_consumers_and_token_keys() -> Result<()> {
    let client = OpenStackClient::ensure()?;
    let work = WorkDir::new("identity-rules-and-keys")?;
    let mut service = IdentityService::start(&work.dir("identity")?, Options::default())?;
    let admin = service.admin_cloud()?;
    let as_admin = |args: &[&str]| client.json(&admin, args);
    let alice = &admin;

    // Access rules outlive their application credential, and go when none uses them.
    let rules = r#"[{"service": "key-manager", "method": "GET", "path": "/v1/secrets"}]"#;
    client.ok(
        alice,
        &[
            "application",
            "credential",
            "create",
            "--access-rules",
            rules,
            "narrow",
        ],
    )?;
    let rule = client.json(alice, &["access", "rule", "list"])?;
    let rule = text(&rule[0], "ID")?;
    assert_eq!(
        text(
            &client.json(alice, &["access", "rule", "show", rule])?,
            "Path"
        )?,
        "/v1/secrets"
    );
    client.refused(alice, &["access", "rule", "delete", rule], "")?;
    client.ok(alice, &["application", "credential", "delete", "narrow"])?;
    client.ok(alice, &["access", "rule", "delete", rule])?;
    assert_eq!(count(&client.json(alice, &["access", "rule", "list"])?), 0);

    // Consumers of OAuth1.
    let consumer = as_admin(&["consumer", "create", "--description", "backups"])?;
    let key = text(&consumer, "id")?;
    ensure!(text(&consumer, "secret")?.len() == 32, "{consumer}");
    client.ok(&admin, &["consumer", "set", "--description", "more", key])?;
    let shown = as_admin(&["consumer", "show", key])?;
    assert_eq!(text(&shown, "description")?, "more");
    assert_eq!(count(&as_admin(&["consumer", "list"])?), 1);
    client.ok(&admin, &["consumer", "delete", key])?;
    client.refused(&admin, &["consumer", "show", key], "")?;

    // The keys that seal tokens change under the service; a token from before is as good as one from after.
    let before = as_admin(&["token", "issue"])?;
    let (data, kek) = (service.data_dir(), service.secrets_dir().join("kek"));
    let (data, kek) = (
        data.to_string_lossy().into_owned(),
        kek.to_string_lossy().into_owned(),
    );
    service.command(&[
        "token-keys",
        "rotate",
        "--data-dir",
        &data,
        "--kek-file",
        &kek,
    ])?;
    as_admin(&["token", "issue"])?;
    client.ok(&admin, &["token", "revoke", text(&before, "id")?])?;
    service.stop()?;
    work.passed()
}

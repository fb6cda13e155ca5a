//! Application credentials.

use anyhow::Result;

use crate::ground::{Ground, names, text};

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

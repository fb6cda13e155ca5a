//! Secrets and orders.

use std::fs;

use anyhow::{Result, ensure};

use crate::ground::{Ground, names, text};

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

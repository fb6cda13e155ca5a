//! The official client's key-manager commands against the embedded service, and a rotation of its key-encryption
//! key while it serves them.
//!
//! One service for one long story: starting the client costs more than anything that it asks for.

use anyhow::{Context, Result, ensure};
use cryptvol_e2e::identity_service::{IdentityService, Options};
use cryptvol_e2e::openstack_client::OpenStackClient;
use cryptvol_e2e::workdir::WorkDir;
use serde_json::Value;

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name]
        .as_str()
        .with_context(|| format!("no text {name} in {value}"))
}

#[test]
fn containers_pairs_access_lists_and_a_rotation() -> Result<()> {
    let client = OpenStackClient::ensure()?;
    let work = WorkDir::new("key-manager")?;
    let mut service = IdentityService::start(&work.dir("identity")?, Options::default())?;
    let cloud = service.admin_cloud()?;
    let json = |args: &[&str]| client.json(&cloud, args);

    let stored = json(&[
        "secret",
        "store",
        "--name",
        "one",
        "--payload",
        "canary-payload",
        "--payload-content-type",
        "text/plain",
    ])?;
    let secret = text(&stored, "Secret href")?;
    ensure!(stored["Status"].is_null() || stored["Status"] == "ACTIVE");

    // A pair of keys: ready at the first look, in a container of its type.
    let order = [
        "secret",
        "order",
        "create",
        "--name",
        "pair",
        "--algorithm",
        "rsa",
        "--bit-length",
        "1024",
        "asymmetric",
    ];
    let ordered = json(&order)?;
    let done = json(&["secret", "order", "get", text(&ordered, "Order href")?])?;
    assert_eq!(
        (text(&done, "Status")?, text(&done, "Type")?),
        ("ACTIVE", "Asymmetric")
    );
    // Not as JSON: there the client stumbles over its own time of creation.
    let show = [
        "secret",
        "container",
        "get",
        text(&done, "Container href")?,
        "-f",
        "value",
        "-c",
        "Type",
        "-c",
        "Status",
    ];
    let pair = client.ok(&cloud, &show)?;
    assert_eq!(
        pair.split_whitespace().collect::<Vec<_>>(),
        ["ACTIVE", "rsa"]
    );

    // A container of ones own; the list has both.
    let refs = format!("first={secret}");
    let made = json(&[
        "secret",
        "container",
        "create",
        "--name",
        "box",
        "--type",
        "generic",
        "--secret",
        &refs,
    ])?;
    let list = json(&["secret", "container", "list"])?;
    let names: Vec<_> = list
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| row["Name"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(names, ["pair", "box"]);
    let container = text(&made, "Container href")?;
    client.ok(&cloud, &["secret", "container", "delete", container])?;
    client.refused(
        &cloud,
        &["secret", "container", "get", container],
        "Not Found",
    )?;

    // The access list of a secret.
    let shown = json(&[
        "acl",
        "submit",
        "--user",
        "u1",
        "--no-project-access",
        secret,
    ])?;
    assert_eq!(
        (&shown[0]["Project Access"], &shown[0]["Users"]),
        (&Value::Bool(false), &serde_json::json!(["u1"]))
    );
    client.ok(&cloud, &["acl", "delete", secret])?;

    // The key-encryption key changes under the running service, twice; the first one is forgotten.
    let data = service.data_dir().to_string_lossy().into_owned();
    let kek = service.secrets_dir().join("kek");
    let first = std::fs::read_to_string(&kek)?;
    let file = kek.to_string_lossy().into_owned();
    for _ in 0..2 {
        service.command(&[
            "rekey",
            "--data-dir",
            &data,
            "--kek-file",
            &file,
            "--forget-old",
        ])?;
    }
    ensure!(!std::fs::read_to_string(&kek)?.contains(first.trim()));
    let payload = json(&["secret", "get", "--payload", secret])?;
    assert_eq!(text(&payload, "Payload")?, "canary-payload");
    for entry in std::fs::read_dir(service.data_dir())? {
        let bytes = std::fs::read(entry?.path())?;
        let canary = b"canary-payload";
        ensure!(!bytes.windows(canary.len()).any(|window| window == canary));
    }
    client.ok(&cloud, &["secret", "delete", secret])?;
    client.refused(&cloud, &["secret", "get", secret], "Not Found")?;
    service.stop()?;
    work.passed()
}

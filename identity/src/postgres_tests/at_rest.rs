//! What lies in the server's files and in a dump of its database, and what is not to lie there.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::server::Server;
use crate::testing::{Bench, id};

const V3: &str = "/identity/v3";
const V1: &str = "/key-manager/v1";
/// A name, stored as it is: who does not find it has not searched.
const SHOWN: &str = "shown-canary-name-5521";
const USER: &str = "canary-user-4417";

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// As it is, and as dumps and JSON write bytes. The characters of a base64 text in which more or less before or behind it would show
/// are left out.
fn forms(needle: &[u8]) -> [Vec<u8>; 3] {
    let whole = needle.len() / 3 * 3;
    [
        needle.to_vec(),
        hex::encode(needle).into_bytes(),
        STANDARD.encode(&needle[..whole]).into_bytes(),
    ]
}

/// Everything that the service keeps for nobody to read, with what it is.
async fn kept(bench: &Bench) -> Vec<(&'static str, Vec<u8>)> {
    let project = bench.project("p").await;
    let user = bench.user(USER).await;
    bench.grant(&project, &user, "member").await;
    let password = "canary-Passw0rd-7766";
    let body = json!({"user": {"password": password}});
    bench
        .admin("PATCH", &format!("{V3}/users/{user}"), body, 200)
        .await;
    let token = bench.login(USER, password, Some("p")).await.unwrap();
    let post = async |path: String, body: Value| {
        let answer = bench.call("POST", &path, &token, body).await;
        assert!(
            matches!(answer.status, 201 | 202),
            "{path}: {}",
            answer.json()
        );
        answer.json()
    };
    let text = |value: &Value| value.as_str().unwrap().as_bytes().to_vec();

    let payload = "payload-canary-9431-of-a-tenant";
    let secret = json!({"name": SHOWN, "payload": payload, "payload_content_type": "text/plain"});
    let secret = post(format!("{V1}/secrets"), secret).await;
    let meta = json!({"name": "ordered", "algorithm": "aes", "bit_length": 256, "mode": "cbc"});
    let order = post(format!("{V1}/orders"), json!({"type": "key", "meta": meta})).await;
    let below = |reference: &Value| {
        let (_, path) = reference
            .as_str()
            .unwrap()
            .split_once("/key-manager")
            .unwrap();
        format!("/key-manager{path}")
    };
    let order = bench
        .call("GET", &below(&order["order_ref"]), &token, Value::Null)
        .await;
    let ordered = format!("{}/payload", below(&order.json()["secret_ref"]));
    let headers = [
        ("X-Auth-Token", token.as_str()),
        ("Accept", "application/octet-stream"),
    ];
    let ordered = bench.raw("GET", &ordered, &headers, Vec::new()).await;
    assert_eq!((ordered.status, ordered.bytes.len()), (200, 32));
    // It is opened, and so has been in memory.
    let path = format!("{}/payload", below(&secret["secret_ref"]));
    let read = bench.call("GET", &path, &token, Value::Null).await;
    assert_eq!(read.bytes, payload.as_bytes());

    let credential = json!({"application_credential": {"name": "a"}});
    let credential = post(
        format!("{V3}/users/{user}/application_credentials"),
        credential,
    )
    .await;
    let keys = post(
        format!("{V3}/users/{user}/credentials/OS-EC2"),
        json!({"tenant_id": project}),
    )
    .await;
    let blob = "blob-canary-3310-of-a-certificate";
    let body = json!({"credential": {"type": "cert", "blob": blob}});
    post(format!("{V3}/credentials"), body).await;
    let consumer = json!({"consumer": {}});
    let consumer = bench
        .admin("POST", &format!("{V3}/OS-OAUTH1/consumers"), consumer, 201)
        .await;
    let domain = json!({"domain": {"name": "d"}});
    let domain = id(&bench
        .admin("POST", &format!("{V3}/domains"), domain, 201)
        .await["domain"]);
    let directory = "directory-canary-2207-password";
    let config = json!({"config": {"ldap": {"url": "ldap://a.example.org", "user_tree_dn": "ou=a", "user": "cn=a",
        "password": directory}}});
    bench
        .admin("PUT", &format!("{V3}/domains/{domain}/config"), config, 201)
        .await;

    vec![
        ("payload", payload.into()),
        ("ordered key", ordered.bytes),
        ("password", password.into()),
        ("password of before", format!("{USER}-pw").into()),
        (
            "application credential",
            text(&credential["application_credential"]["secret"]),
        ),
        ("EC2 secret", text(&keys["credential"]["secret"])),
        ("blob", blob.into()),
        ("OAuth1 secret", text(&consumer["consumer"]["secret"])),
        ("password of a directory", directory.into()),
        ("token", token.into_bytes()),
        ("administrator's token", bench.admin.clone().into_bytes()),
        ("key-encryption key", vec![9; 32]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_readable_lies_in_the_servers_files_or_in_a_dump() {
    let server = Server::start();
    let bench = server.bench().await;
    let kept = kept(&bench).await;
    let check = |place: &str, bytes: &[u8]| {
        for (what, needle) in &kept {
            for form in forms(needle) {
                assert!(!holds(bytes, &form), "{place} holds the {what}");
            }
        }
    };
    let dump = server.dump();
    assert!(dump.contains(SHOWN) && dump.contains(USER), "{dump}");
    check("the dump", dump.as_bytes());

    // As it runs, with the write-ahead log, and with everything in its place after an orderly end of the service.
    for state in ["running", "ended"] {
        if state == "ended" {
            bench.app.store.close().await;
            server.sql("VACUUM");
            server.sql("CHECKPOINT");
        }
        let files = server.files();
        let shown = |part: &str| {
            let of_part = files
                .iter()
                .filter(|(path, _)| path.to_string_lossy().contains(part));
            of_part
                .filter(|(_, bytes)| holds(bytes, SHOWN.as_bytes()))
                .count()
        };
        assert!(shown("/pg_wal/") > 0, "{state}");
        assert!(state == "running" || shown("/base/") > 0);
        for (path, bytes) in &files {
            check(&format!("{state}: {}", path.display()), bytes);
        }
    }
}

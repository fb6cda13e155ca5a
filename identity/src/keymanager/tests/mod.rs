//! The key manager through its routes, on a real database.

#![allow(clippy::unwrap_used)]

mod containers;
mod lists;
mod metadata;
mod orders;
mod quotas;
mod sealing;
mod stores;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::testing::{Answer, Bench, HOST};

const V1: &str = "/key-manager/v1";

/// The path of a `*_ref` in an answer.
fn path_of(answer: &Answer, name: &str) -> String {
    let url = answer.json()[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(answer.header("location"), url);
    url.strip_prefix(&format!("https://{HOST}"))
        .unwrap()
        .to_owned()
}

/// The path of a URL of this service.
fn path(url: &Value) -> String {
    url.as_str()
        .and_then(|url| url.strip_prefix(&format!("https://{HOST}")))
        .unwrap()
        .to_owned()
}

/// One request of a version of the API; its answer.
async fn versioned(
    bench: &Bench,
    (method, path): (&str, &str),
    token: &str,
    body: &Value,
    version: &str,
) -> Answer {
    let headers = [
        ("X-Auth-Token", token),
        ("Content-Type", "application/json"),
        ("OpenStack-API-Version", version),
    ];
    let bytes = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    bench.raw(method, path, &headers, bytes).await
}

/// The id of a user of the first domain.
async fn user_id(bench: &Bench, name: &str) -> String {
    let user = bench.app.store.user_by_name("default", name).await;
    user.unwrap().unwrap().id
}

async fn store(bench: &Bench, token: &str, name: &str, payload: &str) -> String {
    let body = json!({"name": name, "payload": payload, "payload_content_type": "text/plain"});
    let answer = bench
        .call("POST", &format!("{V1}/secrets/"), token, body)
        .await;
    assert_eq!(answer.status, 201);
    path_of(&answer, "secret_ref")
}

async fn payload(bench: &Bench, token: &str, path: &str, accept: &str) -> Answer {
    bench
        .raw(
            "GET",
            &format!("{path}/payload"),
            &[("X-Auth-Token", token), ("Accept", accept)],
            Vec::new(),
        )
        .await
}

#[tokio::test]
async fn discovery_and_microversions() {
    let bench = Bench::new().await;
    let old = bench.call("GET", "/key-manager/", "", Value::Null).await;
    assert_eq!(
        (old.status, old.header("openstack-api-version")),
        (300, "key-manager 1.0")
    );
    assert!(old.json()["versions"]["values"].is_array());
    let headers = [("OpenStack-API-Version", "key-manager 1.2")];
    let new = bench.raw("GET", "/key-manager", &headers, Vec::new()).await;
    assert_eq!(
        (new.header("openstack-api-version"), new.header("vary")),
        ("key-manager 1.2", "openstack-api-version")
    );
    assert_eq!(new.json()["versions"][0]["max_version"], "1.2");
    let headers = [("OpenStack-API-Version", "key-manager 1.9")];
    assert_eq!(
        bench
            .raw("GET", "/key-manager", &headers, Vec::new())
            .await
            .status,
        406
    );
    assert_eq!(
        bench
            .call("GET", &format!("{V1}/"), "", Value::Null)
            .await
            .status,
        401
    );
    assert_eq!(
        bench
            .call("GET", &format!("{V1}/"), &bench.admin, Value::Null)
            .await
            .status,
        200
    );
    let wrong = bench
        .call("GET", &format!("{V1}/secrets"), "rubbish", Value::Null)
        .await;
    // As from the middleware: the identity form.
    assert_eq!(
        (wrong.status, &wrong.json()["error"]["code"]),
        (401, &json!(401))
    );
    assert!(wrong.header("www-authenticate").contains("/identity/v3"));
    assert_eq!(
        bench
            .call("GET", &format!("{V1}/cas"), &bench.admin, Value::Null)
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn only_project_scoped_tokens_are_served() {
    let bench = Bench::new().await;
    let identity = json!({"methods": ["token"], "token": {"id": bench.admin}});
    for scope in [
        json!("unscoped"),
        json!({"system": {"all": true}}),
        json!({"domain": {"id": "default"}}),
    ] {
        let answer = bench
            .auth(json!({"auth": {"identity": identity, "scope": scope}}))
            .await;
        let token = answer.header("X-Subject-Token").to_owned();
        assert_eq!(
            bench
                .call("GET", &format!("{V1}/secrets"), &token, Value::Null)
                .await
                .status,
            401
        );
    }
}

#[tokio::test]
async fn a_secret_from_its_store_to_its_end() {
    let bench = Bench::new().await;
    let token = bench.admin.clone();
    let path = store(&bench, &token, "pass", "open sesame").await;
    let shown = bench.call("GET", &path, &token, Value::Null).await.json();
    assert_eq!(shown["content_types"]["default"], "text/plain");
    assert_eq!(
        (&shown["status"], &shown["secret_type"]),
        (&json!("ACTIVE"), &json!("opaque"))
    );
    assert!(shown.get("consumers").is_none(), "consumers came with 1.1");
    for accept in ["text/plain", "*/*", ""] {
        let answer = payload(&bench, &token, &path, accept).await;
        assert_eq!(
            (answer.status, answer.bytes.as_slice()),
            (200, b"open sesame".as_slice()),
            "{accept}"
        );
    }
    assert_eq!(
        payload(&bench, &token, &path, "application/octet-stream")
            .await
            .status,
        406
    );
    // The deprecated way.
    let headers = [("X-Auth-Token", token.as_str()), ("Accept", "text/plain")];
    assert_eq!(
        bench.raw("GET", &path, &headers, Vec::new()).await.bytes,
        b"open sesame"
    );
    assert_eq!(
        bench
            .call("POST", &format!("{path}/payload"), &token, Value::Null)
            .await
            .status,
        405
    );
    assert_eq!(
        bench
            .call("DELETE", &path, &token, Value::Null)
            .await
            .status,
        204
    );
    assert_eq!(
        bench
            .call("DELETE", &path, &token, Value::Null)
            .await
            .status,
        404
    );
    assert_eq!(
        payload(&bench, &token, &path, "text/plain").await.status,
        404
    );
    assert_eq!(
        bench
            .call("GET", &format!("{V1}/secrets/no-uuid"), &token, Value::Null)
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn two_steps_and_the_payload_only_once() {
    let bench = Bench::new().await;
    let token = bench.admin.clone();
    let body = json!({"name": "later", "algorithm": " aes ", "bit_length": 256, "secret_type": "symmetric"});
    let path = path_of(
        &bench
            .call("POST", &format!("{V1}/secrets"), &token, body)
            .await,
        "secret_ref",
    );
    let shown = bench.call("GET", &path, &token, Value::Null).await.json();
    assert_eq!(shown["algorithm"], "aes", "white space goes");
    assert!(shown.get("content_types").is_none());
    assert_eq!(payload(&bench, &token, &path, "*/*").await.status, 404);
    let put = async |kind: &str, bytes: &[u8]| {
        let headers = [("X-Auth-Token", token.as_str()), ("Content-Type", kind)];
        bench
            .raw("PUT", &path, &headers, bytes.to_vec())
            .await
            .status
    };
    assert_eq!(put("application/json", b"{}").await, 415);
    assert_eq!(put("application/pkcs8", b"x").await, 415);
    assert_eq!(put("application/octet-stream", b"").await, 400);
    assert_eq!(put("application/octet-stream", &[7; 20_001]).await, 413);
    assert_eq!(put("application/octet-stream", &[7; 32]).await, 204);
    assert_eq!(put("application/octet-stream", &[8; 32]).await, 409);
    assert_eq!(
        payload(&bench, &token, &path, "application/octet-stream")
            .await
            .bytes,
        [7; 32]
    );
}

#[tokio::test]
async fn bad_requests() {
    let bench = Bench::new().await;
    for (body, status) in [
        (json!({"payload": "x"}), 400),
        (json!({"secret_type": "magic"}), 400),
        (json!({"expiration": "2020-01-01T00:00:00"}), 400),
        (json!({"bit_length": -1}), 400),
        (json!({"name": 5}), 400),
        (json!({"name": null}), 201),
        (json!({"algorithm": null}), 400),
        (json!({"bit_length": null}), 400),
        (json!({"bit_length": "256"}), 400),
        (
            json!({"payload": null, "payload_content_type": "text/plain"}),
            400,
        ),
        (json!({"payload_content_encoding": "binary"}), 201),
        (json!({"transport_key_needed": "true"}), 400),
        (json!({"transport_key_needed": "false"}), 201),
        (
            json!({"payload": "eHg=", "payload_content_type": "application/pkcs8", "payload_content_encoding": "base64"}),
            201,
        ),
        (
            json!({"payload": "eHg=", "payload_content_type": "application/pkcs8", "payload_content_encoding": "binary"}),
            400,
        ),
        (
            json!({"payload": "x".repeat(20_001), "payload_content_type": "text/plain"}),
            413,
        ),
        (
            json!({"payload": "x".repeat(26_000), "payload_content_type": "text/plain"}),
            400,
        ),
        (json!({"unknown": 1}), 201),
    ] {
        let answer = bench
            .call("POST", &format!("{V1}/secrets"), &bench.admin, body)
            .await;
        assert_eq!(
            answer.status,
            status,
            "{}",
            String::from_utf8_lossy(&answer.bytes)
        );
        if status != 201 {
            assert_eq!(answer.json()["code"], status);
            assert!(answer.json()["description"].is_string());
        }
    }
    let headers = [
        ("X-Auth-Token", bench.admin.as_str()),
        ("Content-Type", "application/json"),
    ];
    assert_eq!(
        bench
            .raw("POST", &format!("{V1}/secrets"), &headers, b"{".to_vec())
            .await
            .status,
        400
    );
    let headers = [
        ("X-Auth-Token", bench.admin.as_str()),
        ("Content-Type", "text/plain"),
    ];
    assert_eq!(
        bench
            .raw("POST", &format!("{V1}/secrets"), &headers, b"{}".to_vec())
            .await
            .status,
        415
    );
}

#[tokio::test]
async fn access_lists_decide_who_reads() {
    let bench = Bench::new().await;
    let (p, q) = (bench.project("p").await, bench.project("q").await);
    let owner = bench.member("owner", ("p", &p), "member").await;
    let mate = bench.member("mate", ("p", &p), "member").await;
    let reader = bench.member("reader", ("p", &p), "reader").await;
    let guest = bench.member("guest", ("q", &q), "member").await;
    let path = store(&bench, &owner, "s", "x").await;
    let acl = format!("{path}/acl");
    assert_eq!(
        bench.call("GET", &acl, &owner, Value::Null).await.json(),
        json!({"read": {"project-access": true}})
    );
    let read = async |token: &str| payload(&bench, token, &path, "*/*").await.status;
    assert_eq!(
        [
            read(&owner).await,
            read(&mate).await,
            read(&reader).await,
            read(&guest).await
        ],
        [200, 200, 403, 403]
    );
    let guest_id = bench
        .app
        .store
        .user_by_name("default", "guest")
        .await
        .unwrap()
        .unwrap()
        .id;
    let body = json!({"read": {"project-access": false, "users": [guest_id]}});
    let answer = bench.call("PUT", &acl, &owner, body).await;
    assert_eq!(answer.json()["acl_ref"], format!("https://{HOST}{acl}"));
    assert_eq!(
        [read(&owner).await, read(&mate).await, read(&guest).await],
        [200, 403, 200]
    );
    assert_eq!(
        bench
            .call("DELETE", &path, &guest, Value::Null)
            .await
            .status,
        403
    );
    assert_eq!(
        bench.call("GET", &acl, &guest, Value::Null).await.status,
        403
    );
    // An administrator elsewhere sees that it is there and may delete it, but not read it.
    assert_eq!(
        bench
            .call("GET", &path, &bench.admin, Value::Null)
            .await
            .status,
        200
    );
    assert_eq!(read(&bench.admin).await, 403);
    // CVE-2022-3100: the query must not get into the policy's target.
    let trick = format!("{path}/payload?target.secret.read=read&target.secret.project_id={q}");
    assert_eq!(
        bench.call("GET", &trick, &mate, Value::Null).await.status,
        403
    );
    let merge = json!({"read": {"project-access": true}});
    assert_eq!(bench.call("PATCH", &acl, &owner, merge).await.status, 200);
    assert_eq!(
        bench.call("GET", &acl, &owner, Value::Null).await.json()["read"]["users"],
        json!([guest_id])
    );
    assert_eq!(
        bench
            .call("PUT", &acl, &owner, json!({"write": {}}))
            .await
            .status,
        400
    );
    let gone = bench.call("DELETE", &acl, &owner, Value::Null).await;
    assert_eq!(
        (gone.status, gone.bytes.as_slice()),
        (200, b"null".as_slice())
    );
    assert_eq!([read(&mate).await, read(&guest).await], [200, 403]);
}

#[tokio::test]
async fn consumers_keep_a_secret() {
    let bench = Bench::new().await;
    let path = store(&bench, &bench.admin, "s", "x").await;
    let body = json!({"service": "block-storage", "resource_type": "volume", "resource_id": "v1"})
        .to_string();
    let call = async |method: &str, path: &str, body: &str, version: &str| {
        let headers = [
            ("X-Auth-Token", bench.admin.as_str()),
            ("Content-Type", "application/json"),
            ("OpenStack-API-Version", version),
        ];
        bench
            .raw(method, path, &headers, body.as_bytes().to_vec())
            .await
    };
    let consumers = format!("{path}/consumers/");
    for _ in 0..2 {
        let answer = call("POST", &consumers, &body, "key-manager 1.2").await;
        assert_eq!(
            (
                answer.status,
                answer.json()["consumers"].as_array().unwrap().len()
            ),
            (200, 1)
        );
    }
    assert_eq!(
        call("GET", &consumers, "", "key-manager 1.2").await.json()["total"],
        1
    );
    assert_eq!(
        call("DELETE", &path, "", "key-manager 1.2").await.status,
        400
    );
    assert_eq!(
        call("DELETE", &consumers, &body, "key-manager 1.2")
            .await
            .json()["consumers"],
        json!([])
    );
    assert_eq!(
        call("DELETE", &consumers, &body, "key-manager 1.2")
            .await
            .status,
        404
    );
    call("POST", &consumers, &body, "key-manager 1.2").await;
    assert_eq!(
        call(
            "DELETE",
            &format!("{path}?force=true"),
            "",
            "key-manager 1.2"
        )
        .await
        .status,
        204
    );
}

#[tokio::test]
async fn first_secrets_of_a_project_at_the_same_time_share_one_key() {
    let bench = Arc::new(Bench::new().await);
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move {
                store(
                    &bench,
                    &bench.admin,
                    &format!("s{n}"),
                    &format!("payload {n}"),
                )
                .await
            })
        })
        .collect();
    for (n, task) in tasks.into_iter().enumerate() {
        let path = task.await.unwrap();
        assert_eq!(
            payload(&bench, &bench.admin, &path, "*/*").await.bytes,
            format!("payload {n}").into_bytes()
        );
    }
}

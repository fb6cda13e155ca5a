//! What SQLite holds and PostgreSQL cannot: a NUL in a text, a text that is too long for an index.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::server::Server;
use crate::{hostile_tests::hostile_requests, ids::random_bytes, store::UNFIT};

/// A text that compression makes no shorter.
fn long() -> String {
    (0..100)
        .map(|_| URL_SAFE_NO_PAD.encode(random_bytes::<99>()))
        .collect()
}

#[tokio::test]
async fn texts_that_it_cannot_hold_are_the_clients_affair() {
    let server = Server::start();
    let mut bench = server.bench().await;
    let project = bench.project("p").await;
    let token = bench.member("u", ("p", &project), "member").await;
    let nul = "a\u{0}b".to_owned();
    let long = long();
    let named = |name: &str| json!({"name": name, "domain_id": "default"});
    let login = |name: &str| {
        json!({"auth": {"identity": {"methods": ["password"], "password": {"user": {
            "name": name, "domain": {"id": "default"}, "password": "x",
        }}}}})
    };
    let consumer = |id: &str| json!({"service": "s", "resource_type": "t", "resource_id": id});
    let secret = json!({"name": "s", "payload": "p", "payload_content_type": "text/plain"});
    let stored = bench
        .call("POST", "/key-manager/v1/secrets", &token, secret)
        .await
        .json();
    let id = stored["secret_ref"].as_str().unwrap().rsplit('/').next();
    let consumers = format!("/key-manager/v1/secrets/{}/consumers", id.unwrap());
    let secrets = "/key-manager/v1/secrets".to_owned();
    let identity = |path: &str| format!("/identity/v3/{path}");
    // What is asked for, with a text of which it is told that it does not fit.
    let bodies = [
        ("POST", identity("users"), json!({"user": named(&nul)})),
        ("POST", identity("groups"), json!({"group": named(&nul)})),
        (
            "POST",
            identity("projects"),
            json!({"project": named(&nul)}),
        ),
        ("POST", identity("roles"), json!({"role": {"name": nul}})),
        (
            "POST",
            identity("regions"),
            json!({"region": {"id": "r", "description": nul}}),
        ),
        ("POST", identity("regions"), json!({"region": {"id": long}})),
        ("POST", identity("auth/tokens"), login(&nul)),
        ("POST", secrets.clone(), json!({"name": nul})),
        ("POST", consumers.clone(), consumer(&nul)),
        ("POST", consumers, consumer(&long)),
        ("GET", identity("users?name=a%00b"), Value::Null),
        ("GET", format!("{secrets}?name=a%00b"), Value::Null),
    ];
    let mut told = 0;
    for (method, path, body) in bodies {
        let caller = if path.starts_with("/identity") {
            bench.admin.clone()
        } else {
            token.clone()
        };
        let answer = bench.call(method, &path, &caller, body.clone()).await;
        let text = String::from_utf8_lossy(&answer.bytes);
        let start: String = body.to_string().chars().take(80).collect();
        assert_eq!(answer.status, 400, "{method} {path} {start}: {text}");
        told += usize::from(text.contains(UNFIT));
    }
    assert!(told >= 4, "the others are told by rules of the API: {told}");
    // What came before and after in the same transaction is not touched by it.
    let tasks = (0..12).map(|number| {
        let name = if number % 2 == 0 {
            format!("whole{number}")
        } else {
            format!("a\u{0}{number}")
        };
        let (bench, body) = (&bench, json!({"user": named(&name)}));
        async move {
            let path = "/identity/v3/users";
            bench.call("POST", path, &bench.admin, body).await.status
        }
    });
    let statuses = futures::future::join_all(tasks).await;
    for (number, status) in statuses.into_iter().enumerate() {
        assert_eq!(status, if number % 2 == 0 { 201 } else { 400 }, "{number}");
    }
    hostile_requests(&mut bench, 2).await;
    bench.app.store.close().await;
}

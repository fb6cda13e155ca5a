//! Two replicas on one server: the APIs, what one ends on the other, a server that stops and comes back.

use std::sync::Arc;

use serde_json::{Value, json};

use super::server::{Server, comes_back, kek};
use crate::{identity::tests::token_ends::every_cause_and_way, testing::Bench, token_keys};

/// Stores a secret: status and path.
pub(super) async fn stored(bench: &Bench, token: &str, name: &str) -> (u16, String) {
    let body =
        json!({"name": name, "payload": "of a tenant", "payload_content_type": "text/plain"});
    let answer = bench
        .call("POST", "/key-manager/v1/secrets", token, body)
        .await;
    let path = answer.json()["secret_ref"]
        .as_str()
        .unwrap_or_default()
        .split_once("/key-manager")
        .map(|(_, path)| format!("/key-manager{path}"))
        .unwrap_or_default();
    (answer.status, path)
}

/// All that a service does, on one server, for the server takes its time to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replicas_on_one_server() {
    let server = Server::start();
    let bench = server.bench().await;
    let second = server.replica(&bench, kek()).await;

    // Every kind of question.
    let project = bench.project("p").await;
    let token = bench.member("u", ("p", &project), "member").await;
    for path in [
        "/identity/v3/users?name=u",
        "/identity/v3/users?name__contains=D&domain_id=default&limit=2",
        "/identity/v3/projects",
        "/identity/v3/domains",
        "/identity/v3/groups",
        "/identity/v3/groups?name__contains=5_%25%5C&limit=1",
        "/identity/v3/roles",
        "/identity/v3/role_inferences",
        "/identity/v3/role_assignments?effective&include_names",
        "/identity/v3/services",
        "/identity/v3/endpoints",
        "/identity/v3/regions",
        "/identity/v3/registered_limits",
        "/identity/v3/limits",
        "/identity/v3/policies",
        "/identity/v3/credentials",
        "/identity/v3/OS-TRUST/trusts",
        "/identity/v3/auth/projects",
        "/identity/v3/auth/domains",
        "/identity/v3/auth/catalog",
    ] {
        for one in [&bench, &second] {
            one.admin("GET", path, Value::Null, 200).await;
        }
    }
    let (status, path) = stored(&bench, &token, "50%_of").await;
    assert_eq!(status, 201);
    let read = second
        .call("GET", &format!("{path}/payload"), &token, Value::Null)
        .await;
    assert_eq!(
        (read.status, read.bytes.as_slice()),
        (200, &b"of a tenant"[..])
    );
    for query in [
        "",
        "?name=50%25_OF",
        "?name=a%5C",
        "?sort=bit_length:desc,name",
        "?alg=x",
    ] {
        let list = second
            .call(
                "GET",
                &format!("/key-manager/v1/secrets{query}"),
                &token,
                Value::Null,
            )
            .await;
        assert_eq!(list.status, 200, "{query}");
    }
    for path in ["/orders", "/containers", "/secret-stores"] {
        let list = second
            .call(
                "GET",
                &format!("/key-manager/v1{path}"),
                &token,
                Value::Null,
            )
            .await;
        assert!(list.status < 500, "{path}: {}", list.status);
    }
    assert_eq!(
        second
            .call("DELETE", &path, &token, Value::Null)
            .await
            .status,
        204
    );
    assert_eq!(
        bench.call("GET", &path, &token, Value::Null).await.status,
        404
    );

    // A token that one replica ends is refused by the other at once, also if it knew it.
    for round in 0..20 {
        let (one, other) = if round % 2 == 0 {
            (&bench, &second)
        } else {
            (&second, &bench)
        };
        let token = one.login("u", "u-pw", Some("p")).await.unwrap();
        assert_eq!(other.status_of(&token).await, 200);
        let headers = [
            ("X-Auth-Token", token.as_str()),
            ("X-Subject-Token", token.as_str()),
        ];
        let ended = one
            .raw("DELETE", "/identity/v3/auth/tokens", &headers, Vec::new())
            .await;
        assert_eq!(ended.status, 204);
        assert_eq!(other.status_of(&token).await, 404);
    }

    // A token that one is asked for, while the other one has ended all of its user and nobody sees that yet, is one of them.
    let user = bench.app.store.user_by_name("default", "u").await;
    let path = format!("/identity/v3/users/{}", user.unwrap().unwrap().id);
    let mut made = String::new();
    let asked = async || made = second.login("u", "u-pw", Some("p")).await.unwrap();
    let body = json!({"user": {"password": "u-pw"}});
    let ended = bench.call("PATCH", &path, &bench.admin, body);
    let ended = bench.app.store.commit_pause.amid(ended, asked).await;
    assert_eq!(ended.status, 200);
    for one in [&bench, &second] {
        assert_eq!(one.status_of(&made).await, 404);
    }
    let token = bench.login("u", "u-pw", Some("p")).await.unwrap();

    // A quota holds with writers on both.
    let quota = json!({"project_quotas": {"secrets": 7, "orders": -1, "containers": -1, "consumers": -1, "cas": -1}});
    let path = format!("/key-manager/v1/project-quotas/{project}");
    bench.admin("PUT", &path, quota, 204).await;
    let replicas = [Arc::new(bench), Arc::new(second)];
    let tasks: Vec<_> = (0..30)
        .map(|number| {
            let bench = Arc::clone(&replicas[number % 2]);
            let token = token.clone();
            tokio::spawn(async move { stored(&bench, &token, &format!("s{number}")).await.0 })
        })
        .collect();
    let mut made = 0;
    for task in tasks {
        match task.await.unwrap() {
            201 => made += 1,
            403 => {}
            other => panic!("status {other}"),
        }
    }
    assert_eq!(made, 7);

    // A server that is gone is told, and nothing has to be done when it is back.
    let [bench, second] = &replicas;
    server.down();
    assert_eq!(bench.status_of(&token).await, 503);
    assert_eq!(stored(second, &token, "lost").await.0, 503);
    server.up();
    for one in [bench, second] {
        comes_back(one, &token).await;
    }

    // Keys of tokens that are forgotten because they became known end all tokens, everywhere, at once.
    token_keys::run(server.place(), &kek(), true).await.unwrap();
    // The administrator's own token is one of them.
    for one in [bench, second] {
        assert_eq!(one.status_of(&token).await, 401);
        let admin = one.login("admin", "admin-password", Some("admin")).await;
        let headers = [
            ("X-Auth-Token", admin.as_deref().unwrap()),
            ("X-Subject-Token", token.as_str()),
        ];
        let shown = one
            .raw("GET", "/identity/v3/auth/tokens", &headers, Vec::new())
            .await;
        assert_eq!(shown.status, 404);
    }

    for one in [bench, second] {
        one.app.store.close().await;
    }
}

/// Whatever ends a token, done at one replica, ends it with the next request to another one that knew it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cause_ends_tokens_on_the_other_replica() {
    let server = Server::start();
    let bench = server.bench().await;
    let other = server.replica(&bench, kek()).await;
    every_cause_and_way(&bench, &other).await;
    for one in [bench, other] {
        one.app.store.close().await;
    }
}

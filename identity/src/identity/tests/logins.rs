//! Logins: what a token says, how one leads to another, how refusals look.

use serde_json::{Value, json};

use super::V3;
use crate::testing::{Bench, HOST};

#[tokio::test]
async fn a_token_says_who_what_and_where() {
    let bench = Bench::new().await;
    let headers = [
        ("X-Auth-Token", bench.admin.as_str()),
        ("X-Subject-Token", bench.admin.as_str()),
    ];
    let answer = bench
        .raw("GET", "/identity/v3/auth/tokens", &headers, Vec::new())
        .await;
    let token = answer.json()["token"].clone();
    assert_eq!(answer.header("X-Subject-Token"), bench.admin);
    assert_eq!(token["methods"], json!(["password"]));
    assert_eq!(token["project"]["name"], "admin");
    assert_eq!(
        token["user"]["domain"],
        json!({"id": "default", "name": "Default"})
    );
    let roles: Vec<&str> = token["roles"]
        .as_array()
        .unwrap()
        .iter()
        .map(|role| role["name"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["admin", "manager", "member", "reader"]);
    let catalog = token["catalog"].as_array().unwrap();
    let manager = catalog
        .iter()
        .find(|service| service["type"] == "key-manager")
        .unwrap();
    assert_eq!(manager["endpoints"].as_array().unwrap().len(), 3);
    assert_eq!(
        manager["endpoints"][0]["url"],
        format!("https://{HOST}/key-manager")
    );
    let head = bench
        .raw("HEAD", "/identity/v3/auth/tokens", &headers, Vec::new())
        .await;
    assert_eq!((head.status, head.bytes.len()), (200, 0));
    let bare = bench
        .raw(
            "GET",
            "/identity/v3/auth/tokens?nocatalog",
            &headers,
            Vec::new(),
        )
        .await;
    assert!(bare.json()["token"].get("catalog").is_none());
}

#[tokio::test]
async fn scopes_and_rescoping() {
    let bench = Bench::new().await;
    let ask = async |scope: Value| {
        let identity = json!({"methods": ["token"], "token": {"id": bench.admin}});
        bench
            .auth(json!({"auth": {"identity": identity, "scope": scope}}))
            .await
    };
    // A fresh service's administrator has a role on a project and on the system.
    assert_eq!(
        ask(json!({"domain": {"name": "Default"}})).await.status,
        401
    );
    let own = bench.app.validate(&bench.admin, false).await.unwrap();
    let (user, role) = (&own.user.id, bench.role("admin").await);
    let grant = format!("{V3}/domains/default/users/{user}/roles/{role}");
    bench.admin("PUT", &grant, Value::Null, 204).await;
    let domain = ask(json!({"domain": {"name": "Default"}})).await.json()["token"].clone();
    assert_eq!(domain["domain"]["id"], "default");
    assert_eq!(domain["methods"], json!(["token", "password"]));
    assert_eq!(domain["audit_ids"].as_array().unwrap().len(), 2);
    assert_eq!(
        ask(json!({"system": {"all": true}})).await.json()["token"]["system"],
        json!({"all": true})
    );
    let unscoped = ask(json!("unscoped")).await.json()["token"].clone();
    assert!(unscoped.get("roles").is_none() && unscoped.get("catalog").is_none());
    assert_eq!(ask(json!({"project": {"id": "nosuch"}})).await.status, 401);
    // A domain-scoped administrator may not create roles.
    let token = ask(json!({"domain": {"id": "default"}}))
        .await
        .header("X-Subject-Token")
        .to_owned();
    let answer = bench
        .call(
            "POST",
            "/identity/v3/roles",
            &token,
            json!({"role": {"name": "r"}}),
        )
        .await;
    assert_eq!(answer.status, 403);
}

#[tokio::test]
async fn refused_logins_look_the_same() {
    let bench = Bench::new().await;
    bench.user("norole").await;
    let mut texts = Vec::new();
    for (user, password, project) in [
        ("admin", "wrong", Some("admin")),
        ("nobody", "wrong", Some("admin")),
        ("admin", "admin-password", Some("nosuch")),
        ("norole", "norole-pw", Some("admin")),
    ] {
        let scope = json!({"project": {"name": project, "domain": {"id": "default"}}});
        let user = json!({"name": user, "domain": {"id": "default"}, "password": password});
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        let answer = bench
            .auth(json!({"auth": {"identity": identity, "scope": scope}}))
            .await;
        assert_eq!(answer.status, 401);
        assert_eq!(
            answer.header("www-authenticate"),
            format!("Keystone uri=\"https://{HOST}/identity/v3\"")
        );
        texts.push(
            answer.json()["error"]["message"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    texts.dedup();
    assert_eq!(texts.len(), 1, "{texts:?}");
    let odd = bench
        .auth(json!({"auth": {"identity": {"methods": ["magic"]}}}))
        .await;
    assert_eq!(odd.status, 401);
    assert!(odd.json()["error"]["identity"]["methods"].is_array());
    let token = json!({"auth": {"identity": {"methods": ["token"], "token": {"id": "rubbish"}}}});
    assert_eq!(bench.auth(token).await.status, 404);
    assert_eq!(bench.auth(json!({})).await.status, 400);
    for path in ["/users", "/projects", "/auth/catalog"] {
        assert_eq!(
            bench
                .call("GET", &format!("{V3}{path}"), "", Value::Null)
                .await
                .status,
            401
        );
        assert_eq!(
            bench
                .call("GET", &format!("{V3}{path}"), "rubbish", Value::Null)
                .await
                .status,
            401
        );
    }
}

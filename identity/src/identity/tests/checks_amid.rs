//! Two requests at once: what the second one made impossible, after the first one looked, is refused to the first.

use serde_json::{Value, json};

use super::{
    V3,
    changes_amid::{Call, V1, at_once, kept, made},
};
use crate::testing::{Bench, id};

fn patch(path: &str, key: &str, set: Value, status: u16) -> Call {
    Call("PATCH", format!("{V3}/{path}"), json!({ key: set }), status)
}

fn put(path: &str, status: u16) -> Call {
    Call("PUT", format!("{V3}/{path}"), Value::Null, status)
}

fn delete(path: &str, status: u16) -> Call {
    Call("DELETE", format!("{V3}/{path}"), Value::Null, status)
}

fn post(path: &str, key: &str, set: Value, status: u16) -> Call {
    Call("POST", format!("{V3}/{path}"), json!({ key: set }), status)
}

#[tokio::test]
async fn the_hierarchy_of_projects_holds_at_every_moment() {
    let bench = Bench::new().await;
    let parent = bench.project("p").await;
    let child = json!({"name": "c", "parent_id": parent, "enabled": false});
    let child = made(&bench, "projects", "project", child).await;
    let (above, own) = (format!("projects/{parent}"), format!("projects/{child}"));
    let enable = |path: &str, on: bool, status| {
        let set = json!({"enabled": on});
        patch(path, "project", set, status)
    };
    at_once(
        &bench,
        &enable(&own, true, 403),
        &enable(&above, false, 200),
    )
    .await;
    enable(&above, true, 200).succeed(&bench).await;
    at_once(
        &bench,
        &enable(&above, false, 403),
        &enable(&own, true, 200),
    )
    .await;
    delete(&own, 204).succeed(&bench).await;

    let below = |name: &str, status| {
        let body = json!({"name": name, "parent_id": parent});
        post("projects", "project", body, status)
    };
    at_once(&bench, &below("d", 403), &enable(&above, false, 200)).await;
    enable(&above, true, 200).succeed(&bench).await;
    at_once(&bench, &below("d", 400), &delete(&above, 204)).await;

    let parent = bench.project("q").await;
    let body = json!({"name": "e", "parent_id": parent});
    let below = post("projects", "project", body, 201);
    at_once(&bench, &delete(&format!("projects/{parent}"), 403), &below).await;
    let taken = patch(
        &format!("projects/{parent}"),
        "project",
        json!({"name": "taken"}),
        409,
    );
    let body = json!({"name": "taken", "domain_id": "default"});
    at_once(&bench, &taken, &post("projects", "project", body, 201)).await;
}

#[tokio::test]
async fn what_became_immutable_stays() {
    let bench = Bench::new().await;
    let protect = json!({"options": {"immutable": true}});
    for (path, key) in [
        ("projects", "project"),
        ("domains", "domain"),
        ("roles", "role"),
    ] {
        let body = json!({"name": "x"});
        let path = format!("{path}/{}", made(&bench, path, key, body).await);
        let first = patch(&path, key, json!({"name": "y"}), 403);
        at_once(&bench, &first, &patch(&path, key, protect.clone(), 200)).await;
        let free = patch(&path, key, json!({"options": {"immutable": null}}), 200);
        free.succeed(&bench).await;
        if key == "domain" {
            let disable = patch(&path, key, json!({"enabled": false}), 200);
            disable.succeed(&bench).await;
        }
        at_once(
            &bench,
            &delete(&path, 403),
            &patch(&path, key, protect.clone(), 200),
        )
        .await;
    }
    let domain = json!({"name": "z", "enabled": false});
    let path = format!(
        "domains/{}",
        made(&bench, "domains", "domain", domain).await
    );
    let enable = patch(&path, "domain", json!({"enabled": true}), 200);
    at_once(&bench, &delete(&path, 403), &enable).await;
}

#[tokio::test]
async fn there_are_no_circles() {
    let bench = Bench::new().await;
    let a = made(&bench, "roles", "role", json!({"name": "a"})).await;
    let b = made(&bench, "roles", "role", json!({"name": "b"})).await;
    at_once(
        &bench,
        &put(&format!("roles/{a}/implies/{b}"), 403),
        &put(&format!("roles/{b}/implies/{a}"), 201),
    )
    .await;
    for region in ["a", "b"] {
        made(&bench, "regions", "region", json!({"id": region})).await;
    }
    let into = |own: &str, parent: &str, status| {
        let set = json!({"parent_region_id": parent});
        patch(&format!("regions/{own}"), "region", set, status)
    };
    at_once(&bench, &into("a", "b", 400), &into("b", "a", 200)).await;
}

#[tokio::test]
async fn nothing_refers_to_what_is_gone() {
    let bench = Bench::new().await;
    let project = bench.project("p").await;
    let user = bench.user("u").await;
    let member = bench.role("member").await;
    let grant = put(
        &format!("projects/{project}/users/{user}/roles/{member}"),
        404,
    );
    at_once(&bench, &grant, &delete(&format!("users/{user}"), 204)).await;

    let service = made(&bench, "services", "service", json!({"type": "t"})).await;
    let policy = json!({"type": "t", "blob": "b"});
    let policy = made(&bench, "policies", "policy", policy).await;
    let path = format!("policies/{policy}");
    let associate = put(
        &format!("{path}/OS-ENDPOINT-POLICY/services/{service}"),
        404,
    );
    at_once(&bench, &associate, &delete(&path, 204)).await;

    let path = "OS-EP-FILTER/endpoint_groups";
    let group = json!({"name": "g", "filters": {"interface": "public"}});
    let group = made(&bench, path, "endpoint_group", group).await;
    let path = format!("{path}/{group}");
    let associate = put(&format!("{path}/projects/{project}"), 404);
    at_once(&bench, &associate, &delete(&path, 204)).await;

    let secret = kept(&bench, "secret", json!({"name": "s"})).await;
    let gone = Call("DELETE", secret.clone(), Value::Null, 204);
    let metadata = json!({"key": "a", "value": "b"});
    let metadata = Call("POST", format!("{secret}/metadata"), metadata, 404);
    at_once(&bench, &metadata, &gone).await;
}

/// The id of an EC2 credential comes from its access key: one that is made anew for somebody else is not changed by whom the one of
/// before belonged to.
#[tokio::test]
async fn only_its_owner_changes_a_credential() {
    let bench = Bench::new().await;
    let project = bench.project("p").await;
    let token = bench.member("u", ("p", &project), "member").await;
    let other = bench.user("v").await;
    let path = format!("{V3}/credentials");
    let blob = |secret: &str| json!({"access": "k", "secret": secret}).to_string();
    let of = |user: Option<&str>| json!({"credential": {"type": "ec2", "project_id": project, "blob": blob("b"), "user_id": user}});
    for (method, body) in [
        ("PATCH", json!({"credential": {"blob": blob("c")}})),
        ("DELETE", Value::Null),
    ] {
        let made = bench.call("POST", &path, &token, of(None)).await;
        let own = id(&made.json()["credential"]);
        let url = format!("{path}/{own}");
        let first = bench.call(method, &url, &token, body);
        let second = async || {
            bench.admin("DELETE", &url, Value::Null, 204).await;
            let made = bench.admin("POST", &path, of(Some(&other)), 201).await;
            assert_eq!(id(&made["credential"]), own);
        };
        let refused = bench.app.store.write_pause.amid(first, second).await;
        assert_eq!(refused.status, 403, "{method}");
        let shown = bench.admin("GET", &url, Value::Null, 200).await;
        assert_eq!(shown["credential"]["blob"], blob("b"));
        bench.admin("DELETE", &url, Value::Null, 204).await;
    }
}

/// A secret that somebody has just registered to use is not deleted.
#[tokio::test]
async fn a_secret_in_use_stays() {
    let bench = Bench::new().await;
    let secret = kept(&bench, "secret", json!({"name": "s"})).await;
    assert!(secret.starts_with(V1));
    let consumer = json!({"service": "disks", "resource_type": "volume", "resource_id": "v"});
    let register = Call("POST", format!("{secret}/consumers"), consumer, 200);
    let headers = [
        ("X-Auth-Token", bench.admin.as_str()),
        ("OpenStack-API-Version", "key-manager 1.2"),
    ];
    let first = bench.raw("DELETE", &secret, &headers, Vec::new());
    let second = async || register.succeed(&bench).await;
    let refused = bench.app.store.write_pause.amid(first, second).await;
    assert_eq!(refused.status, 400);
}

//! Two requests at once: the first one wants to begin its change when the second one comes and goes. Nothing of either is lost.

use serde_json::{Value, json};

use super::{V3, admin};
use crate::testing::{Answer, Bench, HOST, id};

pub(super) const V1: &str = "/key-manager/v1";

/// A change: method, path below the host, body, the status of its answer.
pub(super) struct Call(
    pub(super) &'static str,
    pub(super) String,
    pub(super) Value,
    pub(super) u16,
);

impl Call {
    pub(super) async fn send(&self, bench: &Bench) -> Answer {
        bench
            .call(self.0, &self.1, &bench.admin, self.2.clone())
            .await
    }

    pub(super) async fn succeed(&self, bench: &Bench) {
        assert_status(self, &self.send(bench).await);
    }
}

fn assert_status(call: &Call, answer: &Answer) {
    assert_eq!(
        answer.status,
        call.3,
        "{} {} {}: {}",
        call.0,
        call.1,
        call.2,
        String::from_utf8_lossy(&answer.bytes)
    );
}

/// The first, with the second amid it.
pub(super) async fn at_once(bench: &Bench, first: &Call, second: &Call) {
    let second = async || second.succeed(bench).await;
    let pause = &bench.app.store.write_pause;
    assert_status(first, &pause.amid(first.send(bench), second).await);
}

pub(super) async fn made(bench: &Bench, path: &str, key: &str, body: Value) -> String {
    id(&admin(bench, "POST", path, json!({ key: body }), 201).await[key])
}

/// Makes a record of the key manager; its path.
pub(super) async fn kept(bench: &Bench, kind: &str, body: Value) -> String {
    let answer = Call("POST", format!("{V1}/{kind}s"), body, 201)
        .send(bench)
        .await;
    let url = answer.json()[format!("{kind}_ref")].clone();
    let path = url.as_str().unwrap().strip_prefix("https://").unwrap();
    path.strip_prefix(HOST).unwrap().to_owned()
}

/// A family: where a record of it is, how two parts of it are set to a value, and where these are then seen.
struct Family {
    path: String,
    set: [fn(&str, &str) -> Call; 2],
    seen: [fn(&Value) -> &Value; 2],
}

macro_rules! patches {
    ($path:expr, $key:literal, $first:literal, $second:literal) => {
        Family {
            path: $path,
            set: [
                |path, to| Call("PATCH", path.into(), json!({ $key: { $first: to } }), 200),
                |path, to| Call("PATCH", path.into(), json!({ $key: { $second: to } }), 200),
            ],
            seen: [|shown| &shown[$key][$first], |shown| &shown[$key][$second]],
        }
    };
}

/// A record of each family that is written whole.
async fn families(bench: &Bench) -> Vec<Family> {
    let at = |path: &str, id: &str| format!("{V3}/{path}/{id}");
    let project = bench.project("p").await;
    let domain = made(bench, "domains", "domain", json!({"name": "d"})).await;
    let acting = made(bench, "domains", "domain", json!({"name": "acting"})).await;
    let group = json!({"name": "g", "domain_id": "default"});
    let group = made(bench, "groups", "group", group).await;
    let role = made(bench, "roles", "role", json!({"name": "r"})).await;
    made(bench, "regions", "region", json!({"id": "north"})).await;
    let service = json!({"type": "disks", "name": "disks"});
    let service = made(bench, "services", "service", service).await;
    let endpoint =
        json!({"service_id": service, "interface": "public", "url": "http://disks.example.org"});
    let endpoint = made(bench, "endpoints", "endpoint", endpoint).await;
    let policy = json!({"type": "t", "blob": "b"});
    let policy = made(bench, "policies", "policy", policy).await;
    let filter = json!({"name": "f", "filters": {"interface": "public"}});
    let filter = made(
        bench,
        "OS-EP-FILTER/endpoint_groups",
        "endpoint_group",
        filter,
    )
    .await;
    let consumer = made(bench, "OS-OAUTH1/consumers", "consumer", json!({})).await;
    let limit = json!({"service_id": service, "resource_name": "volumes", "default_limit": 1});
    let body = json!({"registered_limits": [limit, {"service_id": service, "resource_name": "free",
        "default_limit": 1}]});
    let answer = admin(bench, "POST", "registered_limits", body, 201).await;
    let registered = id(&answer["registered_limits"][1]);
    let body = json!({"limits": [{"service_id": service, "resource_name": "volumes", "resource_limit": 1,
        "project_id": project}]});
    let answer = admin(bench, "POST", "limits", body, 201).await;
    let limit = id(&answer["limits"][0]);
    let config =
        json!({"config": {"ldap": {"url": "ldap://a.example.org", "user_tree_dn": "ou=a"}}});
    admin(
        bench,
        "PUT",
        &format!("domains/{domain}/config"),
        config,
        201,
    )
    .await;
    let secret = kept(bench, "secret", json!({"name": "s"})).await;
    let container = kept(bench, "container", json!({"type": "generic"})).await;

    let mut all = vec![
        patches!(at("users", &bench.user("u").await), "user", "name", "email"),
        patches!(at("projects", &project), "project", "name", "description"),
        patches!(at("projects", &project), "project", "one", "two"),
        patches!(at("domains", &domain), "domain", "name", "description"),
        patches!(at("groups", &group), "group", "name", "description"),
        patches!(at("roles", &role), "role", "name", "description"),
        patches!(at("services", &service), "service", "name", "type"),
        patches!(at("endpoints", &endpoint), "endpoint", "url", "region_id"),
        patches!(at("policies", &policy), "policy", "type", "blob"),
        patches!(
            at("OS-EP-FILTER/endpoint_groups", &filter),
            "endpoint_group",
            "name",
            "description"
        ),
        patches!(
            at("OS-OAUTH1/consumers", &consumer),
            "consumer",
            "description",
            "extra"
        ),
        patches!(
            at("registered_limits", &registered),
            "registered_limit",
            "resource_name",
            "description"
        ),
    ];
    all.extend([
        Family {
            path: at("regions", "north"),
            set: [
                |path, to| {
                    Call(
                        "PATCH",
                        path.into(),
                        json!({"region": {"description": to}}),
                        200,
                    )
                },
                |path, to| {
                    let parent = (to != "two").then_some("RegionOne");
                    let body = json!({"region": {"parent_region_id": parent}});
                    Call("PATCH", path.into(), body, 200)
                },
            ],
            seen: [
                |shown| &shown["region"]["description"],
                |shown| &shown["region"]["parent_region_id"],
            ],
        },
        // A domain by its other name.
        Family {
            path: at("projects", &acting),
            set: [
                |path, to| {
                    let body = json!({"project": {"description": to}});
                    Call("PATCH", path.into(), body, 200)
                },
                |path, to| {
                    let body = json!({"project": {"enabled": to == "one"}});
                    Call("PATCH", path.into(), body, 200)
                },
            ],
            seen: [
                |shown| &shown["project"]["description"],
                |shown| &shown["project"]["enabled"],
            ],
        },
        Family {
            path: at("limits", &limit),
            set: [
                |path, to| {
                    let body = json!({"limit": {"resource_limit": i32::from(to == "one")}});
                    Call("PATCH", path.into(), body, 200)
                },
                |path, to| {
                    Call(
                        "PATCH",
                        path.into(),
                        json!({"limit": {"description": to}}),
                        200,
                    )
                },
            ],
            seen: [
                |shown| &shown["limit"]["resource_limit"],
                |shown| &shown["limit"]["description"],
            ],
        },
        Family {
            path: at("domains", &domain) + "/config",
            set: [
                |path, to| {
                    let body = json!({"config": {"ldap": {"user_tree_dn": to}}});
                    Call("PATCH", path.into(), body, 200)
                },
                |path, to| {
                    let body = json!({"config": {"ldap": {"group_tree_dn": to}}});
                    Call("PATCH", path.into(), body, 200)
                },
            ],
            seen: [
                |shown| &shown["config"]["ldap"]["user_tree_dn"],
                |shown| &shown["config"]["ldap"]["group_tree_dn"],
            ],
        },
    ]);
    for guarded in [secret, container] {
        all.push(Family {
            path: guarded + "/acl",
            set: [
                |path, to| Call("PATCH", path.into(), json!({"read": {"users": [to]}}), 200),
                |path, to| {
                    let body = json!({"read": {"project-access": to != "one"}});
                    Call("PATCH", path.into(), body, 200)
                },
            ],
            seen: [
                |shown| &shown["read"]["users"][0],
                |shown| &shown["read"]["project-access"],
            ],
        });
    }
    all
}

#[tokio::test]
async fn two_changes_of_one_record_both_stay() {
    let bench = Bench::new().await;
    for family in families(&bench).await {
        // What each change alone makes of it, so that what is seen later can be told from it.
        let mut alone = Vec::new();
        for value in ["one", "two"] {
            for (set, seen) in family.set.iter().zip(family.seen) {
                set(&family.path, value).succeed(&bench).await;
                let shown = Call("GET", family.path.clone(), Value::Null, 200);
                let shown = shown.send(&bench).await.json();
                alone.push(seen(&shown).clone());
            }
        }
        let ([one, other], [two, another]) = ([&alone[0], &alone[1]], [&alone[2], &alone[3]]);
        assert!(one != two && other != another, "{}: {alone:?}", family.path);
        // Either of them is the one that is stopped; both are "two" now.
        for (first, value, expected) in [(0, "one", &alone[..2]), (1, "two", &alone[2..])] {
            let calls = family.set.map(|set| set(&family.path, value));
            at_once(&bench, &calls[first], &calls[1 - first]).await;
            let shown = Call("GET", family.path.clone(), Value::Null, 200);
            let shown = shown.send(&bench).await.json();
            for (seen, expected) in family.seen.iter().zip(expected) {
                assert_eq!(seen(&shown), expected, "{}: {shown}", family.path);
            }
        }
    }
}

/// Sets of what belongs to a record: two that are added at once are both in it.
#[tokio::test]
async fn two_additions_to_one_record_both_stay() {
    let bench = Bench::new().await;
    let project = bench.project("p").await;
    let secret = kept(&bench, "secret", json!({"name": "s"})).await;
    let tag = |tag: &str| {
        let path = format!("{V3}/projects/{project}/tags/{tag}");
        Call("PUT", path, Value::Null, 201)
    };
    at_once(&bench, &tag("a"), &tag("b")).await;
    let untag = Call(
        "DELETE",
        format!("{V3}/projects/{project}/tags/a"),
        Value::Null,
        204,
    );
    at_once(&bench, &untag, &tag("c")).await;
    let path = format!("projects/{project}/tags");
    let tags = admin(&bench, "GET", &path, Value::Null, 200).await;
    assert_eq!(tags["tags"], json!(["b", "c"]));
    // A change of the project's other attributes leaves its tags.
    let path = format!("{V3}/projects/{project}");
    let rename = Call("PATCH", path, json!({"project": {"name": "q"}}), 200);
    at_once(&bench, &rename, &tag("d")).await;
    let path = format!("projects/{project}");
    let shown = admin(&bench, "GET", &path, Value::Null, 200).await;
    assert_eq!(shown["project"]["tags"], json!(["b", "c", "d"]));

    let pair = |key: &str| {
        let path = format!("{secret}/metadata");
        Call("POST", path, json!({"key": key, "value": "v"}), 201)
    };
    at_once(&bench, &pair("a"), &pair("b")).await;
    let path = format!("{secret}/metadata");
    let shown = bench.call("GET", &path, &bench.admin, Value::Null).await;
    assert_eq!(shown.json()["metadata"], json!({"a": "v", "b": "v"}));

    // Both bring the region into being; one of them does.
    let service = made(&bench, "services", "service", json!({"type": "t"})).await;
    let endpoint = json!({"endpoint": {"service_id": service, "interface": "public", "region_id": "new",
        "url": "http://t.example.org"}});
    let call = Call("POST", format!("{V3}/endpoints"), endpoint, 201);
    at_once(&bench, &call, &call).await;
}

//! Unified limits: registered limits, limits of projects and domains, both models, who sees what.

use serde_json::{Value, json};

use super::{admin, column};
use crate::{
    app::{App, AppError},
    crypto::Kek,
    identity::LimitModel,
    testing::{Bench, config, id},
};

async fn service(bench: &Bench) -> String {
    let body = json!({"service": {"name": "disks", "type": "disks"}});
    id(&admin(bench, "POST", "services", body, 201).await["service"])
}

/// Registers a default; its id.
async fn registered(bench: &Bench, service: &str, name: &str, default: i64) -> String {
    let body = json!({"registered_limits": [
        {"service_id": service, "resource_name": name, "default_limit": default}]});
    id(&admin(bench, "POST", "registered_limits", body, 201).await["registered_limits"][0])
}

fn limit(service: &str, target: (&str, &str), value: i64) -> Value {
    json!({target.0: target.1, "service_id": service, "resource_name": "volumes", "resource_limit": value})
}

#[tokio::test]
async fn registered_limits_live() {
    let bench = Bench::new().await;
    let service = service(&bench).await;
    let one = json!({"service_id": service, "resource_name": "volumes", "default_limit": 10});
    let north = json!({"service_id": service, "region_id": "RegionOne", "resource_name": "volumes",
        "default_limit": -1, "description": "north"});
    let body = json!({"registered_limits": [one, north]});
    let made = admin(&bench, "POST", "registered_limits", body, 201).await;
    assert!(made.get("links").is_none(), "{made}");
    let list = &made["registered_limits"];
    let (first, second) = (id(&list[0]), id(&list[1]));
    assert_eq!(
        list[1],
        json!({"id": second, "service_id": service, "region_id": "RegionOne", "resource_name": "volumes",
            "default_limit": -1, "description": "north", "links": {"self":
            format!("https://keys.example.org:5000/identity/v3/registered_limits/{second}")}})
    );
    assert_eq!(list[0]["region_id"], Value::Null);
    // None of a request is stored unless all are.
    let other = json!({"service_id": service, "resource_name": "gibibytes", "default_limit": 5});
    let body = json!({"registered_limits": [other, one]});
    admin(&bench, "POST", "registered_limits", body, 409).await;
    for (query, found) in [
        ("", 2),
        ("?region_id=RegionOne", 1),
        ("?resource_name=volumes", 2),
        ("?resource_name=gibibytes", 0),
        ("?service_id=nosuch", 0),
        ("?unknown=1", 2),
    ] {
        let path = format!("registered_limits{query}");
        let list = admin(&bench, "GET", &path, Value::Null, 200).await;
        assert_eq!(
            list["registered_limits"].as_array().unwrap().len(),
            found,
            "{query}"
        );
    }
    let path = format!("registered_limits/{first}");
    let change = |value: Value| json!({ "registered_limit": value });
    for (body, status) in [
        (json!({"default_limit": 20, "description": null}), 200),
        (json!({"resource_name": "snapshots"}), 200),
        // As in Keystone: what names it, said again, is taken for a second one.
        (json!({"resource_name": "snapshots"}), 409),
        (
            json!({"resource_name": "volumes", "region_id": "RegionOne"}),
            409,
        ),
        (json!({"region_id": "nosuch"}), 400),
        (json!({"service_id": "nosuch"}), 400),
        (json!({"service_id": null}), 400),
        (json!({"default_limit": "5"}), 400),
        (json!({"default_limit": -2}), 400),
        (json!({"default_limit": 2_147_483_648_u32}), 400),
        (json!({"default_limit": 1.5}), 400),
        (json!({"default_limit": true}), 400),
        (json!({"default_limit": null}), 400),
        (json!({"resource_name": 123}), 400),
        (json!({"resource_name": " "}), 400),
        (json!({"resource_name": "n".repeat(256)}), 400),
        (json!({"description": 123}), 400),
        (json!({"id": first}), 400),
    ] {
        admin(&bench, "PATCH", &path, change(body), status).await;
    }
    let shown = admin(&bench, "GET", &path, Value::Null, 200).await["registered_limit"].clone();
    assert_eq!(
        (&shown["resource_name"], &shown["default_limit"]),
        (&json!("snapshots"), &json!(20))
    );
    admin(
        &bench,
        "PATCH",
        "registered_limits/nosuch",
        change(json!({})),
        404,
    )
    .await;
    // Neither the service nor the region can go away below it.
    let path = format!("services/{service}");
    admin(&bench, "DELETE", &path, Value::Null, 403).await;
    for id in [&first, &second] {
        let path = format!("registered_limits/{id}");
        admin(&bench, "DELETE", &path, Value::Null, 204).await;
        admin(&bench, "DELETE", &path, Value::Null, 404).await;
        admin(&bench, "GET", &path, Value::Null, 404).await;
    }
    admin(&bench, "DELETE", &path, Value::Null, 204).await;
}

#[tokio::test]
async fn bodies_of_limits_are_read_strictly() {
    let bench = Bench::new().await;
    let service = service(&bench).await;
    registered(&bench, &service, "volumes", 10).await;
    let project = bench.project("p").await;
    let good = limit(&service, ("project_id", &project), 5);
    let but = |name: &str, value: Value| {
        let mut other = good.clone();
        other[name] = value;
        json!({"limits": [other]})
    };
    for body in [
        json!({"limits": []}),
        json!({"limits": good}),
        json!({"limits": [1]}),
        json!({"limit": good}),
        json!([good]),
        json!({"limits": [good], "more": 1}),
        but("resource_limit", json!("5")),
        but("resource_limit", json!(-2)),
        but("resource_name", json!("")),
        but("domain_id", json!("default")),
        but("domain_id", Value::Null),
        but("project_id", Value::Null),
        but("project_id", json!("nosuch")),
        but("service_id", json!("nosuch")),
        but("region_id", json!("nosuch")),
        but("description", json!([])),
        but("colour", json!("red")),
    ] {
        admin(&bench, "POST", "limits", body, 400).await;
    }
    // Nothing is registered under this name, or for this region.
    for body in [
        but("resource_name", json!("nosuch")),
        but("region_id", json!("RegionOne")),
    ] {
        admin(&bench, "POST", "limits", body, 403).await;
    }
    let list = admin(&bench, "GET", "limits", Value::Null, 200).await;
    assert_eq!(list["limits"], json!([]));
}

#[tokio::test]
async fn limits_of_projects_and_domains() {
    let bench = Bench::new().await;
    let service = service(&bench).await;
    let default = registered(&bench, &service, "volumes", 10).await;
    let project = bench.project("p").await;
    let other = bench.project("q").await;
    let targets = [
        ("project_id", project.as_str(), 5),
        ("project_id", &other, 50),
        // A domain by its other name.
        ("project_id", "default", 7),
    ];
    let mut ids = Vec::new();
    for (name, target, value) in targets {
        let body = json!({"limits": [limit(&service, (name, target), value)]});
        let made = admin(&bench, "POST", "limits", body.clone(), 201).await;
        ids.push(id(&made["limits"][0]));
        admin(&bench, "POST", "limits", body, 409).await;
    }
    let path = format!("limits/{}", ids[2]);
    let shown = admin(&bench, "GET", &path, Value::Null, 200).await["limit"].clone();
    assert_eq!(
        shown,
        json!({"id": ids[2], "project_id": null, "domain_id": "default", "service_id": service,
            "region_id": null, "resource_name": "volumes", "resource_limit": 7, "description": null,
            "links": {"self": format!("https://keys.example.org:5000/identity/v3/{path}")}})
    );
    for (query, found) in [
        ("".to_owned(), 3),
        (format!("?project_id={project}"), 1),
        ("?domain_id=default".into(), 1),
        (format!("?service_id={service}&resource_name=volumes"), 3),
    ] {
        let list = admin(&bench, "GET", &format!("limits{query}"), Value::Null, 200).await;
        assert_eq!(list["limits"].as_array().unwrap().len(), found, "{query}");
    }
    let path = format!("limits/{}", ids[0]);
    for (body, status) in [
        (json!({"resource_limit": 0, "description": "none"}), 200),
        (json!({"resource_limit": "1"}), 400),
        (json!({"project_id": other}), 400),
        (json!({"service_id": service}), 400),
    ] {
        admin(&bench, "PATCH", &path, json!({ "limit": body }), status).await;
    }
    let shown = admin(&bench, "GET", &path, Value::Null, 200).await["limit"].clone();
    assert_eq!(
        (&shown["resource_limit"], &shown["description"]),
        (&json!(0), &json!("none"))
    );
    // The default stays as it is while others stand on it.
    let path = format!("registered_limits/{default}");
    let body = json!({"registered_limit": {"default_limit": 11}});
    admin(&bench, "PATCH", &path, body, 403).await;
    admin(&bench, "DELETE", &path, Value::Null, 403).await;
    // A project takes its limits along, and shows them when asked.
    let admin_user = bench
        .admin("GET", "/identity/v3/users?name=admin", Value::Null, 200)
        .await;
    bench
        .grant(&project, &id(&admin_user["users"][0]), "reader")
        .await;
    let child = json!({"project": {"name": "child", "domain_id": "default", "parent_id": project}});
    let child = id(&admin(&bench, "POST", "projects", child, 201).await["project"]);
    let path = format!("projects/{child}?parents_as_list&include_limits");
    let parents = admin(&bench, "GET", &path, Value::Null, 200).await["project"]["parents"].clone();
    assert_eq!(parents[0]["project"]["limits"][0]["id"], ids[0].as_str());
    admin(
        &bench,
        "DELETE",
        &format!("projects/{other}"),
        Value::Null,
        204,
    )
    .await;
    admin(
        &bench,
        "GET",
        &format!("limits/{}", ids[1]),
        Value::Null,
        404,
    )
    .await;
    admin(
        &bench,
        "DELETE",
        &format!("limits/{}", ids[2]),
        Value::Null,
        204,
    )
    .await;
    admin(
        &bench,
        "DELETE",
        &format!("limits/{}", ids[2]),
        Value::Null,
        404,
    )
    .await;
    let model = admin(&bench, "GET", "limits/model", Value::Null, 200).await;
    assert_eq!(model["model"]["name"], "flat");
}

#[tokio::test]
async fn everyone_sees_the_own_limits_and_changes_none() {
    let bench = Bench::new().await;
    let service = service(&bench).await;
    let default = registered(&bench, &service, "volumes", 10).await;
    let (own, other) = (bench.project("own").await, bench.project("other").await);
    let body = json!({"limits": [limit(&service, ("project_id", &own), 5),
        limit(&service, ("project_id", &other), 6), limit(&service, ("domain_id", "default"), 7)]});
    let made = admin(&bench, "POST", "limits", body.clone(), 201).await["limits"].clone();
    let ids: Vec<String> = made.as_array().unwrap().iter().map(id).collect();
    let member = bench.member("m", ("own", &own), "member").await;
    let manager = bench.user("manager").await;
    let role = bench.role("manager").await;
    let path = format!("domains/default/users/{manager}/roles/{role}");
    admin(&bench, "PUT", &path, Value::Null, 204).await;
    let auth = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": {
        "id": manager, "password": "manager-pw"}}}, "scope": {"domain": {"id": "default"}}}});
    let manager = bench.auth(auth).await.header("X-Subject-Token").to_owned();
    for (token, seen) in [(&member, vec![0]), (&manager, vec![0, 1, 2])] {
        let answer = bench
            .call("GET", "/identity/v3/limits", token, Value::Null)
            .await;
        let mut wanted: Vec<&str> = seen.iter().map(|at: &usize| ids[*at].as_str()).collect();
        wanted.sort_unstable();
        assert_eq!(column(&answer.json()["limits"], "id"), wanted);
        for (at, id) in ids.iter().enumerate() {
            let path = format!("/identity/v3/limits/{id}");
            let status = bench.call("GET", &path, token, Value::Null).await.status;
            assert_eq!(status, if seen.contains(&at) { 200 } else { 403 }, "{at}");
            for (method, body) in [
                ("DELETE", Value::Null),
                ("PATCH", json!({"limit": {"resource_limit": 99}})),
            ] {
                assert_eq!(
                    bench.call(method, &path, token, body).await.status,
                    403,
                    "{method}"
                );
            }
        }
        for path in [
            "registered_limits".to_owned(),
            format!("registered_limits/{default}"),
            "limits/model".into(),
        ] {
            let path = format!("/identity/v3/{path}");
            assert_eq!(
                bench.call("GET", &path, token, Value::Null).await.status,
                200,
                "{path}"
            );
        }
        assert_eq!(
            bench
                .call("POST", "/identity/v3/limits", token, body.clone())
                .await
                .status,
            403
        );
        let body = json!({"registered_limits": [{"service_id": service, "resource_name": "x", "default_limit": 1}]});
        assert_eq!(
            bench
                .call("POST", "/identity/v3/registered_limits", token, body)
                .await
                .status,
            403
        );
        for method in ["PATCH", "DELETE"] {
            let path = format!("/identity/v3/registered_limits/{default}");
            let body = json!({"registered_limit": {"default_limit": 99}});
            assert_eq!(
                bench.call(method, &path, token, body).await.status,
                403,
                "{method}"
            );
        }
    }
    assert_eq!(
        bench
            .call("GET", "/identity/v3/limits", "", Value::Null)
            .await
            .status,
        401
    );
}

#[tokio::test]
async fn strict_two_level_limits_keep_projects_below_their_domain() {
    let bench = Bench::with(|config| config.limit_model = LimitModel::StrictTwoLevel).await;
    let model = admin(&bench, "GET", "limits/model", Value::Null, 200).await;
    assert_eq!(model["model"]["name"], "strict_two_level");
    let service = service(&bench).await;
    registered(&bench, &service, "volumes", 10).await;
    let (b, c) = (bench.project("b").await, bench.project("c").await);
    let post = async |limits: Value, status: u16| {
        admin(
            &bench,
            "POST",
            "limits",
            json!({ "limits": limits }),
            status,
        )
        .await
    };
    let of = |target: (&str, &str), value: i64| limit(&service, target, value);
    // More than the domain's default, then more than its own limit, by whichever side.
    post(json!([of(("project_id", &b), 11)]), 403).await;
    let child = id(&post(json!([of(("project_id", &b), 10)]), 201).await["limits"][0]);
    post(json!([of(("domain_id", "default"), 9)]), 403).await;
    // Both in one request are judged together, in any order.
    post(
        json!([of(("project_id", &c), 21), of(("domain_id", "default"), 20)]),
        403,
    )
    .await;
    let both = post(
        json!([of(("project_id", &c), 20), of(("domain_id", "default"), 20)]),
        201,
    )
    .await;
    let parent = id(&both["limits"][1]);
    for (limit, value, status) in [
        (&child, 21, 403),
        (&child, -1, 403),
        (&parent, 19, 403),
        (&parent, -1, 200),
        (&child, 1000, 200),
        (&parent, 999, 403),
        (&parent, 1000, 200),
    ] {
        let body = json!({"limit": {"resource_limit": value}});
        admin(&bench, "PATCH", &format!("limits/{limit}"), body, status).await;
    }
    let list = admin(&bench, "GET", "limits", Value::Null, 200).await;
    assert_eq!(list["limits"].as_array().unwrap().len(), 3);
    let body = json!({"project": {"name": "below", "domain_id": "default", "parent_id": b}});
    admin(&bench, "POST", "projects", body, 403).await;
}

#[tokio::test]
async fn strict_two_level_does_not_start_over_a_deeper_hierarchy() {
    let bench = Bench::new().await;
    let top = bench.project("top").await;
    let body = json!({"project": {"name": "below", "domain_id": "default", "parent_id": top}});
    let below = id(&admin(&bench, "POST", "projects", body, 201).await["project"]);
    bench.app.store.close().await;
    let mut config = config(&bench.dir);
    config.limit_model = LimitModel::StrictTwoLevel;
    match App::open(config, Kek::from_bytes(&[9; 32])).await {
        Err(AppError::TooDeep(ids)) => assert_eq!(ids, [below]),
        other => panic!("{:?}", other.err()),
    }
}

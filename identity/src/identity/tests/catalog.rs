//! Regions, services, endpoints, what a project sees of them, policies and credentials.

use serde_json::{Value, json};

use super::{admin, column};
use crate::testing::{Bench, id};

/// A region, a service in it and its public endpoint; the ids of the latter two.
async fn shop(bench: &Bench) -> (String, String) {
    let body = json!({"region": {"description": "north"}});
    admin(bench, "PUT", "regions/north", body.clone(), 201).await;
    admin(bench, "PUT", "regions/north", body, 409).await;
    let body = json!({"service": {"name": "shop", "type": "object-store"}});
    let service = id(&admin(bench, "POST", "services", body, 201).await["service"]);
    let body = json!({"endpoint": {"service_id": service, "interface": "public", "region_id": "north",
        "url": "https://shop.example.org/%(project_id)s"}});
    let endpoint = id(&admin(bench, "POST", "endpoints", body, 201).await["endpoint"]);
    (service, endpoint)
}

#[tokio::test]
async fn regions_services_and_endpoints_are_changed() {
    let bench = Bench::new().await;
    let (service, endpoint) = shop(&bench).await;
    let change = |key: &str, value: Value| json!({ key: value });
    let region = "regions/north";
    let body = change(
        "region",
        json!({"description": "far north", "parent_region_id": "RegionOne"}),
    );
    let changed = admin(&bench, "PATCH", region, body, 200).await["region"].clone();
    assert_eq!(
        (&changed["description"], &changed["parent_region_id"]),
        (&json!("far north"), &json!("RegionOne"))
    );
    for (parent, status) in [("north", 400), ("nosuch", 404)] {
        let body = change("region", json!({"parent_region_id": parent}));
        admin(&bench, "PATCH", region, body, status).await;
    }
    admin(
        &bench,
        "PATCH",
        "regions/nosuch",
        change("region", json!({"description": "x"})),
        404,
    )
    .await;
    admin(&bench, "PATCH", region, change("region", json!({})), 400).await;
    // Not while something lies in it.
    admin(&bench, "DELETE", region, Value::Null, 403).await;
    let one = format!("services/{service}");
    let body = change(
        "service",
        json!({"description": "buckets", "enabled": false}),
    );
    let changed = admin(&bench, "PATCH", &one, body, 200).await["service"].clone();
    assert_eq!(
        (
            &changed["description"],
            &changed["name"],
            &changed["enabled"]
        ),
        (&json!("buckets"), &json!("shop"), &json!(false))
    );
    let one = format!("endpoints/{endpoint}");
    let body = change(
        "endpoint",
        json!({"url": "https://new.example.org", "region": "south"}),
    );
    let changed = admin(&bench, "PATCH", &one, body, 200).await["endpoint"].clone();
    assert_eq!(
        (&changed["url"], &changed["region_id"]),
        (&json!("https://new.example.org"), &json!("south"))
    );
    admin(&bench, "GET", "regions/south", Value::Null, 200).await;
    for bad in [
        json!({"interface": "secret"}),
        json!({"service_id": "nosuch"}),
        json!({"url": ""}),
        json!({"enabled": "yes"}),
    ] {
        admin(&bench, "PATCH", &one, change("endpoint", bad), 400).await;
    }
}

#[tokio::test]
async fn a_project_with_endpoints_of_its_own_sees_no_others() {
    let bench = Bench::new().await;
    let (service, endpoint) = shop(&bench).await;
    let project = bench.project("p").await;
    let token = bench.member("u", ("p", &project), "member").await;
    let types = async || {
        let answer = bench
            .call("GET", "/identity/v3/auth/catalog", &token, Value::Null)
            .await;
        column(&answer.json()["catalog"], "type")
    };
    assert_eq!(types().await, ["identity", "key-manager", "object-store"]);
    let pair = format!("OS-EP-FILTER/projects/{project}/endpoints/{endpoint}");
    admin(&bench, "HEAD", &pair, Value::Null, 404).await;
    admin(&bench, "PUT", &pair, Value::Null, 204).await;
    admin(&bench, "HEAD", &pair, Value::Null, 204).await;
    assert_eq!(types().await, ["object-store"]);
    let of = format!("OS-EP-FILTER/endpoints/{endpoint}/projects");
    assert_eq!(
        column(
            &admin(&bench, "GET", &of, Value::Null, 200).await["projects"],
            "name"
        ),
        ["p"]
    );
    admin(&bench, "DELETE", &pair, Value::Null, 204).await;
    admin(&bench, "DELETE", &pair, Value::Null, 404).await;

    let group = |filters: Value| json!({"endpoint_group": {"name": "g", "description": "d", "filters": filters}});
    let path = "OS-EP-FILTER/endpoint_groups";
    admin(&bench, "POST", path, group(json!({"colour": "red"})), 400).await;
    admin(&bench, "POST", path, group(json!({})), 400).await;
    let odd = group(json!({"interface": "sideways"}));
    admin(&bench, "POST", path, odd, 400).await;
    let made = admin(
        &bench,
        "POST",
        path,
        group(json!({"service_id": service})),
        201,
    )
    .await["endpoint_group"]
        .clone();
    let one = format!("{path}/{}", id(&made));
    admin(&bench, "HEAD", &one, Value::Null, 200).await;
    let endpoints = admin(&bench, "GET", &format!("{one}/endpoints"), Value::Null, 200).await;
    assert_eq!(column(&endpoints["endpoints"], "id"), [endpoint.as_str()]);
    let pair = format!("{one}/projects/{project}");
    admin(&bench, "PUT", &pair, Value::Null, 204).await;
    admin(&bench, "GET", &pair, Value::Null, 200).await;
    assert_eq!(types().await, ["object-store"]);
    let groups = format!("OS-EP-FILTER/projects/{project}/endpoint_groups");
    assert_eq!(
        column(
            &admin(&bench, "GET", &groups, Value::Null, 200).await["endpoint_groups"],
            "name"
        ),
        ["g"]
    );
    let emptied = json!({"endpoint_group": {"filters": {}}});
    admin(&bench, "PATCH", &one, emptied, 200).await;
    let endpoints = admin(&bench, "GET", &format!("{one}/endpoints"), Value::Null, 200).await;
    assert!(endpoints["endpoints"].as_array().unwrap().len() > 1);
    let body = json!({"endpoint_group": {"name": "h"}});
    assert_eq!(
        admin(&bench, "PATCH", &one, body, 200).await["endpoint_group"]["name"],
        "h"
    );
    admin(&bench, "DELETE", &one, Value::Null, 204).await;
    admin(&bench, "DELETE", &one, Value::Null, 404).await;
    assert_eq!(types().await.len(), 3);
    let answer = bench
        .call(
            "GET",
            "/identity/v3/OS-EP-FILTER/endpoint_groups",
            &token,
            Value::Null,
        )
        .await;
    assert_eq!(answer.status, 403);
}

#[tokio::test]
async fn the_nearest_policy_is_that_of_an_endpoint() {
    let bench = Bench::new().await;
    let (service, endpoint) = shop(&bench).await;
    let mut ids = Vec::new();
    for blob in ["a", "b", "c"] {
        let body = json!({"policy": {"blob": blob, "type": "application/json"}});
        ids.push(id(
            &admin(&bench, "POST", "policies", body, 201).await["policy"],
        ));
    }
    admin(
        &bench,
        "POST",
        "policies",
        json!({"policy": {"blob": "x"}}),
        400,
    )
    .await;
    let body = json!({"policy": {"type": "text/plain"}});
    let one = format!("policies/{}", ids[0]);
    let changed = admin(&bench, "PATCH", &one, body, 200).await["policy"].clone();
    assert_eq!(
        (&changed["type"], &changed["blob"]),
        (&json!("text/plain"), &json!("a"))
    );
    let of = format!("endpoints/{endpoint}/OS-ENDPOINT-POLICY/policy");
    admin(&bench, "GET", &of, Value::Null, 404).await;
    for (policy, place) in ids.iter().zip([
        format!("services/{service}"),
        format!("services/{service}/regions/north"),
        format!("endpoints/{endpoint}"),
    ]) {
        let pair = format!("policies/{policy}/OS-ENDPOINT-POLICY/{place}");
        admin(&bench, "GET", &pair, Value::Null, 404).await;
        admin(&bench, "PUT", &pair, Value::Null, 204).await;
        admin(&bench, "GET", &pair, Value::Null, 204).await;
        assert_eq!(
            admin(&bench, "GET", &of, Value::Null, 200).await["policy"]["id"],
            policy.as_str()
        );
    }
    let list = format!("policies/{}/OS-ENDPOINT-POLICY/endpoints", ids[2]);
    assert_eq!(
        column(
            &admin(&bench, "GET", &list, Value::Null, 200).await["endpoints"],
            "id"
        ),
        [endpoint.as_str()]
    );
    admin(
        &bench,
        "DELETE",
        &format!("policies/{}", ids[2]),
        Value::Null,
        204,
    )
    .await;
    assert_eq!(
        admin(&bench, "GET", &of, Value::Null, 200).await["policy"]["id"],
        ids[1].as_str()
    );
}

#[tokio::test]
async fn credentials_are_sealed_and_their_owners_alone() {
    let bench = Bench::new().await;
    let project = bench.project("p").await;
    let token = bench.member("u", ("p", &project), "member").await;
    let other = bench.member("v", ("p", &project), "member").await;
    let path = "/identity/v3/credentials";
    let body = json!({"credential": {"type": "cert", "blob": "a-readable-blob"}});
    let made = bench.call("POST", path, &token, body).await;
    assert_eq!(made.status, 201);
    let made = made.json()["credential"].clone();
    assert_eq!(
        (&made["blob"], &made["project_id"]),
        (&json!("a-readable-blob"), &Value::Null)
    );
    let one = format!("{path}/{}", id(&made));
    let status = async |method: &str, path: &str, token: &str, body: Value| {
        bench.call(method, path, token, body).await.status
    };
    for method in ["GET", "PATCH", "DELETE"] {
        let body = json!({"credential": {"blob": "x"}});
        assert_eq!(status(method, &one, &other, body).await, 403, "{method}");
    }
    let list = bench.call("GET", path, &other, Value::Null).await.json();
    assert_eq!(list["credentials"], json!([]));
    let body = json!({"credential": {"type": "cert", "blob": "x", "user_id": made["user_id"]}});
    assert_eq!(status("POST", path, &other, body).await, 403);
    let body = json!({"credential": {"blob": "changed"}});
    let changed = bench.call("PATCH", &one, &token, body).await.json();
    assert_eq!(
        (
            &changed["credential"]["blob"],
            &changed["credential"]["type"]
        ),
        (&json!("changed"), &json!("cert"))
    );
    // Nothing else of it, with the blob or without; nor nothing.
    for other in [
        json!({"blob": "b", "type": "cert"}),
        json!({"user_id": made["user_id"]}),
        json!({"project_id": project}),
        json!({"blob": null}),
        json!({}),
    ] {
        let body = json!({"credential": other});
        assert_eq!(status("PATCH", &one, &token, body).await, 400, "{other}");
    }
    let shown = bench.call("GET", &one, &token, Value::Null).await.json();
    assert_eq!(shown, changed);
    let stored = bench
        .app
        .store
        .document("credential", &id(&made))
        .await
        .unwrap()
        .unwrap();
    assert!(!stored.body.contains("changed"));

    let ec2 = |project: Value| json!({"credential": {"type": "ec2", "project_id": project, "blob": r#"{"access": "k", "secret": "s"}"#}});
    assert_eq!(status("POST", path, &token, ec2(Value::Null)).await, 400);
    assert_eq!(status("POST", path, &token, ec2(json!(project))).await, 201);
    assert_eq!(status("POST", path, &token, ec2(json!(project))).await, 409);
    let of_user = format!(
        "{path}?user_id={}&type=ec2",
        made["user_id"].as_str().unwrap()
    );
    let list = bench
        .call("GET", &of_user, &token, Value::Null)
        .await
        .json();
    assert_eq!(list["credentials"].as_array().unwrap().len(), 1);
    // They end with their project and their user.
    admin(
        &bench,
        "DELETE",
        &format!("projects/{project}"),
        Value::Null,
        204,
    )
    .await;
    admin(
        &bench,
        "DELETE",
        &format!("users/{}", made["user_id"].as_str().unwrap()),
        Value::Null,
        204,
    )
    .await;
    let left = admin(&bench, "GET", "credentials", Value::Null, 200).await;
    assert_eq!(left["credentials"], json!([]));
}

//! Requests of every kind: where the API is, what is refused, and how lists are given in pages.

use serde_json::{Value, json};

use super::V3;
use crate::testing::{Bench, HOST, id};

#[tokio::test]
async fn discovery_and_unknown_paths() {
    let bench = Bench::new().await;
    let versions = bench.call("GET", "/identity", "", Value::Null).await;
    assert_eq!(versions.status, 300);
    let href = versions.json()["versions"]["values"][0]["links"][0]["href"].clone();
    assert_eq!(href, format!("https://{HOST}/identity/v3/"));
    for path in ["/identity/v3", "/identity/v3/"] {
        let answer = bench.call("GET", path, "", Value::Null).await;
        assert_eq!(
            (answer.status, answer.header("vary")),
            (200, "X-Auth-Token")
        );
        assert!(answer.header("x-openstack-request-id").starts_with("req-"));
    }
    assert_eq!(
        bench
            .call("GET", "/identity/v3/nosuch", &bench.admin, Value::Null)
            .await
            .status,
        404
    );
    assert_eq!(
        bench
            .call("PUT", "/identity/v3/users", &bench.admin, Value::Null)
            .await
            .status,
        405
    );
}

#[tokio::test]
async fn conflicts_bad_input_and_unknown_attributes() {
    let bench = Bench::new().await;
    bench.project("p").await;
    bench.user("u").await;
    let domain = json!({"domain": {"name": "Default"}});
    for (path, body) in [
        (
            "/projects",
            json!({"project": {"name": "p", "domain_id": "default"}}),
        ),
        (
            "/users",
            json!({"user": {"name": "u", "domain_id": "default"}}),
        ),
        ("/roles", json!({"role": {"name": "member"}})),
        ("/domains", domain),
    ] {
        let answer = bench.admin("POST", &format!("{V3}{path}"), body, 409).await;
        assert_eq!(answer["error"]["title"], "Conflict");
    }
    for body in [
        json!({"project": {"name": ""}}),
        json!({"project": {"name": "x".repeat(65)}}),
        json!({"project": {"name": "y", "enabled": "true"}}),
        json!({"project": {"name": "y", "tags": "red"}}),
        json!({"project": {}}),
        json!({"user": {}}),
        json!([]),
    ] {
        bench
            .admin("POST", &format!("{V3}/projects"), body, 400)
            .await;
    }
    let body = json!({"project": {"name": "q", "domain_id": "default", "team": "blue", "description": null, "tags": ["b", "a"]}});
    let made = bench
        .admin("POST", &format!("{V3}/projects"), body, 201)
        .await["project"]
        .clone();
    assert_eq!(
        (&made["team"], &made["tags"], &made["description"]),
        (&json!("blue"), &json!(["a", "b"]), &Value::Null)
    );
    assert_eq!(
        made["links"]["self"],
        format!("https://{HOST}/identity/v3/projects/{}", id(&made))
    );
    let path = format!("{V3}/projects/{}", id(&made));
    let set = bench
        .admin("PATCH", &path, json!({"project": {"team": "red"}}), 200)
        .await;
    assert_eq!(
        (&set["project"]["team"], &set["project"]["extra"]["team"]),
        (&json!("red"), &json!("red"))
    );
    bench
        .admin(
            "PATCH",
            &path,
            json!({"project": {"domain_id": "other"}}),
            400,
        )
        .await;
    // A name in the place of an id is cleanly not found, and found in the list.
    bench
        .admin("GET", &format!("{V3}/projects/q"), Value::Null, 404)
        .await;
    let list = bench
        .admin(
            "GET",
            &format!("{V3}/projects?name=q&unknown=1"),
            Value::Null,
            200,
        )
        .await;
    assert_eq!(list["projects"].as_array().unwrap().len(), 1);
    let list = bench
        .admin(
            "GET",
            &format!("{V3}/users?name__contains=dm"),
            Value::Null,
            200,
        )
        .await;
    assert_eq!(list["users"][0]["name"], "admin");
    let page = bench
        .admin("GET", &format!("{V3}/projects?limit=1"), Value::Null, 200)
        .await;
    assert_eq!(page["projects"].as_array().unwrap().len(), 1);
    assert!(page["links"]["next"].as_str().unwrap().contains("marker="));
}

/// The pages of a list are the list, whatever their size; where it ends, nothing follows.
#[tokio::test]
async fn pages_go_through_the_whole_list_once() {
    let bench = Bench::new().await;
    for number in 0..7 {
        bench.user(&format!("u{number}")).await;
        bench.project(&format!("p{number}")).await;
    }
    let ids = |list: &Value, key: &str| -> Vec<Value> {
        let list = list[key].as_array().unwrap().iter();
        list.map(|item| item["id"].clone()).collect()
    };
    for (key, narrowed) in [
        ("users", ""),
        ("users", "domain_id=default&"),
        ("projects", ""),
        ("projects", "domain_id=default&parent_id=default&"),
        // Read whole, and cut.
        ("users", "enabled=True&"),
    ] {
        let url = format!("{V3}/{key}?{narrowed}");
        let whole = ids(&bench.admin("GET", &url, Value::Null, 200).await, key);
        assert_eq!(whole.len(), 8, "{url}");
        for limit in [1, 3, 7, 8, 9] {
            let (mut seen, mut marker) = (Vec::new(), String::new());
            loop {
                let url = format!("{url}limit={limit}&marker={marker}");
                let page = bench.admin("GET", &url, Value::Null, 200).await;
                let some = ids(&page, key);
                assert!(some.len() <= limit, "{url}: {}", some.len());
                seen.extend(some);
                if page["links"]["next"].is_null() {
                    break;
                }
                marker = seen.last().and_then(Value::as_str).unwrap().to_owned();
            }
            assert_eq!(seen, whole, "{url} by {limit}");
        }
    }
    let url = format!("{V3}/users?name=u3&limit=5");
    let found = bench.admin("GET", &url, Value::Null, 200).await;
    assert_eq!(ids(&found, "users").len(), 1);
}

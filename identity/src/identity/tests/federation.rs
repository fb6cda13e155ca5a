//! A service without federation answers as a Keystone that has none.

use serde_json::{Value, json};

use super::{V3, admin};
use crate::testing::{Bench, HOST};

const LISTS: [(&str, &str, &str, &str); 4] = [
    (
        "identity_providers",
        "identity_providers",
        "identity_provider",
        "Could not find Identity Provider: elsewhere.",
    ),
    (
        "mappings",
        "mappings",
        "mapping",
        "Could not find mapping: elsewhere.",
    ),
    (
        "service_providers",
        "service_providers",
        "service_provider",
        "Could not find Service Provider: elsewhere.",
    ),
    (
        "identity_providers/idp/protocols",
        "protocols",
        "protocol",
        "Could not find federated protocol elsewhere for Identity Provider: idp.",
    ),
];

#[tokio::test]
async fn there_is_nothing_of_it() {
    let bench = Bench::new().await;
    for (path, keys, _, words) in LISTS {
        let path = format!("OS-FEDERATION/{path}");
        let list = admin(&bench, "GET", &path, Value::Null, 200).await;
        let own = format!("https://{HOST}{V3}/{path}");
        let links = json!({"self": own, "next": null, "previous": null});
        assert_eq!(list, json!({ (keys): [], "links": links }));
        for method in ["GET", "PATCH", "DELETE"] {
            if (method, keys) == ("PATCH", "protocols") {
                continue;
            }
            let one = format!("{path}/elsewhere");
            let body = json!({"description": "x"});
            let answer = admin(&bench, method, &one, body, 404).await;
            assert_eq!(answer["error"]["message"], words, "{method} {one}");
        }
    }
}

#[tokio::test]
async fn nothing_of_it_can_be_made() {
    let bench = Bench::new().await;
    for (path, _, key, _) in LISTS {
        let path = format!("OS-FEDERATION/{path}");
        let status = if key == "protocol" { 400 } else { 403 };
        let one = format!("{path}/elsewhere");
        let body = json!({ key: {"mapping_id": "m", "rules": []} });
        let answer = admin(&bench, "PUT", &one, body, status).await;
        let said = answer["error"]["message"].as_str().unwrap();
        let wanted = if key == "protocol" {
            // Nor be changed: before all else the mapping is looked for that it names.
            let body = json!({ key: {"mapping_id": "m"} });
            admin(&bench, "PATCH", &one, body, 400).await;
            "A protocol needs the mapping_id of a mapping that exists"
        } else {
            "There is no federation here"
        };
        assert!(said.starts_with(wanted), "{said}");
        // As on every path, what is no method of it is refused.
        admin(&bench, "POST", &path, json!({}), 405).await;
        let list = admin(&bench, "GET", &path, Value::Null, 200).await;
        assert_eq!(list["links"]["next"], Value::Null);
    }
}

/// Who may not see or change it learns no more than that, and a site's rules count.
#[tokio::test]
async fn the_policy_is_asked_first() {
    let bench = Bench::new().await;
    let project = bench.project("p").await;
    let member = bench.member("u", ("p", &project), "member").await;
    for (path, keys, key, _) in LISTS {
        let list = format!("{V3}/OS-FEDERATION/{path}");
        let one = format!("{list}/elsewhere");
        for (method, path, rule) in [
            ("GET", &list, format!("list_{keys}")),
            ("GET", &one, format!("get_{key}")),
            ("PUT", &one, format!("create_{key}")),
            ("PATCH", &one, format!("update_{key}")),
            ("DELETE", &one, format!("delete_{key}")),
        ] {
            assert_eq!(bench.call(method, path, "", Value::Null).await.status, 401);
            let answer = bench.call(method, path, &member, Value::Null).await;
            assert_eq!(answer.status, 403, "{method} {path}");
            let said = answer.json()["error"]["message"].to_string();
            assert!(said.contains(&format!("identity:{rule}.")), "{said}");
        }
    }
}

//! Access rules: shared by a user's application credentials, kept when those go, and enforced.

use serde_json::{Value, json};

use super::{V3, column};
use crate::testing::{Answer, Bench, id};

async fn log_in(bench: &Bench, credential: &Value) -> String {
    let details = json!({"id": credential["id"], "secret": credential["secret"]});
    let identity =
        json!({"methods": ["application_credential"], "application_credential": details});
    let answer = bench.auth(json!({"auth": {"identity": identity}})).await;
    assert_eq!(answer.status, 201, "{}", answer.json());
    answer.header("X-Subject-Token").to_owned()
}

#[tokio::test]
async fn rules_are_shared_kept_and_enforced() {
    let bench = Bench::new().await;
    let project = bench.project("p").await;
    let user = bench.user("u").await;
    bench.grant(&project, &user, "member").await;
    let token = bench.login("u", "u-pw", Some("p")).await.unwrap();
    let credentials = format!("{V3}/users/{user}/application_credentials");
    let rules = format!("{V3}/users/{user}/access_rules");
    let create = async |name: &str, rules: Value| -> Answer {
        let body = json!({"application_credential": {"name": name, "access_rules": rules}});
        bench.call("POST", &credentials, &token, body).await
    };
    let call = async |method: &str, path: &str, token: &str| {
        bench.call(method, path, token, Value::Null).await
    };
    let show = json!({"service": "identity", "method": "GET", "path": format!("/v3/users/{user}")});
    let secrets =
        json!({"service": "key-manager", "method": "GET", "path": "/v1/secrets/*/payload"});
    let first = create("first", json!([show, secrets])).await;
    assert_eq!(first.status, 201, "{}", first.json());
    let first = first.json()["application_credential"].clone();
    assert_eq!(
        column(&first["access_rules"], "service"),
        ["identity", "key-manager"]
    );
    // The same rule again is the same rule; one of the user's can be named by its id.
    let by_id = first["access_rules"][0]["id"].clone();
    let second = create("second", json!([show, secrets, {"id": by_id}]))
        .await
        .json()["application_credential"]
        .clone();
    assert_eq!(
        column(&second["access_rules"], "id"),
        column(&first["access_rules"], "id")
    );
    let all = call("GET", &rules, &token).await.json();
    assert_eq!(all["access_rules"].as_array().unwrap().len(), 2);
    let some = call("GET", &format!("{rules}?service=identity"), &token)
        .await
        .json();
    assert_eq!(column(&some["access_rules"], "method"), ["GET"]);
    for (bad, status) in [
        (json!([{"id": "nosuch"}]), 404),
        (json!([{"service": "identity"}]), 400),
        (
            json!([{"service": "identity", "method": "GET", "path": "v3"}]),
            400,
        ),
        (
            json!([{"service": "identity", "method": "get", "path": "/v3"}]),
            400,
        ),
        (json!("x"), 400),
    ] {
        assert_eq!(create("bad", bad.clone()).await.status, status, "{bad}");
    }

    // Enforced where this service is the one asked; told to services that say that they know of rules.
    let narrow = log_in(&bench, &first).await;
    assert_eq!(
        call("GET", &format!("{V3}/users/{user}"), &narrow)
            .await
            .status,
        200
    );
    assert_eq!(
        call("GET", &format!("{V3}/users/{user}/projects"), &narrow)
            .await
            .status,
        401
    );
    assert_eq!(
        call("GET", "/key-manager/v1/secrets", &narrow).await.status,
        401
    );
    assert_eq!(
        call("GET", "/key-manager/v1/secrets/nosuch/payload", &narrow)
            .await
            .status,
        404
    );
    for (version, status) in [
        ("", 404),
        ("1", 200),
        ("1.0", 200),
        ("2.5", 200),
        ("0.5", 404),
        ("x", 404),
        ("nan", 404),
    ] {
        let headers = [
            ("X-Auth-Token", bench.admin.as_str()),
            ("X-Subject-Token", narrow.as_str()),
            ("OpenStack-Identity-Access-Rules", version),
        ];
        let answer = bench
            .raw("GET", &format!("{V3}/auth/tokens"), &headers, Vec::new())
            .await;
        assert_eq!(answer.status, status, "{version}");
        if status == 200 {
            let told = &answer.json()["token"]["application_credential"]["access_rules"];
            assert_eq!(column(told, "service"), ["identity", "key-manager"]);
        }
    }

    // In use it stays; afterwards it is there, and can go. It is nobody else's.
    let own = format!("{rules}/{}", by_id.as_str().unwrap());
    let other = bench.member("v", ("p", &project), "member").await;
    assert_eq!(call("GET", &own, &token).await.status, 200);
    assert_eq!(call("GET", &own, &other).await.status, 403);
    assert_eq!(call("DELETE", &own, &other).await.status, 403);
    assert_eq!(call("DELETE", &own, &token).await.status, 403);
    for made in [&first, &second] {
        assert_eq!(
            call("DELETE", &format!("{credentials}/{}", id(made)), &token)
                .await
                .status,
            204
        );
    }
    assert_eq!(bench.status_of(&narrow).await, 404);
    assert_eq!(call("GET", &rules, &token).await.json(), {
        let mut same = all.clone();
        same["links"] = call("GET", &rules, &token).await.json()["links"].clone();
        same
    });
    assert_eq!(call("DELETE", &own, &token).await.status, 204);
    assert_eq!(call("DELETE", &own, &token).await.status, 404);
    assert_eq!(call("GET", &own, &token).await.status, 404);
    // With the user, all goes.
    create("third", json!([show])).await;
    bench
        .admin("DELETE", &format!("{V3}/users/{user}"), Value::Null, 204)
        .await;
    let left = bench.app.store.access_rules_of_user(&user).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

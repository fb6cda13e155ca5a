//! Secret stores and transport keys.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn the_one_secret_store() {
    let bench = Bench::new().await;
    let token = &bench.admin;
    let get = async |path: &str| {
        bench
            .call(
                "GET",
                &format!("{V1}/secret-stores{path}"),
                token,
                Value::Null,
            )
            .await
    };
    let list = get("").await.json();
    let store = list["secret_stores"][0].clone();
    assert_eq!(
        (&store["global_default"], &store["status"]),
        (&json!(true), &json!("ACTIVE"))
    );
    for name in [
        "name",
        "created",
        "updated",
        "secret_store_plugin",
        "crypto_plugin",
        "secret_store_ref",
    ] {
        assert!(store[name].is_string(), "{name}");
    }
    assert_eq!(get("/global-default").await.json(), store);
    let one = path(&store["secret_store_ref"]);
    assert_eq!(
        bench.call("GET", &one, token, Value::Null).await.json(),
        store
    );
    assert_eq!(get("/nosuch").await.status, 404);
    assert_eq!(get("/preferred").await.status, 404);
    let preferred = format!("{one}/preferred");
    assert_eq!(
        bench
            .call("DELETE", &preferred, token, Value::Null)
            .await
            .status,
        404
    );
    assert_eq!(
        bench
            .call("POST", &preferred, token, Value::Null)
            .await
            .status,
        204
    );
    assert_eq!(get("/preferred").await.json(), store);
    let p = bench.project("p").await;
    let member = bench.member("m", ("p", &p), "member").await;
    assert_eq!(
        bench
            .call("GET", &format!("{V1}/secret-stores"), &member, Value::Null)
            .await
            .status,
        200
    );
    assert_eq!(
        bench
            .call(
                "GET",
                &format!("{V1}/secret-stores/preferred"),
                &member,
                Value::Null
            )
            .await
            .status,
        404
    );
    assert_eq!(
        bench
            .call("POST", &preferred, &member, Value::Null)
            .await
            .status,
        403
    );
    assert_eq!(
        bench
            .call("DELETE", &preferred, token, Value::Null)
            .await
            .status,
        204
    );
    assert_eq!(get("/preferred").await.status, 404);
}

#[tokio::test]
async fn transport_keys_are_kept() {
    let bench = Bench::new().await;
    let token = &bench.admin;
    let all = format!("{V1}/transport_keys");
    let none = bench.call("GET", &all, token, Value::Null).await;
    assert_eq!(none.json(), json!({"transport_keys": [], "total": 0}));
    let body = json!({"plugin_name": "kra", "transport_key": "-----BEGIN PUBLIC KEY-----"});
    let made = bench.call("POST", &all, token, body.clone()).await;
    assert_eq!(made.status, 201);
    let one = path_of(&made, "transport_key_ref");
    let list = bench
        .call("GET", &format!("{all}?plugin_name=kra"), token, Value::Null)
        .await
        .json();
    assert_eq!(list["transport_keys"][0], made.json()["transport_key_ref"]);
    assert_eq!(
        bench
            .call("GET", &format!("{all}?plugin_name=x"), token, Value::Null)
            .await
            .json()["total"],
        0
    );
    assert_eq!(
        bench.call("GET", &one, token, Value::Null).await.json()["transport_key"],
        body["transport_key"]
    );
    let p = bench.project("p").await;
    let member = bench.member("m", ("p", &p), "member").await;
    assert_eq!(bench.call("POST", &all, &member, body).await.status, 403);
    assert_eq!(
        bench
            .call("POST", &all, token, json!({"plugin_name": "kra"}))
            .await
            .status,
        400
    );
    assert_eq!(
        bench.call("DELETE", &one, token, Value::Null).await.status,
        204
    );
    assert_eq!(
        bench.call("DELETE", &one, token, Value::Null).await.status,
        404
    );
    assert_eq!(
        bench.call("GET", &one, token, Value::Null).await.status,
        404
    );
}

//! What users write on their secrets.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn metadata_from_its_first_pair_to_its_last() {
    let bench = Bench::new().await;
    let token = &bench.admin;
    let secret = store(&bench, token, "s", "x").await;
    let all = format!("{secret}/metadata");
    let call =
        async |method: &str, path: &str, body: Value| bench.call(method, path, token, body).await;
    assert_eq!(
        call("GET", &all, Value::Null).await.json(),
        json!({"metadata": {}})
    );
    let body = json!({"metadata": {"Description": "disk", "geolocation": "12.3"}});
    let put = call("PUT", &all, body).await;
    assert_eq!(put.status, 201);
    assert_eq!(put.json()["metadata_ref"], format!("https://{HOST}{all}"));
    let pairs = json!({"metadata": {"description": "disk", "geolocation": "12.3"}});
    assert_eq!(
        call("GET", &format!("{all}/"), Value::Null).await.json(),
        pairs
    );
    let posted = call("POST", &all, json!({"key": "Extra", "value": "1"})).await;
    assert_eq!(
        (posted.status, posted.json()),
        (201, json!({"key": "extra", "value": "1"}))
    );
    assert_eq!(
        posted.header("location"),
        format!("https://{HOST}{all}/extra")
    );
    assert_eq!(
        call("POST", &all, json!({"key": "extra", "value": "2"}))
            .await
            .status,
        409
    );
    let one = format!("{all}/extra");
    let body = json!({"key": "extra", "value": "2"});
    let changed = call("PUT", &one, body.clone()).await;
    assert_eq!((changed.status, changed.json()), (200, body.clone()));
    assert_eq!(call("GET", &one, Value::Null).await.json(), body);
    assert_eq!(
        call("PUT", &one, json!({"key": "other", "value": "2"}))
            .await
            .status,
        409
    );
    assert_eq!(
        call(
            "PUT",
            &format!("{all}/nosuch"),
            json!({"key": "nosuch", "value": "2"})
        )
        .await
        .status,
        404
    );
    assert_eq!(call("POST", &one, body).await.status, 405);
    assert_eq!(call("DELETE", &one, Value::Null).await.status, 204);
    assert_eq!(call("GET", &one, Value::Null).await.status, 404);
    assert_eq!(
        call("DELETE", &one, Value::Null).await.status,
        204,
        "as the protocol has it"
    );
    for body in [
        json!({"metadata": {"a b": "x"}}),
        json!({"metadata": {"a": 1}}),
        json!({"metadata": []}),
        json!({}),
    ] {
        assert_eq!(call("PUT", &all, body.clone()).await.status, 400, "{body}");
    }
    for body in [
        json!({"key": "a"}),
        json!({"key": "a", "value": 1}),
        json!({"key": "a/b", "value": "x"}),
        json!({"key": "a", "value": "x", "more": 1}),
        json!({"key": "a", "value": "x".repeat(256)}),
    ] {
        assert_eq!(call("POST", &all, body.clone()).await.status, 400, "{body}");
    }
    assert_eq!(
        call("GET", &all, Value::Null).await.json(),
        pairs,
        "refused requests change nothing"
    );
}

#[tokio::test]
async fn metadata_is_guarded_as_its_secret_is() {
    let bench = Bench::new().await;
    let (p, q) = (bench.project("p").await, bench.project("q").await);
    let owner = bench.member("owner", ("p", &p), "member").await;
    let reader = bench.member("reader", ("p", &p), "reader").await;
    let guest = bench.member("guest", ("q", &q), "member").await;
    let secret = store(&bench, &owner, "s", "x").await;
    let all = format!("{secret}/metadata");
    let body = json!({"read": {"users": [user_id(&bench, "guest").await]}});
    bench
        .call("PUT", &format!("{secret}/acl"), &owner, body)
        .await;
    let pair = json!({"key": "k", "value": "v"});
    for (token, get, post) in [(&owner, 200, 201), (&reader, 403, 403), (&guest, 200, 403)] {
        assert_eq!(
            bench.call("POST", &all, token, pair.clone()).await.status,
            post
        );
        assert_eq!(
            bench.call("GET", &all, token, Value::Null).await.status,
            get
        );
    }
    let missing = format!("{V1}/secrets/00000000-0000-4000-8000-000000000000/metadata");
    assert_eq!(
        bench
            .call("GET", &missing, &owner, Value::Null)
            .await
            .status,
        404
    );
}

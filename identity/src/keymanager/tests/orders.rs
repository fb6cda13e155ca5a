//! Orders for keys and pairs of keys.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn orders_make_random_keys() {
    let bench = Bench::new().await;
    let token = &bench.admin;
    let order = async |meta: Value| {
        bench
            .call(
                "POST",
                &format!("{V1}/orders/"),
                token,
                json!({"type": "key", "meta": meta}),
            )
            .await
    };
    // What castellan sends: no mode, no content type.
    let answer =
        order(json!({"algorithm": "aes", "bit_length": 256, "creator_id": "mallory"})).await;
    assert_eq!(answer.status, 202);
    let path = path_of(&answer, "order_ref");
    let done = bench.call("GET", &path, token, Value::Null).await.json();
    assert_eq!(
        (&done["status"], &done["meta"]["name"]),
        (&json!("ACTIVE"), &Value::Null)
    );
    assert_ne!(done["creator_id"], "mallory");
    let secret = done["secret_ref"]
        .as_str()
        .unwrap()
        .strip_prefix(&format!("https://{HOST}"))
        .unwrap()
        .to_owned();
    let shown = bench.call("GET", &secret, token, Value::Null).await.json();
    assert_eq!(
        (&shown["secret_type"], &shown["content_types"]["default"]),
        (&json!("symmetric"), &json!("application/octet-stream"))
    );
    assert_eq!(
        payload(&bench, token, &secret, "application/octet-stream")
            .await
            .bytes
            .len(),
        32
    );
    // Another project does not find it.
    let project = bench.project("other").await;
    let other = bench.member("m", ("other", &project), "member").await;
    assert_eq!(
        bench.call("GET", &path, &other, Value::Null).await.status,
        404
    );
    assert_eq!(
        bench.call("DELETE", &path, token, Value::Null).await.status,
        204
    );
    assert_eq!(
        payload(&bench, token, &secret, "*/*").await.status,
        200,
        "the key outlives its order"
    );
    // Taken, and then failed.
    let failed = path_of(
        &order(json!({"algorithm": "aes", "bit_length": 192, "mode": "xts"})).await,
        "order_ref",
    );
    let failed = bench.call("GET", &failed, token, Value::Null).await.json();
    assert_eq!(
        (&failed["status"], &failed["error_status_code"]),
        (&json!("ERROR"), &json!("500"))
    );
    for meta in [
        json!({"algorithm": "aes"}),
        json!({"bit_length": 256}),
        json!({"algorithm": "aes", "bit_length": 33}),
        json!({"algorithm": "aes", "bit_length": 256, "payload": "x"}),
        json!(5),
    ] {
        assert_eq!(order(meta).await.status, 400);
    }
    assert_eq!(
        bench.call("PUT", &path, token, Value::Null).await.status,
        405
    );
}

#[tokio::test]
async fn a_pair_of_keys_comes_in_a_container() {
    let bench = Bench::new().await;
    let token = &bench.admin;
    let meta = json!({
        "name": "pair", "algorithm": "RSA", "bit_length": 1024, "payload_content_type": "application/octet-stream",
        "passphrase": "words-of-the-passphrase",
    });
    let body = json!({"type": "asymmetric", "meta": meta});
    let answer = bench
        .call("POST", &format!("{V1}/orders/"), token, body)
        .await;
    assert_eq!(answer.status, 202);
    let order = bench
        .call("GET", &path_of(&answer, "order_ref"), token, Value::Null)
        .await
        .json();
    assert_eq!(
        (&order["status"], &order["type"]),
        (&json!("ACTIVE"), &json!("asymmetric"))
    );
    assert!(order.get("secret_ref").is_none());
    assert!(
        !order.to_string().contains("words-of"),
        "the passphrase is a secret"
    );
    let container = bench
        .call("GET", &path(&order["container_ref"]), token, Value::Null)
        .await
        .json();
    assert_eq!(
        (&container["type"], &container["name"]),
        (&json!("rsa"), &json!("pair"))
    );
    let refs = container["secret_refs"].as_array().unwrap();
    let seen: Vec<_> = refs
        .iter()
        .map(|item| item["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        seen,
        ["private_key", "public_key", "private_key_passphrase"]
    );
    let mut texts = Vec::new();
    for (item, kind) in refs.iter().zip(["private", "public", "passphrase"]) {
        let secret = path(&item["secret_ref"]);
        let shown = bench.call("GET", &secret, token, Value::Null).await.json();
        assert_eq!(
            (&shown["secret_type"], &shown["bit_length"]),
            (&json!(kind), &json!(1024))
        );
        let bytes = payload(&bench, token, &secret, "application/octet-stream")
            .await
            .bytes;
        texts.push(String::from_utf8(bytes).unwrap());
    }
    assert!(
        texts[0].starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"),
        "{}",
        texts[0]
    );
    assert!(
        texts[1].starts_with("-----BEGIN PUBLIC KEY-----"),
        "{}",
        texts[1]
    );
    assert_eq!(texts[2], "words-of-the-passphrase");
}

#[tokio::test]
async fn orders_that_are_refused_and_orders_that_fail() {
    let bench = Bench::new().await;
    let token = &bench.admin;
    let order = async |kind: &str, meta: Value| {
        let body = json!({"type": kind, "meta": meta});
        bench
            .call("POST", &format!("{V1}/orders"), token, body)
            .await
    };
    for (kind, meta) in [
        ("KEY", json!({"algorithm": "aes", "bit_length": 256})),
        (
            "certificate",
            json!({"algorithm": "aes", "bit_length": 256}),
        ),
        ("asymmetric", json!({"algorithm": "rsa"})),
        ("asymmetric", json!({"bit_length": 2048})),
        ("asymmetric", json!({"algorithm": "ec", "bit_length": 512})),
        (
            "asymmetric",
            json!({"algorithm": "rsa", "bit_length": 2048, "payload": "x"}),
        ),
        (
            "key",
            json!({"algorithm": "aes", "bit_length": 256, "payload_content_type": "text/html"}),
        ),
        (
            "key",
            json!({"algorithm": "aes", "bit_length": 256, "expiration": "2001-01-01"}),
        ),
    ] {
        assert_eq!(order(kind, meta.clone()).await.status, 400, "{kind} {meta}");
    }
    for meta in [
        json!({"algorithm": "rsa", "bit_length": 768}),
        json!({"algorithm": "dsa", "bit_length": 2048}),
        json!({"algorithm": "ec", "bit_length": 521}),
    ] {
        let answer = order("asymmetric", meta.clone()).await;
        assert_eq!(answer.status, 202);
        let failed = bench
            .call("GET", &path_of(&answer, "order_ref"), token, Value::Null)
            .await
            .json();
        assert_eq!(
            (&failed["status"], &failed["error_status_code"]),
            (&json!("ERROR"), &json!("500")),
            "{meta}"
        );
        assert!(failed["error_reason"].is_string() && failed.get("container_ref").is_none());
    }
    order(
        "key",
        json!({"name": "100%_one", "algorithm": "aes", "bit_length": 128}),
    )
    .await;
    let total = async |meta: &str| {
        let url = format!("{V1}/orders?meta={meta}");
        bench.call("GET", &url, token, Value::Null).await.json()["total"].clone()
    };
    assert_eq!(
        [
            total("").await,
            total("aes").await,
            total("100%25_o").await,
            total("1_0").await
        ],
        [4, 1, 1, 0]
    );
}

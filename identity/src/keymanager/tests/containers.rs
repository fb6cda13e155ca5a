//! Containers, their access lists and consumers.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn reference(path: &str) -> String {
    format!("https://{HOST}{path}")
}

async fn create(bench: &Bench, token: &str, body: Value) -> Answer {
    bench
        .call("POST", &format!("{V1}/containers/"), token, body)
        .await
}

#[tokio::test]
async fn a_container_from_its_making_to_its_end() {
    let bench = Bench::new().await;
    let token = &bench.admin;
    let (one, two) = (
        store(&bench, token, "one", "1").await,
        store(&bench, token, "two", "2").await,
    );
    let refs = json!([
        {"name": "first", "secret_ref": reference(&one)}, {"name": null, "secret_ref": format!("{}/", reference(&two))},
    ]);
    let body = json!({"name": "box", "type": "generic", "secret_refs": refs});
    let made = create(&bench, token, body).await;
    assert_eq!(made.status, 201);
    let container = path_of(&made, "container_ref");
    let shown = bench
        .call("GET", &container, token, Value::Null)
        .await
        .json();
    assert_eq!(
        (
            &shown["name"],
            &shown["type"],
            &shown["status"],
            &shown["consumers"]
        ),
        (
            &json!("box"),
            &json!("generic"),
            &json!("ACTIVE"),
            &json!([])
        )
    );
    assert_eq!(shown["container_ref"], reference(&container));
    let refs = json!([
        {"name": "first", "secret_ref": reference(&one)}, {"name": null, "secret_ref": reference(&two)},
    ]);
    assert_eq!(shown["secret_refs"], refs);
    for name in ["created", "updated", "creator_id"] {
        assert!(shown[name].is_string(), "{name}");
    }
    let list = bench
        .call(
            "GET",
            &format!("{V1}/containers?limit=10&offset=0"),
            token,
            Value::Null,
        )
        .await
        .json();
    assert_eq!(list, json!({"containers": [shown], "total": 1}));
    for (query, total) in [
        ("name=b%25", 1),
        ("name=x", 0),
        ("type=rsa", 0),
        ("type=generic", 1),
    ] {
        let url = format!("{V1}/containers?{query}");
        assert_eq!(
            bench.call("GET", &url, token, Value::Null).await.json()["total"],
            total,
            "{query}"
        );
    }
    // A secret that goes leaves its container; a container that goes leaves its secrets.
    assert_eq!(
        bench.call("DELETE", &one, token, Value::Null).await.status,
        204
    );
    let shown = bench
        .call("GET", &container, token, Value::Null)
        .await
        .json();
    assert_eq!(
        shown["secret_refs"],
        json!([{"name": null, "secret_ref": reference(&two)}])
    );
    assert_eq!(
        bench
            .call("DELETE", &container, token, Value::Null)
            .await
            .status,
        204
    );
    assert_eq!(
        bench
            .call("DELETE", &container, token, Value::Null)
            .await
            .status,
        404
    );
    assert_eq!(
        bench
            .call("GET", &container, token, Value::Null)
            .await
            .status,
        404
    );
    assert_eq!(
        bench.call("GET", &two, token, Value::Null).await.status,
        200
    );
}

#[tokio::test]
async fn containers_that_are_refused() {
    let bench = Bench::new().await;
    let token = &bench.admin;
    let (one, two) = (
        store(&bench, token, "one", "1").await,
        store(&bench, token, "two", "2").await,
    );
    let item = |name: &str, path: &str| json!({"name": name, "secret_ref": reference(path)});
    let nosuch = format!("{V1}/secrets/00000000-0000-4000-8000-000000000000");
    for (body, status) in [
        (json!({}), 400),
        (json!({"type": "box"}), 400),
        (json!({"type": "generic", "name": 5}), 400),
        (json!({"type": "generic", "secret_refs": {}}), 400),
        (
            json!({"type": "generic", "secret_refs": [{"name": "x"}]}),
            400,
        ),
        (
            json!({"type": "generic", "secret_refs": [item("x", &one), item("x", &two)]}),
            400,
        ),
        (
            json!({"type": "generic", "secret_refs": [item("x", &one), item("y", &one)]}),
            400,
        ),
        (
            json!({"type": "generic", "secret_refs": [{"secret_ref": format!("https://elsewhere{one}")}]}),
            400,
        ),
        (
            json!({"type": "generic", "secret_refs": [item("x", &nosuch)]}),
            404,
        ),
        (
            json!({"type": "rsa", "secret_refs": [item("public_key", &one)]}),
            400,
        ),
        (
            json!({"type": "rsa", "secret_refs": [item("public_key", &one), item("other", &two)]}),
            400,
        ),
        (
            json!({"type": "certificate", "secret_refs": [item("private_key", &one)]}),
            400,
        ),
        (
            json!({"type": "rsa", "secret_refs": [item("public_key", &one), item("private_key", &two)]}),
            201,
        ),
        (
            json!({"type": "certificate", "secret_refs": [item("certificate", &one), item("intermediates", &two)]}),
            201,
        ),
        (json!({"type": "rsa"}), 201),
    ] {
        let answer = create(&bench, token, body.clone()).await;
        assert_eq!(
            answer.status,
            status,
            "{body}: {}",
            String::from_utf8_lossy(&answer.bytes)
        );
    }
    // A secret of another project is not found, whoever may read it.
    let p = bench.project("p").await;
    let member = bench.member("m", ("p", &p), "member").await;
    let body = json!({"type": "generic", "secret_refs": [item("x", &one)]});
    assert_eq!(create(&bench, &member, body).await.status, 404);
    let reader = bench.member("r", ("p", &p), "reader").await;
    assert_eq!(
        create(&bench, &reader, json!({"type": "generic"}))
            .await
            .status,
        403
    );
}

#[tokio::test]
async fn secrets_are_put_in_and_taken_out() {
    let bench = Bench::new().await;
    let token = &bench.admin;
    let secret = store(&bench, token, "one", "1").await;
    let container = path_of(
        &create(&bench, token, json!({"type": "generic"})).await,
        "container_ref",
    );
    let secrets = format!("{container}/secrets");
    let item = json!({"name": "x", "secret_ref": reference(&secret)});
    let added = bench.call("POST", &secrets, token, item.clone()).await;
    assert_eq!(
        (added.status, path_of(&added, "container_ref")),
        (201, container.clone())
    );
    assert_eq!(
        bench
            .call("POST", &secrets, token, item.clone())
            .await
            .status,
        409
    );
    let second = json!({"name": "y", "secret_ref": reference(&secret)});
    assert_eq!(
        bench.call("POST", &secrets, token, second).await.status,
        201,
        "under another name"
    );
    assert_eq!(
        bench
            .call("DELETE", &secrets, token, item.clone())
            .await
            .status,
        204
    );
    assert_eq!(
        bench
            .call("DELETE", &secrets, token, item.clone())
            .await
            .status,
        404
    );
    assert_eq!(
        bench
            .call("POST", &secrets, token, json!({"name": "x"}))
            .await
            .status,
        400
    );
    let rsa = path_of(
        &create(&bench, token, json!({"type": "rsa"})).await,
        "container_ref",
    );
    assert_eq!(
        bench
            .call("POST", &format!("{rsa}/secrets"), token, item)
            .await
            .status,
        400
    );
    assert_eq!(
        bench.call("GET", &secrets, token, Value::Null).await.status,
        405
    );
}

#[tokio::test]
async fn consumers_of_containers() {
    let bench = Bench::new().await;
    let token = &bench.admin;
    let container = path_of(
        &create(&bench, token, json!({"type": "generic"})).await,
        "container_ref",
    );
    let consumers = format!("{container}/consumers/");
    let body = json!({"name": "lb", "URL": "https://lb.example.org/1"});
    for _ in 0..2 {
        let answer = bench.call("POST", &consumers, token, body.clone()).await;
        assert_eq!(
            (answer.status, &answer.json()["consumers"]),
            (200, &json!([body]))
        );
        assert_eq!(answer.json()["container_ref"], reference(&container));
    }
    let list = bench
        .call("GET", &consumers, token, Value::Null)
        .await
        .json();
    assert_eq!(
        (&list["total"], &list["consumers"][0]["URL"]),
        (&json!(1), &body["URL"])
    );
    assert_eq!(list["consumers"][0]["status"], "ACTIVE");
    for bad in [
        json!({"name": "x"}),
        json!({"name": "", "URL": "x"}),
        json!({"name": "x".repeat(37), "URL": "x"}),
    ] {
        assert_eq!(bench.call("POST", &consumers, token, bad).await.status, 400);
    }
    let gone = bench.call("DELETE", &consumers, token, body.clone()).await;
    assert_eq!((gone.status, &gone.json()["consumers"]), (200, &json!([])));
    assert_eq!(
        bench.call("DELETE", &consumers, token, body).await.status,
        404
    );
}

#[tokio::test]
async fn access_lists_of_containers() {
    let bench = Bench::new().await;
    let (p, q) = (bench.project("p").await, bench.project("q").await);
    let owner = bench.member("owner", ("p", &p), "member").await;
    let mate = bench.member("mate", ("p", &p), "member").await;
    let guest = bench.member("guest", ("q", &q), "member").await;
    let container = path_of(
        &create(&bench, &owner, json!({"type": "generic"})).await,
        "container_ref",
    );
    let acl = format!("{container}/acl");
    let read = async |token: &str| {
        bench
            .call("GET", &container, token, Value::Null)
            .await
            .status
    };
    assert_eq!(
        [
            read(&owner).await,
            read(&mate).await,
            read(&guest).await,
            read(&bench.admin).await
        ],
        [200, 200, 403, 403]
    );
    assert_eq!(
        bench.call("GET", &acl, &owner, Value::Null).await.json(),
        json!({"read": {"project-access": true}})
    );
    let body =
        json!({"read": {"project-access": false, "users": [user_id(&bench, "guest").await]}});
    let put = bench.call("PUT", &acl, &owner, body).await;
    assert_eq!(
        (put.status, &put.json()["acl_ref"]),
        (200, &json!(reference(&acl)))
    );
    assert_eq!(
        [read(&owner).await, read(&mate).await, read(&guest).await],
        [200, 403, 200]
    );
    let shown = bench.call("GET", &acl, &owner, Value::Null).await.json();
    assert_eq!(shown["read"]["project-access"], false);
    assert!(shown["read"]["created"].is_string() && shown["read"]["updated"].is_string());
    let consumer = json!({"name": "lb", "URL": "u"});
    let consumers = format!("{container}/consumers");
    assert_eq!(
        bench
            .call("POST", &consumers, &guest, consumer.clone())
            .await
            .status,
        200
    );
    assert_eq!(
        bench
            .call("POST", &consumers, &mate, consumer.clone())
            .await
            .status,
        403
    );
    // The project of the container may remove what a guest registered.
    assert_eq!(
        bench
            .call("DELETE", &consumers, &owner, consumer)
            .await
            .status,
        200
    );
    for (method, path) in [("DELETE", &container), ("GET", &acl), ("DELETE", &acl)] {
        assert_eq!(
            bench.call(method, path, &guest, Value::Null).await.status,
            403,
            "{method} {path}"
        );
    }
    assert_eq!(
        bench
            .call(
                "PATCH",
                &acl,
                &owner,
                json!({"read": {"project-access": true}})
            )
            .await
            .status,
        200
    );
    assert_eq!([read(&mate).await, read(&guest).await], [200, 200]);
    // Nothing about reading takes the list away; so does DELETE.
    assert_eq!(
        bench.call("PATCH", &acl, &owner, json!({})).await.status,
        200
    );
    assert_eq!(read(&guest).await, 200);
    assert_eq!(bench.call("PUT", &acl, &owner, json!({})).await.status, 200);
    assert_eq!(read(&guest).await, 403);
    let gone = bench.call("DELETE", &acl, &owner, Value::Null).await;
    assert_eq!(
        (gone.status, gone.bytes.as_slice()),
        (200, b"null".as_slice())
    );
    assert_eq!(
        bench
            .call("PUT", &acl, &owner, json!({"read": {"users": "x"}}))
            .await
            .status,
        400
    );
    assert_eq!(
        bench
            .call("PUT", &acl, &owner, json!({"write": {}}))
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn versions_differ_in_consumers_and_in_deletion() {
    let bench = Bench::new().await;
    let secret = store(&bench, &bench.admin, "s", "x").await;
    let body = json!({"service": "s", "resource_type": "t", "resource_id": "1"});
    let consumers = format!("{secret}/consumers");
    let call = async |method: &str, path: &str, body: &Value, version: &str| {
        versioned(&bench, (method, path), &bench.admin, body, version).await
    };
    // The consumers' own routes show them in every version, the secret's only from 1.1 on.
    let old = call("POST", &consumers, &body, "key-manager 1.0").await;
    assert_eq!(
        (old.status, &old.json()["consumers"]),
        (200, &json!([body]))
    );
    assert!(old.header("location").ends_with("/consumers"));
    for (version, shown) in [
        ("key-manager 1.0", false),
        ("key-manager 1.1", true),
        ("key-manager latest", true),
    ] {
        let one = call("GET", &secret, &Value::Null, version).await.json();
        let list = call("GET", &format!("{V1}/secrets"), &Value::Null, version)
            .await
            .json();
        assert_eq!(one.get("consumers").is_some(), shown, "{version}");
        assert_eq!(
            list["secrets"][0].get("consumers").is_some(),
            shown,
            "{version}"
        );
    }
    assert_eq!(
        call("DELETE", &secret, &Value::Null, "key-manager 1.2")
            .await
            .status,
        400
    );
    let odd = format!("{secret}?force=perhaps");
    assert_eq!(
        call("DELETE", &odd, &Value::Null, "key-manager 1.2")
            .await
            .status,
        400
    );
    assert_eq!(
        call("DELETE", &secret, &Value::Null, "key-manager 1.1")
            .await
            .status,
        204
    );
}

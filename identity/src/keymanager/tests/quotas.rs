//! Quotas: seen, set, and what they stop.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn quotas_are_unlimited_until_they_are_set() {
    let bench = Bench::new().await;
    let token = &bench.admin;
    let own = async || {
        let answer = bench
            .call("GET", &format!("{V1}/quotas"), token, Value::Null)
            .await;
        answer.json()["quotas"].clone()
    };
    assert_eq!(
        own().await,
        json!({"secrets": -1, "orders": -1, "containers": -1, "consumers": -1, "cas": -1})
    );
    let project = bench
        .app
        .store
        .project_by_name("default", "admin")
        .await
        .unwrap()
        .unwrap()
        .id;
    let quotas = format!("{V1}/project-quotas/{project}");
    let call = async |method: &str, body: Value| bench.call(method, &quotas, token, body).await;
    assert_eq!(call("GET", Value::Null).await.status, 404);
    assert_eq!(call("DELETE", Value::Null).await.status, 404);
    assert_eq!(
        call(
            "PUT",
            json!({"project_quotas": {"secrets": 1, "orders": 0}})
        )
        .await
        .status,
        204
    );
    let set =
        json!({"secrets": 1, "orders": 0, "containers": null, "consumers": null, "cas": null});
    assert_eq!(
        call("GET", Value::Null).await.json(),
        json!({"project_quotas": set})
    );
    let list = bench
        .call("GET", &format!("{V1}/project-quotas/"), token, Value::Null)
        .await
        .json();
    assert_eq!(
        list,
        json!({"project_quotas": [{"project_id": project, "project_quotas": set}], "total": 1})
    );
    assert_eq!(
        (
            own().await["secrets"].clone(),
            own().await["containers"].clone()
        ),
        (json!(1), json!(-1))
    );
    for body in [
        json!({}),
        json!({"project_quotas": {"secrets": "1"}}),
        json!({"project_quotas": {"volumes": 1}}),
        json!({"project_quotas": {}, "more": 1}),
    ] {
        assert_eq!(call("PUT", body.clone()).await.status, 400, "{body}");
    }
    store(&bench, token, "first", "x").await;
    let second = bench
        .call(
            "POST",
            &format!("{V1}/secrets"),
            token,
            json!({"name": "second"}),
        )
        .await;
    assert_eq!((second.status, &second.json()["code"]), (403, &json!(403)));
    assert!(
        second.json()["description"]
            .as_str()
            .unwrap()
            .contains("quota has been reached")
    );
    let order = json!({"type": "key", "meta": {"algorithm": "aes", "bit_length": 256}});
    assert_eq!(
        bench
            .call("POST", &format!("{V1}/orders"), token, order.clone())
            .await
            .status,
        403
    );
    assert_eq!(call("DELETE", Value::Null).await.status, 204);
    assert_eq!(
        bench
            .call("POST", &format!("{V1}/orders"), token, order)
            .await
            .status,
        202
    );
}

#[tokio::test]
async fn containers_and_consumers_count_and_a_member_sets_nothing() {
    let bench = Bench::new().await;
    let p = bench.project("p").await;
    let member = bench.member("m", ("p", &p), "member").await;
    let reader = bench.member("r", ("p", &p), "reader").await;
    let quotas = format!("{V1}/project-quotas/{p}");
    for (method, body) in [
        ("GET", Value::Null),
        ("PUT", json!({"project_quotas": {}})),
        ("DELETE", Value::Null),
    ] {
        assert_eq!(
            bench.call(method, &quotas, &member, body).await.status,
            403,
            "{method}"
        );
    }
    assert_eq!(
        bench
            .call("GET", &format!("{V1}/quotas"), &reader, Value::Null)
            .await
            .status,
        200
    );
    let body = json!({"project_quotas": {"containers": 1, "consumers": 1}});
    assert_eq!(
        bench.call("PUT", &quotas, &bench.admin, body).await.status,
        204
    );
    let secret = store(&bench, &member, "s", "x").await;
    let container = json!({"type": "generic"});
    let url = format!("{V1}/containers");
    assert_eq!(
        bench
            .call("POST", &url, &member, container.clone())
            .await
            .status,
        201
    );
    assert_eq!(
        bench.call("POST", &url, &member, container).await.status,
        403
    );
    let consumer = |id: &str| json!({"service": "s", "resource_type": "t", "resource_id": id});
    let url = format!("{secret}/consumers");
    assert_eq!(
        bench
            .call("POST", &url, &member, consumer("1"))
            .await
            .status,
        200
    );
    assert_eq!(
        bench
            .call("POST", &url, &member, consumer("2"))
            .await
            .status,
        403
    );
}

#[tokio::test]
async fn two_requests_at_once_cannot_both_be_the_last() {
    let bench = Arc::new(Bench::new().await);
    let project = bench
        .app
        .store
        .project_by_name("default", "admin")
        .await
        .unwrap()
        .unwrap()
        .id;
    let body = json!({"project_quotas": {"secrets": 3}});
    let quotas = format!("{V1}/project-quotas/{project}");
    assert_eq!(
        bench.call("PUT", &quotas, &bench.admin, body).await.status,
        204
    );
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move {
                let url = format!("{V1}/secrets");
                bench
                    .call("POST", &url, &bench.admin, json!({}))
                    .await
                    .status
            })
        })
        .collect();
    let mut made = 0;
    for task in tasks {
        made += i32::from(task.await.unwrap() == 201);
    }
    assert_eq!(made, 3);
}

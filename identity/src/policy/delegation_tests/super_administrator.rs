//! The limits of the one who may do everything else.

use super::*;

/// The administrator of everything sees that a tenant's secret exists and may delete it, but never reads it.
#[tokio::test]
async fn super_administrator_reads_no_payload() {
    let bench = Bench::new().await;
    let project = bench.project("tenant").await;
    let owner = bench.member("owner", ("tenant", &project), "member").await;
    let body = json!({"name": "k", "payload": "deep", "payload_content_type": "text/plain"});
    let answer = bench
        .call("POST", "/key-manager/v1/secrets", &owner, body)
        .await;
    assert_eq!(answer.status, 201);
    let url = answer.json()["secret_ref"].as_str().unwrap().to_owned();
    let path = url[url.find("/key-manager").unwrap()..].to_owned();
    let accept = |token: &str| {
        vec![
            ("X-Auth-Token".to_owned(), token.to_owned()),
            ("Accept".to_owned(), "text/plain".to_owned()),
        ]
    };
    for (token, payload) in [(&owner, 200), (&bench.admin, 403)] {
        let headers = accept(token);
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        assert_eq!(
            bench
                .raw("GET", &format!("{path}/payload"), &headers, Vec::new())
                .await
                .status,
            payload
        );
    }
    for (method, sub) in [("GET", "/acl"), ("PUT", "/acl"), ("POST", "/consumers")] {
        let body = if method == "GET" {
            Value::Null
        } else {
            json!({"read": {"project-access": true}, "service": "s", "resource_type": "t", "resource_id": "i"})
        };
        assert_eq!(
            bench
                .call(method, &format!("{path}{sub}"), &bench.admin, body)
                .await
                .status,
            403,
            "{method} {sub}"
        );
    }
    assert_eq!(
        bench
            .call("GET", &path, &bench.admin, Value::Null)
            .await
            .status,
        200,
        "metadata"
    );
    assert_eq!(
        bench
            .call("DELETE", &path, &bench.admin, Value::Null)
            .await
            .status,
        204
    );
}

/// Deletion protection holds for everybody.
#[tokio::test]
async fn immutable_resources_stay() {
    let site = Site::new(None).await;
    let project = site
        .create(
            "project",
            json!({"name": "p", "domain_id": site.north, "options": {"immutable": true}}),
        )
        .await;
    let on = json!({"options": {"immutable": true}});
    site.bench
        .admin(
            "PATCH",
            &format!("{V3}/domains/{}", site.south),
            json!({"domain": on}),
            200,
        )
        .await;
    for (kind, id) in [("project", &project), ("domain", &site.south)] {
        let path = format!("/{kind}s/{id}");
        let change = async |method: &str, body: Value| {
            site.status(&site.bench.admin, method, &path, body).await
        };
        assert_eq!(
            change("PATCH", json!({kind: {"enabled": false}})).await,
            403,
            "{kind}"
        );
        assert_eq!(
            change("PATCH", json!({kind: {"name": "x", "options": {}}})).await,
            403,
            "{kind}"
        );
        assert_eq!(change("DELETE", Value::Null).await, 403, "{kind}");
        let off = json!({kind: {"options": {"immutable": false}, "enabled": false}});
        assert_eq!(change("PATCH", off).await, 200, "{kind}");
        assert_eq!(change("DELETE", Value::Null).await, 204, "{kind}");
    }
}

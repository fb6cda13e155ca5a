//! Policy files of a service that runs.

use super::*;

/// A changed file counts for the next request; one that cannot be used shows to the probe and changes nothing.
#[tokio::test]
async fn policy_files_change_under_a_running_service() {
    use tower::ServiceExt;
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::with(|config| config.policy.dir = Some(dir.path().into())).await;
    let project = bench.project("p").await;
    let member = bench.member("m", ("p", &project), "member").await;
    let listed = async || {
        bench
            .call("GET", &format!("{V3}/users"), &member, Value::Null)
            .await
            .status
    };
    let probe = async || {
        let request = axum::http::Request::get("/readyz")
            .body(axum::body::Body::empty())
            .unwrap();
        let answer = crate::http::admin_router(bench.app.clone())
            .oneshot(request)
            .await
            .unwrap();
        let status = answer.status().as_u16();
        let bytes = axum::body::to_bytes(answer.into_body(), 10_000)
            .await
            .unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    };
    let write = |text: &str| {
        std::fs::write(dir.path().join("identity.yaml"), text).unwrap();
        bench.app.identity_policy.refresh();
    };
    assert_eq!(listed().await, 403);
    write("\"identity:list_users\": \"role:member\"");
    assert_eq!((listed().await, probe().await), (200, (200, "ok".into())));
    write("\"identity:list_users\": \"role:reader role:member\"");
    let (status, text) = probe().await;
    assert_eq!((listed().await, status), (200, 200));
    assert!(
        text.starts_with("degraded:") && text.contains("rule identity:list_users"),
        "{text}"
    );
    write("");
    assert_eq!((listed().await, probe().await.1), (403, "ok".into()));
}

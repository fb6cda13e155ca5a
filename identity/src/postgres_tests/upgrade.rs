//! Replicas of several releases on one server.

use serde_json::{Value, json};

use super::server::{Server, kek};
use crate::{
    store::{Place, Store, StoreError, StoreResult, upgrade::Schema},
    testing::Bench,
};

/// Starts as the program with this schema does.
async fn open(server: &Server, schema: &Schema) -> StoreResult<Store> {
    let Place::Postgres(url) = server.place() else {
        panic!("no server");
    };
    Store::connect_as(&url, schema).await
}

async fn readiness(bench: &Bench) -> (u16, String) {
    use tower::ServiceExt;
    let request = axum::http::Request::get("/readyz")
        .body(axum::body::Body::empty())
        .unwrap();
    let router = crate::http::admin_router(std::sync::Arc::clone(&bench.app));
    let answer = router.oneshot(request).await.unwrap();
    let status = answer.status().as_u16();
    let text = axum::body::to_bytes(answer.into_body(), 4096)
        .await
        .unwrap();
    (status, String::from_utf8_lossy(&text).into_owned())
}

/// One after the other, for the server takes its time to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_later_release_comes_beside_an_earlier_one() {
    let server = Server::start();
    let bench = server.bench().await;
    let user = bench.user("u").await;
    bench.app.housekeeping().await.unwrap();
    let admin = bench.admin.clone();

    // One that only adds: the earlier one goes on beside it, also with statements that it had prepared, and can be started anew.
    let text = "ALTER TABLE users ADD COLUMN later TEXT; ALTER TABLE roles ADD COLUMN later TEXT;
                ALTER TABLE projects ADD COLUMN later TEXT";
    let adds = Schema::later(9_001, text, 0);
    let path = format!("/identity/v3/users/{user}");
    let edit = async || {
        let body = json!({"user": {"description": "d"}});
        bench.call("PATCH", &path, &admin, body).await.status
    };
    let lists = ["users", "roles", "projects"].map(|list| format!("/identity/v3/{list}"));
    let read = async || {
        for path in lists.iter().cycle().take(60) {
            bench.admin("GET", path, Value::Null, 200).await;
        }
    };
    read().await;
    assert_eq!(edit().await, 200);
    let later = open(&server, &adds).await.unwrap();
    read().await;
    // A change cannot be tried again in its midst.
    let first = edit().await;
    assert!(matches!(first, 200 | 503), "{first}");
    assert_eq!(edit().await, 200);
    bench.user("beside").await;
    let again = server.replica(&bench, kek()).await;
    again.user("again").await;
    again.app.housekeeping().await.unwrap();
    let names = |table: Vec<(String, Vec<String>)>| -> Vec<String> {
        table.into_iter().map(|(name, _)| name).collect()
    };
    let both = names(bench.app.store.replicas().await.unwrap());
    assert_eq!(both.len(), 2);

    // One that changes what the earlier ones use: not while they are there, and nothing is changed.
    let text = "ALTER TABLE users RENAME COLUMN extra TO more";
    let changes = Schema::later(9_002, text, 9_002);
    match open(&server, &changes).await {
        Err(StoreError::OlderReplicas(named)) => assert_eq!(named, both),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it changed the records under two replicas"),
    }
    again.user("still").await;

    // One ends, and is forgotten at once; the other one stands still for so long that it counts as gone.
    again.app.leave().await.unwrap();
    again.app.store.close().await;
    server.sql("UPDATE replicas SET seen = 0");
    let latest = open(&server, &changes).await.unwrap();

    // If that one comes back, it is no longer asked, and changes nothing.
    assert_eq!(bench.status_of(&admin).await, 503);
    assert_eq!(readiness(&bench).await, (503, "ReleaseOutdated".into()));
    let body = json!({"user": {"original_password": "u-pw", "password": "other-pw"}});
    let path = format!("{path}/password");
    let hash = || server.sql("SELECT password_hash FROM users WHERE name = 'u'");
    let before = hash();
    let changed = bench.call("POST", &path, "", body).await;
    assert_eq!(changed.status, 503);
    assert_eq!(hash(), before);
    let list = bench
        .call("GET", "/identity/v3/users", &admin, Value::Null)
        .await;
    assert_eq!(list.status, 503);
    assert!(matches!(
        bench.app.housekeeping().await,
        Err(StoreError::Outdated { .. })
    ));
    let change = bench.app.store.change_identity().await.unwrap();
    assert!(matches!(
        bench.app.store.commit(change).await,
        Err(StoreError::Outdated { needs: 9_002, .. })
    ));

    // Nor is an earlier one started, the first of the later ones neither.
    for schema in [&Schema::ours(), &adds] {
        match open(&server, schema).await {
            Err(error @ StoreError::Outdated { needs: 9_002, .. }) => {
                assert!(error.to_string().contains("a later release"), "{error}");
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("an earlier release on later records"),
        }
    }
    open(&server, &changes).await.unwrap().close().await;
    for store in [&later, &latest, &bench.app.store] {
        store.close().await;
    }
}

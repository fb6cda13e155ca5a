//! What changes while the hash of a new password is computed is not lost.

use serde_json::{Value, json};

use super::{V3, admin};
use crate::testing::{Answer, Bench};

async fn user(bench: &Bench) -> String {
    let user = bench.user("u").await;
    let project = bench.project("p").await;
    bench.grant(&project, &user, "member").await;
    user
}

/// A user changes its own password, and `change` happens once that is hashed.
async fn own_change(bench: &Bench, user: &str, change: impl AsyncFnOnce()) -> Answer {
    let path = format!("{V3}/users/{user}/password");
    let body = json!({"user": {"original_password": "u-pw", "password": "new-pw"}});
    let changing = bench.call("POST", &path, "", body);
    bench.app.password_pause.amid(changing, change).await
}

async fn patch(bench: &Bench, user: &str, set: Value) {
    let path = format!("users/{user}");
    admin(bench, "PATCH", &path, json!({ "user": set }), 200).await;
}

async fn shown(bench: &Bench, user: &str) -> Value {
    let path = format!("users/{user}");
    admin(bench, "GET", &path, Value::Null, 200).await["user"].clone()
}

#[tokio::test]
async fn nobody_enables_himself_again_by_a_new_password() {
    let bench = Bench::new().await;
    let user = user(&bench).await;
    let disable = async || patch(&bench, &user, json!({"enabled": false})).await;
    assert_eq!(own_change(&bench, &user, disable).await.status, 401);
    assert_eq!(shown(&bench, &user).await["enabled"], false);

    patch(&bench, &user, json!({"enabled": true})).await;
    let quiet = own_change(&bench, &user, async || {}).await;
    assert_eq!(quiet.status, 204);
    assert!(bench.login("u", "new-pw", Some("p")).await.is_ok());
}

#[tokio::test]
async fn a_new_password_takes_nothing_back() {
    let bench = Bench::new().await;
    let user = user(&bench).await;
    let path = format!("{V3}/users/{user}");
    let body = json!({"user": {"password": "given-pw", "email": "u@example.org"}});
    let set = || bench.call("PATCH", &path, &bench.admin, body.clone());
    let change = async || {
        let set = json!({"enabled": false, "name": "v", "description": "left"});
        patch(&bench, &user, set).await;
    };
    let answer = bench.app.password_pause.amid(set(), change).await;
    assert_eq!(answer.status, 200);
    let now = shown(&bench, &user).await;
    for (name, value) in [
        ("enabled", json!(false)),
        ("name", json!("v")),
        ("description", json!("left")),
        ("email", json!("u@example.org")),
    ] {
        assert_eq!(now[name], value, "{now}");
    }
    let delete = async || {
        admin(&bench, "DELETE", &format!("users/{user}"), Value::Null, 204).await;
    };
    let answer = bench.app.password_pause.amid(set(), delete).await;
    assert_eq!(answer.status, 404);
}

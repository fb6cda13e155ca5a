//! Passwords and accounts through the API.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::{PasswordRules, account_key};
use crate::testing::Bench;

const USERS: &str = "/identity/v3/users";

async fn bench(rules: PasswordRules) -> Bench {
    Bench::with(|config| config.passwords = rules).await
}

async fn patch(bench: &Bench, user: &str, body: Value) {
    bench
        .admin(
            "PATCH",
            &format!("{USERS}/{user}"),
            json!({ "user": body }),
            200,
        )
        .await;
}

/// Status of a user's change of its own password.
async fn change(bench: &Bench, user: &str, old: &str, new: &str) -> (u16, String) {
    let body = json!({"user": {"original_password": old, "password": new}});
    let answer = bench
        .call("POST", &format!("{USERS}/{user}/password"), "", body)
        .await;
    (
        answer.status,
        String::from_utf8_lossy(&answer.bytes).into_owned(),
    )
}

/// Until when a user is locked out, once that is stored.
async fn stored_lock(bench: &Bench, user: &str) -> i64 {
    // Written beside the answer.
    loop {
        if let Some(until) = bench.app.store.locked_until(user).await.unwrap() {
            return until;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn locked_out_after_failures_and_let_in_again_by_an_administrator() {
    let bench = bench(PasswordRules {
        lockout_failures: Some(3),
        lockout_secs: 600,
        ..PasswordRules::default()
    })
    .await;
    let user = bench.user("u").await;
    let other = bench.user("other").await;
    for _ in 0..2 {
        assert_eq!(bench.login("u", "wrong", None).await, Err(401));
    }
    assert!(
        bench.login("u", "u-pw", None).await.is_ok(),
        "a success begins the count anew"
    );
    for _ in 0..3 {
        assert_eq!(bench.login("u", "wrong", None).await, Err(401));
    }
    assert_eq!(bench.login("u", "u-pw", None).await, Err(401), "locked out");
    assert_eq!(
        change(&bench, &user, "u-pw", "new").await.0,
        401,
        "here too"
    );
    assert!(
        bench.login("other", "other-pw", None).await.is_ok(),
        "nobody else is"
    );
    // The record holds where the count does not: after a restart, in another replica.
    assert!(stored_lock(&bench, &user).await > crate::time::now_us());
    bench.app.failures.clear(&user);
    assert_eq!(bench.login("u", "u-pw", None).await, Err(401));
    patch(&bench, &user, json!({"enabled": true})).await;
    assert!(bench.login("u", "u-pw", None).await.is_ok());
    // An option exempts, also from a lock-out that is there.
    for _ in 0..3 {
        let _ = bench.login("other", "wrong", None).await;
    }
    assert_eq!(bench.login("other", "other-pw", None).await, Err(401));
    patch(
        &bench,
        &other,
        json!({"options": {"ignore_lockout_failure_attempts": true}}),
    )
    .await;
    assert!(bench.login("other", "other-pw", None).await.is_ok());
}

#[tokio::test]
async fn failed_logins_of_nobody_are_not_remembered() {
    let bench = bench(PasswordRules {
        lockout_failures: Some(3),
        lockout_secs: 600,
        ..PasswordRules::default()
    })
    .await;
    bench.user("u").await;
    for name in 0..200 {
        assert_eq!(
            bench.login(&format!("nobody{name}"), "wrong", None).await,
            Err(401)
        );
    }
    assert!(bench.app.failures.is_empty());
    let _ = bench.login("u", "wrong", None).await;
    assert_eq!(bench.app.failures.len(), 1);
    let (known, unknown) = (
        login_text(&bench, "u").await,
        login_text(&bench, "nobody").await,
    );
    assert_eq!(known, unknown, "the answer does not say who exists");
}

async fn login_text(bench: &Bench, name: &str) -> (u16, Vec<u8>) {
    let user = json!({"name": name, "domain": {"id": "default"}, "password": "wrong"});
    let answer = bench
        .auth(json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}))
        .await;
    (answer.status, answer.bytes)
}

#[tokio::test]
async fn strength_history_and_the_users_own_change() {
    let rules = PasswordRules {
        history: 2,
        ..PasswordRules::default()
    };
    let bench = bench(
        rules
            .with_strength(r"[a-z]+-pw\d*$", Some("letters and -pw"))
            .unwrap(),
    )
    .await;
    let user = bench.user("u").await;
    let weak = json!({"user": {"name": "w", "domain_id": "default", "password": "WEAK"}});
    let answer = bench.call("POST", USERS, &bench.admin, weak).await;
    assert_eq!(answer.status, 400);
    assert!(String::from_utf8_lossy(&answer.bytes).contains("letters and -pw"));
    let (status, text) = change(&bench, &user, "u-pw", "u-pw").await;
    assert_eq!(status, 400);
    assert!(text.contains("must differ from the last 2"), "{text}");
    assert_eq!(change(&bench, &user, "u-pw", "u-pw1").await.0, 204);
    assert_eq!(
        change(&bench, &user, "u-pw1", "u-pw").await.0,
        400,
        "one of the last two"
    );
    assert_eq!(change(&bench, &user, "u-pw1", "u-pw2").await.0, 204);
    assert_eq!(
        change(&bench, &user, "u-pw2", "u-pw").await.0,
        204,
        "long enough ago"
    );
    assert_eq!(change(&bench, &user, "u-pw", "X").await.0, 400, "too weak");
    patch(&bench, &user, json!({"options": {"lock_password": true}})).await;
    let (status, text) = change(&bench, &user, "u-pw", "u-pw9").await;
    assert_eq!(status, 400);
    assert!(
        text.contains("only be changed by an administrator"),
        "{text}"
    );
    assert!(bench.login("u", "u-pw", None).await.is_ok());
}

#[tokio::test]
async fn a_password_that_is_over_is_good_for_its_own_change_only() {
    let bench = bench(PasswordRules {
        change_upon_first_use: true,
        expires_days: Some(30),
        ..PasswordRules::default()
    })
    .await;
    let user = bench.user("u").await;
    let shown = bench
        .admin("GET", &format!("{USERS}/{user}"), Value::Null, 200)
        .await;
    assert!(shown["user"]["password_expires_at"].is_string(), "{shown}");
    assert_eq!(bench.login("u", "u-pw", None).await, Err(401));
    assert_eq!(
        login_text(&bench, "u").await,
        login_text(&bench, "nobody").await,
        "only the right password learns why"
    );
    assert_eq!(change(&bench, &user, "u-pw", "mine").await.0, 204);
    let token = bench.login("u", "mine", None).await.unwrap();
    let headers = [
        ("X-Auth-Token", token.as_str()),
        ("X-Subject-Token", token.as_str()),
    ];
    let told = bench
        .raw("GET", "/identity/v3/auth/tokens", &headers, Vec::new())
        .await
        .json();
    assert!(
        told["token"]["user"]["password_expires_at"]
            .as_str()
            .unwrap()
            > "2020"
    );
    patch(&bench, &user, json!({"password": "given"})).await;
    assert_eq!(
        bench.login("u", "given", None).await,
        Err(401),
        "set by another"
    );
    patch(
        &bench,
        &user,
        json!({"options": {"ignore_password_expiry": true}}),
    )
    .await;
    assert!(bench.login("u", "given", None).await.is_ok());
}

#[tokio::test]
async fn one_account_is_tried_so_often_and_no_oftener() {
    let bench = Bench::with(|config| config.login_rate = 1).await;
    bench.user("u").await;
    bench.user("v").await;
    let mut statuses = Vec::new();
    for number in 0..15 {
        let user = json!({"name": "u", "password": format!("guess{number}"), "domain": {"id": "default", "spelling": number}});
        let answer = bench.auth(json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}})).await;
        if answer.status == 429 {
            assert_eq!(answer.header("Retry-After"), "5");
        }
        statuses.push(answer.status);
    }
    assert_eq!(statuses[..10], [401; 10]);
    assert!(statuses[10..].contains(&429), "{statuses:?}");
    assert!(
        bench.login("v", "v-pw", None).await.is_ok(),
        "an account beside it is not touched"
    );
    assert_ne!(account_key("u"), account_key("v"));
}

/// SQLite's page limit stands for the disk: what does not fit is 503, nothing else breaks, and room heals it.
#[tokio::test]
async fn a_full_disk_is_told_and_passes() {
    let bench = Bench::new().await;
    let body = |name: String| json!({"user": {"name": name, "domain_id": "default", "description": "d".repeat(3000)}});
    let secret = json!({"payload": "p".repeat(9000), "payload_content_type": "text/plain"});
    let mut made = Vec::new();
    for round in 0..3 {
        bench.app.store.limit_pages(1).await.unwrap();
        let full = loop {
            let name = format!("u{}", made.len());
            let answer = bench.call("POST", USERS, &bench.admin, body(name)).await;
            if answer.status != 201 {
                break answer;
            }
            made.push(crate::testing::id(&answer.json()["user"]));
            assert!(made.len() < 1000);
        };
        assert_eq!((full.status, full.header("Retry-After")), (503, "5"));
        assert_eq!(
            bench
                .call("GET", USERS, &bench.admin, Value::Null)
                .await
                .status,
            200,
            "reading goes on"
        );
        // The failure cost the connection that had the limit: there is room again.
        let name = format!("later{round}");
        assert_eq!(
            bench
                .call("POST", USERS, &bench.admin, body(name))
                .await
                .status,
            201
        );
        bench.app.store.limit_pages(0).await.unwrap();
        let secrets = "/key-manager/v1/secrets";
        assert_eq!(
            bench
                .call("POST", secrets, &bench.admin, secret.clone())
                .await
                .status,
            503
        );
        assert_eq!(
            bench
                .call("POST", secrets, &bench.admin, secret.clone())
                .await
                .status,
            201
        );
    }
    for id in made {
        bench
            .admin("GET", &format!("{USERS}/{id}"), Value::Null, 200)
            .await;
    }
}

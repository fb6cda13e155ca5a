//! One-time passwords, and users that must show more than one thing.

use serde_json::{Value, json};

use super::V3;
use crate::{
    identity::auth::code_now,
    testing::{Answer, Bench},
};

const SEED: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";

async fn with_seed(bench: &Bench, name: &str) -> String {
    let user = bench.user(name).await;
    let body = json!({"credential": {"type": "totp", "blob": SEED, "user_id": user}});
    bench
        .admin("POST", &format!("{V3}/credentials"), body, 201)
        .await;
    user
}

fn named(name: &str, with: (&str, &str)) -> Value {
    json!({"user": {"name": name, "domain": {"id": "default"}, with.0: with.1}})
}

/// A login by what `identity` holds.
async fn log_in(bench: &Bench, identity: Value, receipt: &str) -> Answer {
    let methods: Vec<&String> = identity.as_object().unwrap().keys().collect();
    let mut whole = identity.clone();
    whole["methods"] = json!(methods);
    let body = json!({"auth": {"identity": whole}})
        .to_string()
        .into_bytes();
    let headers = [("Openstack-Auth-Receipt", receipt)];
    bench
        .raw("POST", &format!("{V3}/auth/tokens"), &headers, body)
        .await
}

#[tokio::test]
async fn one_time_passwords() {
    let bench = Bench::with(|config| {
        config.passwords.lockout_failures = Some(3);
        config.passwords.lockout_secs = 600;
    })
    .await;
    with_seed(&bench, "u").await;
    bench.user("v").await;
    let totp = async |user: &str, code: &str| {
        log_in(&bench, json!({"totp": named(user, ("passcode", code))}), "").await
    };
    let answer = totp("u", &code_now(SEED)).await;
    assert_eq!(answer.status, 201, "{}", answer.json());
    assert_eq!(answer.json()["token"]["methods"], json!(["totp"]));
    let token = answer.header("X-Subject-Token").to_owned();
    assert_eq!(bench.status_of(&token).await, 200);
    for (user, code) in [
        ("v", code_now(SEED)),
        ("nobody", code_now(SEED)),
        ("u", "00000".into()),
    ] {
        assert_eq!(totp(user, &code).await.status, 401, "{user}");
    }
    assert_eq!(log_in(&bench, json!({"totp": {}}), "").await.status, 400);
    // Of a user with an empty seed neither the code of an empty key nor what is no text is right.
    let empty = bench.user("w").await;
    let body = json!({"credential": {"type": "totp", "blob": "", "user_id": empty}});
    bench
        .admin("POST", &format!("{V3}/credentials"), body, 201)
        .await;
    for passcode in [json!(code_now("")), json!(""), json!(5), json!(null)] {
        let user = json!({"name": "w", "domain": {"id": "default"}, "passcode": passcode});
        let odd = log_in(&bench, json!({"totp": {"user": user}}), "").await;
        assert_eq!(odd.status, 401, "{passcode}");
    }
    // The password does not set back the count of wrong codes: six digits are soon tried.
    for _ in 0..2 {
        let both = json!({"password": named("u", ("password", "u-pw")), "totp": named("u", ("passcode", "x"))});
        assert_eq!(log_in(&bench, both, "").await.status, 401);
    }
    assert_eq!(totp("u", &code_now(SEED)).await.status, 401);
}

#[tokio::test]
async fn rules_ask_for_more_and_receipts_keep_what_was_shown() {
    let bench = Bench::new().await;
    let user = with_seed(&bench, "u").await;
    let set = async |options: Value| {
        let body = json!({"user": {"options": options}});
        bench
            .admin("PATCH", &format!("{V3}/users/{user}"), body, 200)
            .await
    };
    let password = || json!({"password": named("u", ("password", "u-pw"))});
    for bad in [
        json!([[]]),
        json!([["password", "password"]]),
        json!([["totp"], ["totp"]]),
        json!([["totp", 5]]),
        json!(["totp"]),
    ] {
        let body = json!({"user": {"options": {"multi_factor_auth_rules": bad}}});
        bench
            .admin("PATCH", &format!("{V3}/users/{user}"), body, 400)
            .await;
    }
    let before = log_in(&bench, password(), "")
        .await
        .header("X-Subject-Token")
        .to_owned();
    set(json!({"multi_factor_auth_rules": [["password", "totp"], ["password", "nosuch", "token"]], "multi_factor_auth_enabled": true})).await;

    let part = log_in(&bench, password(), "").await;
    assert_eq!(part.status, 401);
    let body = part.json();
    assert_eq!(body["receipt"]["methods"], json!(["password"]));
    assert_eq!(body["receipt"]["user"]["domain"]["name"], "Default");
    assert_eq!(
        body["required_auth_methods"],
        json!([["password", "totp"], ["password", "token"]])
    );
    assert_eq!(part.header("X-Subject-Token"), "");
    assert_eq!(part.header("WWW-Authenticate"), "");
    let receipt = part.header("Openstack-Auth-Receipt").to_owned();
    assert_eq!(bench.status_of(&receipt).await, 404);
    // A wrong password gets no receipt.
    let wrong = log_in(
        &bench,
        json!({"password": named("u", ("password", "x"))}),
        "",
    )
    .await;
    assert_eq!(
        (wrong.status, wrong.header("Openstack-Auth-Receipt")),
        (401, "")
    );

    let code = || json!({"totp": named("u", ("passcode", &code_now(SEED)))});
    let rest = log_in(&bench, code(), &receipt).await;
    assert_eq!(rest.status, 201, "{}", rest.json());
    assert_eq!(rest.json()["token"]["methods"], json!(["totp", "password"]));
    assert_eq!(log_in(&bench, code(), "").await.status, 401);
    let both = json!({"password": password()["password"], "totp": code()["totp"]});
    let whole = log_in(&bench, both, "").await;
    assert_eq!(whole.status, 201);
    // The methods of a token stay with those made of it.
    let token = whole.header("X-Subject-Token").to_owned();
    assert_eq!(
        log_in(&bench, json!({"token": {"id": token}}), "")
            .await
            .status,
        201
    );
    assert_eq!(
        log_in(&bench, json!({"token": {"id": before}}), "")
            .await
            .status,
        201,
        "password and token"
    );

    // Another user's receipt, rubbish, a token, and one from before a new password.
    with_seed(&bench, "v").await;
    let other = json!({"totp": named("v", ("passcode", &code_now(SEED)))});
    assert_eq!(log_in(&bench, other, &receipt).await.status, 401);
    for bad in ["rubbish", token.as_str()] {
        assert_eq!(log_in(&bench, code(), bad).await.status, 401);
    }
    bench
        .admin(
            "PATCH",
            &format!("{V3}/users/{user}"),
            json!({"user": {"password": "u-pw"}}),
            200,
        )
        .await;
    assert_eq!(log_in(&bench, code(), &receipt).await.status, 401);

    // Switched off, or of methods that there are none of.
    set(json!({"multi_factor_auth_enabled": false})).await;
    assert_eq!(log_in(&bench, password(), "").await.status, 201);
    set(json!({"multi_factor_auth_enabled": null, "multi_factor_auth_rules": [["nosuch"]]})).await;
    assert_eq!(log_in(&bench, password(), "").await.status, 201);
}

//! What ends all tokens of a user ends those too that are asked for while it is on its way: the change is whole, and nobody sees it
//! yet.

use serde_json::{Value, json};

use super::{V3, admin};
use crate::testing::{Answer, Bench};

/// A way to end all tokens of a user.
#[derive(Debug, Clone, Copy)]
enum End {
    OwnPassword,
    PasswordByOthers,
    Disabled,
}

const ENDS: [End; 3] = [End::OwnPassword, End::PasswordByOthers, End::Disabled];

async fn end(bench: &Bench, user: &str, how: End) -> Answer {
    let path = format!("{V3}/users/{user}");
    let patch = |set: Value| bench.call("PATCH", &path, &bench.admin, json!({ "user": set }));
    match how {
        End::OwnPassword => {
            let path = format!("{path}/password");
            let body = json!({"user": {"original_password": "u-pw", "password": "new-pw"}});
            bench.call("POST", &path, "", body).await
        }
        End::PasswordByOthers => patch(json!({"password": "new-pw"})).await,
        End::Disabled => patch(json!({"enabled": false})).await,
    }
}

/// The token of a login with this, which has to succeed.
async fn issued(bench: &Bench, auth: Value) -> String {
    let answer = bench.auth(json!({ "auth": auth })).await;
    assert_eq!(answer.status, 201, "{}", answer.json());
    answer.header("X-Subject-Token").to_owned()
}

#[tokio::test]
async fn a_token_asked_for_before_the_end_is_seen_ends_too() {
    for how in ENDS {
        let bench = Bench::new().await;
        let project = bench.project("p").await;
        let token = bench.member("u", ("p", &project), "member").await;
        let user = bench.app.store.user_by_name("default", "u").await;
        let user = user.unwrap().unwrap().id;
        let trustee = bench.user("v").await;
        let trust = json!({"trust": {"trustor_user_id": user, "trustee_user_id": trustee, "impersonation": false,
            "project_id": project, "roles": [{"name": "member"}]}});
        let path = format!("{V3}/OS-TRUST/trusts");
        let trust = bench.call("POST", &path, &token, trust).await.json();

        let mut made = Vec::new();
        let asked = async || {
            let scope = json!({"project": {"id": project}});
            let password = |user: &str, password: &str| json!({"methods": ["password"], "password": {"user": {"id": user, "password": password}}});
            let exchanged = json!({"methods": ["token"], "token": {"id": token}});
            for (identity, scope) in [
                (password(&user, "u-pw"), scope.clone()),
                (exchanged, scope),
                (
                    password(&trustee, "v-pw"),
                    json!({"OS-TRUST:trust": {"id": trust["trust"]["id"]}}),
                ),
            ] {
                let auth = json!({"identity": identity, "scope": scope});
                let text = issued(&bench, auth).await;
                assert_eq!(bench.status_of(&text).await, 200, "{how:?}");
                made.push(text);
            }
        };
        let ended = end(&bench, &user, how);
        let ended = bench.app.store.commit_pause.amid(ended, asked).await;
        assert!(matches!(ended.status, 200 | 204), "{how:?}");
        made.push(token.clone());
        for (number, text) in made.iter().enumerate() {
            let status = bench.status_of(text).await;
            assert!(
                matches!(status, 403 | 404),
                "{how:?}, token {number}: {status}"
            );
        }
        if !matches!(how, End::Disabled) {
            let again = bench.login("u", "new-pw", Some("p")).await.unwrap();
            assert_eq!(bench.status_of(&again).await, 200);
        }
    }
}

/// What the old password proved is not enough together with what comes after the new one.
#[tokio::test]
async fn a_receipt_of_before_ends_too() {
    let bench = Bench::new().await;
    let user = bench.user("u").await;
    let path = format!("users/{user}");
    let rules = json!({"user": {"options": {"multi_factor_auth_rules": [["password", "totp"]]}}});
    admin(&bench, "PATCH", &path, rules, 200).await;
    let seed = json!({"credential": {"type": "totp", "blob": "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "user_id": user}});
    admin(&bench, "POST", "credentials", seed, 201).await;
    let auth = |identity: Value| json!({"auth": {"identity": identity}});
    let password =
        json!({"methods": ["password"], "password": {"user": {"id": user, "password": "u-pw"}}});
    let mut receipt = String::new();
    let first = async || {
        let answer = bench.auth(auth(password.clone())).await;
        assert_eq!(answer.status, 401);
        receipt = answer.header("Openstack-Auth-Receipt").to_owned();
    };
    let ended = end(&bench, &user, End::PasswordByOthers);
    let ended = bench.app.store.commit_pause.amid(ended, first).await;
    assert_eq!(ended.status, 200);
    let code = crate::identity::auth::code_now("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
    let totp = json!({"methods": ["totp"], "totp": {"user": {"id": user, "passcode": code}}});
    let headers = [
        ("Content-Type", "application/json"),
        ("Openstack-Auth-Receipt", receipt.as_str()),
    ];
    let body = auth(totp).to_string().into_bytes();
    let path = format!("{V3}/auth/tokens");
    let answer = bench.raw("POST", &path, &headers, body).await;
    assert_eq!(answer.status, 401);
    assert!(answer.header("X-Subject-Token").is_empty());
}

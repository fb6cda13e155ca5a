//! Tokens that are none, or none any more: of nobody's key, cut, altered, of another service's key, ended, over. Whatever is shown,
//! the answer is the same, and no way takes one that another refuses.

use serde_json::{Value, json};

use super::V3;
use crate::{testing::Bench, time::now_us, token::TokenPayload};

const SECOND: i64 = 1_000_000;
/// Over for longer than anybody is still shown a token.
const LONG: i64 = 3 * 24 * 3600 * SECOND;

/// Statuses of a token as the caller's own, as the one that is asked about (`GET`, `HEAD`, `DELETE`), and as what a login is made with.
async fn statuses(bench: &Bench, token: &str) -> [u16; 5] {
    let path = format!("{V3}/auth/tokens");
    let subject = [
        ("X-Auth-Token", bench.admin.as_str()),
        ("X-Subject-Token", token),
    ];
    let asked = async |method: &str| bench.raw(method, &path, &subject, Vec::new()).await.status;
    let projects = format!("{V3}/auth/projects");
    let own = bench.call("GET", &projects, token, Value::Null);
    let login = json!({"auth": {"identity": {"methods": ["token"], "token": {"id": token}}}});
    [
        own.await.status,
        asked("GET").await,
        asked("HEAD").await,
        bench.auth(login).await.status,
        // Last, for it ends a token that is one.
        asked("DELETE").await,
    ]
}

const NONE: [u16; 5] = [401, 404, 404, 404, 404];

/// The token made to be over at this time, sealed by the service's own key.
fn over_at(bench: &Bench, token: &str, expires_at: i64) -> String {
    let keys = bench.app.token_keys();
    let payload = keys.open(token).unwrap();
    keys.seal(&TokenPayload {
        expires_at,
        ..payload
    })
    .unwrap()
}

#[tokio::test]
async fn whatever_is_no_token_any_more_is_refused_the_same_way() {
    let bench = Bench::new().await;
    let elsewhere = Bench::new().await;
    let project = bench.project("p").await;
    let token = bench.member("u", ("p", &project), "member").await;
    let log_in = async || bench.login("u", "u-pw", Some("p")).await.unwrap();

    let mut altered = token.clone().into_bytes();
    let middle = altered.len() / 2;
    altered[middle] = if altered[middle] == b'A' { b'B' } else { b'A' };
    let payload = bench.app.token_keys().open(&token).unwrap();
    let foreign = elsewhere.app.token_keys().seal(&payload).unwrap();
    let cut = &token[..token.len() - 1];
    for (what, text) in [
        ("made up", "gAAAAABmade-up"),
        ("cut", cut),
        ("half", &token[..middle]),
        ("longer", &format!("{token}A")),
        ("altered", std::str::from_utf8(&altered).unwrap()),
        ("of another service's key", &foreign),
    ] {
        assert_eq!(statuses(&bench, text).await, NONE, "{what}");
    }
    // None of them took the place of the true one, which the last question ends; then it is shown again.
    assert_eq!(statuses(&bench, &token).await, [200, 200, 200, 201, 204]);
    assert_eq!(statuses(&bench, &token).await, NONE, "shown again");

    // Over, by a second and by days; the service's own key sealed it.
    let token = log_in().await;
    let just = over_at(&bench, &token, now_us() - SECOND);
    let long = over_at(&bench, &token, now_us() - LONG);
    for (what, text) in [("a second ago", &just), ("days ago", &long)] {
        assert_eq!(statuses(&bench, text).await, NONE, "over {what}");
    }
    // Services that work on for somebody may ask about one that has just ended, not about one of long ago.
    let path = format!("{V3}/auth/tokens?allow_expired=1");
    for (text, status) in [(&just, 200), (&long, 404)] {
        let headers = [
            ("X-Auth-Token", bench.admin.as_str()),
            ("X-Subject-Token", text),
        ];
        let answer = bench.raw("GET", &path, &headers, Vec::new()).await;
        assert_eq!(answer.status, status, "{}", answer.json());
    }

    // One that is known to be good ends at its time, whatever is remembered of it, and nothing made of it lives longer.
    let until = now_us() + 2 * SECOND;
    let soon = over_at(&bench, &token, until);
    let login = json!({"auth": {"identity": {"methods": ["token"], "token": {"id": soon}}}});
    let answer = bench.auth(login).await;
    if answer.status == 201 {
        let made = answer.header("X-Subject-Token");
        assert_eq!(bench.app.token_keys().open(made).unwrap().expires_at, until);
    }
    let mut before_its_time = 0;
    loop {
        let asked = now_us();
        match bench.status_of(&soon).await {
            200 => before_its_time += 1,
            404 => break assert!(now_us() >= until, "over too early"),
            other => panic!("{other}"),
        }
        assert!(asked < until, "good after its time");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    eprintln!("good {before_its_time} times before its time");
}

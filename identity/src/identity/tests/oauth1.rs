//! OAuth 1.0a: from a consumer to a token, and what ends it.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{V3, column};
use crate::{
    crypto::mac::hmac_sha1,
    identity::ec2::quoted,
    testing::{Answer, Bench, HOST, id},
    time::now_us,
};

const OAUTH: &str = "/identity/v3/OS-OAUTH1";

/// A key with its secret.
#[derive(Clone, Default)]
pub(super) struct Pair {
    pub(super) key: String,
    pub(super) secret: String,
}

/// The header that a client signs a POST with, as RFC 5849 says.
pub(super) fn header(
    path: &str,
    consumer: &Pair,
    token: Option<&Pair>,
    more: &[(&str, &str)],
) -> String {
    let now = (now_us() / 1_000_000).to_string();
    let mut parameters = vec![
        ("oauth_consumer_key", consumer.key.as_str()),
        ("oauth_nonce", "7d8f3e4a"),
        ("oauth_signature_method", "HMAC-SHA1"),
        ("oauth_timestamp", &now),
        ("oauth_version", "1.0"),
    ];
    parameters.extend(token.map(|token| ("oauth_token", token.key.as_str())));
    for (name, value) in more {
        parameters.retain(|(known, _)| known != name);
        parameters.push((name, value));
    }
    parameters.sort();
    let joined: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("{name}={}", quoted(value)))
        .collect();
    let base = format!(
        "POST&{}&{}",
        quoted(&format!("https://{HOST}{path}")),
        quoted(&joined.join("&"))
    );
    let key = format!(
        "{}&{}",
        consumer.secret,
        token.map_or("", |token| &token.secret)
    );
    let signature = STANDARD.encode(hmac_sha1(key.as_bytes(), base.as_bytes()));
    let shown: Vec<String> = parameters
        .iter()
        .chain([&("oauth_signature", signature.as_str())])
        .map(|(name, value)| format!("{name}=\"{}\"", quoted(value)))
        .collect();
    format!("OAuth {}", shown.join(", "))
}

/// The pair in an answer that is a form.
pub(super) fn pair(answer: &Answer) -> Pair {
    let text = String::from_utf8(answer.bytes.clone()).unwrap();
    let value = |name: &str| {
        let found = text
            .split('&')
            .find_map(|part| part.strip_prefix(&format!("{name}=")));
        found
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .to_owned()
    };
    Pair {
        key: value("oauth_token"),
        secret: value("oauth_token_secret"),
    }
}

struct Ground {
    bench: Bench,
    project: String,
    consumer: Pair,
}

impl Ground {
    async fn new() -> Self {
        let bench = Bench::new().await;
        let project = bench.project("p").await;
        let me = bench
            .admin("GET", &format!("{V3}/users?name=admin"), Value::Null, 200)
            .await;
        bench.grant(&project, &id(&me["users"][0]), "admin").await;
        let made = bench
            .admin(
                "POST",
                &format!("{OAUTH}/consumers"),
                json!({"consumer": {"description": "backups"}}),
                201,
            )
            .await;
        let consumer = Pair {
            key: id(&made["consumer"]),
            secret: made["consumer"]["secret"].as_str().unwrap().to_owned(),
        };
        Self {
            bench,
            project,
            consumer,
        }
    }

    async fn post(&self, path: &str, authorization: &str, project: &str, body: Value) -> Answer {
        let headers = [
            ("Authorization", authorization),
            ("Requested-Project-Id", project),
            ("Content-Type", "application/json"),
        ];
        let bytes = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        self.bench.raw("POST", path, &headers, bytes).await
    }

    async fn request(&self) -> Pair {
        let path = format!("{OAUTH}/request_token");
        let signed = header(&path, &self.consumer, None, &[("oauth_callback", "oob")]);
        let answer = self.post(&path, &signed, &self.project, Value::Null).await;
        assert_eq!(answer.status, 201, "{}", answer.json());
        assert_eq!(
            answer.header("Content-Type"),
            "application/x-www-form-urlencoded"
        );
        pair(&answer)
    }

    async fn authorize(&self, request: &Pair, token: &str, roles: Value) -> Answer {
        let path = format!("{OAUTH}/authorize/{}", request.key);
        self.bench
            .call("PUT", &path, token, json!({"roles": roles}))
            .await
    }

    async fn exchange(&self, request: &Pair, verifier: &str) -> Answer {
        let path = format!("{OAUTH}/access_token");
        let signed = header(
            &path,
            &self.consumer,
            Some(request),
            &[("oauth_verifier", verifier)],
        );
        self.post(&path, &signed, "", Value::Null).await
    }

    async fn access(&self) -> Pair {
        let request = self.request().await;
        let answer = self
            .authorize(&request, &self.bench.admin, json!([{"name": "member"}]))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.json());
        let verifier = answer.json()["token"]["oauth_verifier"]
            .as_str()
            .unwrap()
            .to_owned();
        let answer = self.exchange(&request, &verifier).await;
        assert_eq!(answer.status, 201, "{}", answer.json());
        pair(&answer)
    }

    async fn log_in(&self, access: &Pair, more: &[(&str, &str)]) -> Answer {
        let path = format!("{V3}/auth/tokens");
        let signed = header(&path, &self.consumer, Some(access), more);
        let body = json!({"auth": {"identity": {"methods": ["oauth1"], "oauth1": {}}}});
        self.post(&path, &signed, "", body).await
    }
}

#[tokio::test]
async fn consumers() {
    let ground = Ground::new().await;
    let bench = &ground.bench;
    let own = format!("{OAUTH}/consumers/{}", ground.consumer.key);
    let shown = bench.admin("GET", &own, Value::Null, 200).await["consumer"].clone();
    assert_eq!(shown["description"], "backups");
    assert!(shown.get("secret").is_none());
    let list = bench
        .admin("GET", &format!("{OAUTH}/consumers"), Value::Null, 200)
        .await;
    assert_eq!(column(&list["consumers"], "description"), ["backups"]);
    let set = bench
        .admin(
            "PATCH",
            &own,
            json!({"consumer": {"description": "more"}}),
            200,
        )
        .await;
    assert_eq!(set["consumer"]["description"], "more");
    bench
        .admin("PATCH", &own, json!({"consumer": {"secret": "mine"}}), 400)
        .await;
    bench
        .admin("PATCH", &own, json!({"consumer": {"description": 5}}), 400)
        .await;
    let member = bench.member("m", ("p", &ground.project), "member").await;
    for (method, path) in [
        ("GET", &own),
        ("DELETE", &own),
        ("GET", &format!("{OAUTH}/consumers")),
    ] {
        assert_eq!(
            bench.call(method, path, &member, Value::Null).await.status,
            403
        );
    }
    bench.admin("DELETE", &own, Value::Null, 204).await;
    for method in ["GET", "DELETE"] {
        bench.admin(method, &own, Value::Null, 404).await;
    }
}

#[tokio::test]
async fn a_consumer_acts_with_what_was_authorized() {
    let ground = Ground::new().await;
    let bench = &ground.bench;
    let access = ground.access().await;
    let answer = ground.log_in(&access, &[]).await;
    let shown = answer.json()["token"].clone();
    assert_eq!(answer.status, 201, "{shown}");
    assert_eq!(shown["methods"], json!(["oauth1"]));
    assert_eq!(
        shown["OS-OAUTH1"],
        json!({"access_token_id": access.key, "consumer_id": ground.consumer.key})
    );
    assert_eq!(
        (&shown["user"]["name"], &shown["project"]["name"]),
        (&json!("admin"), &json!("p"))
    );
    assert_eq!(column(&shown["roles"], "name"), ["member", "reader"]);
    let token = answer.header("X-Subject-Token").to_owned();

    // Nothing that outlives or widens it.
    let user = id(&shown["user"]);
    let rescope = json!({"auth": {"identity": {"methods": ["token"], "token": {"id": token}}, "scope": {"system": {"all": true}}}});
    assert_eq!(bench.auth(rescope).await.status, 403);
    for (method, path, body) in [
        (
            "POST",
            format!("{V3}/users/{user}/application_credentials"),
            json!({"application_credential": {"name": "x"}}),
        ),
        (
            "POST",
            format!("{V3}/users/{user}/credentials/OS-EC2"),
            json!({"tenant_id": ground.project}),
        ),
        (
            "POST",
            format!("{V3}/OS-TRUST/trusts"),
            json!({"trust": {"trustor_user_id": user, "trustee_user_id": user,
            "project_id": ground.project, "impersonation": true, "roles": [{"name": "admin"}]}}),
        ),
        ("GET", format!("{V3}/users"), Value::Null),
    ] {
        assert_eq!(
            bench.call(method, &path, &token, body).await.status,
            403,
            "{path}"
        );
    }
    let again = ground.request().await;
    assert_eq!(
        ground
            .authorize(&again, &token, json!([{"name": "member"}]))
            .await
            .status,
        403
    );
    // Signed by another key, at another time, for another scope.
    let other = Pair {
        secret: "x".into(),
        ..access.clone()
    };
    assert_eq!(ground.log_in(&other, &[]).await.status, 401);
    assert_eq!(
        ground
            .log_in(&access, &[("oauth_timestamp", "1000")])
            .await
            .status,
        401
    );
    assert_eq!(ground.log_in(&Pair::default(), &[]).await.status, 400);

    // Seen by the administrator; its roles.
    let list = format!("{V3}/users/{user}/OS-OAUTH1/access_tokens");
    let all = bench.admin("GET", &list, Value::Null, 200).await;
    assert_eq!(all["access_tokens"].as_array().unwrap().len(), 1);
    let own = format!("{list}/{}", access.key);
    let one = bench.admin("GET", &own, Value::Null, 200).await["access_token"].clone();
    assert_eq!(
        (&one["consumer_id"], &one["project_id"]),
        (&json!(ground.consumer.key), &json!(ground.project))
    );
    assert!(one.get("secret").is_none() && one["links"]["roles"].is_string());
    let roles = bench
        .admin("GET", &format!("{own}/roles"), Value::Null, 200)
        .await;
    assert_eq!(column(&roles["roles"], "name"), ["member"]);
    let (member, admin) = (bench.role("member").await, bench.role("admin").await);
    bench
        .admin("GET", &format!("{own}/roles/{member}"), Value::Null, 200)
        .await;
    bench
        .admin("GET", &format!("{own}/roles/{admin}"), Value::Null, 404)
        .await;

    // What ends it: taking it back, and the end of the consumer.
    bench.admin("DELETE", &own, Value::Null, 204).await;
    assert_eq!(bench.status_of(&token).await, 404);
    assert_eq!(ground.log_in(&access, &[]).await.status, 404);
    let access = ground.access().await;
    let token = ground
        .log_in(&access, &[])
        .await
        .header("X-Subject-Token")
        .to_owned();
    assert_eq!(bench.status_of(&token).await, 200);
    bench
        .admin(
            "DELETE",
            &format!("{OAUTH}/consumers/{}", ground.consumer.key),
            Value::Null,
            204,
        )
        .await;
    assert_eq!(bench.status_of(&token).await, 404);
    assert_eq!(ground.log_in(&access, &[]).await.status, 404);
    bench
        .admin("GET", &format!("{list}/{}", access.key), Value::Null, 404)
        .await;
}

#[tokio::test]
async fn request_tokens_are_signed_authorized_and_used_once() {
    let ground = Ground::new().await;
    let bench = &ground.bench;
    let path = format!("{OAUTH}/request_token");
    let good = header(&path, &ground.consumer, None, &[]);
    let forged = header(
        &path,
        &Pair {
            secret: "x".into(),
            ..ground.consumer.clone()
        },
        None,
        &[],
    );
    let unknown = header(&path, &Pair::default(), None, &[]);
    let stranger = header(
        &path,
        &Pair {
            key: "nosuch".into(),
            secret: "x".into(),
        },
        None,
        &[],
    );
    let old = header(
        &path,
        &ground.consumer,
        None,
        &[("oauth_timestamp", "1000")],
    );
    for (line, project, status) in [
        (good.as_str(), ground.project.as_str(), 201),
        (&good, "nosuch", 404),
        (&good, "", 400),
        (&forged, &ground.project, 401),
        (&unknown, &ground.project, 400),
        (&stranger, &ground.project, 404),
        (&old, &ground.project, 400),
        ("OAuth x", &ground.project, 400),
        ("", &ground.project, 400),
    ] {
        let answer = ground.post(&path, line, project, Value::Null).await;
        assert_eq!(answer.status, status, "{line} {}", answer.json());
    }
    let request = ground.request().await;
    for (roles, status) in [
        (json!("member"), 400),
        (json!([{}]), 400),
        (json!([{"name": "service"}]), 401),
        (json!([{"id": "nosuch"}]), 401),
        (json!([{"name": "nosuch"}]), 404),
    ] {
        assert_eq!(
            ground
                .authorize(&request, &bench.admin, roles.clone())
                .await
                .status,
            status,
            "{roles}"
        );
    }
    let member = bench.member("m", ("p", &ground.project), "member").await;
    assert_eq!(
        ground
            .authorize(&request, &member, json!([{"name": "member"}]))
            .await
            .status,
        403
    );
    // Nobody authorized it: it is void once that was tried, as after a wrong guess of the verifier.
    assert_eq!(ground.exchange(&request, "ABCDEFGH").await.status, 400);
    assert_eq!(
        ground
            .authorize(&request, &bench.admin, json!([{"name": "member"}]))
            .await
            .status,
        404
    );
    let request = ground.request().await;
    let answer = ground
        .authorize(&request, &bench.admin, json!([{"name": "member"}]))
        .await;
    let verifier = answer.json()["token"]["oauth_verifier"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(verifier.len(), 8);
    let forged = Pair {
        secret: "x".into(),
        ..request.clone()
    };
    assert_eq!(ground.exchange(&forged, &verifier).await.status, 401);
    assert_eq!(ground.exchange(&request, &verifier).await.status, 201);
    assert_eq!(ground.exchange(&request, &verifier).await.status, 404);
    // A request token is no access token.
    let request = ground.request().await;
    assert_eq!(ground.log_in(&request, &[]).await.status, 404);
    // Authorized for no role: that is worth nothing.
    let answer = ground.authorize(&request, &bench.admin, json!([])).await;
    let verifier = answer.json()["token"]["oauth_verifier"].clone();
    let answer = ground.exchange(&request, verifier.as_str().unwrap()).await;
    assert_eq!(answer.status, 201);
    let answer = ground.log_in(&pair(&answer), &[]).await;
    assert_eq!(answer.status, 401, "{}", answer.json());
}

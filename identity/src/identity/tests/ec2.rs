//! EC2 credentials and the tokens that services get for signed requests.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use serde_json::{Value, json};

use super::{V3, column};
use crate::{
    crypto::mac::hmac_sha256,
    testing::{Answer, Bench, id},
    time::{now_us, token_time},
};

/// A member of a project, and a service that asks who signed.
struct Ground {
    bench: Bench,
    project: String,
    user: String,
    token: String,
    service: String,
}

impl Ground {
    async fn new() -> Self {
        let bench = Bench::new().await;
        let project = bench.project("p").await;
        let user = bench.user("u").await;
        bench.grant(&project, &user, "member").await;
        let token = bench.login("u", "u-pw", Some("p")).await.unwrap();
        let services = bench.project("services").await;
        let service = bench
            .member("nova", ("services", &services), "service")
            .await;
        Self {
            bench,
            project,
            user,
            token,
            service,
        }
    }

    fn path(&self) -> String {
        format!("{V3}/users/{}/credentials/OS-EC2", self.user)
    }

    async fn create(&self, token: &str) -> Answer {
        let body = json!({"tenant_id": self.project});
        self.bench.call("POST", &self.path(), token, body).await
    }

    /// What a service sends of a request that was signed by version 2.
    fn request(&self, keys: &Value, age: i64) -> Value {
        let time = token_time(now_us() - age * 1_000_000);
        let query = format!(
            "Action=DescribeInstances&SignatureMethod=HmacSHA256&SignatureVersion=2&Timestamp={}",
            time.replace(':', "%3A")
        );
        let signed = format!("GET\nexample.org\n/services/Cloud\n{query}");
        let secret = keys["secret"].as_str().unwrap();
        json!({"credentials": {
            "access": keys["access"], "host": "example.org", "verb": "GET", "path": "/services/Cloud",
            "params": {"Action": "DescribeInstances", "SignatureVersion": "2", "Timestamp": time},
            "signature": STANDARD.encode(hmac_sha256(secret.as_bytes(), signed.as_bytes())),
        }})
    }

    async fn ask(&self, body: Value) -> Answer {
        self.bench
            .call("POST", &format!("{V3}/ec2tokens"), &self.service, body)
            .await
    }
}

#[tokio::test]
async fn credentials_are_their_owners() {
    let ground = Ground::new().await;
    let bench = &ground.bench;
    let answer = ground.create(&ground.token).await;
    let made = answer.json()["credential"].clone();
    assert_eq!(answer.status, 201, "{made}");
    assert_eq!(
        (&made["user_id"], &made["tenant_id"], &made["trust_id"]),
        (&json!(ground.user), &json!(ground.project), &Value::Null)
    );
    let own = format!("{}/{}", ground.path(), made["access"].as_str().unwrap());
    assert!(made["links"]["self"].as_str().unwrap().ends_with(&own[9..]));
    let shown = bench
        .call("GET", &own, &ground.token, Value::Null)
        .await
        .json()["credential"]
        .clone();
    assert_eq!(shown, made);
    let list = bench
        .call("GET", &ground.path(), &ground.token, Value::Null)
        .await
        .json();
    assert_eq!(list["credentials"], json!([made]));
    // The same record in the other family.
    let all = bench
        .call(
            "GET",
            &format!("{V3}/credentials?type=ec2"),
            &ground.token,
            Value::Null,
        )
        .await
        .json();
    assert_eq!(
        column(&all["credentials"], "user_id"),
        [ground.user.as_str()]
    );

    let other = bench.user("other").await;
    bench.grant(&ground.project, &other, "member").await;
    let stranger = bench.login("other", "other-pw", Some("p")).await.unwrap();
    for (method, path, status) in [
        ("GET", own.clone(), 403),
        ("DELETE", own.clone(), 403),
        ("GET", ground.path(), 403),
        ("GET", format!("{}/nosuch", ground.path()), 404),
        // A path of one's own does not make the credential one's own.
        ("GET", own.replace(&ground.user, &other), 403),
        ("DELETE", own.replace(&ground.user, &other), 403),
    ] {
        let answer = bench.call(method, &path, &stranger, Value::Null).await;
        assert_eq!(answer.status, status, "{method} {path}");
    }
    assert_eq!(ground.create(&stranger).await.status, 403);
    assert_eq!(ground.create(&bench.admin).await.status, 201);
    bench
        .admin("POST", &ground.path(), json!({"tenant_id": "nosuch"}), 404)
        .await;
    bench
        .admin("POST", &ground.path(), json!({"tenant_id": 5}), 400)
        .await;
    bench.admin("POST", &ground.path(), json!({}), 400).await;
    bench.admin("POST", &ground.path(), json!([]), 400).await;
    bench
        .admin("GET", &own.replace(&ground.user, &other), Value::Null, 404)
        .await;
    assert_eq!(
        bench
            .call("DELETE", &own, &ground.token, Value::Null)
            .await
            .status,
        204
    );
    assert_eq!(
        bench
            .call("GET", &own, &ground.token, Value::Null)
            .await
            .status,
        404
    );

    // Nobody binds a credential to a trust or anything else that it only knows the id of.
    for name in ["trust_id", "app_cred_id", "access_token_id"] {
        let blob = json!({"access": "a", "secret": "s", name: "0123"}).to_string();
        let body = json!({"credential": {"type": "ec2", "blob": blob, "user_id": ground.user, "project_id": ground.project}});
        let answer = bench
            .call("POST", &format!("{V3}/credentials"), &ground.token, body)
            .await;
        assert_eq!(answer.status, 400, "{name}");
    }
}

#[tokio::test]
async fn signed_requests_make_tokens_of_their_signer() {
    let ground = Ground::new().await;
    let bench = &ground.bench;
    let keys = ground.create(&ground.token).await.json()["credential"].clone();
    let answer = ground.ask(ground.request(&keys, 0)).await;
    let shown = answer.json()["token"].clone();
    assert_eq!(answer.status, 200, "{shown}");
    assert_eq!(
        (
            &shown["user"]["id"],
            &shown["project"]["id"],
            &shown["methods"]
        ),
        (
            &json!(ground.user),
            &json!(ground.project),
            &json!(["ec2credential"])
        )
    );
    assert_eq!(column(&shown["roles"], "name"), ["member", "reader"]);
    let token = answer.header("X-Subject-Token").to_owned();
    assert_eq!(bench.status_of(&token).await, 200);

    // It is good for the project, and for nothing that would outlive it.
    let rescope = json!({"auth": {"identity": {"methods": ["token"], "token": {"id": token}}, "scope": "unscoped"}});
    assert_eq!(bench.auth(rescope).await.status, 403);
    assert_eq!(ground.create(&token).await.status, 403);
    let path = format!("{V3}/users/{}/application_credentials", ground.user);
    let body = json!({"application_credential": {"name": "x"}});
    assert_eq!(bench.call("POST", &path, &token, body).await.status, 403);

    let mut wrong = ground.request(&keys, 0);
    wrong["credentials"]["signature"] = "AAAA".into();
    let mut unsigned = ground.request(&keys, 0);
    unsigned["credentials"]["signature"] = Value::Null;
    let mut foreign = ground.request(&keys, 0);
    foreign["credentials"]["access"] = "nosuch".into();
    for (body, status) in [
        (wrong, 401),
        (unsigned, 401),
        (foreign, 404),
        (ground.request(&keys, 1000), 401),
        (json!({"credentials": {}}), 401),
        (json!({"credentials": []}), 401),
        (json!({"something": {}}), 401),
        (json!({}), 400),
        (json!([]), 400),
    ] {
        let answer = ground.ask(body.clone()).await;
        assert_eq!(answer.status, status, "{body} {}", answer.json());
    }
    // Only services and administrators learn who signed.
    let path = format!("{V3}/ec2tokens");
    assert_eq!(
        bench
            .call("POST", &path, &ground.token, ground.request(&keys, 0))
            .await
            .status,
        403
    );
    assert_eq!(
        bench
            .call("POST", &path, "", ground.request(&keys, 0))
            .await
            .status,
        401
    );

    // S3: what was signed comes as a text; the token itself does not come back.
    let scope = "20260102/RegionOne/s3/aws4_request";
    let signed = format!("AWS4-HMAC-SHA256\n20260102T030405Z\n{scope}\n00ff");
    let secret = keys["secret"].as_str().unwrap();
    let key = ["20260102", "RegionOne", "s3", "aws4_request"]
        .iter()
        .fold(format!("AWS4{secret}").into_bytes(), |key, part| {
            hmac_sha256(&key, part.as_bytes())
        });
    let body = json!({"credentials": {"access": keys["access"], "token": URL_SAFE.encode(&signed),
        "signature": hex::encode(hmac_sha256(&key, signed.as_bytes()))}});
    let answer = bench
        .call("POST", &format!("{V3}/s3tokens"), &ground.service, body)
        .await;
    assert_eq!((answer.status, answer.header("X-Subject-Token")), (200, ""));
    assert_eq!(answer.json()["token"]["user"]["name"], "u");

    // What ends it: the role, the user, the credential.
    let member = bench.role("member").await;
    let grant = format!(
        "{V3}/projects/{}/users/{}/roles/{member}",
        ground.project, ground.user
    );
    bench.admin("DELETE", &grant, Value::Null, 204).await;
    assert_eq!(ground.ask(ground.request(&keys, 0)).await.status, 401);
    bench.admin("PUT", &grant, Value::Null, 204).await;
    let user = format!("{V3}/users/{}", ground.user);
    bench
        .admin("PATCH", &user, json!({"user": {"enabled": false}}), 200)
        .await;
    assert_eq!(ground.ask(ground.request(&keys, 0)).await.status, 401);
    bench
        .admin("PATCH", &user, json!({"user": {"enabled": true}}), 200)
        .await;
    assert_eq!(ground.ask(ground.request(&keys, 0)).await.status, 200);
    let record = bench
        .admin(
            "GET",
            &format!("{V3}/credentials?user_id={}", ground.user),
            Value::Null,
            200,
        )
        .await;
    let record = id(&record["credentials"][0]);
    bench
        .admin(
            "DELETE",
            &format!("{V3}/credentials/{record}"),
            Value::Null,
            204,
        )
        .await;
    assert_eq!(ground.ask(ground.request(&keys, 0)).await.status, 404);
}

//! Every cause that ends a token, for tokens made in every way.

use base64::engine::general_purpose::STANDARD;
use base64::{Engine, engine::general_purpose::URL_SAFE};
use serde_json::{Value, json};

use super::{
    V3,
    oauth1::{Pair, header, pair},
};
use crate::{
    crypto::mac::hmac_sha1,
    identity::auth::code_now,
    testing::{Bench, id},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Password,
    Rescoped,
    ApplicationCredential,
    Totp,
    Trust,
    ImpersonatingTrust,
    OAuth1,
    Ec2,
}

const WAYS: [Way; 8] = [
    Way::Password,
    Way::Rescoped,
    Way::ApplicationCredential,
    Way::Totp,
    Way::Trust,
    Way::ImpersonatingTrust,
    Way::OAuth1,
    Way::Ec2,
];

impl Way {
    /// Of a trust that does not hold, its trustee is told so: 403. All else is not found.
    fn of_trust(self) -> bool {
        matches!(self, Self::Trust | Self::ImpersonatingTrust)
    }
}

const SEED: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";

/// A user with a role on a project, both of a domain of their own, and a token for that project.
struct Cell<'a> {
    bench: &'a Bench,
    /// The replica that is asked whether the token holds.
    asked: &'a Bench,
    domain: String,
    project: String,
    user: String,
    /// Path of the one grant.
    grant: String,
    token: String,
    /// Path of what the token was made with, if that is a thing of its own.
    given: Option<String>,
}

impl<'a> Cell<'a> {
    async fn new(bench: &'a Bench, asked: &'a Bench, name: &str, way: Way) -> Self {
        let create = async |kind: &str, body: Value| {
            let made = bench
                .admin("POST", &format!("{V3}/{kind}s"), json!({kind: body}), 201)
                .await;
            id(&made[kind])
        };
        let domain = create("domain", json!({"name": name})).await;
        let project = create("project", json!({"name": name, "domain_id": domain})).await;
        let user = create(
            "user",
            json!({"name": name, "domain_id": domain, "password": "pw"}),
        )
        .await;
        let admin = bench.role("admin").await;
        let grant = format!("{V3}/projects/{project}/users/{user}/roles/{admin}");
        bench.admin("PUT", &grant, Value::Null, 204).await;
        let mut cell = Self {
            bench,
            asked,
            domain,
            project,
            user,
            grant,
            token: String::new(),
            given: None,
        };
        let own = cell
            .by_password(&cell.user, json!({"project": {"id": cell.project}}))
            .await;
        cell.token = cell.made(way, own).await;
        assert_eq!(cell.status().await, 200, "{way:?}");
        cell
    }

    async fn auth(&self, identity: Value, scope: Value) -> String {
        let mut auth = json!({"identity": identity});
        if !scope.is_null() {
            auth["scope"] = scope;
        }
        let answer = self.bench.auth(json!({"auth": auth})).await;
        assert_eq!(answer.status, 201, "{}", answer.json());
        answer.header("X-Subject-Token").to_owned()
    }

    async fn by_password(&self, user: &str, scope: Value) -> String {
        let identity =
            json!({"methods": ["password"], "password": {"user": {"id": user, "password": "pw"}}});
        self.auth(identity, scope).await
    }

    async fn post(&self, token: &str, path: &str, body: Value) -> Value {
        let answer = self
            .bench
            .call("POST", &format!("{V3}/{path}"), token, body)
            .await;
        assert_eq!(answer.status, 201, "{path} {}", answer.json());
        answer.json()
    }

    /// The token; `own` is the user's for the project.
    async fn made(&mut self, way: Way, own: String) -> String {
        let (user, project) = (self.user.clone(), self.project.clone());
        match way {
            Way::Password => own,
            Way::Rescoped => {
                let identity = json!({"methods": ["token"], "token": {"id": own}});
                self.auth(identity, json!({"project": {"id": project}}))
                    .await
            }
            Way::ApplicationCredential => {
                let path = format!("users/{user}/application_credentials");
                let made = self
                    .post(
                        &own,
                        &path,
                        json!({"application_credential": {"name": "c"}}),
                    )
                    .await;
                let made = &made["application_credential"];
                self.given = Some(format!("{V3}/{path}/{}", id(made)));
                let details = json!({"id": made["id"], "secret": made["secret"]});
                let identity = json!({"methods": ["application_credential"], "application_credential": details});
                self.auth(identity, Value::Null).await
            }
            Way::Totp => {
                let body = json!({"credential": {"type": "totp", "blob": SEED, "user_id": user}});
                self.post(&own, "credentials", body).await;
                let identity = json!({"methods": ["totp"], "totp": {"user": {"id": user, "passcode": code_now(SEED)}}});
                self.auth(identity, json!({"project": {"id": project}}))
                    .await
            }
            Way::Trust | Way::ImpersonatingTrust => {
                let body = json!({"user": {"name": format!("trustee of {user}"), "domain_id": "default", "password": "pw"}});
                let trustee = id(&self
                    .bench
                    .admin("POST", &format!("{V3}/users"), body, 201)
                    .await["user"]);
                let body = json!({"trust": {"trustor_user_id": user, "trustee_user_id": trustee, "project_id": project,
                    "impersonation": way == Way::ImpersonatingTrust, "roles": [{"name": "member"}]}});
                let trust = id(&self.post(&own, "OS-TRUST/trusts", body).await["trust"]);
                self.given = Some(format!("{V3}/OS-TRUST/trusts/{trust}"));
                self.by_password(&trustee, json!({"OS-TRUST:trust": {"id": trust}}))
                    .await
            }
            Way::OAuth1 => self.by_oauth1(&own).await,
            Way::Ec2 => {
                let body = json!({"tenant_id": project});
                let keys = self
                    .post(&own, &format!("users/{user}/credentials/OS-EC2"), body)
                    .await["credential"]
                    .clone();
                let secret = keys["secret"].as_str().unwrap();
                let token = URL_SAFE.encode("PUT\n\n\n/bucket");
                let mac = hmac_sha1(secret.as_bytes(), b"PUT\n\n\n/bucket");
                let body = json!({"credentials": {"access": keys["access"], "token": token, "signature": STANDARD.encode(mac)}});
                // The way that gives the token back wants another signature; the record is the same.
                let answer = self
                    .bench
                    .call("POST", &format!("{V3}/s3tokens"), &self.bench.admin, body)
                    .await;
                assert_eq!(answer.status, 200, "{}", answer.json());
                self.by_ec2(&keys).await
            }
        }
    }

    async fn by_ec2(&self, keys: &Value) -> String {
        let secret = keys["secret"].as_str().unwrap();
        let signed = "GET\nh\n/\nSignatureMethod=HmacSHA256&SignatureVersion=2";
        let mac = crate::crypto::mac::hmac_sha256(secret.as_bytes(), signed.as_bytes());
        let body = json!({"credentials": {"access": keys["access"], "host": "h", "verb": "GET", "path": "/",
            "params": {"SignatureVersion": "2"}, "signature": STANDARD.encode(mac)}});
        let answer = self
            .bench
            .call("POST", &format!("{V3}/ec2tokens"), &self.bench.admin, body)
            .await;
        assert_eq!(answer.status, 200, "{}", answer.json());
        answer.header("X-Subject-Token").to_owned()
    }

    async fn by_oauth1(&mut self, own: &str) -> String {
        let made = self
            .bench
            .admin(
                "POST",
                &format!("{V3}/OS-OAUTH1/consumers"),
                json!({"consumer": {}}),
                201,
            )
            .await;
        let consumer = Pair {
            key: id(&made["consumer"]),
            secret: made["consumer"]["secret"].as_str().unwrap().to_owned(),
        };
        let post = async |path: &str, line: String, body: &[u8]| {
            let headers = [
                ("Authorization", line.as_str()),
                ("Requested-Project-Id", self.project.as_str()),
            ];
            let answer = self.bench.raw("POST", path, &headers, body.to_vec()).await;
            assert_eq!(answer.status, 201, "{path} {}", answer.json());
            answer
        };
        let path = format!("{V3}/OS-OAUTH1/request_token");
        let request = pair(&post(&path, header(&path, &consumer, None, &[]), b"").await);
        let body = json!({"roles": [{"name": "member"}]});
        let path = format!("{V3}/OS-OAUTH1/authorize/{}", request.key);
        let answer = self.bench.call("PUT", &path, own, body).await.json();
        let verifier = answer["token"]["oauth_verifier"]
            .as_str()
            .unwrap()
            .to_owned();
        let path = format!("{V3}/OS-OAUTH1/access_token");
        let line = header(
            &path,
            &consumer,
            Some(&request),
            &[("oauth_verifier", &verifier)],
        );
        let access = pair(&post(&path, line, b"").await);
        let path = format!("{V3}/auth/tokens");
        let body = br#"{"auth": {"identity": {"methods": ["oauth1"], "oauth1": {}}}}"#;
        let answer = post(&path, header(&path, &consumer, Some(&access), &[]), body).await;
        self.given = Some(format!(
            "{V3}/users/{}/OS-OAUTH1/access_tokens/{}",
            self.user, access.key
        ));
        answer.header("X-Subject-Token").to_owned()
    }

    async fn admin(&self, method: &str, path: &str, body: Value) {
        let status = if method == "PATCH" { 200 } else { 204 };
        self.bench.admin(method, path, body, status).await;
    }

    async fn status(&self) -> u16 {
        self.asked.status_of(&self.token).await
    }
}

#[derive(Debug, Clone, Copy)]
enum Cause {
    RoleTakenAway,
    ProjectDisabled,
    ProjectDeleted,
    UserDisabled,
    UserDeleted,
    PasswordChanged,
    DomainDisabled,
    Revoked,
    GivenTakenBack,
}

#[tokio::test]
async fn every_cause_ends_the_tokens_of_every_way() {
    let bench = Bench::new().await;
    every_cause_and_way(&bench, &bench).await;
}

/// What ends a token is done at `bench`, and `asked`, which knows the token, is asked whether it holds: the same, or another replica.
pub(crate) async fn every_cause_and_way(bench: &Bench, asked: &Bench) {
    use Cause::{
        DomainDisabled, GivenTakenBack, PasswordChanged, ProjectDeleted, ProjectDisabled, Revoked,
        RoleTakenAway, UserDeleted, UserDisabled,
    };
    // The status after the cause, for tokens of trusts and for others, and after it was undone.
    let table = [
        (RoleTakenAway, 403, 404, 200),
        (ProjectDisabled, 404, 404, 200),
        (ProjectDeleted, 404, 404, 404),
        (UserDisabled, 403, 404, 404),
        (UserDeleted, 404, 404, 404),
        (PasswordChanged, 404, 404, 404),
        (DomainDisabled, 404, 404, 200),
        (Revoked, 404, 404, 404),
        (GivenTakenBack, 404, 404, 404),
    ];
    for (cause, of_trust, of_others, undone) in table {
        for way in WAYS {
            let cell = Cell::new(bench, asked, &format!("{cause:?}-{way:?}"), way).await;
            let (user, project, domain) = (
                format!("{V3}/users/{}", cell.user),
                format!("{V3}/projects/{}", cell.project),
                format!("{V3}/domains/{}", cell.domain),
            );
            let enabled = |kind: &str, flag: bool| json!({kind: {"enabled": flag}});
            match cause {
                RoleTakenAway => cell.admin("DELETE", &cell.grant, Value::Null).await,
                ProjectDisabled => {
                    cell.admin("PATCH", &project, enabled("project", false))
                        .await
                }
                ProjectDeleted => cell.admin("DELETE", &project, Value::Null).await,
                UserDisabled => cell.admin("PATCH", &user, enabled("user", false)).await,
                UserDeleted => cell.admin("DELETE", &user, Value::Null).await,
                PasswordChanged => {
                    cell.admin("PATCH", &user, json!({"user": {"password": "new"}}))
                        .await
                }
                DomainDisabled => cell.admin("PATCH", &domain, enabled("domain", false)).await,
                Revoked => {
                    let headers = [
                        ("X-Auth-Token", bench.admin.as_str()),
                        ("X-Subject-Token", cell.token.as_str()),
                    ];
                    let answer = bench
                        .raw("DELETE", &format!("{V3}/auth/tokens"), &headers, Vec::new())
                        .await;
                    assert_eq!(answer.status, 204);
                }
                GivenTakenBack => match &cell.given {
                    Some(path) => cell.admin("DELETE", path, Value::Null).await,
                    None => continue,
                },
            }
            let wanted = if way.of_trust() { of_trust } else { of_others };
            assert_eq!(cell.status().await, wanted, "{cause:?} {way:?}");
            match cause {
                RoleTakenAway => cell.admin("PUT", &cell.grant, Value::Null).await,
                ProjectDisabled => {
                    cell.admin("PATCH", &project, enabled("project", true))
                        .await
                }
                UserDisabled => cell.admin("PATCH", &user, enabled("user", true)).await,
                DomainDisabled => cell.admin("PATCH", &domain, enabled("domain", true)).await,
                _ => {}
            }
            assert_eq!(cell.status().await, undone, "{cause:?} {way:?}, undone");
        }
    }
}

#[tokio::test]
async fn what_ends_a_token_and_what_revives_it() {
    let bench = Bench::new().await;
    let project = bench.project("p").await;
    let user = bench.user("u").await;
    bench.grant(&project, &user, "member").await;
    let token = bench.login("u", "u-pw", Some("p")).await.unwrap();
    assert_eq!(bench.status_of(&token).await, 200);

    // Without a role it is not found, with one again it works again.
    let member = bench.role("member").await;
    let grant = format!("{V3}/projects/{project}/users/{user}/roles/{member}");
    bench.admin("DELETE", &grant, Value::Null, 204).await;
    assert_eq!(bench.status_of(&token).await, 404);
    bench.admin("DELETE", &grant, Value::Null, 404).await;
    bench.admin("PUT", &grant, Value::Null, 204).await;
    bench.admin("PUT", &grant, Value::Null, 204).await;
    assert_eq!(bench.status_of(&token).await, 200);

    // The same for a disabled project.
    let enabled = |flag: bool| json!({"project": {"enabled": flag}});
    bench
        .admin(
            "PATCH",
            &format!("{V3}/projects/{project}"),
            enabled(false),
            200,
        )
        .await;
    assert_eq!(bench.status_of(&token).await, 404);
    bench
        .admin(
            "PATCH",
            &format!("{V3}/projects/{project}"),
            enabled(true),
            200,
        )
        .await;
    assert_eq!(bench.status_of(&token).await, 200);

    // A new password ends it for good; so does disabling the user.
    let set = json!({"user": {"password": "u-pw2"}});
    bench
        .admin("PATCH", &format!("{V3}/users/{user}"), set, 200)
        .await;
    assert_eq!(bench.status_of(&token).await, 404);
    let token = bench.login("u", "u-pw2", Some("p")).await.unwrap();
    for flag in [false, true] {
        bench
            .admin(
                "PATCH",
                &format!("{V3}/users/{user}"),
                json!({"user": {"enabled": flag}}),
                200,
            )
            .await;
        assert_eq!(bench.status_of(&token).await, 404);
    }

    // Revoked by itself.
    let token = bench.login("u", "u-pw2", Some("p")).await.unwrap();
    let headers = [
        ("X-Auth-Token", token.as_str()),
        ("X-Subject-Token", token.as_str()),
    ];
    assert_eq!(
        bench
            .raw("DELETE", "/identity/v3/auth/tokens", &headers, Vec::new())
            .await
            .status,
        204
    );
    assert_eq!(bench.status_of(&token).await, 404);
    assert_eq!(
        bench
            .call("GET", &format!("{V3}/auth/projects"), &token, Value::Null)
            .await
            .status,
        401
    );

    // Only with the old password can a user set a new one.
    let body = |old: &str| json!({"user": {"original_password": old, "password": "u-pw3"}});
    let path = format!("{V3}/users/{user}/password");
    assert_eq!(
        bench.call("POST", &path, "", body("wrong")).await.status,
        401
    );
    assert_eq!(
        bench.call("POST", &path, "", body("u-pw2")).await.status,
        204
    );
    assert!(bench.login("u", "u-pw3", Some("p")).await.is_ok());
}

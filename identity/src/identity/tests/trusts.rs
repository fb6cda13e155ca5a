//! Trusts: who may make, see and use them, passing on, and all that ends them.

use serde_json::{Value, json};

use super::{V3, column};
use crate::testing::{Answer, Bench, id};

const TRUSTS: &str = "/identity/v3/OS-TRUST/trusts";

/// A trustor with the role manager on a project, and two users with nothing there.
struct Ground {
    bench: Bench,
    project: String,
    trustor: String,
    trustor_token: String,
    trustee: String,
    third: String,
}

impl Ground {
    async fn new() -> Self {
        let bench = Bench::new().await;
        let project = bench.project("p").await;
        let trustor = bench.user("trustor").await;
        bench.grant(&project, &trustor, "manager").await;
        let trustee = bench.user("trustee").await;
        let third = bench.user("third").await;
        let trustor_token = bench
            .login("trustor", "trustor-pw", Some("p"))
            .await
            .unwrap();
        Self {
            bench,
            project,
            trustor,
            trustor_token,
            trustee,
            third,
        }
    }

    fn body(&self, more: Value) -> Value {
        let mut trust = json!({
            "trustor_user_id": self.trustor, "trustee_user_id": self.trustee, "project_id": self.project,
            "impersonation": false, "roles": [{"name": "member"}], "expires_at": null,
        });
        for (name, value) in more.as_object().unwrap() {
            trust[name] = value.clone();
        }
        json!({ "trust": trust })
    }

    async fn create(&self, token: &str, more: Value) -> Answer {
        self.bench
            .call("POST", TRUSTS, token, self.body(more))
            .await
    }

    /// A new trust of the trustor; its id.
    async fn trust(&self, more: Value) -> String {
        let answer = self.create(&self.trustor_token, more).await;
        assert_eq!(answer.status, 201, "{}", answer.json());
        id(&answer.json()["trust"])
    }

    async fn log_in(&self, user: &str, trust: &str) -> Answer {
        let user =
            json!({"name": user, "domain": {"id": "default"}, "password": format!("{user}-pw")});
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        let scope = json!({"OS-TRUST:trust": {"id": trust}});
        self.bench
            .auth(json!({"auth": {"identity": identity, "scope": scope}}))
            .await
    }

    async fn token(&self, user: &str, trust: &str) -> String {
        let answer = self.log_in(user, trust).await;
        assert_eq!(answer.status, 201, "{}", answer.json());
        answer.header("X-Subject-Token").to_owned()
    }
}

#[tokio::test]
async fn a_trust_gives_its_roles_to_the_trustee_alone() {
    let ground = Ground::new().await;
    let answer = ground
        .create(&ground.trustor_token, json!({"note": "kept"}))
        .await;
    let trust = answer.json()["trust"].clone();
    assert_eq!(answer.status, 201, "{trust}");
    for name in [
        "expires_at",
        "remaining_uses",
        "deleted_at",
        "redelegated_trust_id",
    ] {
        assert!(trust[name].is_null() && trust.get(name).is_some(), "{name}");
    }
    assert_eq!(
        (
            &trust["redelegation_count"],
            &trust["note"],
            &trust["roles"][0]["name"]
        ),
        (&json!(0), &json!("kept"), &json!("member"))
    );
    let trust_id = id(&trust);
    assert!(
        trust["roles_links"]["self"]
            .as_str()
            .unwrap()
            .ends_with("/roles")
    );

    let shown = ground.log_in("trustee", &trust_id).await.json()["token"].clone();
    assert_eq!(shown["user"]["name"], "trustee");
    assert_eq!(column(&shown["roles"], "name"), ["member", "reader"]);
    assert_eq!(shown["project"]["name"], "p");
    assert_eq!(
        shown["OS-TRUST:trust"],
        json!({"id": trust_id, "impersonation": false, "trustor_user": {"id": ground.trustor},
               "trustee_user": {"id": ground.trustee}})
    );
    assert!(shown["catalog"].is_array());
    assert_eq!(ground.log_in("third", &trust_id).await.status, 403);
    assert_eq!(ground.log_in("trustor", &trust_id).await.status, 403);
    assert_eq!(ground.log_in("trustee", "nosuch").await.status, 401);
    // Without the trust the trustee has nothing there.
    assert_eq!(
        ground.bench.login("trustee", "trustee-pw", Some("p")).await,
        Err(401)
    );

    // What it may not be used for: another token, a credential that outlives it, another scope beside it.
    let token = ground.token("trustee", &trust_id).await;
    let rescope = json!({"auth": {"identity": {"methods": ["token"], "token": {"id": token}}, "scope": "unscoped"}});
    assert_eq!(ground.bench.auth(rescope).await.status, 403);
    let user = json!({"name": "trustee", "domain": {"id": "default"}, "password": "trustee-pw"});
    let both = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}},
        "scope": {"OS-TRUST:trust": {"id": trust_id}, "project": {"id": ground.project}}}});
    assert_eq!(ground.bench.auth(both).await.status, 400);
    let call = async |method: &str, path: String, body: Value| {
        ground
            .bench
            .call(method, &format!("{V3}{path}"), &token, body)
            .await
            .status
    };
    let credentials = format!("/users/{}/application_credentials", ground.trustee);
    let body = json!({"application_credential": {"name": "x"}});
    assert_eq!(call("POST", credentials.clone(), body).await, 403);
    assert_eq!(call("GET", credentials, Value::Null).await, 403);
    let body = json!({"credential": {"user_id": ground.trustee, "type": "cert", "blob": "x"}});
    assert_eq!(call("POST", "/credentials".into(), body).await, 403);
    // It is a member's token on the project, no more.
    assert_eq!(
        call("GET", format!("/projects/{}", ground.project), Value::Null).await,
        200
    );
    assert_eq!(call("GET", "/users".into(), Value::Null).await, 403);
}

#[tokio::test]
async fn impersonation_shows_the_trustor() {
    let ground = Ground::new().await;
    let trust = ground.trust(json!({"impersonation": true})).await;
    let shown = ground.log_in("trustee", &trust).await.json()["token"].clone();
    assert_eq!(shown["user"]["id"], ground.trustor.as_str());
    assert_eq!(
        shown["OS-TRUST:trust"]["trustee_user"]["id"],
        ground.trustee.as_str()
    );
    // As the trustor it makes no application credentials, with which it would stay the trustor for ever.
    let token = ground.token("trustee", &trust).await;
    let path = format!("{V3}/users/{}/application_credentials", ground.trustor);
    let body = json!({"application_credential": {"name": "x"}});
    assert_eq!(
        ground.bench.call("POST", &path, &token, body).await.status,
        403
    );
}

#[tokio::test]
async fn who_may_make_see_and_delete_trusts() {
    let ground = Ground::new().await;
    let bench = &ground.bench;
    let future = "2999-01-01T00:00:00.000000Z";
    for (more, status) in [
        (json!({"roles": [{"name": "admin"}]}), 404),
        (json!({"roles": [{"name": "nosuch"}]}), 404),
        (json!({"roles": []}), 403),
        (json!({"roles": "member"}), 400),
        (json!({"roles": [{}]}), 400),
        (json!({"trustee_user_id": "nosuch"}), 404),
        (json!({"trustor_user_id": ground.trustee}), 403),
        (json!({"project_id": "nosuch"}), 404),
        (json!({"impersonation": null}), 400),
        (json!({"impersonation": "true"}), 400),
        (json!({"expires_at": "2001-01-01T00:00:00Z"}), 400),
        (json!({"expires_at": "soon"}), 400),
        (json!({"remaining_uses": 0}), 400),
        (json!({"remaining_uses": 1.5}), 400),
        (
            json!({"remaining_uses": 2, "allow_redelegation": true}),
            400,
        ),
        (
            json!({"allow_redelegation": true, "redelegation_count": 4}),
            403,
        ),
        (json!({"redelegated_trust_id": "x"}), 400),
        (json!({"expires_at": future}), 201),
        // One of the same kind is enough; of those without an end there may be several.
        (json!({"expires_at": future}), 409),
        (json!({}), 201),
        (json!({}), 201),
    ] {
        let answer = ground.create(&ground.trustor_token, more.clone()).await;
        assert_eq!(answer.status, status, "{more} {}", answer.json());
    }
    // Nobody makes a trust for somebody else, not even the administrator.
    assert_eq!(ground.create(&bench.admin, json!({})).await.status, 403);

    let trust = ground.trust(json!({})).await;
    let trustee = bench.login("trustee", "trustee-pw", None).await.unwrap();
    let third = bench.login("third", "third-pw", None).await.unwrap();
    let member = bench.role("member").await;
    let admin_role = bench.role("admin").await;
    let own = format!("{TRUSTS}/{trust}");
    for (method, path, tokens) in [
        ("GET", own.clone(), [200, 200, 403, 200]),
        ("HEAD", own.clone(), [200, 200, 403, 200]),
        ("GET", format!("{own}/roles"), [200, 200, 403, 200]),
        ("GET", format!("{own}/roles/{member}"), [200, 200, 403, 200]),
        (
            "HEAD",
            format!("{own}/roles/{admin_role}"),
            [404, 404, 403, 404],
        ),
        ("GET", TRUSTS.to_owned(), [403, 403, 403, 200]),
        (
            "GET",
            format!("{TRUSTS}?trustor_user_id={}", ground.trustor),
            [200, 403, 403, 200],
        ),
        (
            "GET",
            format!("{TRUSTS}?trustee_user_id={}", ground.trustee),
            [403, 200, 403, 200],
        ),
        ("GET", format!("{TRUSTS}/nosuch"), [404; 4]),
        ("DELETE", format!("{TRUSTS}/nosuch"), [404; 4]),
    ] {
        for (token, status) in [&ground.trustor_token, &trustee, &third, &bench.admin]
            .into_iter()
            .zip(tokens)
        {
            let answer = bench.call(method, &path, token, Value::Null).await;
            assert_eq!(answer.status, status, "{method} {path} {}", answer.json());
        }
    }
    let list = bench
        .call(
            "GET",
            &format!("{TRUSTS}?trustee_user_id={}", ground.trustee),
            &trustee,
            Value::Null,
        )
        .await;
    let list = list.json()["trusts"].clone();
    assert_eq!(list.as_array().unwrap().len(), 4);
    assert!(list[0].get("roles").is_none());
    assert_eq!(
        bench
            .call("DELETE", &own, &trustee, Value::Null)
            .await
            .status,
        403
    );
    let token = ground.token("trustee", &trust).await;
    assert_eq!(
        bench
            .call("DELETE", &own, &ground.trustor_token, Value::Null)
            .await
            .status,
        204
    );
    assert_eq!(bench.status_of(&token).await, 404);
    assert_eq!(
        bench.call("GET", &own, &token, Value::Null).await.status,
        401
    );
    assert_eq!(ground.log_in("trustee", &trust).await.status, 401);
}

#[tokio::test]
async fn uses_are_counted_and_no_token_outlives_its_trust() {
    let ground = Ground::new().await;
    let trust = ground.trust(json!({"remaining_uses": 2})).await;
    // What fails takes none.
    assert_eq!(ground.log_in("third", &trust).await.status, 403);
    let token = ground.token("trustee", &trust).await;
    let left = ground
        .bench
        .admin("GET", &format!("{TRUSTS}/{trust}"), Value::Null, 200)
        .await;
    assert_eq!(left["trust"]["remaining_uses"], 1);
    ground.token("trustee", &trust).await;
    assert_eq!(ground.log_in("trustee", &trust).await.status, 401);
    ground
        .bench
        .admin("GET", &format!("{TRUSTS}/{trust}"), Value::Null, 404)
        .await;
    assert_eq!(ground.bench.status_of(&token).await, 200);
    // Logins at the same moment share what is left.
    let trust = ground
        .trust(json!({"remaining_uses": 1, "impersonation": true}))
        .await;
    let results = tokio::join!(
        ground.log_in("trustee", &trust),
        ground.log_in("trustee", &trust),
        ground.log_in("trustee", &trust)
    );
    let made = [results.0.status, results.1.status, results.2.status];
    assert_eq!(
        made.iter().filter(|status| **status == 201).count(),
        1,
        "{made:?}"
    );

    let soon = crate::time::token_time(crate::time::now_us() + 60_000_000);
    let trust = ground.trust(json!({"expires_at": soon})).await;
    let ends = ground.log_in("trustee", &trust).await.json()["token"]["expires_at"].clone();
    assert_eq!(ends.as_str().unwrap()[..19], soon[..19]);
}

#[tokio::test]
async fn passing_on() {
    let ground = Ground::new().await;
    let bench = &ground.bench;
    let first = ground
        .trust(json!({"allow_redelegation": true, "impersonation": true, "roles": [{"name": "member"}, {"name": "reader"}]}))
        .await;
    let token = ground.token("trustee", &first).await;
    let further = json!({"trustee_user_id": ground.third, "impersonation": true});
    let with = |name: &str, value: Value| {
        let mut more = further.clone();
        more[name] = value;
        more
    };
    for (more, status) in [
        (with("roles", json!([{"name": "manager"}])), 403),
        (with("remaining_uses", json!(1)), 403),
        (with("project_id", json!(null)), 400),
        (
            json!({"trustee_user_id": ground.third, "impersonation": true, "allow_redelegation": true, "redelegation_count": 1}),
            403,
        ),
    ] {
        let answer = ground.create(&token, more.clone()).await;
        assert_eq!(answer.status, status, "{more} {}", answer.json());
    }
    let answer = ground
        .create(&token, with("roles", json!([{"name": "reader"}])))
        .await;
    let second = answer.json()["trust"].clone();
    assert_eq!(answer.status, 201, "{second}");
    assert_eq!(
        (
            &second["redelegated_trust_id"],
            &second["redelegation_count"]
        ),
        (&json!(first), &json!(0))
    );
    let second = id(&second);
    let shown = ground.log_in("third", &second).await.json()["token"].clone();
    assert_eq!(column(&shown["roles"], "name"), ["reader"]);
    assert_eq!(shown["user"]["id"], ground.trustor.as_str());
    let last = ground.token("third", &second).await;
    assert_eq!(
        ground
            .create(&last, json!({"impersonation": true}))
            .await
            .status,
        403
    );

    // It ends with a user in between, and with the trust that it came from.
    let enabled = |flag: bool| json!({"user": {"enabled": flag}});
    let path = format!("{V3}/users/{}", ground.trustee);
    bench.admin("PATCH", &path, enabled(false), 200).await;
    assert_eq!(bench.status_of(&last).await, 403);
    assert_eq!(ground.log_in("third", &second).await.status, 403);
    bench.admin("PATCH", &path, enabled(true), 200).await;
    assert_eq!(bench.status_of(&last).await, 200);
    bench
        .admin("DELETE", &format!("{TRUSTS}/{first}"), Value::Null, 204)
        .await;
    assert_eq!(bench.status_of(&last).await, 404);
    bench
        .admin("GET", &format!("{TRUSTS}/{second}"), Value::Null, 404)
        .await;

    // A chain of three is the longest.
    let mut token = ground.trustor_token.clone();
    for count in [3, 2, 1, 0] {
        let answer = ground
            .create(
                &token,
                json!({"allow_redelegation": true, "impersonation": true}),
            )
            .await;
        let trust = answer.json()["trust"].clone();
        assert_eq!(
            (answer.status, &trust["redelegation_count"]),
            (201, &json!(count))
        );
        token = ground.token("trustee", &id(&trust)).await;
    }
    assert_eq!(
        ground
            .create(&token, json!({"impersonation": true}))
            .await
            .status,
        403
    );
}

#[tokio::test]
async fn what_ends_a_trust_and_what_revives_it() {
    let ground = Ground::new().await;
    let bench = &ground.bench;
    let trust = ground.trust(json!({})).await;
    let token = ground.token("trustee", &trust).await;
    let manager = bench.role("manager").await;
    let grant = format!(
        "{V3}/projects/{}/users/{}/roles/{manager}",
        ground.project, ground.trustor
    );
    // The trustor loses the role that implies the trust's: refused until it has it again.
    bench.admin("DELETE", &grant, Value::Null, 204).await;
    assert_eq!(bench.status_of(&token).await, 403);
    assert_eq!(ground.log_in("trustee", &trust).await.status, 403);
    bench.admin("PUT", &grant, Value::Null, 204).await;
    assert_eq!(bench.status_of(&token).await, 200);
    // A disabled project.
    let path = format!("{V3}/projects/{}", ground.project);
    bench
        .admin("PATCH", &path, json!({"project": {"enabled": false}}), 200)
        .await;
    assert_eq!(bench.status_of(&token).await, 404);
    bench
        .admin("PATCH", &path, json!({"project": {"enabled": true}}), 200)
        .await;
    assert_eq!(bench.status_of(&token).await, 200);
    // The trustor's password ends the tokens, not the trust.
    let path = format!("{V3}/users/{}", ground.trustor);
    bench
        .admin(
            "PATCH",
            &path,
            json!({"user": {"password": "trustor-pw2"}}),
            200,
        )
        .await;
    assert_eq!(bench.status_of(&token).await, 404);
    let token = ground.token("trustee", &trust).await;
    // A disabled trustor.
    bench
        .admin("PATCH", &path, json!({"user": {"enabled": false}}), 200)
        .await;
    assert_eq!(bench.status_of(&token).await, 403);
    assert_eq!(ground.log_in("trustee", &trust).await.status, 403);
    bench
        .admin("PATCH", &path, json!({"user": {"enabled": true}}), 200)
        .await;
    assert_eq!(bench.status_of(&token).await, 404);
    // A role that is deleted: the trust would be for less than it says.
    let role = id(&bench
        .admin(
            "POST",
            &format!("{V3}/roles"),
            json!({"role": {"name": "r"}}),
            201,
        )
        .await["role"]);
    bench.grant(&ground.project, &ground.trustor, "r").await;
    let trustor = bench
        .login("trustor", "trustor-pw2", Some("p"))
        .await
        .unwrap();
    let answer = ground
        .create(
            &trustor,
            json!({"roles": [{"id": role}, {"name": "member"}]}),
        )
        .await;
    let narrow = id(&answer.json()["trust"]);
    let narrow_token = ground.token("trustee", &narrow).await;
    bench
        .admin("DELETE", &format!("{V3}/roles/{role}"), Value::Null, 204)
        .await;
    assert_eq!(bench.status_of(&narrow_token).await, 403);
    // The trustor itself.
    let token = ground.token("trustee", &trust).await;
    bench.admin("DELETE", &path, Value::Null, 204).await;
    assert_eq!(bench.status_of(&token).await, 404);
    bench
        .admin("GET", &format!("{TRUSTS}/{trust}"), Value::Null, 404)
        .await;
}

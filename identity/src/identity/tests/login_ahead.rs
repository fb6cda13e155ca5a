//! A login reads what it needs while its hash is computed. Whatever changes meanwhile counts, and nobody learns from it who exists.

use serde_json::{Value, json};

use super::{V3, admin, column};
use crate::testing::{Answer, Bench, id};

/// `u`, a manager of the project `p`, with everything by its id.
struct Site {
    bench: Bench,
    user: String,
    project: String,
    role: String,
}

async fn site() -> Site {
    let bench = Bench::new().await;
    let (user, project) = (bench.user("u").await, bench.project("p").await);
    bench.grant(&project, &user, "manager").await;
    let role = bench.role("manager").await;
    Site {
        bench,
        user,
        project,
        role,
    }
}

impl Site {
    /// A login of `name`, for `p` unless another scope is given.
    async fn log_in(&self, name: &str, password: &str, scope: Option<Value>) -> Answer {
        let user = json!({"name": name, "domain": {"id": "default"}, "password": password});
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        let scope = scope.unwrap_or_else(|| json!({"project": {"id": self.project}}));
        let auth = json!({"identity": identity, "scope": scope});
        self.bench.auth(json!({ "auth": auth })).await
    }

    /// The same of `u`, while something changes after all was read.
    async fn amid(&self, scope: Option<Value>, change: impl AsyncFnOnce()) -> Answer {
        let login = self.log_in("u", "u-pw", scope);
        self.bench.app.login_pause.amid(login, change).await
    }

    async fn patch(&self, path: &str, body: Value) {
        admin(&self.bench, "PATCH", path, body, 200).await;
    }

    async fn set_user(&self, set: Value) {
        self.patch(&format!("users/{}", self.user), json!({ "user": set }))
            .await;
    }

    async fn set_project(&self, set: Value) {
        self.patch(
            &format!("projects/{}", self.project),
            json!({ "project": set }),
        )
        .await;
    }

    async fn set_role(&self, method: &str, role: &str) {
        let path = format!("projects/{}/users/{}/roles/{role}", self.project, self.user);
        admin(&self.bench, method, &path, Value::Null, 204).await;
    }
}

fn roles(answer: &Answer) -> Vec<String> {
    column(&answer.json()["token"]["roles"], "name")
}

#[tokio::test]
async fn what_was_read_ahead_is_what_is_there() {
    let site = site().await;
    let quiet = site.amid(None, async || {}).await;
    assert_eq!(quiet.status, 201, "{}", quiet.json());
    assert_eq!(roles(&quiet), ["manager", "member", "reader"]);
    let token = quiet.header("X-Subject-Token");
    let headers = [
        ("X-Auth-Token", site.bench.admin.as_str()),
        ("X-Subject-Token", token),
    ];
    let path = format!("{V3}/auth/tokens");
    let shown = site.bench.raw("GET", &path, &headers, Vec::new()).await;
    assert_eq!(shown.json(), quiet.json(), "read again");
    assert!(
        !quiet.json()["token"]["catalog"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn what_ends_the_right_to_a_token_amid_a_login_ends_the_login() {
    let domain = || Some(json!({"domain": {"id": "default"}}));
    for case in 0..10 {
        let site = site().await;
        let pause = &site.bench.app.login_pause;
        let answer = match case {
            0 => {
                site.amid(None, async || {
                    site.set_user(json!({"enabled": false})).await
                })
                .await
            }
            // Disabled and back again: what ended its tokens ends this login.
            1 => {
                let change = async || {
                    site.set_user(json!({"enabled": false})).await;
                    site.set_user(json!({"enabled": true})).await;
                };
                site.amid(None, change).await
            }
            // The old password was right when it was asked for.
            2 => {
                site.amid(None, async || {
                    site.set_user(json!({"password": "new"})).await
                })
                .await
            }
            3 => {
                site.amid(Some(json!("unscoped")), async || {
                    site.set_user(json!({"password": "new"})).await
                })
                .await
            }
            4 => {
                let body = json!({"user": {"original_password": "u-pw", "password": "new"}});
                let path = format!("{V3}/users/{}/password", site.user);
                let change = async || {
                    let answer = site.bench.call("POST", &path, "", body).await;
                    assert_eq!(answer.status, 204);
                };
                // The change proves a password too, and stops at no gate.
                pause.amid(site.log_in("u", "u-pw", None), change).await
            }
            5 => {
                let path = format!("users/{}", site.user);
                let change = async || {
                    admin(&site.bench, "DELETE", &path, Value::Null, 204).await;
                };
                site.amid(None, change).await
            }
            6 => {
                site.amid(None, async || site.set_role("DELETE", &site.role).await)
                    .await
            }
            7 => {
                site.amid(None, async || {
                    site.set_project(json!({"enabled": false})).await
                })
                .await
            }
            // By its name: the project is another one now.
            8 => {
                let named = json!({"project": {"name": "p", "domain": {"id": "default"}}});
                let change = async || site.set_project(json!({"name": "q"})).await;
                site.amid(Some(named), change).await
            }
            _ => {
                let path = format!("domains/default/users/{}/roles/{}", site.user, site.role);
                admin(&site.bench, "PUT", &path, Value::Null, 204).await;
                let change = async || {
                    admin(&site.bench, "DELETE", &path, Value::Null, 204).await;
                };
                site.amid(domain(), change).await
            }
        };
        assert_eq!(answer.status, 401, "case {case}: {}", answer.json());
        assert_eq!(answer.header("X-Subject-Token"), "", "case {case}");
    }
}

#[tokio::test]
async fn what_changes_amid_a_login_is_in_its_token() {
    let site = site().await;
    let member = site.bench.role("member").await;
    let fewer = async || {
        site.set_role("PUT", &member).await;
        site.set_role("DELETE", &site.role).await;
    };
    assert_eq!(roles(&site.amid(None, fewer).await), ["member", "reader"]);
    let more = async || site.set_role("PUT", &site.role).await;
    let answer = site.amid(None, more).await;
    assert_eq!(roles(&answer), ["manager", "member", "reader"]);

    let answer = site
        .amid(None, async || {
            site.set_user(json!({"name": "u", "email": "u@example.org"}))
                .await
        })
        .await;
    assert_eq!(answer.status, 201, "nothing that a login is about");
    let service = async || {
        let body = json!({"service": {"name": "images", "type": "image"}});
        let made = admin(&site.bench, "POST", "services", body, 201).await;
        let body = json!({"endpoint": {
            "service_id": id(&made["service"]), "interface": "public", "url": "https://images.example.org",
        }});
        admin(&site.bench, "POST", "endpoints", body, 201).await;
    };
    let answer = site.amid(None, service).await;
    let types = column(&answer.json()["token"]["catalog"], "type");
    assert!(types.contains(&"image".to_owned()), "{types:?}");

    // From now on, a password is not enough.
    let rules = async || {
        site.set_user(json!({"options": {
            "multi_factor_auth_enabled": true, "multi_factor_auth_rules": [["password", "totp"]],
        }}))
        .await;
    };
    let answer = site.amid(None, rules).await;
    assert_eq!(answer.status, 401);
    assert_ne!(answer.header("Openstack-Auth-Receipt"), "");
}

/// A wrong password and a user who is not there: the same is computed, read and answered.
#[tokio::test]
async fn nobody_learns_from_a_refusal_who_exists() {
    let site = site().await;
    let pause = &site.bench.app.login_pause;
    let mut seen = Vec::new();
    for (name, scope) in [
        ("u", json!({"project": {"id": site.project}})),
        ("nobody", json!({"project": {"id": site.project}})),
        (
            "u",
            json!({"project": {"name": "p", "domain": {"name": "Default"}}}),
        ),
        (
            "nobody",
            json!({"project": {"name": "p", "domain": {"name": "Default"}}}),
        ),
        ("u", json!({"project": {"id": "nosuch"}})),
        ("nobody", json!({"project": {"id": "nosuch"}})),
    ] {
        let before = pause.counts();
        let login = site.log_in(name, "wrong", Some(scope));
        // It comes to its end only if one hash was computed and the reading was done once.
        let answer = pause.amid(login, async || {}).await;
        let after = pause.counts();
        assert_eq!((after.0 - before.0, after.1 - before.1), (1, 1), "{name}");
        let headers: Vec<(String, String)> = answer
            .headers
            .iter()
            .filter(|(name, _)| *name != "x-openstack-request-id")
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        seen.push((answer.status, headers, answer.json()));
    }
    assert_eq!(seen[0].0, 401);
    seen.dedup();
    assert_eq!(seen.len(), 1, "{seen:?}");
}

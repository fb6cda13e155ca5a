//! Delegation through the API: the regional administrator, managers of domains and projects, and what none of
//! them may. The policy files are the ones in `examples/policy`.

#![allow(clippy::unwrap_used)]

mod files;
mod given_away;
mod managers;
mod regional;
mod super_administrator;

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::testing::{Bench, id};

const V3: &str = "/identity/v3";

fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../examples/policy")
        .join(name)
}

/// A service with one of the example policies and two domains, north and south.
struct Site {
    bench: Bench,
    north: String,
    south: String,
}

impl Site {
    async fn new(policy: Option<&str>) -> Self {
        let bench = Bench::with(|config| config.policy.dir = policy.map(example)).await;
        let mut ids = Vec::new();
        for name in ["north", "south"] {
            let body = json!({"domain": {"name": name}});
            ids.push(id(&bench
                .admin("POST", &format!("{V3}/domains"), body, 201)
                .await["domain"]));
        }
        let south = ids.pop().unwrap();
        let north = ids.pop().unwrap();
        Self {
            bench,
            north,
            south,
        }
    }

    async fn create(&self, kind: &str, body: Value) -> String {
        id(&self
            .bench
            .admin("POST", &format!("{V3}/{kind}s"), json!({kind: body}), 201)
            .await[kind])
    }

    async fn user(&self, name: &str, domain: &str) -> String {
        self.create(
            "user",
            json!({"name": name, "domain_id": domain, "password": format!("{name}-pw")}),
        )
        .await
    }

    async fn put(&self, path: String) {
        self.bench
            .admin("PUT", &format!("{V3}{path}"), Value::Null, 204)
            .await;
    }

    /// Status of a login, and the token.
    async fn login(&self, user: &str, scope: Value) -> (u16, String) {
        let identity = json!({"methods": ["password"], "password": {"user": {"id": user, "password": self.password(user).await}}});
        self.auth(identity, scope).await
    }

    async fn password(&self, user: &str) -> String {
        let shown = self
            .bench
            .admin("GET", &format!("{V3}/users/{user}"), Value::Null, 200)
            .await;
        format!("{}-pw", shown["user"]["name"].as_str().unwrap())
    }

    async fn auth(&self, identity: Value, scope: Value) -> (u16, String) {
        let mut auth = json!({"identity": identity});
        if !scope.is_null() {
            auth["scope"] = scope;
        }
        let answer = self.bench.auth(json!({"auth": auth})).await;
        (answer.status, answer.header("X-Subject-Token").to_owned())
    }

    async fn status(&self, token: &str, method: &str, path: &str, body: Value) -> u16 {
        self.bench
            .call(method, &format!("{V3}{path}"), token, body)
            .await
            .status
    }

    async fn names(&self, token: &str, kind: &str, query: &str) -> Vec<String> {
        let answer = self
            .bench
            .call("GET", &format!("{V3}/{kind}{query}"), token, Value::Null)
            .await;
        assert_eq!(answer.status, 200, "{kind}{query}");
        answer.json()[kind]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// A region with its administrator, logged in to the domain.
struct Region {
    site: Site,
    alice: String,
    token: String,
    /// A user and a project elsewhere.
    foreign_user: String,
    foreign_project: String,
    radmin: String,
}

impl Region {
    async fn new() -> Self {
        let site = Site::new(Some("regional-administrator")).await;
        let radmin = site.create("role", json!({"name": "Radmin"})).await;
        let alice = site.user("alice", &site.north).await;
        site.put(format!(
            "/domains/{}/users/{alice}/roles/{radmin}",
            site.north
        ))
        .await;
        let foreign_user = site.user("sven", &site.south).await;
        let foreign_project = site
            .create(
                "project",
                json!({"name": "southern", "domain_id": site.south}),
            )
            .await;
        let (status, token) = site
            .login(&alice, json!({"domain": {"id": site.north}}))
            .await;
        assert_eq!(status, 201);
        Self {
            site,
            alice,
            token,
            foreign_user,
            foreign_project,
            radmin,
        }
    }

    async fn status(&self, method: &str, path: &str, body: Value) -> u16 {
        self.site.status(&self.token, method, path, body).await
    }

    async fn created(&self, kind: &str, body: Value) -> String {
        let answer = self
            .site
            .bench
            .call(
                "POST",
                &format!("{V3}/{kind}s"),
                &self.token,
                json!({kind: body}),
            )
            .await;
        assert_eq!(
            answer.status,
            201,
            "{}",
            String::from_utf8_lossy(&answer.bytes)
        );
        id(&answer.json()[kind])
    }

    async fn role(&self, name: &str) -> String {
        self.site.bench.role(name).await
    }
}

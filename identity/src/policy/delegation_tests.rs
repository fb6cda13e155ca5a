//! Delegation through the API: the regional administrator, managers of domains and projects, and what none of
//! them may. The policy files are the ones in `examples/policy`.

#![allow(clippy::unwrap_used)]

mod given_away;

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

/// The study's experiment: create, list and delete users and projects of the own domain; refused elsewhere.
#[tokio::test]
async fn regional_administrator_figures_three_to_six() {
    let region = Region::new().await;
    let (north, south) = (region.site.north.clone(), region.site.south.clone());
    for kind in ["user", "project", "group"] {
        let plural = format!("{kind}s");
        let own = region
            .created(
                kind,
                json!({"name": format!("northern-{kind}"), "domain_id": north}),
            )
            .await;
        for (body, status) in [
            (json!({"name": "x", "domain_id": south}), 403),
            (json!({"name": "x", "domain_id": "default"}), 403),
            (json!({"name": "x"}), 403),
            (json!({"name": "x", "domain_id": null}), 403),
            (json!({"name": "x", "domain_id": "nosuch"}), 403),
        ] {
            assert_eq!(
                region
                    .status("POST", &format!("/{plural}"), json!({kind: body}))
                    .await,
                status,
                "{kind} {body}"
            );
        }
        let mut all = region.site.names(&region.token, &plural, "").await;
        all.retain(|name| name != "alice");
        assert_eq!(all, [format!("northern-{kind}")]);
        let query = format!("?domain_id={south}");
        assert!(
            region
                .site
                .names(&region.token, &plural, &query)
                .await
                .is_empty(),
            "another domain's list is empty"
        );
        let path = format!("/{plural}/{own}");
        assert_eq!(region.status("GET", &path, Value::Null).await, 200);
        assert_eq!(
            region
                .status("PATCH", &path, json!({kind: {"description": "mine"}}))
                .await,
            200
        );
        let moved = region
            .status("PATCH", &path, json!({kind: {"domain_id": south}}))
            .await;
        assert!([400, 403].contains(&moved), "{kind} moved: {moved}");
        assert_eq!(region.status("DELETE", &path, Value::Null).await, 204);
    }
    for (kind, foreign) in [
        ("user", &region.foreign_user),
        ("project", &region.foreign_project),
    ] {
        let path = format!("/{kind}s/{foreign}");
        for (method, body) in [
            ("GET", Value::Null),
            (
                "PATCH",
                json!({kind: {"description": "taken", "domain_id": north}}),
            ),
            ("DELETE", Value::Null),
        ] {
            assert_eq!(
                region.status(method, &path, body).await,
                403,
                "{method} {kind}"
            );
        }
    }
    // A project under a foreign parent would lie in the foreign domain.
    let below =
        json!({"project": {"name": "x", "domain_id": north, "parent_id": region.foreign_project}});
    assert!([400, 403].contains(&region.status("POST", "/projects", below).await));
    for is_domain in [json!(true), json!("true"), json!(1)] {
        let body = json!({"project": {"name": "x", "domain_id": north, "is_domain": is_domain}});
        let status = region.status("POST", "/projects", body).await;
        assert!(
            [400, 403].contains(&status),
            "is_domain {is_domain}: {status}"
        );
    }
    for (method, path) in [
        ("GET", "/domains"),
        ("POST", "/domains"),
        ("POST", "/roles"),
        ("POST", "/regions"),
        ("POST", "/services"),
    ] {
        let body = if method == "POST" {
            json!({"domain": {"name": "x"}, "role": {"name": "x"}, "region": {"id": "x"}, "service": {"type": "x"}})
        } else {
            Value::Null
        };
        assert_eq!(
            region.status(method, path, body).await,
            403,
            "{method} {path}"
        );
    }
    let listed = region
        .site
        .names(&region.token, "projects", "?is_domain=true")
        .await;
    assert!(listed.iter().all(|name| name == "north"), "{listed:?}");
}

/// No role but member and reader can be given, in no place, in no spelling.
#[tokio::test]
async fn regional_administrator_gives_no_admin() {
    let region = Region::new().await;
    let site = &region.site;
    let bob = region
        .created(
            "user",
            json!({"name": "bob", "domain_id": site.north, "password": "bob-pw"}),
        )
        .await;
    let crew = region
        .created("group", json!({"name": "crew", "domain_id": site.north}))
        .await;
    let project = region
        .created("project", json!({"name": "quay", "domain_id": site.north}))
        .await;
    // Roles that somebody may have made: other spellings, one that leads further, one of the domain itself.
    let mut refused = vec![
        region.role("admin").await,
        region.role("manager").await,
        region.role("service").await,
        region.radmin.clone(),
    ];
    for name in ["Admin", "ADMIN", "Member"] {
        refused.push(site.create("role", json!({"name": name})).await);
    }
    refused.push(
        site.create("role", json!({"name": "member", "domain_id": site.north}))
            .await,
    );
    let (member, reader) = (region.role("member").await, region.role("reader").await);
    let places = |role: &str| -> Vec<String> {
        let mut all = Vec::new();
        for actor in [
            format!("users/{bob}"),
            format!("groups/{crew}"),
            format!("users/{}", region.alice),
        ] {
            for target in [
                format!("projects/{project}"),
                format!("domains/{}", site.north),
            ] {
                all.push(format!("/{target}/{actor}/roles/{role}"));
                all.push(format!(
                    "/OS-INHERIT/{target}/{actor}/roles/{role}/inherited_to_projects"
                ));
            }
        }
        all
    };
    for role in &refused {
        for path in places(role) {
            assert_eq!(
                region.status("PUT", &path, Value::Null).await,
                403,
                "{path}"
            );
            assert_eq!(
                region.status("DELETE", &path, Value::Null).await,
                403,
                "{path}"
            );
        }
        for actor in [format!("users/{bob}"), format!("groups/{crew}")] {
            assert_eq!(
                region
                    .status("PUT", &format!("/system/{actor}/roles/{role}"), Value::Null)
                    .await,
                403
            );
        }
    }
    for role in [&member, &reader] {
        for path in places(role) {
            assert_eq!(
                region.status("PUT", &path, Value::Null).await,
                204,
                "{path}"
            );
            assert_eq!(
                region.status("DELETE", &path, Value::Null).await,
                204,
                "{path}"
            );
        }
        for path in [
            format!(
                "/projects/{}/users/{bob}/roles/{role}",
                region.foreign_project
            ),
            format!("/domains/{}/users/{bob}/roles/{role}", site.south),
            format!("/domains/default/groups/{crew}/roles/{role}"),
            format!(
                "/projects/{project}/users/{}/roles/{role}",
                region.foreign_user
            ),
            format!(
                "/OS-INHERIT/domains/{}/users/{bob}/roles/{role}/inherited_to_projects",
                site.south
            ),
        ] {
            assert_eq!(
                region.status("PUT", &path, Value::Null).await,
                403,
                "{path}"
            );
        }
    }
    // Implied roles: neither made by the administrator nor, with admin at their end, by anybody.
    let admin = region.role("admin").await;
    assert_eq!(
        region
            .status(
                "PUT",
                &format!("/roles/{member}/implies/{admin}"),
                Value::Null
            )
            .await,
        403
    );
    for role in [&admin, &refused[4], &refused[5]] {
        let path = format!("/roles/{member}/implies/{role}");
        assert_eq!(
            site.status(&site.bench.admin, "PUT", &path, Value::Null)
                .await,
            403,
            "admin is never implied"
        );
    }
    // Groups of others.
    let foreign = site
        .create("group", json!({"name": "cloud", "domain_id": "default"}))
        .await;
    site.put(format!("/domains/default/groups/{foreign}/roles/{admin}"))
        .await;
    for user in [&bob, &region.alice] {
        assert_eq!(
            region
                .status(
                    "PUT",
                    &format!("/groups/{foreign}/users/{user}"),
                    Value::Null
                )
                .await,
            403
        );
    }
    assert_eq!(
        region
            .status(
                "PUT",
                &format!("/groups/{crew}/users/{}", region.foreign_user),
                Value::Null
            )
            .await,
        403
    );
    assert_eq!(
        region
            .status("PUT", &format!("/groups/{crew}/users/{bob}"), Value::Null)
            .await,
        204
    );
}

/// The rights end with the domain token: no other way of logging in carries them further.
#[tokio::test]
async fn regional_administrator_by_other_tokens() {
    let region = Region::new().await;
    let site = &region.site;
    let project = region
        .created("project", json!({"name": "quay", "domain_id": site.north}))
        .await;
    let member = region.role("member").await;
    let own_grant = format!("/projects/{project}/users/{}/roles/{member}", region.alice);
    assert_eq!(region.status("PUT", &own_grant, Value::Null).await, 204);
    // The domain token is as good as before; rescoping to what she has no role on is refused.
    let rescope = json!({"methods": ["token"], "token": {"id": region.token}});
    for scope in [
        json!({"system": {"all": true}}),
        json!({"domain": {"id": site.south}}),
        json!({"domain": {"id": "default"}}),
        json!({"project": {"id": region.foreign_project}}),
    ] {
        assert_eq!(
            site.auth(rescope.clone(), scope.clone()).await.0,
            401,
            "{scope}"
        );
    }
    let (status, in_project) = site
        .login(&region.alice, json!({"project": {"id": project}}))
        .await;
    assert_eq!(status, 201);
    // An application credential of that project, with all that its user has there.
    let path = format!("{V3}/users/{}/application_credentials", region.alice);
    let body = json!({"application_credential": {"name": "c", "unrestricted": true}});
    let answer = site.bench.call("POST", &path, &in_project, body).await;
    assert_eq!(answer.status, 201);
    let made = answer.json()["application_credential"].clone();
    let identity = json!({"methods": ["application_credential"], "application_credential": {"id": made["id"], "secret": made["secret"]}});
    let (status, by_credential) = site.auth(identity.clone(), Value::Null).await;
    assert_eq!(status, 201);
    assert_eq!(
        site.auth(identity, json!({"domain": {"id": site.north}}))
            .await
            .0,
        401,
        "a credential stays in its project"
    );
    let body = json!({"application_credential": {"name": "d", "roles": [{"name": "admin"}]}});
    assert_eq!(
        site.bench
            .call("POST", &path, &in_project, body)
            .await
            .status,
        400,
        "only roles of the token"
    );
    let (_, unscoped) = site.login(&region.alice, json!("unscoped")).await;
    for token in [&in_project, &by_credential, &unscoped] {
        for (method, path, body) in [
            (
                "POST",
                "/users".to_owned(),
                json!({"user": {"name": "x", "domain_id": site.north}}),
            ),
            (
                "POST",
                "/projects".to_owned(),
                json!({"project": {"name": "x", "domain_id": site.north}}),
            ),
            ("GET", "/users".to_owned(), Value::Null),
            (
                "PUT",
                format!(
                    "/projects/{project}/users/{}/roles/{member}",
                    region.foreign_user
                ),
                Value::Null,
            ),
            (
                "DELETE",
                format!("/users/{}", region.foreign_user),
                Value::Null,
            ),
        ] {
            assert_eq!(
                site.status(token, method, &path, body).await,
                403,
                "{method} {path}"
            );
        }
    }
    // The role inherited to projects, or on one, gives nothing: the policy asks for the domain's token.
    let carl = site.user("carl", &site.north).await;
    site.put(format!(
        "/OS-INHERIT/domains/{}/users/{carl}/roles/{}/inherited_to_projects",
        site.north, region.radmin
    ))
    .await;
    let (status, inherited) = site.login(&carl, json!({"project": {"id": project}})).await;
    assert_eq!(status, 201);
    assert_eq!(
        site.status(
            &inherited,
            "POST",
            "/users",
            json!({"user": {"name": "x", "domain_id": site.north}})
        )
        .await,
        403
    );
    assert_eq!(
        site.login(&carl, json!({"domain": {"id": site.north}}))
            .await
            .0,
        401
    );
    // Through a group it is the same as by oneself.
    let crew = site
        .create("group", json!({"name": "crew", "domain_id": site.north}))
        .await;
    site.put(format!(
        "/domains/{}/groups/{crew}/roles/{}",
        site.north, region.radmin
    ))
    .await;
    let dora = site.user("dora", &site.north).await;
    site.put(format!("/groups/{crew}/users/{dora}")).await;
    let (_, token) = site
        .login(&dora, json!({"domain": {"id": site.north}}))
        .await;
    assert_eq!(
        site.status(
            &token,
            "POST",
            "/users",
            json!({"user": {"name": "eve", "domain_id": site.north}})
        )
        .await,
        201
    );
    assert_eq!(
        site.status(
            &token,
            "POST",
            "/users",
            json!({"user": {"name": "eve", "domain_id": site.south}})
        )
        .await,
        403
    );
    // Attributes of one's own cannot stand in for the service's.
    let body = json!({"user": {"name": "f", "domain_id": site.south, "target.user.domain_id": site.north, "user.domain_id": site.north}});
    assert_eq!(site.status(&token, "POST", "/users", body).await, 403);
    let path = format!(
        "/users?domain_id={}&target.domain_id={}",
        site.south, site.north
    );
    let answer = site
        .bench
        .call("GET", &format!("{V3}{path}"), &token, Value::Null)
        .await;
    assert_eq!(answer.json()["users"], json!([]));
}

/// Keystone's own delegation: the manager of a domain manages it and cannot raise anybody above a manager.
#[tokio::test]
async fn manager_of_a_domain_by_the_defaults() {
    let site = Site::new(None).await;
    let (manager, admin, member) = (
        site.bench.role("manager").await,
        site.bench.role("admin").await,
        site.bench.role("member").await,
    );
    let mona = site.user("mona", &site.north).await;
    site.put(format!(
        "/domains/{}/users/{mona}/roles/{manager}",
        site.north
    ))
    .await;
    let (_, token) = site
        .login(&mona, json!({"domain": {"id": site.north}}))
        .await;
    let may = async |method: &str, path: String, body: Value| {
        site.status(&token, method, &path, body).await
    };
    assert_eq!(
        may(
            "POST",
            "/projects".into(),
            json!({"project": {"name": "p", "domain_id": site.north}})
        )
        .await,
        201
    );
    assert_eq!(
        may(
            "POST",
            "/users".into(),
            json!({"user": {"name": "u", "domain_id": site.north}})
        )
        .await,
        201
    );
    assert_eq!(
        may(
            "POST",
            "/users".into(),
            json!({"user": {"name": "u", "domain_id": site.south}})
        )
        .await,
        403
    );
    let on_domain = |role: &str| format!("/domains/{}/users/{mona}/roles/{role}", site.north);
    assert_eq!(may("PUT", on_domain(&member), Value::Null).await, 204);
    assert_eq!(may("PUT", on_domain(&manager), Value::Null).await, 204);
    assert_eq!(may("PUT", on_domain(&admin), Value::Null).await, 403);
    assert_eq!(
        may(
            "PUT",
            format!("/domains/{}/users/{mona}/roles/{member}", site.south),
            Value::Null
        )
        .await,
        403
    );
    assert_eq!(
        may(
            "PUT",
            format!("/system/users/{mona}/roles/{member}"),
            Value::Null
        )
        .await,
        403
    );
    assert_eq!(
        may(
            "PATCH",
            format!("/domains/{}", site.north),
            json!({"domain": {"name": "mine"}})
        )
        .await,
        403
    );
}

/// Delegation below a domain, level by level.
#[tokio::test]
async fn manager_of_a_project_works_below_it() {
    let site = Site::new(Some("project-administrator")).await;
    let (manager, member, admin) = (
        site.bench.role("manager").await,
        site.bench.role("member").await,
        site.bench.role("admin").await,
    );
    let top = site
        .create("project", json!({"name": "top", "domain_id": site.north}))
        .await;
    let other = site
        .create("project", json!({"name": "other", "domain_id": site.north}))
        .await;
    let (pia, sven) = (
        site.user("pia", &site.north).await,
        site.user("sven", &site.south).await,
    );
    site.put(format!("/projects/{top}/users/{pia}/roles/{manager}"))
        .await;
    site.put(format!(
        "/OS-INHERIT/projects/{top}/users/{pia}/roles/{manager}/inherited_to_projects"
    ))
    .await;
    let (_, at_top) = site.login(&pia, json!({"project": {"id": top}})).await;
    let body = |name: &str, parent: &str| json!({"project": {"name": name, "domain_id": site.north, "parent_id": parent}});
    let answer = site
        .bench
        .call(
            "POST",
            &format!("{V3}/projects"),
            &at_top,
            body("middle", &top),
        )
        .await;
    assert_eq!(
        answer.status,
        201,
        "{}",
        String::from_utf8_lossy(&answer.bytes)
    );
    let middle = id(&answer.json()["project"]);
    for parent in [&other, &site.north, &middle] {
        assert_eq!(
            site.status(&at_top, "POST", "/projects", body("x", parent))
                .await,
            403,
            "under {parent}"
        );
    }
    let (status, at_middle) = site.login(&pia, json!({"project": {"id": middle}})).await;
    assert_eq!(status, 201);
    assert_eq!(
        site.status(&at_middle, "POST", "/projects", body("bottom", &middle))
            .await,
        201
    );
    let grant = |project: &str, user: &str, role: &str| {
        format!("/projects/{project}/users/{user}/roles/{role}")
    };
    assert_eq!(
        site.status(&at_top, "PUT", &grant(&middle, &pia, &member), Value::Null)
            .await,
        204
    );
    for path in [
        grant(&middle, &pia, &admin),
        grant(&middle, &pia, &manager),
        grant(&other, &pia, &member),
        grant(&middle, &sven, &member),
        format!("/domains/{}/users/{pia}/roles/{member}", site.north),
    ] {
        assert_eq!(
            site.status(&at_top, "PUT", &path, Value::Null).await,
            403,
            "{path}"
        );
    }
    for (method, path) in [
        ("DELETE", format!("/projects/{top}")),
        ("DELETE", format!("/projects/{other}")),
    ] {
        assert_eq!(site.status(&at_top, method, &path, Value::Null).await, 403);
    }
}

/// The administrator of everything sees that a tenant's secret exists and may delete it, but never reads it.
#[tokio::test]
async fn super_administrator_reads_no_payload() {
    let bench = Bench::new().await;
    let project = bench.project("tenant").await;
    let owner = bench.member("owner", ("tenant", &project), "member").await;
    let body = json!({"name": "k", "payload": "deep", "payload_content_type": "text/plain"});
    let answer = bench
        .call("POST", "/key-manager/v1/secrets", &owner, body)
        .await;
    assert_eq!(answer.status, 201);
    let url = answer.json()["secret_ref"].as_str().unwrap().to_owned();
    let path = url[url.find("/key-manager").unwrap()..].to_owned();
    let accept = |token: &str| {
        vec![
            ("X-Auth-Token".to_owned(), token.to_owned()),
            ("Accept".to_owned(), "text/plain".to_owned()),
        ]
    };
    for (token, payload) in [(&owner, 200), (&bench.admin, 403)] {
        let headers = accept(token);
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        assert_eq!(
            bench
                .raw("GET", &format!("{path}/payload"), &headers, Vec::new())
                .await
                .status,
            payload
        );
    }
    for (method, sub) in [("GET", "/acl"), ("PUT", "/acl"), ("POST", "/consumers")] {
        let body = if method == "GET" {
            Value::Null
        } else {
            json!({"read": {"project-access": true}, "service": "s", "resource_type": "t", "resource_id": "i"})
        };
        assert_eq!(
            bench
                .call(method, &format!("{path}{sub}"), &bench.admin, body)
                .await
                .status,
            403,
            "{method} {sub}"
        );
    }
    assert_eq!(
        bench
            .call("GET", &path, &bench.admin, Value::Null)
            .await
            .status,
        200,
        "metadata"
    );
    assert_eq!(
        bench
            .call("DELETE", &path, &bench.admin, Value::Null)
            .await
            .status,
        204
    );
}

/// Deletion protection holds for everybody.
#[tokio::test]
async fn immutable_resources_stay() {
    let site = Site::new(None).await;
    let project = site
        .create(
            "project",
            json!({"name": "p", "domain_id": site.north, "options": {"immutable": true}}),
        )
        .await;
    let on = json!({"options": {"immutable": true}});
    site.bench
        .admin(
            "PATCH",
            &format!("{V3}/domains/{}", site.south),
            json!({"domain": on}),
            200,
        )
        .await;
    for (kind, id) in [("project", &project), ("domain", &site.south)] {
        let path = format!("/{kind}s/{id}");
        let change = async |method: &str, body: Value| {
            site.status(&site.bench.admin, method, &path, body).await
        };
        assert_eq!(
            change("PATCH", json!({kind: {"enabled": false}})).await,
            403,
            "{kind}"
        );
        assert_eq!(
            change("PATCH", json!({kind: {"name": "x", "options": {}}})).await,
            403,
            "{kind}"
        );
        assert_eq!(change("DELETE", Value::Null).await, 403, "{kind}");
        let off = json!({kind: {"options": {"immutable": false}, "enabled": false}});
        assert_eq!(change("PATCH", off).await, 200, "{kind}");
        assert_eq!(change("DELETE", Value::Null).await, 204, "{kind}");
    }
}

/// A changed file counts for the next request; one that cannot be used shows to the probe and changes nothing.
#[tokio::test]
async fn policy_files_change_under_a_running_service() {
    use tower::ServiceExt;
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::with(|config| config.policy.dir = Some(dir.path().into())).await;
    let project = bench.project("p").await;
    let member = bench.member("m", ("p", &project), "member").await;
    let listed = async || {
        bench
            .call("GET", &format!("{V3}/users"), &member, Value::Null)
            .await
            .status
    };
    let probe = async || {
        let request = axum::http::Request::get("/readyz")
            .body(axum::body::Body::empty())
            .unwrap();
        let answer = crate::http::admin_router(bench.app.clone())
            .oneshot(request)
            .await
            .unwrap();
        let status = answer.status().as_u16();
        let bytes = axum::body::to_bytes(answer.into_body(), 10_000)
            .await
            .unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    };
    let write = |text: &str| {
        std::fs::write(dir.path().join("identity.yaml"), text).unwrap();
        bench.app.identity_policy.refresh();
    };
    assert_eq!(listed().await, 403);
    write("\"identity:list_users\": \"role:member\"");
    assert_eq!((listed().await, probe().await), (200, (200, "ok".into())));
    write("\"identity:list_users\": \"role:reader role:member\"");
    let (status, text) = probe().await;
    assert_eq!((listed().await, status), (200, 200));
    assert!(
        text.starts_with("degraded:") && text.contains("rule identity:list_users"),
        "{text}"
    );
    write("");
    assert_eq!((listed().await, probe().await.1), (403, "ok".into()));
}

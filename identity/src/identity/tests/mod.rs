//! The identity API through its routes, on a real database.

#![allow(clippy::unwrap_used)]

mod access_rules;
mod catalog;
mod domain_config;
mod ec2;
mod factors;
mod hierarchy;
mod limits;
mod long_lists;
mod oauth1;
mod token_ends;
mod trusts;

use serde_json::{Value, json};

use crate::testing::{Bench, HOST, id};

const V3: &str = "/identity/v3";

/// As the administrator, below `/identity/v3/`, with this status.
async fn admin(bench: &Bench, method: &str, path: &str, body: Value, status: u16) -> Value {
    bench
        .admin(method, &format!("{V3}/{path}"), body, status)
        .await
}

/// The values of one attribute in a list, sorted.
fn column(list: &Value, name: &str) -> Vec<String> {
    let items = list.as_array().unwrap();
    let mut column: Vec<String> = items
        .iter()
        .map(|item| item[name].as_str().unwrap().to_owned())
        .collect();
    column.sort();
    column
}

#[tokio::test]
async fn discovery_and_unknown_paths() {
    let bench = Bench::new().await;
    let versions = bench.call("GET", "/identity", "", Value::Null).await;
    assert_eq!(versions.status, 300);
    let href = versions.json()["versions"]["values"][0]["links"][0]["href"].clone();
    assert_eq!(href, format!("https://{HOST}/identity/v3/"));
    for path in ["/identity/v3", "/identity/v3/"] {
        let answer = bench.call("GET", path, "", Value::Null).await;
        assert_eq!(
            (answer.status, answer.header("vary")),
            (200, "X-Auth-Token")
        );
        assert!(answer.header("x-openstack-request-id").starts_with("req-"));
    }
    assert_eq!(
        bench
            .call("GET", "/identity/v3/nosuch", &bench.admin, Value::Null)
            .await
            .status,
        404
    );
    assert_eq!(
        bench
            .call("PUT", "/identity/v3/users", &bench.admin, Value::Null)
            .await
            .status,
        405
    );
}

#[tokio::test]
async fn a_token_says_who_what_and_where() {
    let bench = Bench::new().await;
    let headers = [
        ("X-Auth-Token", bench.admin.as_str()),
        ("X-Subject-Token", bench.admin.as_str()),
    ];
    let answer = bench
        .raw("GET", "/identity/v3/auth/tokens", &headers, Vec::new())
        .await;
    let token = answer.json()["token"].clone();
    assert_eq!(answer.header("X-Subject-Token"), bench.admin);
    assert_eq!(token["methods"], json!(["password"]));
    assert_eq!(token["project"]["name"], "admin");
    assert_eq!(
        token["user"]["domain"],
        json!({"id": "default", "name": "Default"})
    );
    let roles: Vec<&str> = token["roles"]
        .as_array()
        .unwrap()
        .iter()
        .map(|role| role["name"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["admin", "manager", "member", "reader"]);
    let catalog = token["catalog"].as_array().unwrap();
    let manager = catalog
        .iter()
        .find(|service| service["type"] == "key-manager")
        .unwrap();
    assert_eq!(manager["endpoints"].as_array().unwrap().len(), 3);
    assert_eq!(
        manager["endpoints"][0]["url"],
        format!("https://{HOST}/key-manager")
    );
    let head = bench
        .raw("HEAD", "/identity/v3/auth/tokens", &headers, Vec::new())
        .await;
    assert_eq!((head.status, head.bytes.len()), (200, 0));
    let bare = bench
        .raw(
            "GET",
            "/identity/v3/auth/tokens?nocatalog",
            &headers,
            Vec::new(),
        )
        .await;
    assert!(bare.json()["token"].get("catalog").is_none());
}

#[tokio::test]
async fn scopes_and_rescoping() {
    let bench = Bench::new().await;
    let ask = async |scope: Value| {
        let identity = json!({"methods": ["token"], "token": {"id": bench.admin}});
        bench
            .auth(json!({"auth": {"identity": identity, "scope": scope}}))
            .await
    };
    let domain = ask(json!({"domain": {"name": "Default"}})).await.json()["token"].clone();
    assert_eq!(domain["domain"]["id"], "default");
    assert_eq!(domain["methods"], json!(["token", "password"]));
    assert_eq!(domain["audit_ids"].as_array().unwrap().len(), 2);
    assert_eq!(
        ask(json!({"system": {"all": true}})).await.json()["token"]["system"],
        json!({"all": true})
    );
    let unscoped = ask(json!("unscoped")).await.json()["token"].clone();
    assert!(unscoped.get("roles").is_none() && unscoped.get("catalog").is_none());
    assert_eq!(ask(json!({"project": {"id": "nosuch"}})).await.status, 401);
    // A domain-scoped administrator may not create roles.
    let token = ask(json!({"domain": {"id": "default"}}))
        .await
        .header("X-Subject-Token")
        .to_owned();
    let answer = bench
        .call(
            "POST",
            "/identity/v3/roles",
            &token,
            json!({"role": {"name": "r"}}),
        )
        .await;
    assert_eq!(answer.status, 403);
}

#[tokio::test]
async fn refused_logins_look_the_same() {
    let bench = Bench::new().await;
    bench.user("norole").await;
    let mut texts = Vec::new();
    for (user, password, project) in [
        ("admin", "wrong", Some("admin")),
        ("nobody", "wrong", Some("admin")),
        ("admin", "admin-password", Some("nosuch")),
        ("norole", "norole-pw", Some("admin")),
    ] {
        let scope = json!({"project": {"name": project, "domain": {"id": "default"}}});
        let user = json!({"name": user, "domain": {"id": "default"}, "password": password});
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        let answer = bench
            .auth(json!({"auth": {"identity": identity, "scope": scope}}))
            .await;
        assert_eq!(answer.status, 401);
        assert_eq!(
            answer.header("www-authenticate"),
            format!("Keystone uri=\"https://{HOST}/identity/v3\"")
        );
        texts.push(
            answer.json()["error"]["message"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    texts.dedup();
    assert_eq!(texts.len(), 1, "{texts:?}");
    let odd = bench
        .auth(json!({"auth": {"identity": {"methods": ["magic"]}}}))
        .await;
    assert_eq!(odd.status, 401);
    assert!(odd.json()["error"]["identity"]["methods"].is_array());
    let token = json!({"auth": {"identity": {"methods": ["token"], "token": {"id": "rubbish"}}}});
    assert_eq!(bench.auth(token).await.status, 404);
    assert_eq!(bench.auth(json!({})).await.status, 400);
    for path in ["/users", "/projects", "/auth/catalog"] {
        assert_eq!(
            bench
                .call("GET", &format!("{V3}{path}"), "", Value::Null)
                .await
                .status,
            401
        );
        assert_eq!(
            bench
                .call("GET", &format!("{V3}{path}"), "rubbish", Value::Null)
                .await
                .status,
            401
        );
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

#[tokio::test]
async fn conflicts_bad_input_and_unknown_attributes() {
    let bench = Bench::new().await;
    bench.project("p").await;
    bench.user("u").await;
    let domain = json!({"domain": {"name": "Default"}});
    for (path, body) in [
        (
            "/projects",
            json!({"project": {"name": "p", "domain_id": "default"}}),
        ),
        (
            "/users",
            json!({"user": {"name": "u", "domain_id": "default"}}),
        ),
        ("/roles", json!({"role": {"name": "member"}})),
        ("/domains", domain),
    ] {
        let answer = bench.admin("POST", &format!("{V3}{path}"), body, 409).await;
        assert_eq!(answer["error"]["title"], "Conflict");
    }
    for body in [
        json!({"project": {"name": ""}}),
        json!({"project": {"name": "x".repeat(65)}}),
        json!({"project": {"name": "y", "enabled": "true"}}),
        json!({"project": {"name": "y", "tags": "red"}}),
        json!({"project": {}}),
        json!({"user": {}}),
        json!([]),
    ] {
        bench
            .admin("POST", &format!("{V3}/projects"), body, 400)
            .await;
    }
    let body = json!({"project": {"name": "q", "domain_id": "default", "team": "blue", "description": null, "tags": ["b", "a"]}});
    let made = bench
        .admin("POST", &format!("{V3}/projects"), body, 201)
        .await["project"]
        .clone();
    assert_eq!(
        (&made["team"], &made["tags"], &made["description"]),
        (&json!("blue"), &json!(["a", "b"]), &json!(""))
    );
    assert_eq!(
        made["links"]["self"],
        format!("https://{HOST}/identity/v3/projects/{}", id(&made))
    );
    let path = format!("{V3}/projects/{}", id(&made));
    let set = bench
        .admin("PATCH", &path, json!({"project": {"team": "red"}}), 200)
        .await;
    assert_eq!(
        (&set["project"]["team"], &set["project"]["extra"]["team"]),
        (&json!("red"), &json!("red"))
    );
    bench
        .admin(
            "PATCH",
            &path,
            json!({"project": {"domain_id": "other"}}),
            400,
        )
        .await;
    // A name in the place of an id is cleanly not found, and found in the list.
    bench
        .admin("GET", &format!("{V3}/projects/q"), Value::Null, 404)
        .await;
    let list = bench
        .admin(
            "GET",
            &format!("{V3}/projects?name=q&unknown=1"),
            Value::Null,
            200,
        )
        .await;
    assert_eq!(list["projects"].as_array().unwrap().len(), 1);
    let list = bench
        .admin(
            "GET",
            &format!("{V3}/users?name__contains=dm"),
            Value::Null,
            200,
        )
        .await;
    assert_eq!(list["users"][0]["name"], "admin");
    let page = bench
        .admin("GET", &format!("{V3}/projects?limit=1"), Value::Null, 200)
        .await;
    assert_eq!(page["projects"].as_array().unwrap().len(), 1);
    assert!(page["links"]["next"].as_str().unwrap().contains("marker="));
}

/// The pages of a list are the list, whatever their size; where it ends, nothing follows.
#[tokio::test]
async fn pages_go_through_the_whole_list_once() {
    let bench = Bench::new().await;
    for number in 0..7 {
        bench.user(&format!("u{number}")).await;
        bench.project(&format!("p{number}")).await;
    }
    let ids = |list: &Value, key: &str| -> Vec<Value> {
        let list = list[key].as_array().unwrap().iter();
        list.map(|item| item["id"].clone()).collect()
    };
    for (key, narrowed) in [
        ("users", ""),
        ("users", "domain_id=default&"),
        ("projects", ""),
        ("projects", "domain_id=default&parent_id=default&"),
        // Read whole, and cut.
        ("users", "enabled=True&"),
    ] {
        let url = format!("{V3}/{key}?{narrowed}");
        let whole = ids(&bench.admin("GET", &url, Value::Null, 200).await, key);
        assert_eq!(whole.len(), 8, "{url}");
        for limit in [1, 3, 7, 8, 9] {
            let (mut seen, mut marker) = (Vec::new(), String::new());
            loop {
                let url = format!("{url}limit={limit}&marker={marker}");
                let page = bench.admin("GET", &url, Value::Null, 200).await;
                let some = ids(&page, key);
                assert!(some.len() <= limit, "{url}: {}", some.len());
                seen.extend(some);
                if page["links"]["next"].is_null() {
                    break;
                }
                marker = seen.last().and_then(Value::as_str).unwrap().to_owned();
            }
            assert_eq!(seen, whole, "{url} by {limit}");
        }
    }
    let url = format!("{V3}/users?name=u3&limit=5");
    let found = bench.admin("GET", &url, Value::Null, 200).await;
    assert_eq!(ids(&found, "users").len(), 1);
}

#[tokio::test]
async fn a_member_sees_itself_and_nothing_more() {
    let bench = Bench::new().await;
    let project = bench.project("p").await;
    let user = bench.user("u").await;
    bench.grant(&project, &user, "member").await;
    let token = bench.login("u", "u-pw", Some("p")).await.unwrap();
    let table = [
        ("GET", format!("/users/{user}"), 200),
        ("GET", format!("/users/{user}/projects"), 200),
        ("GET", format!("/projects/{project}"), 200),
        ("GET", "/users".into(), 403),
        ("GET", "/projects".into(), 403),
        ("GET", "/users/nosuch".into(), 403),
        ("GET", "/roles".into(), 403),
        ("GET", "/role_assignments".into(), 403),
        ("DELETE", format!("/users/{user}"), 403),
        ("DELETE", format!("/projects/{project}"), 403),
        ("GET", "/auth/catalog".into(), 200),
    ];
    for (method, path, status) in table {
        let answer = bench
            .call(method, &format!("{V3}{path}"), &token, Value::Null)
            .await;
        assert_eq!(answer.status, status, "{method} {path}");
        if status == 403 {
            assert!(
                answer.json()["error"]["message"]
                    .as_str()
                    .unwrap()
                    .contains("identity:")
            );
        }
    }
    let unscoped = bench.login("u", "u-pw", None).await.unwrap();
    let answer = bench
        .call("GET", &format!("{V3}/auth/catalog"), &unscoped, Value::Null)
        .await;
    assert_eq!(answer.status, 403, "the catalog is a project's");
    let admin = bench.role("admin").await;
    let grant = format!("{V3}/projects/{project}/users/{user}/roles/{admin}");
    assert_eq!(
        bench.call("PUT", &grant, &token, Value::Null).await.status,
        403
    );
}

#[tokio::test]
async fn inherited_and_group_roles_reach_the_projects_below() {
    let bench = Bench::new().await;
    let top = bench.project("top").await;
    let body = json!({"project": {"name": "low", "domain_id": "default", "parent_id": top}});
    let low = id(&bench
        .admin("POST", &format!("{V3}/projects"), body, 201)
        .await["project"]);
    bench
        .admin("DELETE", &format!("{V3}/projects/{top}"), Value::Null, 403)
        .await;
    let user = bench.user("u").await;
    let body = json!({"group": {"name": "g", "domain_id": "default"}});
    let group = id(&bench
        .admin("POST", &format!("{V3}/groups"), body, 201)
        .await["group"]);
    bench
        .admin(
            "PUT",
            &format!("{V3}/groups/{group}/users/{user}"),
            Value::Null,
            204,
        )
        .await;
    let manager = bench.role("manager").await;
    let path = format!(
        "{V3}/OS-INHERIT/projects/{top}/groups/{group}/roles/{manager}/inherited_to_projects"
    );
    bench.admin("PUT", &path, Value::Null, 204).await;
    // Not on the project itself, but on the one below.
    assert_eq!(bench.login("u", "u-pw", Some("top")).await, Err(401));
    let token = bench.login("u", "u-pw", Some("low")).await.unwrap();
    let context = bench.app.validate(&token, false).await.unwrap();
    let roles: Vec<&str> = context
        .roles
        .iter()
        .map(|role| role.name.as_str())
        .collect();
    assert_eq!(roles, ["manager", "member", "reader"]);
    let effective = bench
        .admin(
            "GET",
            &format!("{V3}/role_assignments?effective&user.id={user}"),
            Value::Null,
            200,
        )
        .await;
    let lines = effective["role_assignments"].as_array().unwrap();
    assert_eq!(lines.len(), 3);
    for line in lines {
        assert_eq!(line["scope"]["project"]["id"], low);
        assert_eq!(line["scope"]["OS-INHERIT:inherited_to"], "projects");
        assert!(line["links"]["membership"].is_string());
    }
    let clash = format!("{V3}/role_assignments?effective&group.id={group}");
    bench.admin("GET", &clash, Value::Null, 400).await;
    bench
        .admin(
            "DELETE",
            &format!("{V3}/groups/{group}/users/{user}"),
            Value::Null,
            204,
        )
        .await;
    assert_eq!(bench.status_of(&token).await, 404);
}

#[tokio::test]
async fn application_credentials_give_no_more_than_they_got() {
    let bench = Bench::new().await;
    let project = bench.project("p").await;
    let user = bench.user("u").await;
    bench.grant(&project, &user, "manager").await;
    let token = bench.login("u", "u-pw", Some("p")).await.unwrap();
    let path = format!("{V3}/users/{user}/application_credentials");
    let body = json!({"application_credential": {
        "name": "c", "roles": [{"name": "member"}], "secret": null, "description": null, "expires_at": null,
        "unrestricted": false, "access_rules": [],
    }});
    let made =
        bench.call("POST", &path, &token, body.clone()).await.json()["application_credential"]
            .clone();
    assert_eq!(made["secret"].as_str().unwrap().len(), 86);
    assert_eq!(bench.call("POST", &path, &token, body).await.status, 409);
    let bad = json!({"application_credential": {"name": "d", "roles": [{"name": "admin"}]}});
    assert_eq!(bench.call("POST", &path, &token, bad).await.status, 400);
    let past =
        json!({"application_credential": {"name": "d", "expires_at": "2020-01-01T00:00:00"}});
    assert_eq!(bench.call("POST", &path, &token, past).await.status, 400);
    // The administrator may not make one for somebody else.
    let other = json!({"application_credential": {"name": "d"}});
    bench.admin("POST", &path, other.clone(), 403).await;

    let login = async |body: Value| {
        let identity =
            json!({"methods": ["application_credential"], "application_credential": body});
        bench.auth(json!({"auth": {"identity": identity}})).await
    };
    let by_id = json!({"id": made["id"], "secret": made["secret"]});
    let answer = login(by_id.clone()).await;
    let shown = answer.json()["token"].clone();
    let roles: Vec<&str> = shown["roles"]
        .as_array()
        .unwrap()
        .iter()
        .map(|role| role["name"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["member", "reader"]);
    assert_eq!(
        shown["application_credential"],
        json!({"id": made["id"], "name": "c", "restricted": true})
    );
    let by_name = json!({"name": "c", "secret": made["secret"], "user": {"name": "u", "domain": {"id": "default"}}});
    assert_eq!(login(by_name).await.status, 201);
    assert_eq!(
        login(json!({"id": made["id"], "secret": "x"})).await.status,
        401
    );
    assert_eq!(
        login(json!({"id": "nosuch", "secret": "x"})).await.status,
        404
    );

    // Restricted, and not to be exchanged.
    let narrow = answer.header("X-Subject-Token").to_owned();
    assert_eq!(bench.call("POST", &path, &narrow, other).await.status, 403);
    for scope in [
        json!({"project": {"id": project}}),
        json!({"system": {"all": true}}),
        json!("unscoped"),
    ] {
        let rescope = json!({"auth": {
            "identity": {"methods": ["token"], "token": {"id": narrow}}, "scope": scope,
        }});
        assert_eq!(bench.auth(rescope).await.status, 403);
    }

    // Outlives a password change; dies with the credential.
    bench
        .admin(
            "PATCH",
            &format!("{V3}/users/{user}"),
            json!({"user": {"password": "new"}}),
            200,
        )
        .await;
    assert_eq!(login(by_id.clone()).await.status, 201);
    let token = bench.login("u", "new", Some("p")).await.unwrap();
    let fresh = login(by_id.clone())
        .await
        .header("X-Subject-Token")
        .to_owned();
    let own = format!("{path}/{}", made["id"].as_str().unwrap());
    assert_eq!(
        bench.call("DELETE", &own, &token, Value::Null).await.status,
        204
    );
    assert_eq!(login(by_id).await.status, 404);
    assert_eq!(bench.status_of(&fresh).await, 404);
}

#[tokio::test]
async fn domains_and_immutable_roles_are_protected() {
    let bench = Bench::new().await;
    let made = bench
        .admin(
            "POST",
            &format!("{V3}/domains"),
            json!({"domain": {"name": "d"}}),
            201,
        )
        .await["domain"]
        .clone();
    let path = format!("{V3}/domains/{}", id(&made));
    let body = json!({"user": {"name": "du", "domain_id": id(&made), "password": "pw"}});
    bench.admin("POST", &format!("{V3}/users"), body, 201).await;
    bench.admin("DELETE", &path, Value::Null, 403).await;
    bench
        .admin("PATCH", &path, json!({"domain": {"enabled": false}}), 200)
        .await;
    let user = json!({"name": "du", "domain": {"name": "d"}, "password": "pw"});
    let identity = json!({"methods": ["password"], "password": {"user": user}});
    assert_eq!(
        bench
            .auth(json!({"auth": {"identity": identity}}))
            .await
            .status,
        401
    );
    bench.admin("DELETE", &path, Value::Null, 204).await;
    bench.admin("GET", &path, Value::Null, 404).await;
    let users = bench
        .admin("GET", &format!("{V3}/users?name=du"), Value::Null, 200)
        .await;
    assert_eq!(users["users"], json!([]));
    let (admin, reader) = (bench.role("admin").await, bench.role("reader").await);
    bench
        .admin("DELETE", &format!("{V3}/roles/{admin}"), Value::Null, 403)
        .await;
    bench
        .admin(
            "PATCH",
            &format!("{V3}/roles/{admin}"),
            json!({"role": {"name": "root"}}),
            403,
        )
        .await;
    bench
        .admin(
            "PUT",
            &format!("{V3}/roles/{reader}/implies/{admin}"),
            Value::Null,
            403,
        )
        .await;
}

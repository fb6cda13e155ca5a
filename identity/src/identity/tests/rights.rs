//! What members, roles, application credentials and protected objects may and may not.

use serde_json::{Value, json};

use super::{V3, column};
use crate::testing::{Bench, id};

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
    // What a role implies is said too.
    assert_eq!(column(&made["roles"], "name"), ["member", "reader"]);
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

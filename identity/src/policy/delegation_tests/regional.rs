//! The regional administrator of the study: what it may, and by what other ways of logging in.

use super::*;

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

//! Managers of domains and of projects, and what lies below them.

use super::*;

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

//! Projects in a hierarchy, inheritance, implied and domain roles, and the lists of assignments.

use serde_json::{Value, json};

use super::{V3, admin, column};
use crate::testing::{Bench, HOST, id};

async fn child(bench: &Bench, name: &str, parent: &str) -> String {
    let body = json!({"project": {"name": name, "domain_id": "default", "parent_id": parent}});
    id(&admin(bench, "POST", "projects", body, 201).await["project"])
}

#[tokio::test]
async fn a_hierarchy_is_shown_up_and_down() {
    let bench = Bench::new().await;
    let top = bench.project("top").await;
    let middle = child(&bench, "middle", &top).await;
    let low = child(&bench, "low", &middle).await;
    let show = async |id: &str, what: &str| {
        admin(
            &bench,
            "GET",
            &format!("projects/{id}?{what}"),
            Value::Null,
            200,
        )
        .await["project"]
            .clone()
    };
    assert_eq!(
        show(&low, "parents_as_ids").await["parents"],
        json!({middle.as_str(): {top.as_str(): {"default": null}}})
    );
    assert_eq!(
        show(&top, "subtree_as_ids").await["subtree"],
        json!({middle.as_str(): {low.as_str(): null}})
    );
    // Lists hold what the caller has a role on.
    assert_eq!(show(&low, "parents_as_list").await["parents"], json!([]));
    let who = bench.app.validate(&bench.admin, false).await.unwrap();
    bench.grant(&top, &who.user.id, "reader").await;
    let parents = show(&low, "parents_as_list").await["parents"].clone();
    assert_eq!(parents.as_array().unwrap().len(), 1);
    assert_eq!(parents[0]["project"]["name"], "top");
    bench.grant(&low, &who.user.id, "reader").await;
    let subtree = show(&top, "subtree_as_list").await["subtree"].clone();
    assert_eq!(subtree[0]["project"]["id"], low.as_str());
    let both = format!("projects/{top}?subtree_as_ids&subtree_as_list");
    admin(&bench, "GET", &both, Value::Null, 400).await;

    let patch = async |id: &str, change: Value, status: u16| {
        admin(
            &bench,
            "PATCH",
            &format!("projects/{id}"),
            json!({"project": change}),
            status,
        )
        .await
    };
    patch(&top, json!({"enabled": false}), 403).await;
    for one in [&low, &middle, &top] {
        patch(one, json!({"enabled": false}), 200).await;
    }
    patch(&low, json!({"enabled": true}), 403).await;
    patch(&low, json!({"parent_id": top}), 403).await;
    patch(&low, json!({"domain_id": "elsewhere"}), 400).await;
    patch(&low, json!({"is_domain": true}), 400).await;
    patch(&low, json!({"options": {"immutable": true}}), 200).await;
    patch(&low, json!({"name": "renamed"}), 403).await;
    admin(
        &bench,
        "DELETE",
        &format!("projects/{low}"),
        Value::Null,
        403,
    )
    .await;
    patch(&low, json!({"options": {"nosuch": true}}), 403).await;
    patch(&low, json!({"options": {"immutable": null}}), 200).await;
    patch(&low, json!({"options": {"nosuch": true}}), 400).await;
    admin(
        &bench,
        "DELETE",
        &format!("projects/{middle}"),
        Value::Null,
        403,
    )
    .await;
    admin(
        &bench,
        "DELETE",
        &format!("projects/{low}"),
        Value::Null,
        204,
    )
    .await;
    // Five projects deep at most.
    let mut at = middle;
    patch(&top, json!({"enabled": true}), 200).await;
    patch(&at, json!({"enabled": true}), 200).await;
    for name in ["three", "four", "five"] {
        at = child(&bench, name, &at).await;
    }
    let body = json!({"project": {"name": "six", "domain_id": "default", "parent_id": at}});
    admin(&bench, "POST", "projects", body, 403).await;
}

#[tokio::test]
async fn a_project_that_acts_as_a_domain_is_that_domain() {
    let bench = Bench::new().await;
    let body = json!({"project": {"name": "region-a", "is_domain": true, "domain_id": null}});
    let made = admin(&bench, "POST", "projects", body.clone(), 201).await["project"].clone();
    assert_eq!(
        (&made["is_domain"], &made["domain_id"], &made["parent_id"]),
        (&json!(true), &Value::Null, &Value::Null)
    );
    admin(&bench, "POST", "projects", body, 409).await;
    let body = json!({"project": {"name": "x", "is_domain": true, "parent_id": "default"}});
    admin(&bench, "POST", "projects", body, 400).await;
    let own = id(&made);
    let domain = admin(&bench, "GET", &format!("domains/{own}"), Value::Null, 200).await;
    assert_eq!(domain["domain"]["name"], "region-a");
    let listed = admin(&bench, "GET", "projects?is_domain=true", Value::Null, 200).await;
    assert_eq!(column(&listed["projects"], "name"), ["Default", "region-a"]);
    let shown = admin(&bench, "GET", &format!("projects/{own}"), Value::Null, 200).await;
    assert_eq!(
        shown["project"]["links"]["self"],
        format!("https://{HOST}{V3}/projects/{own}")
    );
    admin(
        &bench,
        "DELETE",
        &format!("projects/{own}"),
        Value::Null,
        403,
    )
    .await;
    // Who may not touch domains may not do so by this name either: an administrator of another domain.
    let user = bench.user("regional").await;
    let boss = bench.role("admin").await;
    let grant = format!("domains/default/users/{user}/roles/{boss}");
    admin(&bench, "PUT", &grant, Value::Null, 204).await;
    let login = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": {"id": user,
        "password": "regional-pw"}}}, "scope": {"domain": {"id": "default"}}}});
    let answer = bench.auth(login).await;
    let regional = answer.header("X-Subject-Token");
    let off = json!({"project": {"enabled": false}});
    let path = format!("{V3}/projects/{own}");
    for (method, body) in [("PATCH", off.clone()), ("DELETE", Value::Null)] {
        assert_eq!(bench.call(method, &path, regional, body).await.status, 403);
    }
    admin(&bench, "PATCH", &format!("projects/{own}"), off, 200).await;
    admin(
        &bench,
        "DELETE",
        &format!("projects/{own}"),
        Value::Null,
        204,
    )
    .await;
    admin(&bench, "GET", &format!("domains/{own}"), Value::Null, 404).await;
}

#[tokio::test]
async fn inferences_chain_and_never_close_a_circle() {
    let bench = Bench::new().await;
    let mut roles = Vec::new();
    for name in ["a", "b", "c"] {
        let body = json!({"role": {"name": name}});
        roles.push(id(&admin(&bench, "POST", "roles", body, 201).await["role"]));
    }
    let path = |prior: &str, implied: &str| format!("roles/{prior}/implies/{implied}");
    let (a, b, c) = (&roles[0], &roles[1], &roles[2]);
    for pair in [path(a, b), path(b, c)] {
        let made = admin(&bench, "PUT", &pair, Value::Null, 201).await;
        assert!(made["role_inference"]["implies"]["links"]["self"].is_string());
    }
    for pair in [path(c, a), path(b, a), path(a, a)] {
        admin(&bench, "PUT", &pair, Value::Null, 403).await;
    }
    let boss = bench.role("admin").await;
    admin(&bench, "PUT", &path(a, &boss), Value::Null, 403).await;
    admin(&bench, "HEAD", &path(a, b), Value::Null, 204).await;
    admin(&bench, "HEAD", &path(a, c), Value::Null, 404).await;
    admin(&bench, "GET", &path(a, b), Value::Null, 200).await;

    // A role of a domain is invisible, but what it implies counts.
    let body = json!({"role": {"name": "local", "domain_id": "default"}});
    let local = id(&admin(&bench, "POST", "roles", body, 201).await["role"]);
    admin(&bench, "PUT", &path(&local, a), Value::Null, 201).await;
    admin(&bench, "PUT", &path(a, &local), Value::Null, 403).await;
    let user = bench.user("u").await;
    let project = bench.project("p").await;
    let grant = format!("projects/{project}/users/{user}/roles/{local}");
    admin(&bench, "PUT", &grant, Value::Null, 204).await;
    let system = format!("system/users/{user}/roles/{local}");
    admin(&bench, "PUT", &system, Value::Null, 400).await;
    let body = json!({"domain": {"name": "other"}});
    let other = id(&admin(&bench, "POST", "domains", body, 201).await["domain"]);
    let body = json!({"project": {"name": "q", "domain_id": other}});
    let foreign = id(&admin(&bench, "POST", "projects", body, 201).await["project"]);
    let grant = format!("projects/{foreign}/users/{user}/roles/{local}");
    admin(&bench, "PUT", &grant, Value::Null, 403).await;

    let token = bench.login("u", "u-pw", Some("p")).await.unwrap();
    let held = async || -> Vec<String> {
        let context = bench.app.validate(&token, false).await.unwrap();
        context.roles.iter().map(|role| role.name.clone()).collect()
    };
    assert_eq!(held().await, ["a", "b", "c"]);
    let path_ = format!("role_assignments?effective&user.id={user}&include_names");
    let lines = admin(&bench, "GET", &path_, Value::Null, 200).await["role_assignments"].clone();
    let mut names: Vec<&str> = lines
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["role"]["name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "b", "c"]);
    admin(&bench, "DELETE", &path(b, c), Value::Null, 204).await;
    admin(&bench, "DELETE", &path(b, c), Value::Null, 404).await;
    assert_eq!(held().await, ["a", "b"]);
}

/// Clients that were told no description send null, which is not an empty one.
#[tokio::test]
async fn a_domain_project_or_group_may_have_no_description() {
    let bench = Bench::new().await;
    for (kind, kinds) in [
        ("domain", "domains"),
        ("project", "projects"),
        ("group", "groups"),
    ] {
        for (sent, kept) in [
            (json!({"name": "a"}), json!("")),
            (json!({"name": "b", "description": null}), Value::Null),
            (json!({"name": "c", "description": "c"}), json!("c")),
        ] {
            let mut object = sent.clone();
            if kind != "domain" {
                object["domain_id"] = json!("default");
            }
            let made = admin(&bench, "POST", kinds, json!({ kind: object }), 201).await;
            let path = format!("{kinds}/{}", id(&made[kind]));
            let shown = async || {
                admin(&bench, "GET", &path, Value::Null, 200).await[kind]["description"].clone()
            };
            assert_eq!(
                (&made[kind]["description"], &shown().await),
                (&kept, &kept),
                "{kind} {sent}"
            );
            // What is not named stays.
            for (change, then) in [
                (json!({"colour": "red"}), kept),
                (json!({"description": "d"}), json!("d")),
                (json!({"description": null}), Value::Null),
                (json!({"colour": null}), Value::Null),
                (json!({"description": ""}), json!("")),
            ] {
                let answer = admin(&bench, "PATCH", &path, json!({ kind: change }), 200).await;
                assert_eq!(
                    (&answer[kind]["description"], &shown().await),
                    (&then, &then),
                    "{kind} {sent} {change}"
                );
            }
        }
    }
}

#[tokio::test]
async fn what_no_table_has_is_kept_and_given_back() {
    let bench = Bench::new().await;
    let service = json!({"type": "odd", "name": "odd"});
    let service = admin(&bench, "POST", "services", json!({"service": service}), 201).await;
    let service = id(&service["service"]).to_owned();
    for (kind, kinds, needed) in [
        ("domain", "domains", json!({"name": "a"})),
        (
            "project",
            "projects",
            json!({"name": "a", "domain_id": "default"}),
        ),
        (
            "user",
            "users",
            json!({"name": "a", "domain_id": "default"}),
        ),
        (
            "group",
            "groups",
            json!({"name": "a", "domain_id": "default"}),
        ),
        ("role", "roles", json!({"name": "a"})),
        ("region", "regions", json!({"id": "a"})),
        ("service", "services", json!({"type": "a", "name": "a"})),
        (
            "endpoint",
            "endpoints",
            json!({"service_id": service, "interface": "public", "url": "http://a.example"}),
        ),
    ] {
        let mut sent = needed;
        (sent["colour"], sent["shade"]) = (json!("red"), Value::Null);
        let made = admin(&bench, "POST", kinds, json!({ kind: sent }), 201).await;
        assert_eq!(made[kind]["colour"], "red", "{kind}");
        let path = format!("{kinds}/{}", id(&made[kind]));
        let change = json!({ kind: {"colour": null, "hue": 5} });
        admin(&bench, "PATCH", &path, change, 200).await;
        let shown = admin(&bench, "GET", &path, Value::Null, 200).await[kind].clone();
        let known = shown.as_object().unwrap();
        for name in ["colour", "shade"] {
            assert_eq!(known.get(name), Some(&Value::Null), "{kind} {name}");
        }
        assert_eq!(known["hue"], 5, "{kind}");
    }
}

#[tokio::test]
async fn the_id_of_a_domain_can_be_chosen_once() {
    let bench = Bench::new().await;
    let wanted = "0123456789abcdef0123456789abcdef";
    let ask = |name: &str, id: &str| json!({"domain": {"name": name, "explicit_domain_id": id}});
    for wrong in [
        "short",
        "0123456789ABCDEF0123456789ABCDEF",
        "../../../../../../../../../../xx",
    ] {
        admin(&bench, "POST", "domains", ask("a", wrong), 400).await;
    }
    let made = admin(&bench, "POST", "domains", ask("a", wanted), 201).await;
    assert_eq!(id(&made["domain"]), wanted);
    assert_eq!(made["domain"].get("explicit_domain_id"), None);
    admin(&bench, "POST", "domains", ask("b", wanted), 409).await;
    let project = json!({"project": {"name": "p", "domain_id": wanted}});
    let project = admin(&bench, "POST", "projects", project, 201).await;
    admin(
        &bench,
        "POST",
        "domains",
        ask("b", &id(&project["project"])),
        409,
    )
    .await;
}

#[tokio::test]
async fn a_domain_has_tags_as_the_project_that_acts_as_it() {
    let bench = Bench::new().await;
    let sent = json!({"domain": {"name": "a", "tags": ["red", "green"]}});
    let made = admin(&bench, "POST", "domains", sent, 201).await;
    let domain = id(&made["domain"]).to_owned();
    admin(
        &bench,
        "PUT",
        &format!("projects/{domain}/tags/blue"),
        Value::Null,
        201,
    )
    .await;
    admin(
        &bench,
        "DELETE",
        &format!("projects/{domain}/tags/red"),
        Value::Null,
        204,
    )
    .await;
    for (path, kind) in [("domains", "domain"), ("projects", "project")] {
        let shown = admin(&bench, "GET", &format!("{path}/{domain}"), Value::Null, 200).await;
        assert_eq!(shown[kind]["tags"], json!(["blue", "green"]), "{kind}");
    }
    let change = json!({"domain": {"tags": ["none, or two"]}});
    admin(&bench, "PATCH", &format!("domains/{domain}"), change, 400).await;
}

#[tokio::test]
async fn every_derivation_of_an_assignment_can_be_traced() {
    let bench = Bench::new().await;
    let top = bench.project("top").await;
    let low = child(&bench, "low", &top).await;
    let lone = bench.project("lone").await;
    let user = bench.user("u").await;
    let body = json!({"group": {"name": "g", "domain_id": "default"}});
    let group = id(&admin(&bench, "POST", "groups", body, 201).await["group"]);
    let member = format!("groups/{group}/users/{user}");
    admin(&bench, "PUT", &member, Value::Null, 204).await;
    let (member_role, reader) = (bench.role("member").await, bench.role("reader").await);
    let inherited = format!(
        "OS-INHERIT/projects/{top}/groups/{group}/roles/{member_role}/inherited_to_projects"
    );
    admin(&bench, "PUT", &inherited, Value::Null, 204).await;
    bench.grant(&low, &user, "reader").await;
    let all =
        format!("OS-INHERIT/domains/default/users/{user}/roles/{reader}/inherited_to_projects");
    admin(&bench, "PUT", &all, Value::Null, 204).await;
    admin(&bench, "HEAD", &all, Value::Null, 204).await;

    let list = async |query: &str| {
        let path = format!("role_assignments?{query}");
        admin(&bench, "GET", &path, Value::Null, 200).await["role_assignments"].clone()
    };
    let lines = list(&format!("effective&user.id={user}&scope.project.id={low}")).await;
    let links: Vec<Value> = lines
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["links"].clone())
        .collect();
    let root = format!("https://{HOST}{V3}");
    // Its own, the group's, what that implies, and the domain's.
    assert_eq!(links.len(), 4, "{lines}");
    assert!(links.contains(&json!({
        "assignment": format!("{root}/projects/{low}/users/{user}/roles/{reader}"),
    })));
    assert!(links.contains(&json!({
        "assignment": format!("{root}/{inherited}"),
        "membership": format!("{root}/{member}"),
    })));
    assert!(links.contains(&json!({
        "assignment": format!("{root}/{inherited}"),
        "membership": format!("{root}/{member}"),
        "prior_role": format!("{root}/prior_role/{reader}/implies/{member_role}"),
    })));
    assert!(links.contains(&json!({"assignment": format!("{root}/{all}")})));

    let count = async |query: &str| list(query).await.as_array().unwrap().len();
    assert_eq!(count(&format!("user.id={user}")).await, 2);
    assert_eq!(count(&format!("group.id={group}")).await, 1);
    assert_eq!(count("scope.OS-INHERIT:inherited_to=projects").await, 2);
    assert_eq!(
        count(&format!("scope.project.id={top}&include_subtree=true")).await,
        2
    );
    assert_eq!(count(&format!("scope.project.id={top}")).await, 1);
    assert_eq!(
        count(&format!("scope.domain.id=default&user.id={user}")).await,
        1
    );
    assert_eq!(count(&format!("role.id={reader}&user.id={user}")).await, 2);
    assert_eq!(count("effective=0&scope.system=all").await, 1);
    let names = list(&format!(
        "user.id={user}&scope.project.id={low}&include_names"
    ))
    .await;
    assert_eq!(
        names[0]["user"]["domain"],
        json!({"id": "default", "name": "Default"})
    );
    assert_eq!(names[0]["scope"]["project"]["name"], "low");
    for clash in [
        format!("user.id={user}&group.id={group}"),
        format!("scope.project.id={low}&scope.domain.id=default"),
        "include_subtree=true".into(),
        format!("effective&group.id={group}"),
    ] {
        let path = format!("role_assignments?{clash}");
        admin(&bench, "GET", &path, Value::Null, 400).await;
    }

    // Future children inherit; the removal counts for all at once.
    let late = child(&bench, "late", &top).await;
    assert!(bench.login("u", "u-pw", Some("late")).await.is_ok());
    admin(&bench, "DELETE", &all, Value::Null, 204).await;
    admin(&bench, "DELETE", &all, Value::Null, 404).await;
    assert_eq!(
        bench.login("u", "u-pw", Some("lone")).await,
        Err(401),
        "{lone}"
    );
    assert!(bench.login("u", "u-pw", Some("late")).await.is_ok());
    admin(&bench, "DELETE", &inherited, Value::Null, 204).await;
    assert_eq!(
        bench.login("u", "u-pw", Some("late")).await,
        Err(401),
        "{late}"
    );
    assert!(bench.login("u", "u-pw", Some("low")).await.is_ok());
}

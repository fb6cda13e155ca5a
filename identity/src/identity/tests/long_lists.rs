//! Lists that are longer than what is held in memory; and assignments of one user, for whom only the own records are read: both
//! must show the same.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{V3, admin};
use crate::{
    identity::parts::MAX_WHOLE,
    ids::identity_id,
    store::{groups::Group, users::User},
    testing::Bench,
};

/// What decides a line, as text.
fn key(line: &Value) -> String {
    line["links"].to_string() + &line["user"]["id"].to_string() + &line["scope"].to_string()
}

#[tokio::test]
async fn a_long_list_is_whole_and_one_users_part_of_it_is_the_same() {
    const COUNT: usize = 80;
    let bench = Bench::new().await;
    let body = json!({"group": {"name": "all", "domain_id": "default"}});
    let group = admin(&bench, "POST", "groups", body, 201).await["group"]["id"].clone();
    let group = group.as_str().unwrap();
    let top = bench.project("top").await;
    let mut users = Vec::new();
    for number in 0..COUNT {
        let user = bench.user(&format!("user-{number}")).await;
        let member = format!("groups/{group}/users/{user}");
        admin(&bench, "PUT", &member, Value::Null, 204).await;
        users.push(user);
        let project =
            json!({"name": format!("below-{number}"), "domain_id": "default", "parent_id": top});
        let project = json!({ "project": project });
        admin(&bench, "POST", "projects", project, 201).await;
    }
    let role = bench.role("member").await;
    let inherited =
        format!("OS-INHERIT/projects/{top}/groups/{group}/roles/{role}/inherited_to_projects");
    admin(&bench, "PUT", &inherited, Value::Null, 204).await;
    let user = &users[COUNT / 2];
    let own = format!("projects/{top}/users/{user}/roles/{role}");
    admin(&bench, "PUT", &own, Value::Null, 204).await;

    let list = async |query: &str| {
        let path = format!("{V3}/role_assignments?effective&include_names&{query}");
        let answer = bench.call("GET", &path, &bench.admin, Value::Null).await;
        assert_eq!(answer.status, 200, "{query}");
        assert_eq!(answer.header("Content-Type"), "application/json");
        let list = answer.json();
        assert!(list["links"]["self"].is_string(), "{query}: cut off");
        let lines = list["role_assignments"].as_array().unwrap().clone();
        (answer.bytes.len(), lines, list["links"].clone())
    };
    let (bytes, all, _) = list("").await;
    assert!(bytes > MAX_WHOLE, "{bytes} bytes");
    // Each member on each project below, as member and as reader.
    let of_group: Vec<&Value> = all
        .iter()
        .filter(|line| line["links"]["membership"].is_string())
        .collect();
    assert_eq!(of_group.len(), COUNT * COUNT * 2);
    let different: HashSet<String> = all.iter().map(key).collect();
    assert_eq!(different.len(), all.len(), "a line came twice");

    // Of one user, of one project, of both.
    let (_, one, _) = list(&format!("user.id={user}")).await;
    let part: Vec<&Value> = all
        .iter()
        .filter(|line| line["user"]["id"] == user.as_str())
        .collect();
    assert_eq!(one.iter().collect::<Vec<_>>(), part);
    assert_eq!(one.len(), COUNT * 2 + 2);
    assert_eq!(one[0]["user"]["name"], format!("user-{}", COUNT / 2));
    let project = of_group[0]["scope"]["project"]["id"].as_str().unwrap();
    let (_, here, _) = list(&format!("scope.project.id={project}")).await;
    let part: Vec<&Value> = all
        .iter()
        .filter(|line| line["scope"]["project"]["id"] == project)
        .collect();
    assert_eq!(here.iter().collect::<Vec<_>>(), part);
    let (_, both, _) = list(&format!("scope.project.id={project}&user.id={user}")).await;
    assert_eq!(both.len(), 2);

    // A beginning says that there is more, but not when it is all.
    let (_, some, links) = list(&format!("user.id={user}&limit=7")).await;
    assert_eq!(
        some.iter().collect::<Vec<_>>(),
        one.iter().take(7).collect::<Vec<_>>()
    );
    assert!(
        links["next"].as_str().unwrap().contains("limit=7"),
        "{links}"
    );
    let (_, some, links) = list(&format!("user.id={user}&limit={}", one.len())).await;
    assert_eq!((some.len(), &links["next"]), (one.len(), &Value::Null));

    // A change counts at once.
    admin(&bench, "DELETE", &inherited, Value::Null, 204).await;
    assert_eq!(list(&format!("user.id={user}")).await.1.len(), 2);
    assert_eq!(
        list(&format!("scope.project.id={project}")).await.1.len(),
        0
    );
    assert_eq!(list("user.id=nobody").await.1.len(), 0);
}

#[tokio::test]
async fn a_long_list_of_users_is_whole_filtered_and_paged() {
    const COUNT: usize = 9000;
    let bench = Bench::new().await;
    let mut change = bench.app.store.change_identity().await.unwrap();
    for number in 0..COUNT {
        let user = User {
            id: identity_id(),
            domain_id: "default".into(),

            name: format!("u{number:05}"),
            enabled: number % 10 != 0,
            default_project_id: None,
            password_hash: None,
            password_expires_at: None,
            tokens_valid_after: 0,
            options: "{}".into(),
            extra: r#"{"email": "somebody@example.org"}"#.into(),
        };
        change.insert_user(&user).await.unwrap();
    }
    bench.app.store.commit(change).await.unwrap();

    let list = async |query: &str| {
        let path = format!("{V3}/users?{query}");
        let answer = bench.call("GET", &path, &bench.admin, Value::Null).await;
        assert_eq!(answer.status, 200, "{query}");
        let list = answer.json();
        let users = list["users"].as_array().unwrap();
        let names: Vec<String> = users
            .iter()
            .map(|user| user["name"].as_str().unwrap().to_owned())
            .collect();
        let last = users.last().map(|user| user["id"].clone());
        (names, list["links"].clone(), answer.bytes.len(), last)
    };
    let (names, links, bytes, _) = list("").await;
    assert!(bytes > MAX_WHOLE, "{bytes} bytes");
    assert!(names.is_sorted());
    assert_eq!((names.len(), &links["next"]), (COUNT + 1, &Value::Null));
    let (names, ..) = list("enabled=false").await;
    assert_eq!(names.len(), COUNT / 10);
    let (names, ..) = list("name__contains=0999").await;
    assert_eq!(names, ["u00999"]);

    // Page by page, narrowed by what the store knows and by what it does not.
    for (filter, count) in [
        ("domain_id=default", COUNT + 1),
        ("enabled=false", COUNT / 10),
    ] {
        let (mut seen, mut marker) = (Vec::new(), String::new());
        loop {
            let (names, links, _, last) = list(&format!("{filter}&limit=300{marker}")).await;
            seen.extend(names);
            if links["next"].is_null() {
                break;
            }
            let last = last.unwrap();
            let next = format!("&marker={}", last.as_str().unwrap());
            assert!(links["next"].as_str().unwrap().ends_with(&next), "{links}");
            marker = next;
        }
        assert_eq!(seen.len(), count, "{filter}");
        assert!(seen.is_sorted_by(|a, b| a < b), "{filter}: one came twice");
    }
    let (names, links, ..) = list("name=nobody").await;
    assert!(names.is_empty() && links["self"].is_string());
}

/// The store leaves out what lacks the letters asked for, and no more than that.
#[tokio::test]
async fn a_long_list_of_groups_is_whole_filtered_and_paged() {
    const COUNT: usize = 600;
    let bench = Bench::new().await;
    let mut change = bench.app.store.change_identity().await.unwrap();
    let odd = ["50%", "50x", "a_b", "aXb", r"a\b", "Ä"].map(str::to_owned);
    for name in (0..COUNT).map(|number| format!("g{number:03}")).chain(odd) {
        let group = Group {
            id: identity_id(),
            domain_id: "default".into(),
            name,
            description: Default::default(),
            extra: "{}".into(),
        };
        change.insert_group(&group).await.unwrap();
    }
    bench.app.store.commit(change).await.unwrap();
    let list = async |query: &str| {
        let path = format!("{V3}/groups?{query}");
        let answer = bench.call("GET", &path, &bench.admin, Value::Null).await;
        assert_eq!(answer.status, 200, "{query}");
        let list = answer.json();
        let groups = list["groups"].as_array().unwrap();
        let name = |group: &Value| group["name"].as_str().unwrap().to_owned();
        let names: Vec<String> = groups.iter().map(name).collect();
        let last = groups.last().map(|group| group["id"].clone());
        (names, list["links"]["next"].clone(), last)
    };
    let (all, next, _) = list("").await;
    assert_eq!((all.len(), next), (COUNT + 6, Value::Null));
    assert!(all.is_sorted());
    let long = format!("name__contains={}", "g".repeat(3000));
    for (query, wanted) in [
        ("name__contains=g59", 10),
        ("name__contains=G59", 0),
        ("name__icontains=G59", 10),
        ("name__contains=0%25", 1),
        ("name__contains=50", 18),
        ("name__contains=a_b", 1),
        ("name__contains=%5C", 1),
        ("name__contains=%C3%84", 1),
        ("name__contains=%00", 0),
        ("name__contains=", COUNT + 6),
        ("name__contains=g&domain_id=default&limit=1000", COUNT),
        ("name=g007", 1),
        (long.as_str(), 0),
    ] {
        assert_eq!(list(query).await.0.len(), wanted, "{query}");
    }
    for (filter, count) in [("", COUNT + 6), ("name__contains=g", COUNT)] {
        let (mut seen, mut marker) = (Vec::new(), String::new());
        loop {
            let (names, next, last) = list(&format!("{filter}&limit=90{marker}")).await;
            seen.extend(names);
            if next.is_null() {
                break;
            }
            let last = last.unwrap();
            marker = format!("&marker={}", last.as_str().unwrap());
            assert!(next.as_str().unwrap().ends_with(&marker), "{next}");
        }
        assert_eq!(seen.len(), count, "{filter}");
        assert!(seen.is_sorted_by(|a, b| a < b), "{filter}: one came twice");
    }
}

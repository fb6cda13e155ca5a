//! What a directory is asked when a login is refused.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use super::ground::{Ground, PATIENCE, dn, folders, group, person};

/// What the server was asked and what it said, from its log: the kind of each operation, with the codes of results.
fn operations(log: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in log.lines() {
        let mut words = line
            .split_whitespace()
            .skip_while(|word| !word.starts_with("op="))
            .skip(1);
        match words.next() {
            Some(kind @ ("BIND" | "UNBIND")) => found.push(kind.to_owned()),
            // The second line of a search has the attributes.
            Some("SRCH") if line.contains(" base=") => found.push("SRCH".to_owned()),
            Some("RESULT" | "SEARCH") => {
                let code = line
                    .split_whitespace()
                    .find(|word| word.starts_with("err="));
                found.push(code.unwrap_or_default().to_owned());
            }
            _ => {}
        }
    }
    found
}

/// Time tells nobody which names and ids a directory has: a refusal is the same work for it, whoever is named.
#[tokio::test]
async fn a_refusal_is_the_same_work_whoever_is_named() -> Result<()> {
    let entries = [folders(), person("alice"), group("devs", &[dn("alice")])].concat();
    let ground = Ground::new("ldap-refusals", &entries).await?;
    let domain = ground.domain("Corp", &json!({})).await?;
    let alice = ground.id("users", "alice", &domain).await?;
    let named = |name: &str| json!({"name": name, "domain": {"name": "Corp"}});
    // What a login makes the directory do. The connection with which the password is proved is closed at its end.
    let asked = async |mut user: Value, password: &str, status: u16| -> Result<Vec<String>> {
        let before = ground.slapd.log()?.len();
        user["password"] = password.into();
        let auth = json!({"identity": {"methods": ["password"], "password": {"user": user}}});
        let answer = ground
            .call(Method::POST, "auth/tokens", &[], &json!({ "auth": auth }))
            .await?;
        ensure!(
            answer.status == status,
            "{}: {}",
            answer.status,
            answer.body
        );
        let start = Instant::now();
        loop {
            let log = ground.slapd.log()?;
            let new = log.get(before..).unwrap_or_default();
            if new.lines().any(|line| line.ends_with(" closed")) {
                // Two threads of the server may note an answer and what comes after it the other way round.
                let mut all = operations(new);
                all.sort();
                return Ok(all);
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "the connection stays open:\n{new}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let wanted = ["BIND", "SRCH", "UNBIND", "err=0", "err=49"];
    for (user, what) in [
        (named("alice"), "somebody by name"),
        (named("nobody"), "nobody by name"),
        (json!({"id": alice}), "somebody by id"),
        (json!({"id": "f".repeat(64)}), "nobody by id"),
    ] {
        assert_eq!(asked(user, "wrong", 401).await?, wanted, "{what}");
    }
    // Who is who it says is asked for its groups too, and nobody else.
    let right = asked(named("alice"), "alice-Pw-1", 201).await?;
    let searches = right.iter().filter(|one| *one == "SRCH").count();
    ensure!(right.len() > wanted.len() && searches > 1, "{right:?}");
    ground.passed()
}

/// An id that looks like one of a directory and that nothing is known of is nobody's: no directory is asked about it.
#[tokio::test]
async fn an_id_that_nobody_has_is_not_found_without_asking() -> Result<()> {
    let entries = [folders(), person("alice"), group("devs", &[dn("alice")])].concat();
    let ground = Ground::new("ldap-unknown-id", &entries).await?;
    let domain = ground.domain("Corp", &json!({})).await?;
    let project = ground.project("p").await?;
    let roles = ground
        .admin(Method::GET, "roles?name=member", Value::Null, 200)
        .await?;
    let role = roles["roles"][0]["id"].as_str().unwrap_or_default();
    let before = ground.slapd.log()?.len();
    let id = "f".repeat(64);
    for (method, path) in [
        (Method::GET, format!("users/{id}")),
        (Method::HEAD, format!("users/{id}")),
        (Method::GET, format!("users/{id}/groups")),
        (Method::GET, format!("users/{id}/projects")),
        (Method::GET, format!("groups/{id}")),
        (Method::GET, format!("groups/{id}/users")),
        (
            Method::PUT,
            format!("projects/{project}/users/{id}/roles/{role}"),
        ),
        (
            Method::PUT,
            format!("projects/{project}/groups/{id}/roles/{role}"),
        ),
    ] {
        ground.admin(method, &path, Value::Null, 404).await?;
    }
    // What is asked afterwards is the first search in the server's log; whether it needs a new connection depends on how long all this took.
    let path = format!("users?name=nobody&domain_id={domain}");
    ground.admin(Method::GET, &path, Value::Null, 200).await?;
    let start = Instant::now();
    let asked = loop {
        let log = ground.slapd.log()?;
        let new = operations(log.get(before..).unwrap_or_default());
        if new.ends_with(&["SRCH".to_owned(), "err=0".to_owned()]) {
            break new;
        }
        ensure!(start.elapsed() < PATIENCE, "no search: {new:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let searches = asked.iter().filter(|kind| *kind == "SRCH").count();
    assert_eq!(searches, 1, "{asked:?}");
    ground.passed()
}

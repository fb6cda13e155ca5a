//! What a directory is asked when a login is refused.

use std::time::Instant;

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use super::ground::{Ground, PATIENCE, dn, folders, group, person};

/// What the server was asked and what it said, from its log: the kind of each operation, with the codes of results, in order.
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
                return Ok(operations(new));
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "the connection stays open:\n{new}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let wanted = ["SRCH", "err=0", "BIND", "err=49", "UNBIND"];
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

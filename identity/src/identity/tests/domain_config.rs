//! Options of single domains.

use serde_json::{Value, json};

use super::admin;
use crate::testing::{Bench, id};

const SECRET: &str = "hunter2-of-the-directory";

async fn domain(bench: &Bench, name: &str) -> String {
    let body = json!({"domain": {"name": name}});
    id(&admin(bench, "POST", "domains", body, 201).await["domain"])
}

#[tokio::test]
async fn options_are_set_changed_and_deleted_and_a_password_is_never_answered() {
    let bench = Bench::new().await;
    let path = format!("domains/{}/config", domain(&bench, "site").await);
    let at = |rest: &str| format!("{path}{rest}");
    admin(&bench, "GET", &path, Value::Null, 404).await;
    let all = json!({"config": {"identity": {"list_limit": 5}, "ldap": {"url": "ldaps://a", "password": SECRET}}});
    let shown = json!({"config": {"identity": {"list_limit": 5}, "ldap": {"url": "ldaps://a"}}});
    assert_eq!(admin(&bench, "PUT", &path, all.clone(), 201).await, shown);
    assert_eq!(admin(&bench, "PUT", &path, all, 200).await, shown);
    assert_eq!(admin(&bench, "GET", &path, Value::Null, 200).await, shown);
    assert_eq!(
        admin(&bench, "GET", &at("/ldap"), Value::Null, 200).await,
        json!({"config": {"ldap": {"url": "ldaps://a"}}})
    );
    assert_eq!(
        admin(&bench, "GET", &at("/ldap/url"), Value::Null, 200).await,
        json!({"config": {"url": "ldaps://a"}})
    );
    admin(&bench, "GET", &at("/ldap/password"), Value::Null, 404).await;
    admin(&bench, "GET", &at("/ldap/user"), Value::Null, 404).await;
    admin(&bench, "GET", &at("/ldap/nosuch"), Value::Null, 403).await;
    admin(&bench, "GET", &at("/nosuch"), Value::Null, 403).await;

    // A change of one option is about that one, and that one must be there.
    let user = json!({"config": {"user": "cn=reader"}});
    admin(&bench, "PATCH", &at("/ldap/user"), user.clone(), 404).await;
    let more = json!({"config": {"ldap": {"user": "cn=r"}}});
    admin(&bench, "PATCH", &path, more.clone(), 200).await;
    let changed = admin(&bench, "PATCH", &at("/ldap/user"), user.clone(), 200).await;
    assert_eq!(changed["config"]["ldap"]["user"], "cn=reader");
    admin(&bench, "PATCH", &at("/ldap/url"), user, 403).await;
    admin(&bench, "PATCH", &at("/identity"), more, 403).await;
    let new = json!({"config": {"password": "other"}});
    let changed = admin(&bench, "PATCH", &at("/ldap/password"), new, 200).await;
    assert!(!changed.to_string().contains("other"), "{changed}");

    admin(&bench, "DELETE", &at("/ldap/user"), Value::Null, 204).await;
    admin(&bench, "DELETE", &at("/ldap/user"), Value::Null, 404).await;
    admin(&bench, "DELETE", &at("/identity"), Value::Null, 204).await;
    admin(&bench, "DELETE", &path, Value::Null, 204).await;
    admin(&bench, "GET", &path, Value::Null, 404).await;
    admin(&bench, "GET", "domains/nosuch/config", Value::Null, 404).await;
}

#[tokio::test]
async fn what_domains_do_not_have_is_refused_and_nothing_is_stored() {
    let bench = Bench::new().await;
    let path = format!("domains/{}/config", domain(&bench, "site").await);
    for (config, words) in [
        (json!({}), "No options specified"),
        (json!({"ldap": "x"}), "dictionary of options"),
        (
            json!({"token": {"provider": "x"}}),
            "Group token is not supported",
        ),
        (
            json!({"ldap": {"url": "ldaps://a", "nosuch": 1}}),
            "Option nosuch",
        ),
        (json!({"identity": {"driver": "nosuch"}}), "nosuch"),
    ] {
        let body = json!({ "config": config });
        let said = admin(&bench, "PUT", &path, body, 403).await;
        assert!(said.to_string().contains(words), "{said}");
    }
    admin(&bench, "GET", &path, Value::Null, 404).await;
}

#[tokio::test]
async fn defaults_are_told_by_section_and_option() {
    let bench = Bench::new().await;
    let all = admin(&bench, "GET", "domains/config/default", Value::Null, 200).await;
    assert_eq!(all["config"]["identity"]["driver"], "sql");
    assert_eq!(all["config"]["ldap"]["tls_req_cert"], "demand");
    assert!(all["config"]["ldap"].get("password").is_none());
    let one = |path: &'static str, status| admin(&bench, "GET", path, Value::Null, status);
    let ldap = one("domains/config/ldap/default", 200).await;
    assert_eq!(ldap["config"]["ldap"], all["config"]["ldap"]);
    assert_eq!(
        one("domains/config/ldap/user_tree_dn/default", 200).await,
        json!({"config": {"user_tree_dn": null}})
    );
    one("domains/config/ldap/password/default", 403).await;
    one("domains/config/nosuch/default", 403).await;
    let words = one("domains/default/config/security_compliance", 200).await;
    assert!(words["config"]["security_compliance"]["password_regex"].is_null());
}

#[tokio::test]
async fn a_directorys_password_is_sealed_and_only_administrators_see_the_rest() {
    let bench = Bench::new().await;
    let domain = domain(&bench, "site").await;
    let path = format!("domains/{domain}/config");
    let body = json!({"config": {"ldap": {"url": "ldaps://a", "password": SECRET}}});
    admin(&bench, "PUT", &path, body, 201).await;
    let mut files = 0;
    for entry in std::fs::read_dir(bench.dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let there = bytes
            .windows(SECRET.len())
            .any(|part| part == SECRET.as_bytes());
        assert!(!there);
        files += 1;
    }
    assert!(files > 0);
    let project = bench.project("team").await;
    let member = bench.member("alice", ("team", &project), "member").await;
    for method in ["GET", "DELETE"] {
        let path = format!("/identity/v3/{path}");
        let answer = bench.call(method, &path, &member, Value::Null).await;
        assert_eq!(answer.status, 403, "{method}");
    }
    // The options end with their domain.
    let body = json!({"domain": {"enabled": false}});
    let one = format!("domains/{domain}");
    admin(&bench, "PATCH", &one, body, 200).await;
    admin(&bench, "DELETE", &one, Value::Null, 204).await;
    assert!(
        bench
            .app
            .store
            .domain_options(None)
            .await
            .unwrap()
            .is_empty()
    );
}

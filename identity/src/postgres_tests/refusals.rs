//! A login that is refused asks the same of the database whether somebody's password is wrong or nobody has the name, and waits for
//! nothing that is written: on a network each question takes its time, which would tell who exists.

use serde_json::{Value, json};

use super::server::Server;
use crate::{
    accounts::PasswordRules,
    testing::{Answer, Bench},
};

/// Who is there, and who is not.
const NAMES: [&str; 2] = ["u", "nobody"];

/// The statements in a piece of the server's log, sorted: some are executed beside each other.
fn statements(log: &str) -> Vec<String> {
    let mut entries: Vec<String> = Vec::new();
    for line in log.lines() {
        match (line.strip_prefix('\t'), entries.last_mut()) {
            (Some(more), Some(entry)) => entry.push_str(more),
            _ => entries.push(line.to_owned()),
        }
    }
    let text = |entry: &String| {
        let (_, executed) = entry.split_once("LOG:  execute ")?;
        let (_, text) = executed.split_once(": ")?;
        Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let mut found: Vec<String> = entries.iter().filter_map(text).collect();
    found.sort();
    found
}

/// What is asked for an answer, and not what is written beside it.
fn questions(log: &str) -> Vec<String> {
    let mut all = statements(log);
    all.retain(|text| text.starts_with("SELECT") && !text.contains("pg_advisory"));
    all
}

struct Site {
    server: Server,
    bench: Bench,
    project: String,
}

impl Site {
    /// `u` has a password, a one-time password, an application credential and a role on a project.
    async fn new(rules: PasswordRules) -> Self {
        let server = Server::start_logging_statements();
        let place = server.place();
        let bench = Bench::with(|config| {
            config.place = place;
            config.passwords = rules;
        })
        .await;
        let project = bench.project("p").await;
        let user = bench.user("u").await;
        bench.grant(&project, &user, "member").await;
        let seed =
            json!({"type": "totp", "user_id": user, "blob": "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"});
        let path = "/identity/v3/credentials";
        let body = json!({ "credential": seed });
        bench.admin("POST", path, body, 201).await;
        Self {
            server,
            bench,
            project,
        }
    }

    fn scopes(&self) -> [Value; 4] {
        [
            json!({"project": {"id": self.project}}),
            json!({"project": {"name": "p", "domain": {"name": "Default"}}}),
            json!({"project": {"id": "nosuch"}}),
            json!({"system": {"all": true}}),
        ]
    }

    async fn log_in(&self, method: &str, details: &Value, scope: &Value) -> Answer {
        let identity = json!({"methods": [method], (method): details});
        let auth = json!({"identity": identity, "scope": scope});
        self.bench.auth(json!({ "auth": auth })).await
    }

    /// A login by password, in which nothing that is asked beside the hash is left out.
    async fn by_password(&self, name: &str, scope: &Value) -> Answer {
        let user = json!({"name": name, "domain": {"name": "Default"}, "password": "wrong"});
        let details = json!({ "user": user });
        let login = self.log_in("password", &details, scope);
        self.bench.app.login_pause.amid(login, async || {}).await
    }

    /// What `login` came to, and the part of the log that it left.
    async fn watched(&self, login: impl Future<Output = Answer>) -> ((u16, Value), String) {
        let before = self.server.log().len();
        let answer = login.await;
        let log = self.server.log();
        ((answer.status, answer.json()), log[before..].to_owned())
    }
}

#[tokio::test]
async fn the_same_is_asked_for_somebody_and_nobody() {
    let site = Site::new(PasswordRules::default()).await;
    for scope in site.scopes() {
        let mut seen = Vec::new();
        for name in NAMES {
            let (answer, log) = site.watched(site.by_password(name, &scope)).await;
            assert_eq!(answer.0, 401);
            seen.push((answer, statements(&log)));
        }
        assert!(seen[0].1.len() > 3, "{:?}", seen[0].1);
        assert_eq!(seen[0], seen[1], "{scope}");
    }
    let scope = &site.scopes()[0];
    let domain = json!({"id": "default"});
    for method in ["totp", "application_credential"] {
        let mut seen = Vec::new();
        for name in NAMES {
            let user = json!({"name": name, "domain": domain, "passcode": "00000"});
            let details = match method {
                "totp" => json!({ "user": user }),
                _ => json!({"user": user, "name": "a", "secret": "s"}),
            };
            let login = site.log_in(method, &details, scope);
            let (answer, log) = site.watched(login).await;
            seen.push((answer, statements(&log)));
        }
        assert!(seen[0].1.len() > 2, "{:?}", seen[0].1);
        assert_eq!(seen[0], seen[1], "{method}");
    }
}

/// Where failures are counted in shared records too: what is asked is the same, and the answer does not wait for the count.
#[tokio::test]
async fn nobody_waits_for_a_failure_to_be_counted() {
    let rules = PasswordRules {
        lockout_failures: Some(9),
        lockout_secs: 600,
        ..PasswordRules::default()
    };
    let site = Site::new(rules).await;
    // Whoever reads is let through, and whoever writes waits.
    let lock = "LOCK TABLE failed_logins IN SHARE ROW EXCLUSIVE MODE";
    let held = site.server.amid_transaction(lock);
    let scope = &site.scopes()[0];
    let mut seen = Vec::new();
    for name in NAMES {
        let (answer, log) = site.watched(site.by_password(name, scope)).await;
        assert_eq!(answer.0, 401);
        seen.push((answer, questions(&log)));
    }
    let standing = seen[0].1.iter().any(|text| text.contains("failed_logins"));
    assert!(standing && seen[0] == seen[1], "{seen:?}");
    assert!(!site.bench.app.failures.is_empty(), "not counted yet");
    drop(held);
    for _ in 0..1200 {
        if site.bench.app.failures.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let stored = "SELECT sum(failures) FROM failed_logins";
    assert_eq!(site.server.sql(stored), "1");
}

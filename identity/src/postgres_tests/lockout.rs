//! Failed logins, counted for two replicas on one server.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::server::{Server, kek};
use crate::{
    accounts::PasswordRules,
    app::App,
    testing::{Bench, config},
};

const LIMIT: u32 = 4;

/// Waits until the failures of all users that are counted in the records are so many, and none is on its way there.
async fn counted(server: &Server, replicas: [&Bench; 2], failures: u32) {
    for _ in 0..1200 {
        let stored = server.sql("SELECT coalesce(sum(failures), 0) FROM failed_logins");
        let settled = replicas.iter().all(|one| one.app.failures.is_empty());
        if settled && stored == failures.to_string() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let stored = server.sql("SELECT * FROM failed_logins");
    panic!("not {failures}: {stored}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn failed_logins_count_wherever_they_fail() {
    let server = Server::start();
    let rules = PasswordRules {
        lockout_failures: Some(LIMIT),
        lockout_secs: 600,
        ..PasswordRules::default()
    };
    let one = Bench::with(|config| {
        config.place = server.place();
        config.passwords = rules.clone();
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir);
    config.place = server.place();
    config.passwords = rules;
    let other = Bench {
        app: App::open(config, kek()).await.unwrap(),
        admin: one.admin.clone(),
        dir,
    };
    let both = [&one, &other];
    let user = one.user("u").await;
    let fails = async |replica: &Bench| {
        assert_eq!(replica.login("u", "wrong", None).await, Err(401));
    };

    // One fewer than locks out, at both together; a success at either begins the count anew for both.
    for round in 0..2 {
        for failure in 1..LIMIT {
            fails(both[failure as usize % 2]).await;
            counted(&server, both, failure).await;
        }
        assert!(both[round].login("u", "u-pw", None).await.is_ok());
        counted(&server, both, 0).await;
    }

    // As many as lock out, at both together: locked out at both.
    for failure in 1..=LIMIT {
        fails(both[failure as usize % 2]).await;
        counted(&server, both, failure).await;
    }
    for replica in both {
        assert_eq!(replica.login("u", "u-pw", None).await, Err(401));
    }
    assert_eq!(server.sql("SELECT count(*) FROM lockouts"), "1");
    // What is refused unseen does not count.
    fails(&one).await;
    counted(&server, both, LIMIT).await;

    // An administrator ends it at one, for both.
    let body = json!({"user": {"enabled": true}});
    let path = format!("/identity/v3/users/{user}");
    other.admin("PATCH", &path, body, 200).await;
    counted(&server, both, 0).await;
    for replica in both {
        assert!(replica.login("u", "u-pw", None).await.is_ok());
    }

    // Names of nobody leave nothing, in the table and in the memory.
    for number in 0..20 {
        let name = format!("nobody-{number}");
        let refused = both[number % 2].login(&name, "wrong", None).await;
        assert_eq!(refused, Err(401));
    }
    counted(&server, both, 0).await;

    // Many at once, at both: each counts once, or was refused because enough had.
    let replicas = [Arc::new(one), Arc::new(other)];
    let tasks: Vec<_> = (0..16)
        .map(|number| {
            let replica = Arc::clone(&replicas[number % 2]);
            tokio::spawn(async move { replica.login("u", "wrong", None).await })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), Err(401));
    }
    let both = [replicas[0].as_ref(), replicas[1].as_ref()];
    let mut settled = false;
    for _ in 0..1200 {
        settled = both.iter().all(|one| one.app.failures.is_empty());
        if settled {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(settled);
    let rows =
        format!("SELECT user_id = '{user}', failures BETWEEN {LIMIT} AND 16 FROM failed_logins");
    let rows = server.sql(&rows);
    assert_eq!(rows, "t|t");
    for replica in both {
        assert_eq!(replica.login("u", "u-pw", None).await, Err(401));
    }

    // Housekeeping forgets what is over.
    server.sql("UPDATE failed_logins SET last = 0; UPDATE lockouts SET until = 0");
    both[0].app.housekeeping().await.unwrap();
    counted(&server, both, 0).await;
    assert!(both[1].login("u", "u-pw", None).await.is_ok());
    for one in both {
        one.app.store.close().await;
    }
}

//! Every way from the first release's records to today's: stopped after each migration, with rows in the tables that were there by
//! then, as a service of that release would have left them.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use sqlx::{
    Connection, Executor, SqliteConnection, migrate::Migrator, sqlite::SqliteConnectOptions,
};
use tempfile::TempDir;

use super::DATABASE_FILE;
use crate::{
    app::App,
    crypto::Kek,
    testing::{Bench, config},
};

const FIRST: &str = include_str!("first_release.sql");

/// Rows for the tables of later migrations, put in right behind the migration that makes them.
const LATER: &[(i64, &str)] = &[
    (
        5,
        "INSERT INTO password_history (user_id, created, hash) VALUES ('bob', 1, 'x');
         INSERT INTO lockouts (user_id, until) VALUES ('bob', 4102444800000000);
         UPDATE users SET password_expires_at = 4102444800000000 WHERE id = 'bob'",
    ),
    (
        6,
        "INSERT INTO secret_metadata (secret_id, key, value) VALUES ('11111111-1111-4111-8111-111111111111', 'colour', 'blue');
         INSERT INTO containers (id, project_id, creator_id, type, created, updated) VALUES ('b1', 'p1', 'alice', 'generic', 14, 14);
         INSERT INTO container_secrets (container_id, secret_id, position)
             VALUES ('b1', '11111111-1111-4111-8111-111111111111', 0);
         INSERT INTO key_manager_quotas (project_id, secrets, created) VALUES ('p1', 77, 15)",
    ),
    (
        10,
        "INSERT INTO documents (family, id, user_id, body) VALUES ('policy', 'y1', 'alice', '{}');
         INSERT INTO associations (family, first_id, second_id) VALUES ('endpoint_project', 'e1', 'p1')",
    ),
    (
        11,
        "INSERT INTO trusts (id, trustor_id, trustee_id, project_id, impersonation, redelegation_count)
             VALUES ('t1', 'alice', 'bob', 'p1', FALSE, 0);
         INSERT INTO trust_roles (trust_id, role_id) VALUES ('t1', 'r-member')",
    ),
    (
        14,
        "INSERT INTO registered_limits (id, service_id, resource_name, default_limit) VALUES ('l1', 's1', 'secrets', 5);
         INSERT INTO limits (id, registered_limit_id, project_id, resource_limit) VALUES ('l2', 'l1', 'p1', 9)",
    ),
    (
        17,
        "INSERT INTO domain_config (domain_id, section, name, value) VALUES ('d1', 'identity', 'driver', '\"sql\"')",
    ),
    (
        18,
        "INSERT INTO id_mapping (public_id, domain_id, entity_type, local_id) VALUES ('f00', 'd1', 'user', 'uid=x')",
    ),
];

/// The records of a service whose newest migration was the one at `last`, counted from 0.
async fn left_behind(dir: &TempDir, last: usize) {
    let all = sqlx::migrate!("./migrations");
    let options = SqliteConnectOptions::new()
        .filename(dir.path().join(DATABASE_FILE))
        .create_if_missing(true)
        .foreign_keys(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    for place in 0..=last {
        let some = Migrator::with_migrations(all.migrations[..=place].to_vec());
        some.run(&mut connection).await.unwrap();
        let version = all.migrations[place].version;
        if place == 0 {
            connection.execute(FIRST).await.unwrap();
        }
        if let Some((_, rows)) = LATER.iter().find(|(after, _)| *after == version) {
            connection.execute(*rows).await.unwrap();
        }
    }
    connection.close().await.unwrap();
}

/// What the first release's records say, asked of today's service.
async fn check(dir: TempDir, version: i64) {
    let app = App::open(config(&dir), Kek::from_bytes(&[9; 32]))
        .await
        .unwrap();
    let bench = Bench {
        app,
        admin: String::new(),
        dir,
    };
    let alice = bench
        .login("alice", "alice-pw", Some("quay"))
        .await
        .unwrap();
    let below = bench.login("alice", "alice-pw", Some("pier")).await;
    assert!(below.is_ok(), "{version}: inherited through the group");
    let get = async |path: &str| -> Value {
        let answer = bench.call("GET", path, &alice, Value::Null).await;
        assert_eq!(answer.status, 200, "{version}: {path}");
        answer.json()
    };
    let user = get("/identity/v3/users/alice").await;
    assert_eq!(user["user"]["email"], "alice@example.org", "{version}");
    assert_eq!(user["user"]["options"]["ignore_password_expiry"], true);
    let project = get("/identity/v3/projects/p1").await;
    assert_eq!(project["project"]["tags"], json!(["blue", "old"]));
    assert_eq!(project["project"]["cost_centre"], "77");

    // The payload has a key of its own now, and reads as before.
    let secret = "/key-manager/v1/secrets/11111111-1111-4111-8111-111111111111";
    let payload = bench
        .call("GET", &format!("{secret}/payload"), &alice, Value::Null)
        .await;
    assert_eq!(
        (payload.status, payload.bytes.as_slice()),
        (200, &b"of the first release"[..]),
        "{version}"
    );
    let acl = get(&format!("{secret}/acl")).await;
    assert_eq!(acl["read"]["users"], json!(["bob"]));
    let consumers = get(&format!("{secret}/consumers")).await;
    assert_eq!(consumers["consumers"].as_array().map(Vec::len), Some(1));
    let order = get("/key-manager/v1/orders/33333333-3333-4333-8333-333333333333").await;
    assert_eq!(order["status"], "ACTIVE");

    // One rule where two credentials had the same, and each credential has its own.
    let rules = get("/identity/v3/users/alice/access_rules").await;
    assert_eq!(
        rules["access_rules"].as_array().map(Vec::len),
        Some(2),
        "{version}: {rules}"
    );
    for (credential, count) in [("c1", 1), ("c2", 2)] {
        let path = format!("/identity/v3/users/alice/application_credentials/{credential}");
        let shown = get(&path).await;
        let rules = shown["application_credential"]["access_rules"].as_array();
        assert_eq!(rules.map(Vec::len), Some(count), "{version}: {shown}");
    }
    let login = json!({"auth": {"identity": {"methods": ["application_credential"],
        "application_credential": {"id": "c1", "secret": "alice-pw"}}}});
    let answer = bench.auth(login).await;
    assert_eq!(answer.status, 201, "{version}: {}", answer.json());
    let narrow = answer.header("X-Subject-Token").to_owned();
    for (path, status) in [(secret, 200), ("/key-manager/v1/orders", 403)] {
        let answer = bench.call("GET", path, &narrow, Value::Null).await;
        let refused = if status == 403 { 401 } else { status };
        assert!(
            [status, refused].contains(&answer.status),
            "{version}: {path} is {}",
            answer.status
        );
    }
    bench.app.store.check_whole().await.unwrap();
    bench.app.store.close().await;
}

/// Set for a process of its own, whose memory nothing else takes: the folder with the database.
const MEASURED: &str = "CRYPTVOL_TEST_UPGRADE_OF";
/// How much more memory than at its start a process may have had, in KiB: a fifth of the database.
const MORE_KIB: u64 = 32 << 10;

/// A figure of this process, in KiB, see proc_pid_status(5).
fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.unwrap().parse().unwrap()
}

/// A pod has less memory than a site may have records: neither the schema nor the database is made anew in memory.
#[tokio::test]
async fn a_large_database_is_brought_up_in_little_memory() {
    if let Some(dir) = std::env::var_os(MEASURED) {
        let dir = std::path::PathBuf::from(dir);
        let before = status_kib("VmRSS:");
        let store = super::Store::open(&dir).await.unwrap();
        let upgraded = status_kib("VmHWM:") - before;
        store.rewrite().await.unwrap();
        let rewritten = status_kib("VmHWM:") - before;
        store.close().await;
        assert!(
            upgraded < MORE_KIB && rewritten < MORE_KIB,
            "{upgraded} KiB for the schema, {rewritten} KiB with the rewriting"
        );
        // Nothing is left of what was in files meanwhile.
        let left: Vec<_> = std::fs::read_dir(&dir).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    left_behind(&dir, 0).await;
    let options = SqliteConnectOptions::new().filename(dir.path().join(DATABASE_FILE));
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    // Names that are sorted by an index of a later schema.
    let users =
        "WITH RECURSIVE number (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM number WHERE i < 80000)
                 INSERT INTO users (id, domain_id, name, tokens_valid_after, options, extra)
                 SELECT 'u' || i, 'default', hex(randomblob(500)), 0, '{}', '{}' FROM number";
    connection.execute(users).await.unwrap();
    connection.close().await.unwrap();
    let size = std::fs::metadata(dir.path().join(DATABASE_FILE))
        .unwrap()
        .len();
    assert!(size >> 10 > 5 * MORE_KIB, "{size} bytes");
    let own = "store::migration_tests::a_large_database_is_brought_up_in_little_memory";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", own, "--nocapture"])
        .env(MEASURED, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn from_the_first_release_and_from_every_one_since() {
    let all = sqlx::migrate!("./migrations");
    assert_eq!(all.migrations[0].version, 1);
    for (place, migration) in all.migrations.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        left_behind(&dir, place).await;
        check(dir, migration.version).await;
    }
    // Nothing is forgotten: whatever makes a table has rows for it, or is the first.
    for migration in all.migrations.iter().skip(1) {
        let makes = migration.sql.as_str().contains("CREATE TABLE");
        let known = LATER.iter().any(|(after, _)| *after == migration.version)
            // Filled by what is there before them: keys of payloads, shared rules.
            || [7, 12].contains(&migration.version);
        assert!(!makes || known, "rows for migration {}", migration.version);
    }
}

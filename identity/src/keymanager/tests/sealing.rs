//! How payloads lie in the database.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use sqlx::SqlitePool;

use super::*;
use crate::{
    app::App,
    crypto::{Kek, SealingKey, seal::KEY_LEN},
    testing::config,
};

async fn database(bench: &Bench) -> SqlitePool {
    let file = bench.dir.path().join("identity.sqlite");
    SqlitePool::connect(&format!("sqlite:{}", file.display()))
        .await
        .unwrap()
}

async fn execute(pool: &SqlitePool, statement: &'static str, values: &[&str]) {
    let mut query = sqlx::query(statement);
    for value in values {
        query = query.bind((*value).to_owned());
    }
    assert!(query.execute(pool).await.unwrap().rows_affected() > 0);
}

fn id(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

fn on_disk(bench: &Bench, needle: &[u8]) -> bool {
    std::fs::read_dir(bench.dir.path()).unwrap().any(|entry| {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[tokio::test]
async fn a_record_moved_to_another_row_or_project_does_not_open() {
    let bench = Bench::new().await;
    let p = bench.project("p").await;
    let member = bench.member("m", ("p", &p), "member").await;
    let pool = database(&bench).await;
    for statement in [
        "UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE id = $1) WHERE id = $2",
        "UPDATE secrets SET key_slot = (SELECT key_slot FROM secrets WHERE id = $1) WHERE id = $2",
        "UPDATE secrets SET (sealed, key_slot) = (SELECT sealed, key_slot FROM secrets WHERE id = $1) WHERE id = $2",
        "UPDATE secrets SET (sealed, key_slot, key_id) =
             (SELECT sealed, key_slot, key_id FROM secrets WHERE id = $1) WHERE id = $2",
        "UPDATE secret_keys SET wrapped = (SELECT wrapped FROM secret_keys
             WHERE slot = (SELECT key_slot FROM secrets WHERE id = $1))
         WHERE slot = (SELECT key_slot FROM secrets WHERE id = $2)",
        "UPDATE project_keys SET sealed = (SELECT sealed FROM project_keys
             WHERE id = (SELECT key_id FROM secrets WHERE id = $1))
         WHERE id = (SELECT key_id FROM secrets WHERE id = $2)",
    ] {
        let other = store(&bench, &bench.admin, "other", "secret of somebody else").await;
        let mine = store(&bench, &member, "mine", "own payload").await;
        execute(&pool, statement, &[id(&other), id(&mine)]).await;
        let answer = payload(&bench, &member, &mine, "*/*").await;
        assert_eq!(answer.status, 500, "{statement}");
        assert!(!answer.bytes.windows(6).any(|window| window == b"secret"));
        assert_eq!(
            payload(&bench, &bench.admin, &other, "*/*").await.status,
            200
        );
    }
    // The project changed in the row itself: its new members may read, and there is nothing to read.
    let other = store(&bench, &bench.admin, "other", "secret of somebody else").await;
    execute(
        &pool,
        "UPDATE secrets SET project_id = $1 WHERE id = $2",
        &[&p, id(&other)],
    )
    .await;
    assert_eq!(payload(&bench, &member, &other, "*/*").await.status, 500);
}

#[tokio::test]
async fn payloads_are_not_in_the_files_and_deleted_keys_are_gone() {
    let bench = Bench::new().await;
    let path = store(&bench, &bench.admin, "visible-name", "canary-in-a-payload").await;
    assert!(
        on_disk(&bench, b"visible-name"),
        "the search finds what is there"
    );
    assert!(!on_disk(&bench, b"canary-in-a-payload"));
    let wrapped = {
        let slot = bench
            .app
            .store
            .secret(id(&path), 0)
            .await
            .unwrap()
            .unwrap()
            .key_slot
            .unwrap();
        bench.app.store.secret_key(slot).await.unwrap().unwrap()
    };
    assert!(on_disk(&bench, &wrapped));
    assert_eq!(
        bench
            .call("DELETE", &path, &bench.admin, Value::Null)
            .await
            .status,
        204
    );
    for piece in wrapped.windows(12) {
        assert!(!on_disk(&bench, piece));
    }
    assert!(!on_disk(&bench, b"visible-name"));
    // The slot serves again, and a two-step secret gets a key as well.
    let body = json!({"name": "later"});
    let later = bench
        .call("POST", &format!("{V1}/secrets"), &bench.admin, body)
        .await;
    let later = path_of(&later, "secret_ref");
    let headers = [
        ("X-Auth-Token", bench.admin.as_str()),
        ("Content-Type", "text/plain"),
    ];
    assert_eq!(
        bench
            .raw("PUT", &later, &headers, b"canary two".to_vec())
            .await
            .status,
        204
    );
    assert_eq!(
        payload(&bench, &bench.admin, &later, "*/*").await.bytes,
        b"canary two"
    );
    assert!(!on_disk(&bench, b"canary two"));
}

/// Secrets as the first release stored them, and an upgrade that is cut off in its midst.
#[tokio::test]
async fn secrets_of_the_first_release_get_keys_of_their_own() {
    let bench = Bench::new().await;
    let mut paths = Vec::new();
    for n in 0..5 {
        paths.push(
            store(
                &bench,
                &bench.admin,
                &format!("s{n}"),
                &format!("payload {n}"),
            )
            .await,
        );
    }
    let pool = database(&bench).await;
    let kek = Kek::from_bytes(&[9; KEY_LEN]);
    let mut old_forms = Vec::new();
    for (n, path) in paths.iter().enumerate() {
        let secret = bench.app.store.secret(id(path), 0).await.unwrap().unwrap();
        let key_id = secret.key_id.clone().unwrap();
        let record = bench
            .app
            .store
            .project_key_by_id(&key_id)
            .await
            .unwrap()
            .unwrap();
        let key = kek
            .open(
                &["project-key", &record.id, &record.project_id],
                &record.sealed,
            )
            .unwrap();
        let old = SealingKey::from_slice(&key)
            .unwrap()
            .seal(
                &["secret", &secret.id, &secret.project_id],
                format!("payload {n}").as_bytes(),
            )
            .unwrap();
        // One of them is done already, as after an upgrade that was stopped.
        if n > 0 {
            sqlx::query("UPDATE secrets SET sealed = $1, key_slot = NULL WHERE id = $2")
                .bind(&old)
                .bind(id(path))
                .execute(&pool)
                .await
                .unwrap();
            old_forms.push(old);
        }
    }
    assert_eq!(
        bench.app.store.secrets_without_key(10).await.unwrap().len(),
        4
    );
    pool.close().await;
    bench.app.store.close().await;
    let app = App::open(config(&bench.dir), kek).await.unwrap();
    assert!(app.store.secrets_without_key(10).await.unwrap().is_empty());
    for old in &old_forms {
        assert!(
            !on_disk(&bench, &old[..16]),
            "nothing of the old form is left"
        );
    }
    let bench = Bench { app, ..bench };
    for (n, path) in paths.iter().enumerate() {
        let answer = payload(&bench, &bench.admin, path, "*/*").await;
        assert_eq!(
            (answer.status, answer.bytes),
            (200, format!("payload {n}").into_bytes())
        );
    }
    // Opened once more, nothing is left to do.
    bench.app.store.close().await;
    App::open(config(&bench.dir), Kek::from_bytes(&[9; KEY_LEN]))
        .await
        .unwrap();
}

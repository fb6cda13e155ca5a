//! The store and the opening of the service, on real SQLite files in temporary directories.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use super::{DATABASE_FILE, Store, StoreError, secret_list::SecretFilter, secrets::Secret};
use crate::{
    app::{App, AppError},
    crypto::Kek,
    ids::key_manager_id,
    testing::config,
};

fn secret(name: &str, expiration: Option<i64>) -> Secret {
    Secret {
        id: key_manager_id(),
        project_id: "p".into(),
        creator_id: "u".into(),
        name: Some(name.into()),
        secret_type: "opaque".into(),
        algorithm: None,
        bit_length: None,
        mode: None,
        expiration,
        content_type: None,
        key_id: None,
        sealed: None,
        key_slot: None,
        new_key: None,
        created: 1,
        updated: 1,
    }
}

async fn insert(store: &Store, secret: &Secret) {
    let mut change = store.change_keys().await.unwrap();
    change.insert_secret(secret).await.unwrap();
    store.commit(change).await.unwrap();
}

fn on_disk(dir: &tempfile::TempDir, needle: &str) -> bool {
    std::fs::read_dir(dir.path()).unwrap().any(|entry| {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        bytes
            .windows(needle.len())
            .any(|window| window == needle.as_bytes())
    })
}

/// As by two that are started at once, each without knowing of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_that_open_an_empty_folder_at_once_have_the_same_records() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let opened: Vec<_> = (0..4)
            .map(|_| {
                let path = dir.path().to_owned();
                tokio::spawn(async move { Store::open(&path).await })
            })
            .collect();
        let mut stores = Vec::new();
        for store in opened {
            stores.push(store.await.unwrap().unwrap());
        }
        let mut change = stores[0].change_keys().await.unwrap();
        change.insert_meta("of-the-first", b"x").await.unwrap();
        stores[0].commit(change).await.unwrap();
        for store in &stores {
            assert!(store.meta("of-the-first").await.unwrap().is_some());
        }
    }
}

#[tokio::test]
async fn a_deleted_record_leaves_nothing_in_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let canary = secret("canary-of-a-deleted-record", None);
    insert(&store, &canary).await;
    assert!(on_disk(&dir, "canary-of-a-deleted-record"));
    let mut change = store.change_keys().await.unwrap();
    assert!(change.delete_secret(&canary.id).await.unwrap());
    store.commit(change).await.unwrap();
    store.mark_log_dirty();
    store.truncate_log().await.unwrap();
    assert!(!on_disk(&dir, "canary-of-a-deleted-record"));
}

/// SQLite alone leaves a copy of about one row in thousands when it balances its trees; the rows of keys never
/// move, so nothing is left of them.
#[tokio::test]
async fn nothing_is_left_of_the_key_of_a_deleted_secret() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let mut live: Vec<(String, Vec<u8>)> = Vec::new();
    let mut dead = Vec::new();
    for round in 0..120_usize {
        let mut change = store.change_keys().await.unwrap();
        for step in 0..20_usize {
            if live.len() > 40 && (round * 7 + step * 3) % 20 < 9 {
                let (id, key) = live.swap_remove((round * 31 + step * 17) % live.len());
                assert!(change.delete_secret(&id).await.unwrap());
                dead.push(key);
            } else {
                let mut record = secret(&format!("s{round}-{step}"), None);
                let key = crate::ids::random_bytes::<61>().to_vec();
                record.sealed = Some(vec![7; [60, 93, 800, 2_500, 6_000][(round + step) % 5]]);
                record.new_key = Some(key.clone());
                change.insert_secret(&record).await.unwrap();
                live.push((record.id, key));
            }
        }
        store.commit(change).await.unwrap();
    }
    store.mark_log_dirty();
    store.truncate_log().await.unwrap();
    let files: Vec<Vec<u8>> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    // Every piece of 12 bytes that lies anywhere in the files.
    let mut pieces = std::collections::HashSet::new();
    for file in &files {
        pieces.extend(file.windows(12));
    }
    assert!(dead.len() > 700, "{}", dead.len());
    let left = |key: &Vec<u8>| key.windows(12).any(|piece| pieces.contains(piece));
    assert_eq!(dead.iter().filter(|key| left(key)).count(), 0);
    assert!(
        live.iter().all(|(_, key)| left(key)),
        "the search finds what is there"
    );
}

#[tokio::test]
async fn an_abandoned_change_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let record = secret("x", None);
    let mut change = store.change_keys().await.unwrap();
    change.insert_secret(&record).await.unwrap();
    drop(change);
    assert!(store.secret(&record.id, 0).await.unwrap().is_none());
    insert(&store, &record).await;
    let mut change = store.change_keys().await.unwrap();
    assert!(matches!(
        change.insert_secret(&record).await,
        Err(StoreError::Duplicate)
    ));
}

#[tokio::test]
async fn expired_secrets_are_hidden_and_then_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let record = secret("x", Some(100));
    insert(&store, &record).await;
    assert!(store.secret(&record.id, 99).await.unwrap().is_some());
    assert!(store.secret(&record.id, 100).await.unwrap().is_none());
    let (page, total) = store
        .secrets("p", &SecretFilter::default(), 100, 10, 0)
        .await
        .unwrap();
    assert_eq!((page.len(), total), (0, 0));
    let mut change = store.change_keys().await.unwrap();
    assert_eq!(change.delete_expired_secrets(99).await.unwrap(), 0);
    assert_eq!(change.delete_expired_secrets(100).await.unwrap(), 1);
}

#[tokio::test]
async fn the_data_directory_is_closed_to_others() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let store = Store::open(&dir).await.unwrap();
    assert_eq!(
        std::fs::metadata(&dir).unwrap().permissions().mode() & 0o007,
        0
    );
    insert(&store, &secret("x", None)).await;
    let mut files = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?}", entry.path());
        files += 1;
    }
    assert!(dir.join(DATABASE_FILE).exists() && files >= 2);
    store.close().await;
}

#[tokio::test]
async fn another_key_encryption_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(
        App::open(config(&dir), Kek::from_bytes(&[1; 32]))
            .await
            .unwrap(),
    );
    assert!(matches!(
        App::open(config(&dir), Kek::from_bytes(&[2; 32])).await,
        Err(AppError::WrongKek(_))
    ));
    assert!(
        App::open(config(&dir), Kek::from_bytes(&[1; 32]))
            .await
            .is_ok()
    );
}

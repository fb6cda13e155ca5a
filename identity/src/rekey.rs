//! Rotation of the key-encryption key, while the service runs. The file of keys comes first: with the new key in
//! it everything opens at every moment, whatever was sealed anew already. Then the check record, which says to
//! all that seal which key seals from now on; then every record. What has been done shows in the records, so a
//! rotation that was stopped goes on where it was.

use thiserror::Error;

use crate::{
    app::{AppError, CREDENTIAL_KEY, KEK_CHECK, check_kek},
    crypto::{Kek, KekError, SealError},
    store::{Change, Place, Store, StoreError},
};

/// Projects' keys sealed anew in one change.
const BATCH: i64 = 100;

/// Why a rotation stopped.
#[derive(Debug, Error)]
pub enum RekeyError {
    /// The file of keys.
    #[error(transparent)]
    Kek(#[from] KekError),
    /// The records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record that none of the keys opens.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The keys are not those of this data directory.
    #[error(transparent)]
    Open(#[from] AppError),
    /// Other processes have files of their own, which this one cannot write.
    #[error(
        "the replicas of {0} read their own files of keys: put a line with a new key above the old one in each (`cryptvol-identity kek \
         generate` makes one; a Kubernetes Secret is one file for all), wait a minute, and run this again"
    )]
    NewKeyFirst(Place),
    /// What this would seal one of them could not open.
    #[error(
        "the replica {0} does not have the newest key of this file: put the same lines into its file, wait a minute, and run this again; \
         a replica that has ended is forgotten after three minutes"
    )]
    ReplicaWithoutKey(String),
    /// The old keys are in files that this process cannot write.
    #[error(
        "--forget-old works on one file, and the replicas of {0} have their own: run this without it, and when it says that 0 keys were \
         sealed anew take the old lines out of every file"
    )]
    ForgetElsewhere(Place),
    /// Somebody wanted it to stop here.
    #[error("stopped after a step; run it again")]
    Stopped,
}

/// Rotates. How many keys were sealed anew.
///
/// # Errors
/// Any [`RekeyError`]; everything opens as before, and running it again goes on.
pub async fn run(place: impl Into<Place>, kek: &Kek, forget_old: bool) -> Result<u64, RekeyError> {
    let place = place.into();
    let store = Store::open_existing(&place).await?;
    let done = async {
        check_kek(&store, kek, &place).await?;
        if store.is_shared() {
            check_replicas(&store, kek, &place, forget_old).await?;
        }
        rotate(&store, kek, forget_old, &mut || true).await
    }
    .await;
    store.close().await;
    done
}

/// Whether every replica can open what will be sealed by the newest key.
async fn check_replicas(
    store: &Store,
    kek: &Kek,
    place: &Place,
    forget_old: bool,
) -> Result<(), RekeyError> {
    if forget_old {
        return Err(RekeyError::ForgetElsewhere(place.clone()));
    }
    let ours = kek.fingerprints()?;
    if ours.len() < 2 && !anything_old(store, kek).await? {
        return Err(RekeyError::NewKeyFirst(place.clone()));
    }
    let newest = ours.first().cloned().unwrap_or_default();
    let replicas = store.replicas().await?;
    match replicas.iter().find(|(_, keys)| !keys.contains(&newest)) {
        Some((name, _)) => Err(RekeyError::ReplicaWithoutKey(name.clone())),
        None => Ok(()),
    }
}

/// Rotates; `go_on` is asked after every step that is there to stay.
pub(crate) async fn rotate(
    store: &Store,
    kek: &Kek,
    forget_old: bool,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<u64, RekeyError> {
    let mut pause = || go_on().then_some(()).ok_or(RekeyError::Stopped);
    // Something under an older key: a rotation began and did not end. Else a new one begins; where there are replicas, only by the
    // hand that puts the key into all of their files.
    if !store.is_shared() && !anything_old(store, kek).await? {
        kek.add_newest()?;
        pause()?;
    }
    let mut done = 0;
    // The check record first: it says which key seals from now on.
    for name in [KEK_CHECK, CREDENTIAL_KEY] {
        done += reseal_meta(store, kek, name).await?;
        pause()?;
    }
    for key in store.token_keys().await? {
        let id = key.id.to_string();
        let place = ["token-key", id.as_str()];
        if kek.is_newest(&place, &key.sealed) {
            continue;
        }
        let sealed = kek.seal_newest(&place, &kek.open(&place, &key.sealed)?)?;
        let mut change = store.change_keys().await?;
        change.reseal_token_key(key.id, &sealed).await?;
        store.commit(change).await?;
        done += 1;
        pause()?;
    }
    let mut after = String::new();
    loop {
        let some = store.project_keys_after(&after, BATCH).await?;
        let Some(last) = some.last() else {
            break;
        };
        after = last.id.clone();
        let mut change: Option<Change> = None;
        for key in &some {
            let place = ["project-key", key.id.as_str(), key.project_id.as_str()];
            if kek.is_newest(&place, &key.sealed) {
                continue;
            }
            let sealed = kek.seal_newest(&place, &kek.open(&place, &key.sealed)?)?;
            let running = match change.take() {
                Some(running) => running,
                None => store.change_keys().await?,
            };
            change
                .insert(running)
                .reseal_project_key(&key.id, &sealed)
                .await?;
            done += 1;
        }
        if let Some(change) = change {
            store.commit(change).await?;
            pause()?;
        }
    }
    // Nothing that the old key opens is to be left in the files.
    store.rewrite_sealed().await?;
    pause()?;
    if forget_old && !anything_old(store, kek).await? {
        kek.forget_old()?;
    }
    Ok(done)
}

/// Seals a record of the service's own by the newest key, if it is there and is not.
async fn reseal_meta(store: &Store, kek: &Kek, name: &str) -> Result<u64, RekeyError> {
    let mut change = store.change_keys().await?;
    let Some(sealed) = change.meta(name).await? else {
        return Ok(0);
    };
    if kek.is_newest(&[name], &sealed) {
        return Ok(0);
    }
    let plain = kek.open(&[name], &sealed)?;
    let sealed = kek.seal_newest(&[name], &plain)?;
    change.set_meta(name, &sealed).await?;
    store.commit(change).await?;
    Ok(1)
}

/// Whether any record is sealed by another key than the newest.
pub(crate) async fn anything_old(store: &Store, kek: &Kek) -> Result<bool, StoreError> {
    for name in [KEK_CHECK, CREDENTIAL_KEY] {
        let sealed = store.meta(name).await?;
        if sealed.is_some_and(|sealed| !kek.is_newest(&[name], &sealed)) {
            return Ok(true);
        }
    }
    for key in store.token_keys().await? {
        if !kek.is_newest(&["token-key", &key.id.to_string()], &key.sealed) {
            return Ok(true);
        }
    }
    let mut after = String::new();
    loop {
        let some = store.project_keys_after(&after, BATCH).await?;
        let Some(last) = some.last() else {
            return Ok(false);
        };
        after = last.id.clone();
        for key in &some {
            if !kek.is_newest(&["project-key", &key.id, &key.project_id], &key.sealed) {
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;
    use crate::{
        app::App,
        testing::{Bench, config},
    };

    const SECRETS: &str = "/key-manager/v1/secrets";

    /// A service whose key is in a file that nobody else has, with a secret in each of three projects.
    async fn ground(keys: &TempDir) -> (Bench, Vec<(String, String)>) {
        let bench = Bench::new().await;
        bench.app.store.close().await;
        let file = keys.path().join("kek");
        fs::write(&file, hex::encode([9; 32])).unwrap();
        let bench = reopened(bench, keys).await;
        let mut secrets = Vec::new();
        for name in ["p", "q", "r"] {
            let project = bench.project(name).await;
            let token = bench
                .member(&format!("m{name}"), (name, &project), "member")
                .await;
            let path = stored(&bench, &token, name).await;
            secrets.push((token, path));
        }
        (bench, secrets)
    }

    async fn reopened(bench: Bench, keys: &TempDir) -> Bench {
        let kek = Kek::read(&keys.path().join("kek"), bench.dir.path()).unwrap();
        let app = App::open(config(&bench.dir), kek).await.unwrap();
        Bench { app, ..bench }
    }

    async fn stored(bench: &Bench, token: &str, text: &str) -> String {
        let body = json!({"payload": text, "payload_content_type": "text/plain"});
        let answer = bench.call("POST", SECRETS, token, body).await;
        assert_eq!(answer.status, 201);
        let url = answer.json()["secret_ref"].as_str().unwrap().to_owned();
        format!("/key-manager{}", url.split("/key-manager").nth(1).unwrap())
    }

    async fn all_open(bench: &Bench, secrets: &[(String, String)]) {
        for ((token, path), text) in secrets.iter().zip(["p", "q", "r"]) {
            let answer = bench
                .call("GET", &format!("{path}/payload"), token, Value::Null)
                .await;
            assert_eq!(
                (answer.status, answer.bytes.as_slice()),
                (200, text.as_bytes())
            );
        }
    }

    fn other(keys: &TempDir, bench: &Bench) -> Kek {
        Kek::read(&keys.path().join("kek"), bench.dir.path()).unwrap()
    }

    /// The running service reads and stores throughout, in old projects and in new ones, whichever step was the
    /// last of a rotation that was killed; the next run ends it.
    #[tokio::test]
    async fn stopped_after_each_step_the_service_goes_on_and_so_does_the_rotation() {
        let keys = tempfile::tempdir().unwrap();
        let (bench, secrets) = ground(&keys).await;
        let mut stops = 0;
        for stop in 1.. {
            let kek = other(&keys, &bench);
            let store = Store::open(bench.dir.path()).await.unwrap();
            let mut steps = 0;
            let done = rotate(&store, &kek, true, &mut || {
                steps += 1;
                steps < stop
            })
            .await;
            all_open(&bench, &secrets).await;
            let name = format!("new-{stop}");
            let project = bench.project(&name).await;
            let token = bench
                .member(&format!("u{stop}"), (&name, &project), "member")
                .await;
            let path = stored(&bench, &token, "new").await;
            let read = bench
                .call("GET", &format!("{path}/payload"), &token, Value::Null)
                .await;
            assert_eq!(read.bytes, b"new");
            if done.is_ok() {
                break;
            }
            assert!(matches!(done, Err(RekeyError::Stopped)));
            stops += 1;
            // The second run ends what the first began.
            let kek = other(&keys, &bench);
            rotate(&store, &kek, true, &mut || true).await.unwrap();
            assert!(!anything_old(&store, &kek).await.unwrap());
            assert_eq!(kek.count(), 1);
            store.close().await;
            all_open(&bench, &secrets).await;
        }
        assert!(
            stops >= 5,
            "file, check record, credentials' key, token key, projects' keys: {stops}"
        );
        // The first key opens nothing any more, the file that is there now opens everything.
        bench.app.store.close().await;
        let first = Kek::from_bytes(&[9; 32]);
        assert!(matches!(
            App::open(config(&bench.dir), first).await,
            Err(AppError::WrongKek(_))
        ));
        let bench = reopened(bench, &keys).await;
        all_open(&bench, &secrets).await;
    }

    #[tokio::test]
    async fn old_keys_stay_in_the_file_unless_they_are_to_go() {
        let keys = tempfile::tempdir().unwrap();
        let (bench, secrets) = ground(&keys).await;
        let kek = other(&keys, &bench);
        // The check record, the keys of credentials and tokens, the keys of three projects.
        assert_eq!(run(bench.dir.path(), &kek, false).await.unwrap(), 6);
        assert_eq!(kek.count(), 2);
        all_open(&bench, &secrets).await;
        let text = fs::read_to_string(keys.path().join("kek")).unwrap();
        assert!(text.trim_end().ends_with(&hex::encode([9; 32])));
        let body = json!({"credential": {"type": "cert", "blob": "of a user"}});
        let made = bench
            .admin("POST", "/identity/v3/credentials", body, 201)
            .await;
        assert_eq!(run(bench.dir.path(), &kek, true).await.unwrap(), 6);
        assert_eq!(kek.count(), 1);
        all_open(&bench, &secrets).await;
        bench.app.store.close().await;
        let bench = reopened(bench, &keys).await;
        let path = format!(
            "/identity/v3/credentials/{}",
            crate::testing::id(&made["credential"])
        );
        let shown = bench.admin("GET", &path, Value::Null, 200).await;
        assert_eq!(shown["credential"]["blob"], "of a user");
    }

    /// Every record that the key-encryption key seals, as it lies in the database.
    async fn sealed(store: &Store) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        for name in [KEK_CHECK, CREDENTIAL_KEY] {
            found.push(store.meta(name).await.unwrap().unwrap());
        }
        found.extend(
            store
                .token_keys()
                .await
                .unwrap()
                .into_iter()
                .map(|key| key.sealed),
        );
        let projects = store.project_keys_after("", 10_000).await.unwrap();
        found.extend(projects.into_iter().map(|key| key.sealed));
        found
    }

    /// Old forms are worthless only while nobody has the old key; they are not in the files either.
    #[tokio::test]
    async fn nothing_that_the_old_key_opens_is_left_in_the_files() {
        let keys = tempfile::tempdir().unwrap();
        let (bench, secrets) = ground(&keys).await;
        let store = &bench.app.store;
        let kek = other(&keys, &bench);
        // Rows of other lengths come and go between those that count, so that SQLite moves rows to other pages.
        for number in 0..400_usize {
            let mut change = store.change_keys().await.unwrap();
            let id = crate::ids::key_manager_id();
            let project = crate::ids::identity_id();
            let record = crate::store::secrets::ProjectKey {
                sealed: kek
                    .seal_newest(&["project-key", &id, &project], &[1; 32])
                    .unwrap(),
                id,
                project_id: project,
            };
            change.insert_project_key(&record, 1).await.unwrap();
            let filler = vec![7; [30, 300, 1500, 3900][number % 4]];
            change
                .insert_meta(&format!("filler-{number}"), &filler)
                .await
                .unwrap();
            if number >= 7 {
                change
                    .delete_meta(&format!("filler-{}", number - 7))
                    .await
                    .unwrap();
            }
            store.commit(change).await.unwrap();
        }
        let before = sealed(store).await;
        assert!(before.len() > 400);
        run(bench.dir.path(), &kek, true).await.unwrap();
        all_open(&bench, &secrets).await;
        let after = sealed(store).await;
        assert_eq!(before.len(), after.len());
        store.close().await;
        let files: Vec<Vec<u8>> = fs::read_dir(bench.dir.path())
            .unwrap()
            .map(|entry| fs::read(entry.unwrap().path()).unwrap())
            .collect();
        let mut pieces = std::collections::HashSet::new();
        for file in &files {
            pieces.extend(file.windows(12));
        }
        let lies_there = |record: &Vec<u8>| record.windows(12).any(|piece| pieces.contains(piece));
        assert!(
            after.iter().all(lies_there),
            "the search finds what is there"
        );
        assert_eq!(before.iter().filter(|record| lies_there(record)).count(), 0);
    }

    #[tokio::test]
    async fn a_folder_without_a_database_stays_empty() {
        let dir = tempfile::tempdir().unwrap();
        let kek = Kek::from_bytes(&[1; 32]);
        assert!(matches!(
            run(dir.path(), &kek, false).await,
            Err(RekeyError::Store(StoreError::NoDatabase(_)))
        ));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_foreign_key_rotates_nothing() {
        let keys = tempfile::tempdir().unwrap();
        let (bench, secrets) = ground(&keys).await;
        let foreign = Kek::from_bytes(&[1; 32]);
        assert!(matches!(
            run(bench.dir.path(), &foreign, true).await,
            Err(RekeyError::Open(AppError::WrongKek(_)))
        ));
        all_open(&bench, &secrets).await;
    }
}

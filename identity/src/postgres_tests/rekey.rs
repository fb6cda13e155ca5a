//! Rotation of the key-encryption key where replicas have files of their own, and the table in which they tell of their keys.

use std::{fs, path::PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    replicas::stored,
    server::{Server, kek},
};
use crate::{
    app::{App, AppError},
    crypto::Kek,
    rekey::{self, RekeyError},
    store::Store,
    testing::{Bench, config},
};

/// A file of keys, newest first; each is 32 times one byte.
struct Keys {
    dir: TempDir,
}

impl Keys {
    fn new(keys: &[u8]) -> Self {
        let file = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        file.set(keys);
        file
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("kek")
    }

    fn set(&self, keys: &[u8]) {
        let lines: Vec<String> = keys.iter().map(|key| hex::encode([*key; 32])).collect();
        fs::write(self.path(), lines.join("\n")).unwrap();
    }

    fn read(&self) -> Kek {
        Kek::read(&self.path(), PathBuf::new().as_path()).unwrap()
    }
}

/// Secrets with the tokens that read them.
type Stored = Vec<(String, String)>;

/// Every secret opens on every replica, and each stores one more, in a project that is there and in a new one.
async fn goes_on(replicas: [&Bench; 2], secrets: &mut Stored, label: &str) {
    let [first, second] = replicas;
    for one in replicas {
        for (token, path) in secrets.iter() {
            let payload = format!("{path}/payload");
            let read = one.call("GET", &payload, token, Value::Null).await;
            assert_eq!(
                (read.status, read.bytes.as_slice()),
                (200, &b"of a tenant"[..]),
                "{label}: {path}"
            );
        }
    }
    let project = first.project(label).await;
    let token = first.member(label, (label, &project), "member").await;
    let old = secrets.first().map(|(token, _)| token.clone());
    for (one, token) in [
        (first, old.unwrap_or_else(|| token.clone())),
        (second, token),
    ] {
        let (status, path) = stored(one, &token, label).await;
        assert_eq!(status, 201, "{label}");
        secrets.push((token, path));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_seals_when_every_replica_has_it() {
    let server = Server::start();
    let place = server.place();
    let (command, first_keys, second_keys) = (Keys::new(&[9]), Keys::new(&[9]), Keys::new(&[9]));
    let bench = server.bench().await;
    bench.app.leave().await.unwrap();
    bench.app.store.close().await;
    let first = server.replica(&bench, first_keys.read()).await;
    let second = server.replica(&bench, second_keys.read()).await;
    let both = [&first, &second];
    let announced = async || {
        for one in both {
            one.app.housekeeping().await.unwrap();
        }
    };
    announced().await;
    let there = first.app.store.replicas().await.unwrap();
    assert_eq!(there.len(), 2, "{there:?}");
    let mut secrets = Stored::new();
    goes_on(both, &mut secrets, "before").await;

    // No key is made for those who have files of their own, and none is taken from them.
    let refused = rekey::run(place.clone(), &command.read(), false).await;
    assert!(
        matches!(refused, Err(RekeyError::NewKeyFirst(_))),
        "{refused:?}"
    );
    let refused = rekey::run(place.clone(), &command.read(), true).await;
    assert!(
        matches!(refused, Err(RekeyError::ForgetElsewhere(_))),
        "{refused:?}"
    );

    // One has it and the other has not, which is named.
    command.set(&[7, 9]);
    first_keys.set(&[7, 9]);
    announced().await;
    let lacks = server.sql(&format!(
        "SELECT name FROM replicas WHERE keys = '{}'",
        kek().fingerprints().unwrap().join(" ")
    ));
    let refused = rekey::run(place.clone(), &command.read(), false).await;
    assert!(
        matches!(&refused, Err(RekeyError::ReplicaWithoutKey(name)) if *name == lacks),
        "{lacks}: {refused:?}"
    );
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains(&lacks) && text.contains("three minutes"),
        "{text}"
    );
    let store = Store::open_existing(&place).await.unwrap();
    assert!(
        !rekey::anything_old(&store, &kek()).await.unwrap(),
        "nothing was sealed anew"
    );

    // A replica that died holds it up as long as it may be there, and not longer.
    second_keys.set(&[7, 9]);
    announced().await;
    server.sql(
        "INSERT INTO replicas (name, keys, seen) VALUES
         ('killed', 'old', extract(epoch FROM clock_timestamp())::bigint)",
    );
    let refused = rekey::run(place.clone(), &command.read(), false).await;
    assert!(
        matches!(&refused, Err(RekeyError::ReplicaWithoutKey(name)) if name == "killed"),
        "{refused:?}"
    );
    server.sql("UPDATE replicas SET seen = seen - 181 WHERE name = 'killed'");
    let mut kept = first.app.store.replicas().await.unwrap();
    kept.retain(|(name, _)| name == "killed");
    assert!(kept.is_empty(), "{kept:?}");
    announced().await;
    assert_eq!(
        server.sql("SELECT count(*) FROM replicas"),
        "2",
        "its row is gone"
    );

    // Stopped after every single step, it goes on where it was, and the replicas go on all the time.
    let mut stops = 0;
    loop {
        let mut steps = 0;
        let done = rekey::rotate(&store, &command.read(), false, &mut || {
            steps += 1;
            steps <= stops
        })
        .await;
        goes_on(both, &mut secrets, &format!("stop-{stops}")).await;
        match done {
            Ok(_) => break,
            Err(RekeyError::Stopped) => stops += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        stops >= 4,
        "check record, credentials, token keys, projects: {stops}"
    );
    assert!(!rekey::anything_old(&store, &command.read()).await.unwrap());
    store.close().await;
    let again = rekey::run(place.clone(), &command.read(), false).await;
    assert_eq!(again.unwrap(), 0, "which says that the old line may go");

    // Without the old key everything opens, with it alone nothing does.
    for keys in [&command, &first_keys, &second_keys] {
        keys.set(&[7]);
    }
    for one in both {
        one.app.kek.reload().unwrap();
    }
    goes_on(both, &mut secrets, "after").await;
    let third = server.replica(&first, command.read()).await;
    goes_on([&first, &third], &mut secrets, "third").await;
    let dir = tempfile::tempdir().unwrap();
    let mut old = config(&dir);
    old.place = place.clone();
    assert!(matches!(
        App::open(old, kek()).await,
        Err(AppError::WrongKek(_))
    ));

    // One that ends in order is gone at once. On a slow machine minutes have passed since they told of themselves.
    announced().await;
    second.app.leave().await.unwrap();
    assert_eq!(first.app.store.replicas().await.unwrap().len(), 1);
    for one in [&first, &second, &third] {
        one.app.store.close().await;
    }
}

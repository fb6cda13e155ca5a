//! Backup and restore on real SQLite files, with the service writing meanwhile.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::{
    app::App,
    testing::{Bench, config, id},
};

const SECRETS: &str = "/key-manager/v1/secrets";

fn kek() -> Kek {
    Kek::from_bytes(&[9; 32])
}

async fn sealed(bench: &Bench) -> Vec<u8> {
    let mut out = Vec::new();
    backup(bench.dir.path(), &kek(), &mut out).await.unwrap();
    out
}

/// The service on another machine: only the file and the key came there.
async fn second_machine(file: &[u8]) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let mut file = file;
    restore(dir.path(), &kek(), &mut file, false).await.unwrap();
    let app = App::open(config(&dir), kek()).await.unwrap();
    let mut bench = Bench {
        app,
        admin: String::new(),
        dir,
    };
    bench.admin = bench
        .login("admin", "admin-password", Some("admin"))
        .await
        .unwrap();
    bench
}

fn names_in(dir: &TempDir) -> Vec<String> {
    let list = fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<String> = list
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_second_machine_has_all_and_no_token_lives_on() {
    let bench = Bench::new().await;
    let project = bench.project("p").await;
    let member = bench.member("m", ("p", &project), "member").await;
    let body = json!({"name": "s", "payload": "the-payload", "payload_content_type": "text/plain"});
    let made = bench.call("POST", SECRETS, &member, body).await.json();
    let secret = made["secret_ref"]
        .as_str()
        .unwrap()
        .rsplit('/')
        .next()
        .unwrap()
        .to_owned();
    let blob = json!({"credential": {"type": "cert", "blob": "the-blob", "user_id": bench.user("u").await}});
    let credential = bench
        .admin("POST", "/identity/v3/credentials", blob, 201)
        .await;
    let credential = id(&credential["credential"]);
    let file = sealed(&bench).await;
    let readable = |needle: &[u8]| file.windows(needle.len()).any(|some| some == needle);
    for needle in [&b"SQLite format"[..], b"the-payload", b"admin"] {
        assert!(!readable(needle), "{:?}", String::from_utf8_lossy(needle));
    }
    // Nothing of the copy stays beside the database.
    assert!(
        names_in(&bench.dir)
            .iter()
            .all(|name| name.starts_with(DATABASE_FILE))
    );

    let other = second_machine(&file).await;
    assert_eq!(other.status_of(&member).await, 404, "a token from before");
    assert_eq!(other.status_of(&bench.admin).await, 404);
    let token = other.login("m", "m-pw", Some("p")).await.unwrap();
    let headers = [("X-Auth-Token", token.as_str()), ("Accept", "text/plain")];
    let payload = other
        .raw(
            "GET",
            &format!("{SECRETS}/{secret}/payload"),
            &headers,
            Vec::new(),
        )
        .await;
    assert_eq!(
        (payload.status, payload.bytes.as_slice()),
        (200, &b"the-payload"[..])
    );
    let path = format!("/identity/v3/credentials/{credential}");
    let shown = other.admin("GET", &path, Value::Null, 200).await;
    assert_eq!(shown["credential"]["blob"], "the-blob");
    assert!(
        names_in(&other.dir)
            .iter()
            .all(|name| name.starts_with(DATABASE_FILE))
    );
}

/// Each change makes two projects. A copy of two moments would have one without the other.
#[tokio::test]
async fn what_is_in_a_backup_is_one_moment_while_writes_run() {
    let bench = Arc::new(Bench::new().await);
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU32::new(0));
    let writer = tokio::spawn({
        let (bench, stop, acknowledged) = (bench.clone(), stop.clone(), acknowledged.clone());
        async move {
            let mut number = 0;
            while !stop.load(Ordering::SeqCst) {
                let mut change = bench.app.store.change_identity().await.unwrap();
                for half in ["a", "b"] {
                    let project = crate::store::projects::Project::new(
                        crate::ids::identity_id(),
                        "default".into(),
                        "default".into(),
                        format!("pair-{number}-{half}"),
                    );
                    change.insert_project(&project).await.unwrap();
                    tokio::task::yield_now().await;
                }
                bench.app.store.commit(change).await.unwrap();
                number += 1;
                acknowledged.store(number, Ordering::SeqCst);
            }
            number
        }
    });
    let mut taken = Vec::new();
    for round in 1..4 {
        while acknowledged.load(Ordering::SeqCst) < round * 20 {
            tokio::task::yield_now().await;
        }
        let before = acknowledged.load(Ordering::SeqCst);
        taken.push((before, sealed(&bench).await));
    }
    stop.store(true, Ordering::SeqCst);
    let written = writer.await.unwrap();
    for (before, file) in taken {
        let other = second_machine(&file).await;
        let projects = other.app.store.projects(None, None, None).await.unwrap();
        let count = |half: &str| {
            let ours = projects.iter().filter(|p| p.name.starts_with("pair-"));
            ours.filter(|p| p.name.ends_with(half)).count()
        };
        assert_eq!(count("-a"), count("-b"), "half a change");
        let count = u32::try_from(count("-a")).unwrap();
        assert!(
            (before..=written).contains(&count),
            "{before} <= {count} <= {written}"
        );
    }
}

#[tokio::test]
async fn nothing_is_restored_from_what_is_not_right() {
    let bench = Bench::new().await;
    let file = sealed(&bench).await;
    let dir = tempfile::tempdir().unwrap();
    let flipped = |at: usize| {
        let mut file = file.clone();
        file[at] ^= 1;
        file
    };
    let cases = [
        ("WrongKek", file.clone(), Kek::from_bytes(&[8; 32])),
        ("BackupTruncated", file[..file.len() - 1].to_vec(), kek()),
        ("BackupTruncated", file[..file.len() / 2].to_vec(), kek()),
        ("BackupAltered", flipped(file.len() / 2), kek()),
        ("BackupAltered", flipped(file.len() - 1), kek()),
        (
            "NotABackup",
            b"something else, and long enough".to_vec(),
            kek(),
        ),
    ];
    for (reason, bytes, kek) in cases {
        let error = restore(dir.path(), &kek, &mut bytes.as_slice(), false)
            .await
            .unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains("othing was restored"), "{error}");
        assert!(names_in(&dir).is_empty(), "{:?}", names_in(&dir));
    }
    let wrong = backup(
        bench.dir.path(),
        &Kek::from_bytes(&[8; 32]),
        &mut Vec::new(),
    )
    .await;
    assert_eq!(wrong.unwrap_err().reason(), "WrongKek");
    let nothing = backup(dir.path(), &kek(), &mut Vec::new()).await;
    assert_eq!(nothing.unwrap_err().reason(), "NoDatabase");
}

/// A sealed file whose contents are no database, or one of a later release: that it opens is not enough.
#[tokio::test]
async fn the_contents_are_looked_at_before_anything_is_replaced() {
    let bench = Bench::new().await;
    let check = bench.app.store.meta(KEK_CHECK).await.unwrap().unwrap();
    let mut rubbish = Vec::new();
    sealed::write(&kek(), &check, &[7; 100_000][..], &mut rubbish).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = restore(dir.path(), &kek(), &mut rubbish.as_slice(), false)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "BackupContents", "{error}");
    bench.app.store.later_release(9999).await.unwrap();
    let newer = sealed(&bench).await;
    let error = restore(dir.path(), &kek(), &mut newer.as_slice(), false)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("newer release"), "{error}");
    assert!(names_in(&dir).is_empty(), "{:?}", names_in(&dir));
}

#[tokio::test]
async fn records_are_replaced_only_when_told_and_only_when_nobody_uses_them() {
    let bench = Bench::new().await;
    let file = sealed(&bench).await;
    bench.project("since-then").await;
    let names = async |bench: &Bench| {
        let list = bench
            .admin("GET", "/identity/v3/projects", Value::Null, 200)
            .await;
        list["projects"].as_array().unwrap().len()
    };
    let error = restore(bench.dir.path(), &kek(), &mut file.as_slice(), false)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "DataDirNotEmpty", "{error}");
    assert!(error.to_string().contains("--replace"), "{error}");
    let error = restore(bench.dir.path(), &kek(), &mut file.as_slice(), true)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "DatabaseInUse", "{error}");
    assert_eq!(names(&bench).await, 2, "all is as it was");
    bench.app.store.close().await;
    restore(bench.dir.path(), &kek(), &mut file.as_slice(), true)
        .await
        .unwrap();
    let app = App::open(config(&bench.dir), kek()).await.unwrap();
    let mut again = Bench {
        app,
        admin: String::new(),
        dir: bench.dir,
    };
    again.admin = again
        .login("admin", "admin-password", Some("admin"))
        .await
        .unwrap();
    assert_eq!(names(&again).await, 1);
    // A database that is damaged beyond use is replaced as well.
    again.app.store.close().await;
    fs::write(again.dir.path().join(DATABASE_FILE), [5; 5000]).unwrap();
    restore(again.dir.path(), &kek(), &mut file.as_slice(), true)
        .await
        .unwrap();
    assert!(App::open(config(&again.dir), kek()).await.is_ok());
}

#[tokio::test]
async fn what_a_killed_backup_left_is_swept_away_and_a_running_one_is_not() {
    let bench = Bench::new().await;
    let left = bench.dir.path().join(".aside-left");
    let leave = || {
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join(DATABASE_FILE), b"a copy").unwrap();
    };
    leave();
    sealed(&bench).await;
    assert!(!left.exists(), "by the next backup");
    leave();
    let running = fs::File::open(bench.dir.path()).unwrap();
    running.lock().unwrap();
    let error = backup(bench.dir.path(), &kek(), &mut Vec::new()).await;
    assert_eq!(error.unwrap_err().reason(), "BackupRunning");
    sweep(bench.dir.path());
    assert!(left.exists(), "it may be that one's");
    drop(running);
    let again = App::open(config(&bench.dir), kek()).await;
    assert!(again.is_ok() && !left.exists(), "by a start of the service");
}

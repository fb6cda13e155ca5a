//! Two at once. Processes on a real PostgreSQL: `e2e/tests/api_identity_service.rs`.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::{BootstrapRequest, bootstrap};
use crate::{app::App, crypto::Kek, testing::config};

fn request(password: &str) -> BootstrapRequest {
    BootstrapRequest {
        password: password.to_owned().into(),
        public_url: "https://keys.example.org:5000".into(),
        region: "RegionOne".into(),
    }
}

async fn open(dir: &tempfile::TempDir) -> Arc<App> {
    App::open(config(dir), Kek::from_bytes(&[9; 32]))
        .await
        .unwrap()
}

/// How many there are of what `bootstrap` makes, and what is stored of the administrator.
async fn made(app: &App) -> (Vec<usize>, Option<String>, i64) {
    let store = &app.store;
    let admin = store.user_by_name("default", "admin").await.unwrap();
    let admin = admin.unwrap();
    let counts = vec![
        store.domains().await.unwrap().len(),
        store.projects(None, None, None).await.unwrap().len(),
        store.users(None, None).await.unwrap().len(),
        store.all_roles().await.unwrap().len(),
        store.inferences().await.unwrap().len(),
        store.assignments_after(None, 99).await.unwrap().len(),
        store.regions().await.unwrap().len(),
        store.services().await.unwrap().len(),
        store.endpoints().await.unwrap().len(),
    ];
    (counts, admin.password_hash, admin.tokens_valid_after)
}

#[tokio::test]
async fn one_that_is_overtaken_makes_nothing_again_and_ends_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (open(&dir).await, open(&dir).await);
    let mut there = None;
    let asked = request("pw");
    let slow = bootstrap(&first, &asked);
    let overtaken = async || {
        bootstrap(&second, &asked).await.unwrap();
        there = Some(made(&second).await);
    };
    // It has looked for the user, found none, and hashed the password.
    let done = first.store.write_pause.amid(slow, overtaken).await;
    done.unwrap();
    let now = made(&first).await;
    assert_eq!(now.0, [1, 1, 1, 5, 3, 2, 1, 2, 6]);
    assert_eq!((Some(&now), now.2), (there.as_ref(), 0));
}

#[tokio::test]
async fn again_changes_nothing_and_another_password_is_set_and_ends_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let app = open(&dir).await;
    bootstrap(&app, &request("pw")).await.unwrap();
    let (there, generation) = (made(&app).await, app.store.generation());
    bootstrap(&app, &request("pw")).await.unwrap();
    assert_eq!(
        (made(&app).await, app.store.generation()),
        (there.clone(), generation)
    );

    let mut moved = request("other");
    moved.public_url = "https://elsewhere.example.org".into();
    bootstrap(&app, &moved).await.unwrap();
    let now = made(&app).await;
    assert_eq!(now.0, there.0);
    assert!(now.1 != there.1 && now.2 > 0);
    let endpoints = app.store.endpoints().await.unwrap();
    assert!(
        endpoints
            .iter()
            .all(|e| e.url.starts_with("https://elsewhere.example.org/"))
    );
}

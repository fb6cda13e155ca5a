//! Entries as records, on a real database.

use std::collections::BTreeSet;

use serde_json::Map;
use tempfile::TempDir;

use super::*;
use crate::store::domains::Domain;

const DOMAIN: &str = "corp";

async fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let mut change = store.change_identity().await.unwrap();
    let domain = Domain {
        id: DOMAIN.into(),
        name: "Corp".into(),
        description: Default::default(),
        enabled: true,
        options: "{}".into(),
        extra: "{}".into(),
        tags: "[]".into(),
    };
    change.insert_domain(&domain).await.unwrap();
    store.commit(change).await.unwrap();
    (dir, store)
}

fn person(id: &str, name: &str) -> DirectoryUser {
    DirectoryUser {
        dn: format!("uid={id}"),
        local_id: id.into(),
        name: name.into(),
        enabled: true,
        default_project_id: None,
        extra: Map::new(),
    }
}

fn group(id: &str) -> DirectoryGroup {
    DirectoryGroup {
        dn: format!("cn={id}"),
        local_id: id.into(),
        name: id.into(),
        description: String::new(),
        extra: Map::new(),
        members: Vec::new(),
    }
}

async fn look(store: &Store, users: Vec<DirectoryUser>, groups: Vec<(DirectoryGroup, &[usize])>) {
    let (groups, members): (Vec<_>, Vec<BTreeSet<usize>>) = groups
        .into_iter()
        .map(|(group, members)| (group, members.iter().copied().collect()))
        .unzip();
    let found = Whole {
        users,
        groups,
        members,
    };
    whole(store, DOMAIN, &found).await.unwrap();
}

async fn names(store: &Store) -> Vec<String> {
    let users = store.users(Some(DOMAIN), None).await.unwrap();
    users.into_iter().map(|user| user.name).collect()
}

#[tokio::test]
async fn an_unchanged_directory_empties_no_cache() {
    let (_dir, store) = store().await;
    let all = || vec![person("1", "ann"), person("2", "ben")];
    look(&store, all(), vec![(group("g"), &[0])]).await;
    let before = store.generation();
    look(&store, all(), vec![(group("g"), &[0])]).await;
    user(&store, DOMAIN, &person("1", "ann"), &[group("g")])
        .await
        .unwrap();
    gone(&store, "nobody").await.unwrap();
    assert_eq!(store.generation(), before);
    // One user's view and the whole one agree; a change of it is written.
    user(&store, DOMAIN, &person("1", "ann"), &[])
        .await
        .unwrap();
    assert_eq!(store.generation(), before + 1);
    assert!(store.memberships(DOMAIN).await.unwrap().is_empty());
}

#[tokio::test]
async fn names_may_change_hands() {
    let (_dir, store) = store().await;
    look(&store, vec![person("1", "ann"), person("2", "ben")], vec![]).await;
    look(&store, vec![person("1", "ben"), person("2", "ann")], vec![]).await;
    assert_eq!(names(&store).await, ["ann", "ben"]);
    let id = public_id(DOMAIN, EntityType::User, "1");
    assert_eq!(store.user(&id).await.unwrap().unwrap().name, "ben");
    // Of one user alone: the other is named anew when it is looked at.
    user(&store, DOMAIN, &person("1", "ann"), &[])
        .await
        .unwrap();
    look(&store, vec![person("1", "ann"), person("2", "cat")], vec![]).await;
    assert_eq!(names(&store).await, ["ann", "cat"]);
}

#[tokio::test]
async fn who_is_disabled_or_comes_back_has_no_old_tokens() {
    let (_dir, store) = store().await;
    let id = public_id(DOMAIN, EntityType::User, "1");
    let valid_after = async || store.user(&id).await.unwrap().unwrap().tokens_valid_after;
    look(&store, vec![person("1", "ann")], vec![]).await;
    let first = valid_after().await;
    assert!(first > 0);
    let mut off = person("1", "ann");
    off.enabled = false;
    look(&store, vec![off], vec![]).await;
    let second = valid_after().await;
    assert!(second > first);
    look(&store, vec![person("1", "ann")], vec![]).await;
    assert_eq!(valid_after().await, second);
    look(&store, vec![], vec![]).await;
    assert!(store.user(&id).await.unwrap().is_none());
    look(&store, vec![person("1", "ann")], vec![]).await;
    assert!(valid_after().await > second);
    assert_eq!(store.own_entries(DOMAIN).await.unwrap(), 0);
}

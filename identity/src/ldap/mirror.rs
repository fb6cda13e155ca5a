//! Entries of directories as records, under their public ids, so that grants, lists and tokens see them like any other
//! user and group. Only differences are written: a look at an unchanged directory empties no cache.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{
    account::{EntityType, public_id},
    directory::Whole,
    entry::{DirectoryGroup, DirectoryUser},
};
use crate::{
    store::{Change, Store, StoreResult, groups::Group, id_mapping::Mapping, users::User},
    time::now_us,
};

fn extra(map: &Map<String, Value>) -> String {
    Value::Object(map.clone()).to_string()
}

/// The record of a user as it is to be; `old` is the one that is there.
fn user_row(old: Option<&User>, domain_id: &str, id: &str, user: &DirectoryUser, now: i64) -> User {
    let mut row = User {
        id: id.to_owned(),
        domain_id: domain_id.to_owned(),
        name: user.name.clone(),
        enabled: user.enabled,
        default_project_id: user.default_project_id.clone(),
        password_hash: None,
        password_expires_at: None,
        tokens_valid_after: old.map_or(0, |old| old.tokens_valid_after),
        options: "{}".into(),
        extra: extra(&user.extra),
    };
    // An account that is disabled, or new or back again: tokens of before are dead.
    if old.is_none_or(|old| old.enabled && !user.enabled) {
        row.end_tokens(now);
    }
    row
}

fn same_user(a: &User, b: &User) -> bool {
    let key = |user: &User| {
        (
            user.name.clone(),
            user.enabled,
            user.default_project_id.clone(),
            user.tokens_valid_after,
            user.extra.clone(),
        )
    };
    key(a) == key(b)
}

fn group_row(domain_id: &str, id: &str, group: &DirectoryGroup) -> Group {
    Group {
        id: id.to_owned(),
        domain_id: domain_id.to_owned(),
        name: group.name.clone(),
        description: group.description.as_str().into(),
        extra: extra(&group.extra),
    }
}

fn same_group(a: &Group, b: &Group) -> bool {
    (&a.name, &a.description, &a.extra) == (&b.name, &b.description, &b.extra)
}

fn mapping(domain_id: &str, id: &str, entity: EntityType, local_id: &str) -> Mapping {
    Mapping {
        public_id: id.to_owned(),
        domain_id: domain_id.to_owned(),
        entity_type: entity.as_str().to_owned(),
        local_id: local_id.to_owned(),
    }
}

/// What is to be written.
#[derive(Default)]
struct Differences {
    users: Vec<(User, Mapping)>,
    groups: Vec<(Group, Mapping)>,
    gone: Vec<String>,
    joined: Vec<(String, String)>,
    left: Vec<(String, String)>,
}

impl Differences {
    fn user(
        &mut self,
        domain_id: &str,
        old: Option<&User>,
        user: &DirectoryUser,
        now: i64,
    ) -> String {
        let id = public_id(domain_id, EntityType::User, &user.local_id);
        let new = user_row(old, domain_id, &id, user, now);
        if old.is_none_or(|old| !same_user(old, &new)) {
            let mapping = mapping(domain_id, &id, EntityType::User, &user.local_id);
            self.users.push((new, mapping));
        }
        id
    }

    fn group(&mut self, domain_id: &str, old: Option<&Group>, group: &DirectoryGroup) -> String {
        let id = public_id(domain_id, EntityType::Group, &group.local_id);
        let new = group_row(domain_id, &id, group);
        if old.is_none_or(|old| !same_group(old, &new)) {
            let mapping = mapping(domain_id, &id, EntityType::Group, &group.local_id);
            self.groups.push((new, mapping));
        }
        id
    }

    fn members(&mut self, old: &BTreeSet<(String, String)>, new: &BTreeSet<(String, String)>) {
        self.joined.extend(new.difference(old).cloned());
        self.left.extend(old.difference(new).cloned());
    }

    fn is_empty(&self) -> bool {
        self.users.is_empty()
            && self.groups.is_empty()
            && self.gone.is_empty()
            && self.joined.is_empty()
            && self.left.is_empty()
    }

    async fn store(self, store: &Store) -> StoreResult<()> {
        if self.is_empty() {
            return Ok(());
        }
        let mut change = store.change_identity().await?;
        for (group, user) in &self.left {
            change.remove_member(group, user).await?;
        }
        for id in &self.gone {
            change.forget_mirrored(id).await?;
        }
        for (user, mapping) in self.users {
            put_user(&mut change, user, &mapping).await?;
        }
        for (group, mapping) in self.groups {
            put_group(&mut change, group, &mapping).await?;
        }
        for (group, user) in &self.joined {
            change.add_member(group, user).await?;
        }
        store.commit(change).await
    }
}

async fn put_user(change: &mut Change, user: User, mapping: &Mapping) -> StoreResult<()> {
    change
        .free_user_name(&user.domain_id, &user.name, &user.id)
        .await?;
    change.remember_mapping(mapping).await?;
    match change.user(&user.id).await? {
        None => change.insert_user(&user).await,
        Some(mut row) => {
            // Another look at the directory may have ended the user's tokens meanwhile.
            let tokens_valid_after = user.tokens_valid_after.max(row.tokens_valid_after);
            *row = User {
                tokens_valid_after,
                ..user
            };
            change.update_user(&row).await
        }
    }
}

async fn put_group(change: &mut Change, group: Group, mapping: &Mapping) -> StoreResult<()> {
    change
        .free_group_name(&group.domain_id, &group.name, &group.id)
        .await?;
    change.remember_mapping(mapping).await?;
    match change.group(&group.id).await? {
        None => change.insert_group(&group).await,
        Some(mut row) => {
            *row = group;
            change.update_group(&row).await
        }
    }
}

/// Writes what changed of one user and its groups. Its record.
///
/// # Errors
/// From the store.
pub async fn user(
    store: &Store,
    domain_id: &str,
    user: &DirectoryUser,
    groups: &[DirectoryGroup],
) -> StoreResult<Option<User>> {
    let id = public_id(domain_id, EntityType::User, &user.local_id);
    let old = store.user(&id).await?;
    let mut differences = Differences::default();
    differences.user(domain_id, old.as_ref(), user, now_us());
    let mut now_in = BTreeSet::new();
    for group in groups {
        let group_id = public_id(domain_id, EntityType::Group, &group.local_id);
        let old = store.group(&group_id).await?;
        differences.group(domain_id, old.as_ref(), group);
        now_in.insert((group_id, id.clone()));
    }
    let was_in = store
        .groups_of_user(&id)
        .await?
        .into_iter()
        .map(|group| (group.id, id.clone()))
        .collect();
    differences.members(&was_in, &now_in);
    differences.store(store).await?;
    store.user(&id).await
}

/// Forgets a user whose entry is gone.
///
/// # Errors
/// From the store.
pub async fn gone(store: &Store, id: &str) -> StoreResult<()> {
    if store.user(id).await?.is_none() {
        return Ok(());
    }
    let differences = Differences {
        gone: vec![id.to_owned()],
        ..Differences::default()
    };
    differences.store(store).await
}

/// Writes what changed of a whole domain.
///
/// # Errors
/// From the store.
pub async fn whole(store: &Store, domain_id: &str, whole: &Whole) -> StoreResult<()> {
    let now = now_us();
    let mut users: BTreeMap<String, User> = BTreeMap::new();
    for user in store.users(Some(domain_id), None).await? {
        users.insert(user.id.clone(), user);
    }
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for group in store.groups(Some(domain_id), None).await? {
        groups.insert(group.id.clone(), group);
    }
    let was_in: BTreeSet<_> = store.memberships(domain_id).await?.into_iter().collect();
    let mut differences = Differences::default();
    let mut user_ids = Vec::with_capacity(whole.users.len());
    for user in &whole.users {
        let id = public_id(domain_id, EntityType::User, &user.local_id);
        user_ids.push(differences.user(domain_id, users.remove(&id).as_ref(), user, now));
    }
    let mut now_in = BTreeSet::new();
    for (group, members) in whole.groups.iter().zip(&whole.members) {
        let id = public_id(domain_id, EntityType::Group, &group.local_id);
        differences.group(domain_id, groups.remove(&id).as_ref(), group);
        let ids = members.iter().filter_map(|at| user_ids.get(*at));
        now_in.extend(ids.map(|user| (id.clone(), user.clone())));
    }
    differences
        .gone
        .extend(users.into_keys().chain(groups.into_keys()));
    differences.members(&was_in, &now_in);
    differences.store(store).await
}

#[cfg(test)]
mod tests;

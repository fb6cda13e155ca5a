//! Fills a bootstrapped data directory (no service may run on it) with a large site, by the store's own code in one process:
//! for `cargo xtask bench identity --large`. Everybody has a role on one project, and is in a group that has one too.
//!
//! `seed_site PLACE KEK_FILE USERS PROJECTS SECRETS`, where the place is the data directory or a file with a PostgreSQL database's URL;
//! it prints the ids of a thousand users, far from each other.

use std::path::PathBuf;

use anyhow::{Context, Result};
use cryptvol_identity::{
    crypto::{Kek, SealingKey},
    ids::{identity_id, key_manager_id, random_bytes},
    store::{
        Place, PostgresUrl, Store,
        assignments::Assignment,
        domains::Domain,
        groups::Group,
        projects::Project,
        secrets::{ProjectKey, Secret},
        users::User,
    },
    time::now_us,
};

/// Rows in one transaction.
const BATCH: usize = 20_000;
/// Projects of one domain.
const DOMAIN: usize = 1000;
/// Every so many users there is a group with that many members, which has a role on the project of its first.
const GROUP: usize = 100;
/// Users whose ids are printed.
const SHOWN: usize = 1000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [data, kek, users, projects, secrets] = &args[..] else {
        anyhow::bail!("seed_site PLACE KEK_FILE USERS PROJECTS SECRETS");
    };
    let data = PathBuf::from(data);
    let kek = Kek::read(&PathBuf::from(kek), &data)?;
    let place = if data.is_file() {
        Place::Postgres(PostgresUrl::read(&data)?)
    } else {
        Place::Directory(data)
    };
    let store = Store::open_existing(&place).await?;
    let member = store
        .roles(None)
        .await?
        .into_iter()
        .find(|role| role.name == "member")
        .context("no role member: bootstrap first")?
        .id;
    let projects = add_projects(&store, projects.parse()?).await?;
    let users = add_users(&store, users.parse()?, &projects, &member).await?;
    let creator = users.first().context("no users")?;
    add_secrets(&store, &kek, secrets.parse()?, &projects, creator).await?;
    println!("{}", users.join("\n"));
    store.mark_log_dirty();
    store.truncate_log().await?;
    store.close().await;
    Ok(())
}

/// So many ids in ascending order: the indices then grow at their end, and not everywhere at once.
fn ascending(count: usize, id: fn() -> String) -> Vec<String> {
    let mut ids: Vec<String> = std::iter::repeat_with(id).take(count).collect();
    ids.sort_unstable();
    ids
}

/// Ids of the projects and of their domains.
async fn add_projects(store: &Store, count: usize) -> Result<Vec<(String, String)>> {
    let mut made = Vec::with_capacity(count);
    let mut domain = String::new();
    let mut domains = ascending(count.div_ceil(DOMAIN), identity_id).into_iter();
    let mut change = store.change_identity().await?;
    for (number, id) in ascending(count, identity_id).into_iter().enumerate() {
        if number % DOMAIN == 0 {
            domain = domains.next().context("too few domains")?;
            change
                .insert_domain(&Domain {
                    id: domain.clone(),
                    name: format!("domain-{:03}", number / DOMAIN),
                    description: Default::default(),
                    enabled: true,
                    options: "{}".into(),
                    extra: "{}".into(),
                    tags: "[]".into(),
                })
                .await?;
        }
        let name = format!("project-{number:05}");
        let project = Project::new(id.clone(), domain.clone(), domain.clone(), name);
        change.insert_project(&project).await?;
        made.push((id, domain.clone()));
    }
    store.commit(change).await?;
    Ok(made)
}

/// Ids of a thousand of them.
async fn add_users(
    store: &Store,
    count: usize,
    projects: &[(String, String)],
    role: &str,
) -> Result<Vec<String>> {
    let mut shown = Vec::new();
    let mut change = store.change_identity().await?;
    let mut group = String::new();
    for (number, id) in ascending(count, identity_id).into_iter().enumerate() {
        let (project, domain) = &projects[number * projects.len() / count];
        let user = User {
            id,
            domain_id: domain.clone(),
            name: format!("user-{number:06}"),
            enabled: true,
            default_project_id: Some(project.clone()),
            password_hash: None,
            password_expires_at: None,
            tokens_valid_after: 0,
            options: "{}".into(),
            extra: r#"{"email": "somebody@example.org"}"#.into(),
        };
        change.insert_user(&user).await?;
        let give = |kind: &str, actor: &str| Assignment {
            actor_type: kind.into(),
            actor_id: actor.into(),
            target_type: "project".into(),
            target_id: project.clone(),
            role_id: role.into(),
            inherited: false,
        };
        change.insert_assignment(&give("user", &user.id)).await?;
        if number % GROUP == 0 {
            group = identity_id();
            change
                .insert_group(&Group {
                    id: group.clone(),
                    domain_id: domain.clone(),
                    name: format!("group-{number:06}"),
                    description: Default::default(),
                    extra: "{}".into(),
                })
                .await?;
            change.insert_assignment(&give("group", &group)).await?;
        }
        change.add_member(&group, &user.id).await?;
        if number % count.div_ceil(SHOWN) == 0 {
            shown.push(user.id);
        }
        if number % BATCH == BATCH - 1 {
            store.commit(change).await?;
            change = store.change_identity().await?;
        }
    }
    store.commit(change).await?;
    Ok(shown)
}

async fn add_secrets(
    store: &Store,
    kek: &Kek,
    count: usize,
    projects: &[(String, String)],
    creator: &str,
) -> Result<()> {
    let now = now_us();
    let mut keys = Vec::with_capacity(projects.len());
    let mut change = store.change_keys().await?;
    for (project, _) in projects {
        let (id, bytes) = (key_manager_id(), random_bytes::<32>());
        let sealed = kek.seal_newest(&["project-key", &id, project], &bytes)?;
        let record = ProjectKey {
            id: id.clone(),
            project_id: project.clone(),
            sealed,
        };
        change.insert_project_key(&record, now).await?;
        keys.push((id, SealingKey::new(&bytes)));
    }
    store.commit(change).await?;
    let mut change = store.change_keys().await?;
    for (number, id) in ascending(count, key_manager_id).into_iter().enumerate() {
        let place = number * projects.len() / count;
        let (project, (key_id, key)) = (&projects[place].0, &keys[place]);
        let own = random_bytes::<32>();
        let sealed =
            SealingKey::new(&own).seal(&["secret", &id, project], &random_bytes::<32>())?;
        let wrapped = key.seal(&["secret-key", &id, project], &own)?;
        let made = now + i64::try_from(number)?;
        let secret = Secret {
            id: id.clone(),
            project_id: project.clone(),
            creator_id: creator.into(),
            name: Some(format!("secret-{number}")),
            secret_type: "symmetric".into(),
            algorithm: Some("aes".into()),
            bit_length: Some(256),
            mode: Some("xts".into()),
            // One in ten ends, but not today.
            expiration: (number % 10 == 0).then_some(made + 400 * 86_400_000_000),
            content_type: Some("application/octet-stream".into()),
            key_id: Some(key_id.clone()),
            sealed: Some(sealed),
            key_slot: None,
            new_key: Some(wrapped),
            created: made,
            updated: made,
        };
        change.insert_secret(&secret).await?;
        if number % BATCH == BATCH - 1 {
            store.commit(change).await?;
            change = store.change_keys().await?;
        }
    }
    store.commit(change).await?;
    Ok(())
}

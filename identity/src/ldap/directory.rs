//! The questions that the service asks a directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use secrecy::SecretString;

use super::{
    client::{Client, DirectoryError, Search},
    config::DirectoryConfig,
    entry::{self, DirectoryGroup, DirectoryUser, Entry, same_dn},
    filter,
    pace::{self, Pace},
    trust::TrustError,
};

/// Groups in groups are followed so deep; deeper is a mistake in the directory.
const DEEPEST: usize = 32;

/// A domain's directory.
pub struct Directory {
    config: Arc<DirectoryConfig>,
    client: Client,
    pace: Pace,
}

/// Users, groups, and the users in each group by their places.
pub struct Whole {
    /// All users.
    pub users: Vec<DirectoryUser>,
    /// All groups.
    pub groups: Vec<DirectoryGroup>,
    /// For each group its members, as places in `users`.
    pub members: Vec<BTreeSet<usize>>,
}

impl Directory {
    /// A directory that is asked when somebody needs to know.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn new(config: DirectoryConfig) -> Result<Self, TrustError> {
        let config = Arc::new(config);
        Ok(Self {
            client: Client::new(Arc::clone(&config))?,
            config,
            pace: Pace::default(),
        })
    }

    /// Users with this name. More than one can be told apart by nobody.
    ///
    /// # Errors
    /// Any [`DirectoryError`].
    pub async fn users_named(&self, name: &str) -> Result<Vec<DirectoryUser>, DirectoryError> {
        self.users(Some(&filter::equals(&self.config.users.name, name)))
            .await
    }

    /// The user with this id.
    ///
    /// # Errors
    /// Any [`DirectoryError`].
    pub async fn user(&self, local_id: &str) -> Result<Option<DirectoryUser>, DirectoryError> {
        let mut found = self
            .users(Some(&filter::equals(&self.config.users.id, local_id)))
            .await?;
        // A directory compares without case; ids here do not.
        found.retain(|user| user.local_id == local_id);
        Ok(if found.len() == 1 { found.pop() } else { None })
    }

    /// The groups that a user is in.
    ///
    /// # Errors
    /// Any [`DirectoryError`].
    pub async fn groups_of(
        &self,
        user: &DirectoryUser,
    ) -> Result<Vec<DirectoryGroup>, DirectoryError> {
        let tree = &self.config.groups;
        let nesting = tree.nesting && !tree.ids;
        let own = if tree.ids { &user.local_id } else { &user.dn };
        if !nesting {
            let having = filter::having(&tree.member, &[own], false);
            return self.groups(tree.filter.as_deref(), Some(&having)).await;
        }
        // Active Directory answers whole at once; others are asked once a level. Groups that the site's filter leaves
        // out count in between, as they do for Active Directory.
        let mut inside: BTreeMap<String, String> = BTreeMap::new();
        let mut open = vec![own.clone()];
        for _ in 0..DEEPEST {
            let mut next = Vec::new();
            for some in open.chunks(50) {
                let some: Vec<&str> = some.iter().map(String::as_str).collect();
                let having = filter::having(&tree.member, &some, true);
                for group in self.group_entries(None, Some(&having)).await? {
                    if inside
                        .insert(same_dn(&group.dn), group.dn.clone())
                        .is_none()
                    {
                        next.push(group.dn);
                    }
                }
            }
            open = next;
            if open.is_empty() {
                break;
            }
        }
        // What a name of an entry matches is up to the server; the entry itself is asked for by its name.
        let mut groups = Vec::new();
        for dn in inside.values() {
            groups.extend(self.group_at(dn).await?);
        }
        Ok(groups)
    }

    /// Everything.
    ///
    /// # Errors
    /// Any [`DirectoryError`].
    pub async fn whole(&self) -> Result<Whole, DirectoryError> {
        let users = self.users(None).await?;
        let tree = &self.config.groups;
        let groups = if tree.nesting {
            // The filter decides at the end: what it leaves out may lie between two that it does not.
            self.groups(None, None).await?
        } else {
            self.groups(tree.filter.as_deref(), None).await?
        };
        let mut members = entry::members(&users, &groups, tree.ids, tree.nesting);
        let mut kept = groups;
        if tree.nesting && tree.filter.is_some() {
            let wanted: BTreeSet<String> = self
                .groups(tree.filter.as_deref(), None)
                .await?
                .iter()
                .map(|group| same_dn(&group.dn))
                .collect();
            let keep: Vec<bool> = kept
                .iter()
                .map(|group| wanted.contains(&same_dn(&group.dn)))
                .collect();
            let mut at = keep.iter();
            members.retain(|_| *at.next().unwrap_or(&false));
            let mut at = keep.iter();
            kept.retain(|_| *at.next().unwrap_or(&false));
        }
        Ok(Whole {
            users,
            groups: kept,
            members,
        })
    }

    /// Whether a password is this user's.
    ///
    /// # Errors
    /// Any [`DirectoryError`].
    pub async fn proves(
        &self,
        user: &DirectoryUser,
        password: &SecretString,
    ) -> Result<bool, DirectoryError> {
        let began = Instant::now();
        let proved = self.client.proves(&user.dn, password).await?;
        self.pace.somebody(began.elapsed());
        Ok(proved)
    }

    /// The same work for a user that does not exist, and the time that the server saves with it, so that time does not tell.
    ///
    /// # Errors
    /// Any [`DirectoryError`].
    pub async fn proves_nobody(&self, password: &SecretString) -> Result<(), DirectoryError> {
        let nobody = format!(
            "cn={},{}",
            crate::ids::identity_id(),
            self.config.users.base
        );
        let began = Instant::now();
        self.client.proves(&nobody, password).await?;
        pace::pause(self.pace.nobody(began.elapsed())).await;
        Ok(())
    }

    async fn users(&self, more: Option<&str>) -> Result<Vec<DirectoryUser>, DirectoryError> {
        let tree = &self.config.users;
        let mut attributes = vec![tree.id.clone(), tree.name.clone(), tree.enabled.clone()];
        attributes.extend(tree.extra.iter().map(|(attribute, _)| attribute.clone()));
        attributes.extend(tree.default_project.clone());
        let filter = filter::entries(&tree.class, tree.filter.as_deref(), more);
        let search = Search {
            base: &tree.base,
            itself: false,
            filter: &filter,
            attributes,
        };
        let entries = self.client.search(&search).await?;
        let mut users: Vec<DirectoryUser> =
            known(&entries, |entry| entry::user(tree, entry), "user");
        if let Some(emulation) = &tree.emulation {
            let enabled = self.emulated(&emulation.dn, &emulation.member).await?;
            for user in &mut users {
                user.enabled = if emulation.ids {
                    enabled.contains(&user.local_id)
                } else {
                    enabled.contains(&same_dn(&user.dn))
                };
            }
        }
        Ok(users)
    }

    /// The members of the group of enabled users; nobody where there is no such group.
    async fn emulated(&self, dn: &str, member: &str) -> Result<BTreeSet<String>, DirectoryError> {
        let search = Search {
            base: dn,
            itself: true,
            filter: "(objectClass=*)",
            attributes: vec![member.to_owned()],
        };
        let entries = self.client.search(&search).await?;
        let tree = &self.config.users;
        let ids = tree
            .emulation
            .as_ref()
            .is_some_and(|emulation| emulation.ids);
        let members = entries.into_iter().flat_map(|entry| {
            entry
                .attributes
                .get(&member.to_ascii_lowercase())
                .cloned()
                .unwrap_or_default()
        });
        Ok(members
            .map(|one| if ids { one } else { same_dn(&one) })
            .collect())
    }

    async fn groups(
        &self,
        site: Option<&str>,
        more: Option<&str>,
    ) -> Result<Vec<DirectoryGroup>, DirectoryError> {
        let entries = self.group_entries(site, more).await?;
        Ok(known(
            &entries,
            |entry| entry::group(&self.config.groups, entry),
            "group",
        ))
    }

    async fn group_at(&self, dn: &str) -> Result<Vec<DirectoryGroup>, DirectoryError> {
        let tree = &self.config.groups;
        let filter = filter::entries(&tree.class, tree.filter.as_deref(), None);
        let search = Search {
            base: dn,
            itself: true,
            filter: &filter,
            attributes: self.group_attributes(false),
        };
        let entries = self.client.search(&search).await?;
        Ok(known(&entries, |entry| entry::group(tree, entry), "group"))
    }

    fn group_attributes(&self, members: bool) -> Vec<String> {
        let tree = &self.config.groups;
        let mut attributes = vec![tree.id.clone(), tree.name.clone(), tree.description.clone()];
        attributes.extend(tree.extra.iter().map(|(attribute, _)| attribute.clone()));
        if members {
            attributes.push(tree.member.clone());
        }
        attributes
    }

    /// Members are only asked for where all groups are: a user's groups are found by the user.
    async fn group_entries(
        &self,
        site: Option<&str>,
        more: Option<&str>,
    ) -> Result<Vec<Entry>, DirectoryError> {
        let tree = &self.config.groups;
        let filter = filter::entries(&tree.class, site, more);
        let attributes = self.group_attributes(more.is_none());
        let search = Search {
            base: &tree.base,
            itself: false,
            filter: &filter,
            attributes,
        };
        let entries = self.client.search(&search).await?;
        match entries
            .iter()
            .find(|entry| entry::has_more_members(tree, entry))
        {
            Some(part) => Err(DirectoryError::PartOfMembers(part.dn.clone())),
            None => Ok(entries),
        }
    }
}

/// Entries that can be used; of two with one id or one name, which nobody could tell apart, neither.
fn known<T: Named>(entries: &[Entry], read: impl Fn(&Entry) -> Option<T>, kind: &str) -> Vec<T> {
    let mut found = Vec::new();
    for entry in entries {
        match read(entry) {
            Some(one) => found.push(one),
            None => tracing::warn!(
                dn = entry.dn,
                kind,
                "entry of a directory without a usable id or name left out"
            ),
        }
    }
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for one in &found {
        for key in one.keys() {
            *count.entry(key).or_default() += 1;
        }
    }
    found.retain(|one| {
        let alone = one.keys().iter().all(|key| count.get(key) == Some(&1));
        if !alone {
            tracing::warn!(
                kind,
                entry = one.keys().join(", "),
                "entries of a directory with one id or name left out"
            );
        }
        alone
    });
    found
}

/// What must be there once only.
trait Named {
    fn keys(&self) -> [String; 2];
}

impl Named for DirectoryUser {
    fn keys(&self) -> [String; 2] {
        [
            format!("id {}", self.local_id),
            format!("name {}", self.name),
        ]
    }
}

impl Named for DirectoryGroup {
    fn keys(&self) -> [String; 2] {
        [
            format!("id {}", self.local_id),
            format!("name {}", self.name),
        ]
    }
}

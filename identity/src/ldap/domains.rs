//! Which domains have a directory, and how old what is known of it may be.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use secrecy::SecretString;
use thiserror::Error;
use tokio::sync::Mutex as AsyncMutex;

use super::{
    account::{EntityType, public_id},
    client::DirectoryError,
    config::{self, DirectoryConfig, Options},
    directory::Directory,
    entry::DirectoryUser,
    mirror,
    sources::{self, Said, SourceError},
};
use crate::{
    crypto::SealingKey,
    store::{Change, Store, StoreError, StoreResult, domain_config::DomainOption, users::User},
};

/// How old what is known of a user may be when its token is validated. Rights taken away in a directory end so soon.
pub const OLDEST: Duration = Duration::from_secs(5);
/// Ages kept in memory; beyond, the oldest are forgotten, which only means asking again.
const MOST_AGES: usize = 100_000;
/// Public ids have so many digits, ids of our own half as many.
const PUBLIC_ID_LEN: usize = 64;

/// Why a domain's users could not be looked up.
#[derive(Debug, Error)]
pub enum RefreshError {
    /// The directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The records.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A domain that is said to have a directory.
struct Domain {
    digest: [u8; 32],
    state: Result<Arc<Directory>, String>,
    /// Mirroring reads, compares and writes; one at a time.
    mirror: AsyncMutex<()>,
}

/// Who a directory has under a name or an id, or that there is nobody.
pub struct Looked {
    domain_id: String,
    entry: Option<DirectoryUser>,
    at: Instant,
}

impl Looked {
    /// Whether there is somebody.
    pub fn is_somebody(&self) -> bool {
        self.entry.is_some()
    }
}

/// All domains with directories.
pub struct Directories {
    folder: Option<PathBuf>,
    domains: RwLock<BTreeMap<String, Arc<Domain>>>,
    problems: Mutex<Vec<String>>,
    reloading: AsyncMutex<()>,
    /// When a user (public id) or a whole domain (its id) was last looked up.
    ages: Mutex<HashMap<String, Instant>>,
    /// Concurrent requests about one user ask the directory once.
    stripes: Vec<AsyncMutex<()>>,
    hasher: RandomState,
}

/// Whether an id is one of an entry of a directory.
pub fn is_public_id(id: &str) -> bool {
    id.len() == PUBLIC_ID_LEN && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn held<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the stored options of the API.
fn options_of_api(options: Vec<DomainOption>, key: &SealingKey) -> BTreeMap<String, Said> {
    let mut by_domain: BTreeMap<String, Vec<(String, String, serde_json::Value)>> = BTreeMap::new();
    let mut unreadable = BTreeMap::new();
    for option in options {
        let text = match &option.sealed {
            None => Ok(option.value.clone()),
            Some(sealed) => key
                .open(&option.place(), sealed)
                .map_err(|error| error.to_string())
                .and_then(|plain| {
                    String::from_utf8(plain.to_vec()).map_err(|error| error.to_string())
                }),
        };
        match text.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string())) {
            Ok(value) => by_domain
                .entry(option.domain_id.clone())
                .or_default()
                .push((option.section, option.name, value)),
            Err(why) => {
                let why = format!("[{}] {}: {why}", option.section, option.name);
                unreadable.insert(option.domain_id, Said::Unreadable(why));
            }
        }
    }
    let mut said: BTreeMap<String, Said> = by_domain
        .into_iter()
        .map(|(domain, options)| (domain, sources::of_api(options)))
        .collect();
    said.extend(unreadable);
    said
}

impl Directories {
    /// None yet; [`Directories::reload`] looks for them.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self {
            folder,
            domains: RwLock::new(BTreeMap::new()),
            problems: Mutex::new(Vec::new()),
            reloading: AsyncMutex::new(()),
            ages: Mutex::new(HashMap::new()),
            stripes: (0..64).map(|_| AsyncMutex::new(())).collect(),
            hasher: RandomState::new(),
        }
    }

    /// Takes what changed in files and options. Directories that stay as they were keep their connections.
    ///
    /// # Errors
    /// The folder cannot be read, or the records; what was known stays.
    pub async fn reload(&self, store: &Store, key: &SealingKey) -> Result<(), ReloadError> {
        let _one = self.reloading.lock().await;
        let mut said = options_of_api(store.domain_options(None).await?, key);
        let mut problems = Vec::new();
        if let Some(folder) = self.folder.clone() {
            let files = tokio::task::spawn_blocking(move || sources::files(&folder))
                .await
                .map_err(|_| ReloadError::Interrupted)??;
            for (name, file) in files {
                match store.domain_by_name(&name).await? {
                    Some(domain) => {
                        said.insert(domain.id, file);
                    }
                    None => problems.push(format!(
                        "keystone.{name}.conf: there is no domain named {name}; make it, and the file is taken"
                    )),
                }
            }
        }
        let mut domains = BTreeMap::new();
        for (id, said) in said {
            if store.domain(&id).await?.is_none() {
                continue;
            }
            let (options, readable) = match said {
                Said::Database => continue,
                Said::Directory(options) => {
                    let readable = config::read(&options).map_err(|error| error.to_string());
                    (options, readable)
                }
                Said::Unreadable(why) => (Options::new(), Err(why)),
            };
            if store.own_entries(&id).await? > 0 {
                problems.push(format!(
                    "domain {id} has users or groups of its own and keeps them; a directory needs a domain of its own"
                ));
                continue;
            }
            let domain = self.domain(&id, &options, readable);
            if let Err(why) = &domain.state {
                problems.push(format!("domain {id}: {why}"));
            }
            domains.insert(id, domain);
        }
        for id in store.mirrored_domains().await? {
            if !domains.contains_key(&id) {
                let mut change = store.change_identity().await?;
                change.forget_mirror(&id).await?;
                store.commit(change).await?;
                tracing::info!(
                    domain = id,
                    "the domain has no directory any more; its users are forgotten"
                );
            }
        }
        for problem in &problems {
            if !held(&self.problems).contains(problem) {
                tracing::error!(problem, "a domain's directory cannot be used");
            }
        }
        *held(&self.problems) = problems;
        *self.domains.write().unwrap_or_else(PoisonError::into_inner) = domains;
        Ok(())
    }

    /// The domain as it was if nothing changed, else anew.
    fn domain(
        &self,
        id: &str,
        options: &Options,
        readable: Result<DirectoryConfig, String>,
    ) -> Arc<Domain> {
        let known = self.get(id);
        let digest = match &readable {
            Ok(config) => sources::digest(options, &config.authorities),
            Err(_) => [0; 32],
        };
        if let Some(known) = &known
            && known.digest == digest
            && known.state.is_ok()
        {
            return Arc::clone(known);
        }
        let state = readable.and_then(|config| {
            for ignored in &config.ignored {
                tracing::warn!(
                    domain = id,
                    ignored,
                    "an option of a directory has no effect"
                );
            }
            Directory::new(config)
                .map(Arc::new)
                .map_err(|error| error.to_string())
        });
        if state.is_ok() {
            tracing::info!(
                domain = id,
                "the domain's users and groups are in a directory"
            );
        }
        // Nothing that another directory said counts for this one.
        held(&self.ages).clear();
        Arc::new(Domain {
            digest,
            state,
            mirror: AsyncMutex::new(()),
        })
    }

    fn get(&self, domain_id: &str) -> Option<Arc<Domain>> {
        self.domains
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(domain_id)
            .cloned()
    }

    /// Whether a domain's users are in a directory.
    pub fn has(&self, domain_id: &str) -> bool {
        self.get(domain_id).is_some()
    }

    /// The domains with directories.
    pub fn ids(&self) -> Vec<String> {
        let domains = self.domains.read().unwrap_or_else(PoisonError::into_inner);
        domains.keys().cloned().collect()
    }

    /// What cannot be used, for `/readyz`.
    pub fn problems(&self) -> Vec<String> {
        held(&self.problems).clone()
    }

    /// Whether what is known of a user is young enough; always so for users that are not of a directory.
    pub fn is_fresh(&self, user_id: &str) -> bool {
        !is_public_id(user_id) || self.is_young(user_id)
    }

    fn is_young(&self, key: &str) -> bool {
        held(&self.ages)
            .get(key)
            .is_some_and(|since| since.elapsed() < OLDEST)
    }

    fn looked_up(&self, key: &str, at: Instant) {
        let mut ages = held(&self.ages);
        if ages.len() >= MOST_AGES {
            ages.retain(|_, since| since.elapsed() < OLDEST);
            if ages.len() >= MOST_AGES {
                ages.clear();
            }
        }
        ages.insert(key.to_owned(), at);
    }

    /// Forgets ages that are too old to count.
    pub fn sweep(&self) {
        held(&self.ages).retain(|_, since| since.elapsed() < OLDEST);
    }

    fn stripe(&self, key: &str) -> &AsyncMutex<()> {
        let at =
            usize::try_from(self.hasher.hash_one(key) % self.stripes.len() as u64).unwrap_or(0);
        &self.stripes[at]
    }

    /// Looks a user up anew if what is known of it is too old. Users that are not of a directory are left alone.
    ///
    /// # Errors
    /// The directory cannot be asked.
    pub async fn refresh_user(&self, store: &Store, user_id: &str) -> Result<(), RefreshError> {
        if self.is_fresh(user_id) {
            return Ok(());
        }
        let _one = self.stripe(user_id).lock().await;
        if self.is_young(user_id) {
            return Ok(());
        }
        let Some(mapping) = store
            .mapping(user_id)
            .await?
            .filter(|one| one.entity_type == "user")
        else {
            return Ok(());
        };
        let Some(domain) = self.get(&mapping.domain_id) else {
            // Its domain has no directory any more.
            return Ok(mirror::gone(store, user_id).await?);
        };
        let directory = domain.directory()?;
        let at = Instant::now();
        let found = directory.user(&mapping.local_id).await?;
        domain
            .mirror_user(store, &mapping.domain_id, user_id, found.as_ref())
            .await?;
        self.looked_up(user_id, at);
        Ok(())
    }

    /// The user with this name, just looked up. `None` where there is none, or more than one.
    ///
    /// # Errors
    /// The directory cannot be asked.
    pub async fn user_named(
        &self,
        store: &Store,
        domain_id: &str,
        name: &str,
    ) -> Result<Option<User>, RefreshError> {
        match self.look_for_name(domain_id, name).await? {
            Some(looked) => self.take(store, looked).await,
            None => Ok(None),
        }
    }

    /// Looks for the user with this name. `None`: the domain has no directory.
    ///
    /// # Errors
    /// The directory cannot be asked.
    pub async fn look_for_name(
        &self,
        domain_id: &str,
        name: &str,
    ) -> Result<Option<Looked>, RefreshError> {
        let Some(domain) = self.get(domain_id) else {
            return Ok(None);
        };
        let at = Instant::now();
        let mut found = domain.directory()?.users_named(name).await?;
        Ok(Some(Looked {
            domain_id: domain_id.to_owned(),
            entry: found.pop().filter(|_| found.is_empty()),
            at,
        }))
    }

    /// Looks for the user with this id. `None`: it is not one of a directory. Where nobody has it, a directory is asked all the
    /// same: ids can be worked out from names.
    ///
    /// # Errors
    /// The directory cannot be asked.
    pub async fn look_for_id(
        &self,
        store: &Store,
        id: &str,
    ) -> Result<Option<Looked>, RefreshError> {
        if !is_public_id(id) {
            return Ok(None);
        }
        let mapping = store.mapping(id).await?;
        let (domain_id, local_id) = match mapping.filter(|one| one.entity_type == "user") {
            Some(mapping) => (mapping.domain_id, mapping.local_id),
            None if store.user(id).await?.is_some() => return Ok(None),
            None => match self.ids().into_iter().next() {
                Some(any) => (any, id.to_owned()),
                None => return Ok(None),
            },
        };
        let Some(domain) = self.get(&domain_id) else {
            return Ok(None);
        };
        let at = Instant::now();
        let entry = domain.directory()?.user(&local_id).await?;
        Ok(Some(Looked {
            domain_id,
            entry,
            at,
        }))
    }

    /// Writes what was found; the record. `None` where nobody was found.
    ///
    /// # Errors
    /// The directory cannot be asked.
    pub async fn take(&self, store: &Store, looked: Looked) -> Result<Option<User>, RefreshError> {
        let (Some(domain), Some(entry)) = (self.get(&looked.domain_id), looked.entry) else {
            return Ok(None);
        };
        let id = public_id(&looked.domain_id, EntityType::User, &entry.local_id);
        let row = domain
            .mirror_user(store, &looked.domain_id, &id, Some(&entry))
            .await?;
        self.looked_up(&id, looked.at);
        Ok(row)
    }

    /// Looks up all users and groups of a domain if what is known is too old.
    ///
    /// # Errors
    /// The directory cannot be asked.
    pub async fn refresh_domain(&self, store: &Store, domain_id: &str) -> Result<(), RefreshError> {
        let Some(domain) = self.get(domain_id) else {
            return Ok(());
        };
        if self.is_young(domain_id) {
            return Ok(());
        }
        let _one = self.stripe(domain_id).lock().await;
        if self.is_young(domain_id) {
            return Ok(());
        }
        let directory = domain.directory()?;
        let at = Instant::now();
        let whole = directory.whole().await?;
        let _mirror = domain.mirror.lock().await;
        mirror::whole(store, domain_id, &whole).await?;
        self.looked_up(domain_id, at);
        Ok(())
    }

    /// Whether a password is that of the user who was looked for. Of nobody it takes as much work and time.
    ///
    /// # Errors
    /// The directory cannot be asked.
    pub async fn proves(
        &self,
        looked: &Looked,
        password: &SecretString,
    ) -> Result<bool, RefreshError> {
        let Some(domain) = self.get(&looked.domain_id) else {
            return Ok(false);
        };
        let directory = domain.directory()?;
        match &looked.entry {
            Some(user) => Ok(directory.proves(user, password).await?),
            None => {
                directory.proves_nobody(password).await?;
                Ok(false)
            }
        }
    }
}

impl Domain {
    fn directory(&self) -> Result<Arc<Directory>, DirectoryError> {
        self.state.clone().map_err(DirectoryError::Config)
    }

    /// Writes what was found of one user; its record.
    async fn mirror_user(
        &self,
        store: &Store,
        domain_id: &str,
        id: &str,
        found: Option<&DirectoryUser>,
    ) -> Result<Option<User>, RefreshError> {
        let Some(user) = found else {
            let _mirror = self.mirror.lock().await;
            mirror::gone(store, id).await?;
            return Ok(None);
        };
        let groups = self.directory()?.groups_of(user).await?;
        if self.name_is_taken(store, domain_id, id, user).await? {
            tracing::warn!(
                id,
                name = user.name,
                "two entries of a directory have this name; the later one is left out"
            );
            let _mirror = self.mirror.lock().await;
            mirror::gone(store, id).await?;
            return Ok(None);
        }
        let _mirror = self.mirror.lock().await;
        Ok(mirror::user(store, domain_id, user, &groups).await?)
    }

    /// Whether somebody else in the directory has this user's name now, as our records say.
    async fn name_is_taken(
        &self,
        store: &Store,
        domain_id: &str,
        id: &str,
        user: &DirectoryUser,
    ) -> Result<bool, RefreshError> {
        let Some(other) = store
            .user_by_name(domain_id, &user.name)
            .await?
            .filter(|other| other.id != id)
        else {
            return Ok(false);
        };
        let Some(mapping) = store.mapping(&other.id).await? else {
            return Ok(true);
        };
        let found = self.directory()?.user(&mapping.local_id).await?;
        Ok(found.is_some_and(|found| found.name == user.name))
    }
}

/// Why files and options could not be taken.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// The folder.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The service is ending.
    #[error("reading the folder of domain configurations was interrupted")]
    Interrupted,
}

impl ReloadError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Source(_) => "DomainConfigUnreadable",
            Self::Store(error) => error.reason(),
            Self::Interrupted => "Interrupted",
        }
    }
}

/// Whether options that the API is to store can be used for a domain.
///
/// # Errors
/// Inside: why not, as a sentence.
pub async fn check(
    change: &mut Change,
    domain_id: &str,
    options: Vec<(String, String, serde_json::Value)>,
) -> StoreResult<Result<(), String>> {
    let options = match sources::of_api(options) {
        Said::Database => return Ok(Ok(())),
        Said::Unreadable(why) => return Ok(Err(why)),
        Said::Directory(options) => options,
    };
    if let Err(error) = config::read(&options) {
        return Ok(Err(error.to_string()));
    }
    if change.own_entries(domain_id).await? > 0 {
        return Ok(Err(
            "the domain has users or groups of its own; a directory needs a domain without".into(),
        ));
    }
    Ok(Ok(()))
}

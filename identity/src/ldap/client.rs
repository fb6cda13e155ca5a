//! Talking to a directory: connections that are kept, searches in pages, and the bind that proves a password.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ldap3::{
    DerefAliases, Ldap, LdapConnAsync, LdapConnSettings, LdapError, Scope, SearchEntry,
    SearchOptions,
    adapters::{Adapter, EntriesOnly, PagedResults},
};
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    config::{Aliases, DirectoryConfig},
    entry::Entry,
    tls::Start,
    trust::{self, TrustError},
};

/// Entries of one search that are taken; a tree with more needs a filter.
const MOST_ENTRIES: usize = 200_000;
/// How long a whole search may take, all its pages together.
const WHOLE_SEARCH: Duration = Duration::from_secs(120);
/// After a failure of all tries nothing is tried for as long as they took, within these bounds, so that requests do not queue
/// up behind a dead server.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

// Result codes of LDAP (RFC 4511, 4.1.9).
const SUCCESS: u32 = 0;
const SIZE_LIMIT: u32 = 4;
const NO_SUCH_OBJECT: u32 = 32;
const BUSY: u32 = 51;
const UNAVAILABLE: u32 = 52;

/// Why a directory could not be asked. None of the texts holds a password.
#[derive(Debug, Clone, Error)]
pub enum DirectoryError {
    /// No server answers, or none with a certificate that is right.
    #[error("no server of the directory can be used: {0}")]
    Away(String),
    /// All failed a moment ago.
    #[error("the directory was away a moment ago; it is tried again soon")]
    Resting,
    /// All connections are in use.
    #[error("all connections to the directory are in use; raise [ldap] pool_size or try again")]
    Busy,
    /// The account that asks was refused.
    #[error("the directory refused [ldap] user with its password (result {0})")]
    Account(u32),
    /// A search was refused.
    #[error("the directory refused a search below {base} (result {code}: {text}){hint}")]
    Search {
        /// Where.
        base: String,
        /// The result code.
        code: u32,
        /// What the server said.
        text: String,
        /// What to do.
        hint: &'static str,
    },
    /// Too many entries.
    #[error(
        "the directory has more than {MOST_ENTRIES} entries below {0}; narrow [ldap] user_filter or group_filter"
    )]
    TooMany(String),
    /// Only a part of a group's members was given.
    #[error(
        "the directory gives only a part of the members of {0}; set [ldap] group_filter to leave the group out"
    )]
    PartOfMembers(String),
    /// The domain's description of its directory cannot be used.
    #[error("the domain's directory cannot be used as configured: {0}")]
    Config(String),
}

impl DirectoryError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Away(_) | Self::Resting => "DirectoryAway",
            Self::Busy => "DirectoryBusy",
            Self::Account(_) => "DirectoryAccountRefused",
            Self::Search { .. } | Self::TooMany(_) | Self::PartOfMembers(_) => {
                "DirectorySearchFailed"
            }
            Self::Config(_) => "DirectoryMisconfigured",
        }
    }
}

/// What to look for.
#[derive(Debug, Clone)]
pub struct Search<'a> {
    /// Where.
    pub base: &'a str,
    /// The entry itself, or the site's scope.
    pub itself: bool,
    /// Filter.
    pub filter: &'a str,
    /// Attributes to give back.
    pub attributes: Vec<String>,
}

struct Idle {
    ldap: Ldap,
    since: Instant,
}

/// A directory's servers.
pub struct Client {
    config: Arc<DirectoryConfig>,
    tls: Arc<ClientConfig>,
    permits: Semaphore,
    idle: Mutex<Vec<Idle>>,
    rest_until: Mutex<Option<Instant>>,
}

impl Client {
    /// Reads the certificates of the authorities; connects to nothing yet.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn new(config: Arc<DirectoryConfig>) -> Result<Self, TrustError> {
        let tls = trust::client_config(config.verify, &config.authorities)?;
        Ok(Self {
            permits: Semaphore::new(config.pool.size),
            config,
            tls,
            idle: Mutex::new(Vec::new()),
            rest_until: Mutex::new(None),
        })
    }

    /// Finds entries.
    ///
    /// # Errors
    /// Any [`DirectoryError`] but `Config`; an entry given as base that is not there is no error.
    pub async fn search(&self, search: &Search<'_>) -> Result<Vec<Entry>, DirectoryError> {
        let _permit = self.admit().await?;
        let began = Instant::now();
        let mut failure = DirectoryError::Resting;
        for attempt in 0..=self.config.pool.tries {
            // The first try may use a connection that has died since; it does not count.
            let kept = if attempt == 0 { self.take() } else { None };
            let (mut ldap, since) = match kept {
                Some(idle) => (idle.ldap, idle.since),
                None if attempt == 0 => continue,
                None => {
                    if attempt > 1 {
                        tokio::time::sleep(self.config.pool.delay).await;
                    }
                    match self.bound().await {
                        Ok(ldap) => (ldap, Instant::now()),
                        Err(error @ DirectoryError::Away(_)) => {
                            failure = error;
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            let asked = tokio::time::timeout(WHOLE_SEARCH, self.ask(&mut ldap, search)).await;
            match asked {
                Ok(Ok(entries)) => {
                    self.keep(ldap, since);
                    return Ok(entries);
                }
                Ok(Err(Asked::Refused(error))) => {
                    self.keep(ldap, since);
                    return Err(error);
                }
                Ok(Err(Asked::Broken(error))) => {
                    failure = DirectoryError::Away(error.to_string());
                }
                Err(_) => {
                    failure = DirectoryError::Away(format!("no whole answer in {WHOLE_SEARCH:?}"));
                }
            }
        }
        self.rest(began);
        Err(failure)
    }

    /// Whether `password` is that of the entry `dn`. An empty one never is: a bind with it would be an anonymous one,
    /// which succeeds.
    ///
    /// # Errors
    /// `Away`, `Resting`, `Busy`.
    pub async fn proves(&self, dn: &str, password: &SecretString) -> Result<bool, DirectoryError> {
        if password.expose_secret().is_empty() || dn.trim().is_empty() {
            return Ok(false);
        }
        let _permit = self.admit().await?;
        let began = Instant::now();
        let mut failure = DirectoryError::Resting;
        for attempt in 1..=self.config.pool.tries {
            if attempt > 1 {
                tokio::time::sleep(self.config.pool.delay).await;
            }
            let mut ldap = match self.connect().await {
                Ok(ldap) => ldap,
                Err(error) => {
                    failure = error;
                    continue;
                }
            };
            let bound = ldap
                .with_timeout(self.config.pool.timeout)
                .simple_bind(dn, password.expose_secret())
                .await;
            let _ = ldap.unbind().await;
            match bound {
                Ok(result) if result.rc == SUCCESS => return Ok(true),
                Ok(result) if matches!(result.rc, BUSY | UNAVAILABLE) => {
                    failure = DirectoryError::Away(format!("result {}", result.rc));
                }
                Ok(_) => return Ok(false),
                Err(error) => failure = DirectoryError::Away(error.to_string()),
            }
        }
        self.rest(began);
        Err(failure)
    }

    async fn admit(&self) -> Result<SemaphorePermit<'_>, DirectoryError> {
        let resting = *self
            .rest_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if resting.is_some_and(|until| Instant::now() < until) {
            return Err(DirectoryError::Resting);
        }
        tokio::time::timeout(self.config.pool.timeout, self.permits.acquire())
            .await
            .map_err(|_| DirectoryError::Busy)?
            .map_err(|_| DirectoryError::Busy)
    }

    fn rest(&self, began: Instant) {
        let until = Instant::now() + began.elapsed().clamp(REST.0, REST.1);
        *self
            .rest_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(until);
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn take(&self) -> Option<Idle> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain_mut(|one| {
            one.since.elapsed() < self.config.pool.lifetime && !one.ldap.is_closed()
        });
        idle.pop()
    }

    fn keep(&self, ldap: Ldap, since: Instant) {
        if self.config.pool.keep {
            self.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Idle { ldap, since });
        }
    }

    /// A connection to the first server that answers.
    async fn connect(&self) -> Result<Ldap, DirectoryError> {
        let mut failures = Vec::new();
        for server in &self.config.servers {
            let settings = LdapConnSettings::new()
                .set_conn_timeout(self.config.pool.timeout)
                .set_starttls(server.start == Start::StartTls)
                .set_config(Arc::clone(&self.tls));
            match LdapConnAsync::with_settings(settings, &server.url).await {
                Ok((connection, ldap)) => {
                    let url = server.url.clone();
                    tokio::spawn(async move {
                        if let Err(error) = connection.drive().await {
                            tracing::debug!(%error, url, "connection to a directory ended");
                        }
                    });
                    return Ok(ldap);
                }
                Err(error) => failures.push(format!("{}: {error}", server.url)),
            }
        }
        let failures = failures.join("; ");
        tracing::warn!(failures, "no server of a directory can be used");
        Err(DirectoryError::Away(failures))
    }

    /// A connection that may search.
    async fn bound(&self) -> Result<Ldap, DirectoryError> {
        let mut ldap = self.connect().await?;
        if let Some((user, password)) = &self.config.bind {
            let result = ldap
                .with_timeout(self.config.pool.timeout)
                .simple_bind(user, password.expose_secret())
                .await
                .map_err(|error| DirectoryError::Away(error.to_string()))?;
            if matches!(result.rc, BUSY | UNAVAILABLE) {
                return Err(DirectoryError::Away(format!("result {}", result.rc)));
            }
            if result.rc != SUCCESS {
                return Err(DirectoryError::Account(result.rc));
            }
        }
        Ok(ldap)
    }

    async fn ask(&self, ldap: &mut Ldap, search: &Search<'_>) -> Result<Vec<Entry>, Asked> {
        let scope = match (search.itself, self.config.subtree) {
            (true, _) => Scope::Base,
            (false, false) => Scope::OneLevel,
            (false, true) => Scope::Subtree,
        };
        let aliases = match self.config.aliases {
            Aliases::Never => DerefAliases::Never,
            Aliases::Searching => DerefAliases::Searching,
            Aliases::Finding => DerefAliases::Finding,
            Aliases::Always => DerefAliases::Always,
        };
        let mut adapters: Vec<Box<dyn Adapter<'_, String, Vec<String>>>> =
            vec![Box::new(EntriesOnly::new())];
        if self.config.page_size > 0 && !search.itself {
            adapters.push(Box::new(PagedResults::new(self.config.page_size)));
        }
        let mut stream = ldap
            .with_timeout(self.config.pool.timeout)
            .with_search_options(SearchOptions::new().deref(aliases))
            .streaming_search_with(
                adapters,
                search.base,
                scope,
                search.filter,
                search.attributes.clone(),
            )
            .await
            .map_err(Asked::Broken)?;
        let mut entries = Vec::new();
        while let Some(found) = stream.next().await.map_err(Asked::Broken)? {
            if entries.len() >= MOST_ENTRIES {
                return Err(Asked::Refused(DirectoryError::TooMany(
                    search.base.to_owned(),
                )));
            }
            // The library panics at an entry that is not as the protocol has it.
            let built = catch_unwind(AssertUnwindSafe(|| SearchEntry::construct(found)));
            entries.push(entry(
                built.map_err(|_| Asked::Broken(LdapError::EndOfStream))?,
            ));
        }
        let result = stream.finish().await;
        match result.rc {
            SUCCESS => Ok(entries),
            NO_SUCH_OBJECT if search.itself => Ok(Vec::new()),
            BUSY | UNAVAILABLE => Err(Asked::Broken(LdapError::LdapResult { result })),
            code => Err(Asked::Refused(DirectoryError::Search {
                base: search.base.to_owned(),
                code,
                text: result.text.chars().take(200).collect(),
                hint: match code {
                    SIZE_LIMIT => "; set [ldap] page_size, such as 500",
                    NO_SUCH_OBJECT => "; it has no such entry, see user_tree_dn and group_tree_dn",
                    _ => "",
                },
            })),
        }
    }
}

/// How a search failed.
enum Asked {
    /// The connection, so that another may do better.
    Broken(LdapError),
    /// The server answered.
    Refused(DirectoryError),
}

fn entry(found: SearchEntry) -> Entry {
    let mut attributes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, values) in found.attrs {
        attributes
            .entry(name.to_ascii_lowercase())
            .or_default()
            .extend(values);
    }
    // What is partly no text is nothing that names or ids can be made of.
    for name in found.bin_attrs.keys() {
        attributes.remove(&name.to_ascii_lowercase());
    }
    Entry {
        dn: found.dn,
        attributes,
    }
}

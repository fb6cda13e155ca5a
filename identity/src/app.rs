//! What every request needs: records, keys, policies. Opened once.

use std::{
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use thiserror::Error;

use crate::{
    accounts::{Failures, LoginLimit, PasswordRules},
    crypto::{
        Kek, KekError, PasswordHasher, SealError, SealingKey, password::PasswordError,
        seal::KEY_LEN,
    },
    directory::ReadModel,
    generation::PerGeneration,
    identity::LimitModel,
    ids::random_bytes,
    keymanager::ProjectKeys,
    ldap::{Directories, RefreshError, ReloadError},
    metrics::Metrics,
    policy::{Api, PolicySources, SiteError, SitePolicy},
    store::{Change, Place, Store, StoreError},
    time::now_us,
    token::{
        AuthContext, FormatError, TokenCache, TokenError, TokenKeys, TokenPayload, resolve,
        trust::MAX_REDELEGATION,
    },
    token_keys::{self, TokenKeyError},
};

/// Sealed by the key-encryption key at first start, to tell a wrong key from damaged records.
pub(crate) const KEK_CHECK: &str = "kek-check";
/// Name of the record with the key of users' credentials, sealed by the key-encryption key.
pub(crate) const CREDENTIAL_KEY: &str = "credential-key";
const MICROSECONDS: i64 = 1_000_000;

/// How long an expired token may still be shown to a service that asks for it (seconds, as in Keystone).
pub const EXPIRED_WINDOW_SECS: i64 = 172_800;

/// How the service is set up.
#[derive(Debug, Clone)]
pub struct AppConfig {
    /// Where the records are.
    pub place: Place,
    /// Lifetime of a token, in seconds.
    pub token_lifetime_secs: u32,
    /// bcrypt's logarithmic cost.
    pub password_rounds: u32,
    /// Password hashes computed at once.
    pub password_parallel: usize,
    /// Whether clients reach us over TLS; decides the scheme of the links in answers.
    pub tls: bool,
    /// A site's own policy files.
    pub policy: PolicySources,
    /// Folder with a site's `keystone.DOMAIN.conf` files.
    pub domain_config_dir: Option<PathBuf>,
    /// A site's rules for passwords.
    pub passwords: PasswordRules,
    /// Login attempts a second that one account may get; 0: any number.
    pub login_rate: u32,
    /// How limits of projects and domains go together.
    pub limit_model: LimitModel,
}

/// Why the service could not start.
#[derive(Debug, Error)]
pub enum AppError {
    /// The key-encryption key.
    #[error(transparent)]
    Kek(#[from] KekError),
    /// The records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key that does not open, or could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The key-encryption key is not the one that sealed these records.
    #[error(
        "the key-encryption key does not belong to {0}; give --kek-file the key that these records were made with"
    )]
    WrongKek(Place),
    /// Password hashing is set up wrongly.
    #[error("{0}; --password-rounds must be from 4 to 31")]
    Password(#[from] PasswordError),
    /// The keys that seal tokens.
    #[error(transparent)]
    TokenKeys(#[from] Box<TokenKeyError>),
    /// The policy files cannot be used.
    #[error(transparent)]
    Policy(#[from] SiteError),
    /// Projects below projects, which the model of limits does not know.
    #[error(
        "--limit-model strict-two-level knows domains and their projects, but there are projects below projects: {}; \
         delete those, or use --limit-model flat",
        .0.join(", ")
    )]
    TooDeep(Vec<String>),
}

impl AppError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Kek(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::Seal(error) => error.reason(),
            Self::WrongKek(_) => "WrongKek",
            Self::Password(error) => error.reason(),
            Self::TokenKeys(error) => error.reason(),
            Self::Policy(error) => error.reason(),
            Self::TooDeep(_) => "ProjectsTooDeep",
        }
    }
}

/// The open service.
pub struct App {
    /// Records.
    pub store: Store,
    /// Key-encryption key.
    pub kek: Kek,
    /// Projects' keys that were opened lately.
    pub(crate) project_keys: ProjectKeys,
    /// Password hashes.
    pub hasher: PasswordHasher,
    /// Failed logins in a row.
    pub failures: Failures,
    /// How often one account may be tried.
    pub login_limit: LoginLimit,
    /// Rules of the identity API.
    pub identity_policy: SitePolicy,
    /// Rules of the key manager.
    pub key_policy: SitePolicy,
    /// Domains whose users are in directories.
    pub directories: Directories,
    /// Counters.
    pub metrics: Metrics,
    /// Settings.
    pub config: AppConfig,
    token_keys: RwLock<Arc<TokenKeys>>,
    /// The generation for which they were read.
    token_keys_of: AtomicU64,
    /// The name of this process among the replicas.
    replica: String,
    credential_key: SealingKey,
    token_cache: TokenCache,
    read_model: PerGeneration<ReadModel>,
    /// Where tests stop logins.
    #[cfg(test)]
    pub(crate) login_pause: crate::testing::LoginPause,
    /// Where tests stop changes of passwords.
    #[cfg(test)]
    pub(crate) password_pause: crate::testing::LoginPause,
}

impl App {
    /// Opens the data directory with its key.
    ///
    /// # Errors
    /// Any [`AppError`].
    pub async fn open(config: AppConfig, kek: Kek) -> Result<Arc<Self>, AppError> {
        let identity_policy = SitePolicy::open(Api::Identity, config.policy.clone())?;
        let key_policy = SitePolicy::open(Api::KeyManager, config.policy.clone())?;
        let store = Store::open_at(&config.place).await?;
        if let Place::Directory(data_dir) = &config.place {
            crate::backup::sweep(data_dir);
        }
        check_kek(&store, &kek, &config.place).await?;
        if config.limit_model == LimitModel::StrictTwoLevel {
            let deep = store.projects_below_projects().await?;
            if !deep.is_empty() {
                return Err(AppError::TooDeep(deep));
            }
        }
        crate::keymanager::upgrade(&store, &kek).await?;
        let token_keys = token_keys::load(&store, &kek).await.map_err(Box::new)?;
        let credential_key = load_credential_key(&store, &kek).await?;
        let directories = Directories::new(config.domain_config_dir.clone());
        let (rounds, parallel) = (config.password_rounds, config.password_parallel);
        let hasher = tokio::task::spawn_blocking(move || PasswordHasher::new(rounds, parallel))
            .await
            .map_err(|_| SealError::Seal)??;
        Ok(Arc::new(Self {
            store,
            kek,
            project_keys: ProjectKeys::default(),
            hasher,
            failures: Failures::default(),
            login_limit: LoginLimit::new(config.login_rate),
            identity_policy,
            key_policy,
            directories,
            metrics: Metrics::new(),
            config,
            token_keys: RwLock::new(Arc::new(token_keys)),
            token_keys_of: AtomicU64::new(0),
            replica: replica_name(),
            credential_key,
            token_cache: TokenCache::default(),
            read_model: PerGeneration::default(),
            #[cfg(test)]
            login_pause: Default::default(),
            #[cfg(test)]
            password_pause: Default::default(),
        }))
    }

    /// Lifetime of a token, in microseconds.
    pub fn token_lifetime(&self) -> i64 {
        i64::from(self.config.token_lifetime_secs) * MICROSECONDS
    }

    /// The keys that seal tokens.
    pub fn token_keys(&self) -> Arc<TokenKeys> {
        let keys = self
            .token_keys
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&keys)
    }

    /// Reads the keys that seal tokens again, and forgets what was worked out with keys that are gone.
    ///
    /// # Errors
    /// From the store, or a key that does not open.
    async fn read_token_keys(&self) -> Result<(), TokenKeyError> {
        let keys = token_keys::load(&self.store, &self.kek).await?;
        let mut known = self
            .token_keys
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if !known.numbers().eq(keys.numbers()) {
            *known = Arc::new(keys);
            self.token_cache.clear();
        }
        Ok(())
    }

    /// Opens a token. One that names a key of which this process does not know yet makes it look.
    async fn open_token(&self, token: &str) -> Result<TokenPayload, TokenError> {
        // Another replica may have forgotten keys, which ends what they sealed.
        let generation = self.store.generation();
        if self.store.is_shared() && self.token_keys_of.load(Ordering::Acquire) != generation {
            match self.read_token_keys().await {
                Ok(()) => self.token_keys_of.store(generation, Ordering::Release),
                Err(TokenKeyError::Store(error)) => return Err(error.into()),
                Err(error) => tracing::error!(%error, "token keys not read again"),
            }
        }
        match self.token_keys().open(token) {
            Err(FormatError::UnknownKey) => {}
            done => return Ok(done?),
        }
        match self.read_token_keys().await {
            Ok(()) => {}
            Err(TokenKeyError::Store(error)) => return Err(error.into()),
            Err(error) => tracing::error!(%error, "token keys not read again"),
        }
        Ok(self.token_keys().open(token)?)
    }

    /// The key that seals the blobs of users' credentials.
    pub fn credential_key(&self) -> &SealingKey {
        &self.credential_key
    }

    /// What a token means now, from the cache if nothing changed.
    ///
    /// # Errors
    /// Any [`TokenError`] but `AccessRules`.
    pub async fn validate(
        &self,
        token: &str,
        allow_expired: bool,
    ) -> Result<Arc<AuthContext>, TokenError> {
        self.store.refresh().await?;
        let generation = self.store.generation();
        let expired = |context: &AuthContext| {
            let grace = if allow_expired {
                EXPIRED_WINDOW_SECS * MICROSECONDS
            } else {
                0
            };
            context.payload.expires_at + grace <= now_us()
        };
        let cached = self.token_cache.get(token, generation);
        // What is known of a directory's user may be too old even if no record changed.
        if let Some(context) =
            cached.filter(|context| self.directories.is_fresh(&context.payload.user_id))
        {
            return if expired(&context) {
                Err(TokenError::Expired)
            } else {
                Ok(context)
            };
        }
        let payload = self.open_token(token).await?;
        self.look_up(&payload).await?;
        let generation = self.store.generation();
        let context = Arc::new(resolve(&self.store, &payload).await?);
        if expired(&context) {
            return Err(TokenError::Expired);
        }
        self.token_cache
            .put(token, generation, Arc::clone(&context));
        Ok(context)
    }

    /// Looks up the users of directories that a token depends on, if what is known of them is too old to decide by: its own,
    /// and those of the trusts it was made with.
    ///
    /// # Errors
    /// `Directory`, `Store`.
    pub async fn look_up(&self, payload: &TokenPayload) -> Result<(), TokenError> {
        self.look_up_user(&payload.user_id).await?;
        let mut next = payload.trust_id.clone();
        for _ in 0..=MAX_REDELEGATION {
            let Some(id) = next.take() else { break };
            let Some(trust) = self.store.trust(&id).await? else {
                break;
            };
            self.look_up_user(&trust.trustor_id).await?;
            self.look_up_user(&trust.trustee_id).await?;
            next = trust.redelegated_trust_id;
        }
        Ok(())
    }

    async fn look_up_user(&self, user_id: &str) -> Result<(), TokenError> {
        let looked = self.directories.refresh_user(&self.store, user_id).await;
        looked.map_err(|error| match error {
            RefreshError::Directory(error) => TokenError::Directory(error),
            RefreshError::Store(error) => TokenError::Store(error),
        })
    }

    /// Takes what changed of the domains' directories. First done by who serves: a command such as `bootstrap` knows nothing of
    /// the site's files, and must not take their absence for the end of a directory.
    ///
    /// # Errors
    /// What was known stays.
    pub async fn reload_directories(&self) -> Result<(), ReloadError> {
        self.directories
            .reload(&self.store, &self.credential_key)
            .await
    }

    /// Who has which role where, at present.
    ///
    /// # Errors
    /// From the store.
    pub(crate) async fn read_model(&self) -> Result<Arc<ReadModel>, StoreError> {
        self.store.refresh().await?;
        let begin = async || Ok(ReadModel::default());
        self.read_model.get(|| self.store.generation(), begin).await
    }

    /// Tells the other replicas, if there are any, that this one is there and which key-encryption keys it has.
    async fn announce(&self, change: &mut Change) -> Result<(), StoreError> {
        if !self.store.is_shared() {
            return Ok(());
        }
        let keys = self.kek.fingerprints().unwrap_or_else(|error| {
            tracing::error!(%error, reason = error.reason(), "key-encryption keys not read again");
            Vec::new()
        });
        change
            .announce_replica(&self.replica, &keys, self.store.knows())
            .await
    }

    /// Says that this process ends.
    ///
    /// # Errors
    /// From the store.
    pub async fn leave(&self) -> Result<(), StoreError> {
        if !self.store.is_shared() {
            return Ok(());
        }
        let mut change = self.store.change_keys().await?;
        change.forget_replica(&self.replica).await?;
        self.store.commit(change).await
    }

    /// Housekeeping: forgets expired revocations, secrets and cached tokens, empties the write-ahead log.
    ///
    /// # Errors
    /// From the store.
    pub async fn housekeeping(&self) -> Result<(), StoreError> {
        self.token_cache.sweep();
        self.directories.sweep();
        self.read_model.sweep();
        self.store.refresh().await?;
        let mut change = self.store.change_keys().await?;
        let now = now_us();
        let lockout = i64::from(self.config.passwords.lockout_secs) * MICROSECONDS;
        self.failures.sweep(now.saturating_sub(lockout));
        self.announce(&mut change).await?;
        change.prune_lock_outs(now).await?;
        change.prune_failures(now.saturating_sub(lockout)).await?;
        change
            .prune_revoked(now - EXPIRED_WINDOW_SECS * MICROSECONDS)
            .await?;
        if change.delete_expired_secrets(now).await? > 0 {
            self.store.mark_log_dirty();
        }
        self.store.commit(change).await?;
        crate::identity::prune_oauth(self).await?;
        let shown = self.token_lifetime() + EXPIRED_WINDOW_SECS * MICROSECONDS;
        token_keys::forget_over(&self.store, shown).await?;
        match self.read_token_keys().await {
            Ok(()) => {}
            Err(TokenKeyError::Store(error)) => return Err(error),
            Err(error) => tracing::error!(%error, "token keys not read again"),
        }
        self.store.truncate_log().await
    }
}

/// The name of the machine or pod, and something of this process alone.
fn replica_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), hex::encode(random_bytes::<4>()))
}

pub(crate) async fn check_kek(store: &Store, kek: &Kek, place: &Place) -> Result<(), AppError> {
    if store.meta(KEK_CHECK).await?.is_none() {
        let sealed = kek.seal_newest(&[KEK_CHECK], KEK_CHECK.as_bytes())?;
        let mut change = store.change_keys().await?;
        match change.insert_meta(KEK_CHECK, &sealed).await {
            Ok(()) => store.commit(change).await?,
            // Another process was first; its key is checked below.
            Err(StoreError::Duplicate) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let sealed = store.meta(KEK_CHECK).await?.unwrap_or_default();
    kek.open(&[KEK_CHECK], &sealed)
        .map(|_| ())
        .map_err(|_| AppError::WrongKek(place.clone()))
}

/// A key of its own, so that a rotation of the key-encryption key seals one record anew and not every credential.
async fn load_credential_key(store: &Store, kek: &Kek) -> Result<SealingKey, AppError> {
    if store.meta(CREDENTIAL_KEY).await?.is_none() {
        let key = zeroize::Zeroizing::new(random_bytes::<KEY_LEN>());
        let mut change = store.change_keys().await?;
        // Looked at inside of the change: a rotation of the key-encryption key cannot begin in between.
        let check = change.meta(KEK_CHECK).await?.unwrap_or_default();
        let sealed = kek.seal_like((&[KEK_CHECK], &check), &[CREDENTIAL_KEY], key.as_slice())?;
        match change.insert_meta(CREDENTIAL_KEY, &sealed).await {
            Ok(()) => store.commit(change).await?,
            Err(StoreError::Duplicate) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let sealed = store.meta(CREDENTIAL_KEY).await?.unwrap_or_default();
    Ok(SealingKey::from_slice(
        &kek.open(&[CREDENTIAL_KEY], &sealed)?,
    )?)
}

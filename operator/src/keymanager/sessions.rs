//! Logins, one per set of credentials, shared by all volumes of a tenant.
//!
//! A login is made once however many volumes wait for it, renewed before it ends, and made anew once when the service
//! does not accept its token any more.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as SyncMutex, PoisonError},
};

use cryptvol_crds::{KeyService, v1alpha1::KeyServiceSpec};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;

use super::{
    KeyError,
    barbican::Barbican,
    clouds::Credentials,
    http::Http,
    identity::{self, Session},
};

/// A token is renewed when less than this is left, as keystoneauth does.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_secs(120);
/// Most logins and clients that are kept.
const MAX_KEPT: usize = 4096;

/// One tenant's login at one KeyService.
pub struct Login {
    service: KeyServiceSpec,
    credentials: Credentials,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<Arc<Session>>,
    /// Outlives the session: says why a later login is refused.
    credential_expires: Option<Timestamp>,
}

impl Login {
    /// A login that is not made yet.
    pub fn new(service: KeyServiceSpec, credentials: Credentials) -> Self {
        Self {
            service,
            credentials,
            state: Mutex::default(),
        }
    }

    /// The region of the catalog that is used.
    pub fn region(&self) -> Option<&str> {
        let region = self.service.region.as_deref();
        region.or(self.credentials.region.as_deref())
    }

    /// The session, made or renewed if need be. Those who come meanwhile wait for the one login.
    ///
    /// # Errors
    /// As [`identity::login`].
    pub async fn session(&self, http: &Http) -> Result<Arc<Session>, KeyError> {
        let mut state = self.state.lock().await;
        if let Some(session) = &state.session
            && session.expires > Timestamp::now() + RENEW_BEFORE
        {
            return Ok(session.clone());
        }
        self.log_in(http, &mut state).await
    }

    /// Another session than the one that was refused. Of many that were refused at once only the first logs in.
    ///
    /// # Errors
    /// As [`identity::login`].
    pub async fn renew(
        &self,
        http: &Http,
        refused: &Arc<Session>,
    ) -> Result<Arc<Session>, KeyError> {
        let mut state = self.state.lock().await;
        if let Some(session) = &state.session
            && !Arc::ptr_eq(session, refused)
        {
            return Ok(session.clone());
        }
        self.log_in(http, &mut state).await
    }

    async fn log_in(&self, http: &Http, state: &mut State) -> Result<Arc<Session>, KeyError> {
        state.session = None;
        match identity::login(http, &self.service, &self.credentials).await {
            Ok(session) => {
                state.credential_expires = session.credential_expires;
                let session = Arc::new(session);
                state.session = Some(session.clone());
                Ok(session)
            }
            Err(KeyError::Rejected(_))
                if state
                    .credential_expires
                    .is_some_and(|at| at <= Timestamp::now()) =>
            {
                let at = state.credential_expires.unwrap_or_default();
                Err(KeyError::Expired(format!(
                    "the application credential expired at {at}"
                )))
            }
            Err(e) => Err(e),
        }
    }
}

type Client = (i64, [u8; 32], Http);
type LoginKey = (String, i64, [u8; 32]);

/// All logins and HTTP clients of this process.
#[derive(Default)]
pub struct Sessions {
    default_ca: Option<std::path::PathBuf>,
    /// By KeyService: its generation and the digest of the default authority that the client was made with.
    clients: SyncMutex<HashMap<String, Client>>,
    logins: SyncMutex<HashMap<LoginKey, Arc<Login>>>,
}

impl Sessions {
    /// `default_ca` is a PEM file for KeyServices without a bundle of their own, read again whenever it changes.
    pub fn new(default_ca: Option<std::path::PathBuf>) -> Self {
        Self {
            default_ca,
            ..Self::default()
        }
    }

    /// The HTTP client of a KeyService.
    ///
    /// # Errors
    /// [`KeyError::Configuration`].
    pub fn http(&self, service: &KeyService) -> Result<Http, KeyError> {
        use sha2::{Digest, Sha256};

        let name = service.metadata.name.clone().unwrap_or_default();
        let generation = service.metadata.generation.unwrap_or_default();
        let ca = match (&self.default_ca, &service.spec.ca_bundle) {
            (Some(path), None) => Some(std::fs::read(path).map_err(|e| {
                KeyError::Configuration(format!("the operator's --ca-file cannot be read: {e}"))
            })?),
            _ => None,
        };
        let digest: [u8; 32] = Sha256::digest(ca.as_deref().unwrap_or_default()).into();
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((g, d, http)) = clients.get(&name)
            && *g == generation
            && *d == digest
        {
            return Ok(http.clone());
        }
        let http = Http::new(service, ca.as_deref())?;
        if clients.len() >= MAX_KEPT {
            clients.clear();
        }
        clients.insert(name, (generation, digest, http.clone()));
        Ok(http)
    }

    /// Where a KeyService's key manager is: as its spec says, or as some tenant's catalog said.
    pub fn key_manager_url(&self, service: &KeyService) -> Option<url::Url> {
        if let Some(url) = &service.spec.key_manager_url {
            return identity::base(url).ok();
        }
        let name = service.metadata.name.as_deref()?;
        let generation = service.metadata.generation.unwrap_or_default();
        let logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        logins
            .iter()
            .filter(|((n, g, _), _)| n == name && *g == generation)
            .find_map(|(_, login)| {
                // One that is just being made tells next time.
                let state = login.state.try_lock().ok()?;
                Some(state.session.as_ref()?.key_manager.clone())
            })
    }

    /// A tenant's view of a KeyService's key manager. Nothing is sent yet.
    ///
    /// # Errors
    /// [`KeyError::Configuration`].
    pub fn key_manager(
        &self,
        service: &KeyService,
        credentials: Credentials,
    ) -> Result<Barbican, KeyError> {
        let http = self.http(service)?;
        let key = (
            service.metadata.name.clone().unwrap_or_default(),
            service.metadata.generation.unwrap_or_default(),
            credentials.digest(),
        );
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        if logins.len() >= MAX_KEPT {
            // Those in use have another owner; the rest is made anew when wanted.
            logins.retain(|_, login| Arc::strong_count(login) > 1);
        }
        let login = logins
            .entry(key)
            .or_insert_with(|| Arc::new(Login::new(service.spec.clone(), credentials)))
            .clone();
        Ok(Barbican::new(http, login))
    }
}

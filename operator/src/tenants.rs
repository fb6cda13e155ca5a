//! From a volume to its tenant's view of the key manager: the Secret is read when it is needed and never kept.

use cryptvol_crds::{
    KeyService, conditions::Reason, names, v1alpha1::Credentials as CredentialsRef,
};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};
use zeroize::Zeroize;

use crate::{
    keymanager::{barbican::Barbican, clouds::Credentials, sessions::Sessions},
    volume::world::{Problem, World},
};

/// Makes tenants' views of key managers.
pub struct Tenants {
    client: Client,
    /// Logins and HTTP clients.
    pub sessions: Sessions,
    seen: std::sync::Mutex<std::collections::HashMap<(String, String), Option<String>>>,
}

impl Tenants {
    /// `ca_file` is trusted for KeyServices without a bundle of their own.
    pub fn new(client: Client, ca_file: Option<std::path::PathBuf>) -> Self {
        Self {
            client,
            sessions: Sessions::new(ca_file),
            seen: std::sync::Mutex::default(),
        }
    }

    /// The key manager as the tenant of a volume sees it.
    ///
    /// # Errors
    /// A [`Problem`] when KeyService, Secret or `clouds.yaml` are not as they must be.
    pub async fn of(&self, world: &World) -> Result<Barbican, Problem> {
        let service = world.key_service.as_ref().map_err(Clone::clone)?;
        let namespace = world.volume.namespace().unwrap_or_default();
        self.key_manager(service, &namespace, world.volume.spec.credentials.as_ref())
            .await
    }

    /// The key manager of a KeyService as the tenant whose credentials these are sees it.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub async fn key_manager(
        &self,
        service: &KeyService,
        namespace: &str,
        credentials: Option<&CredentialsRef>,
    ) -> Result<Barbican, Problem> {
        let credentials = credentials.ok_or_else(|| {
            Problem::new(
                Reason::CredentialsInvalid,
                "the volume names no credentials, and its key is in the key manager",
            )
        })?;
        let name = &credentials.secret_name;
        let found = Api::<Secret>::namespaced(self.client.clone(), namespace)
            .get_opt(name)
            .await
            .map_err(|e| {
                Problem::new(
                    Reason::KeyServiceUnavailable,
                    format!("the Secret {name} cannot be read: {}", api_words(&e)),
                )
            })?;
        self.saw(
            namespace,
            name,
            found.as_ref().and_then(|s| s.resource_version()),
        );
        let mut secret = found.ok_or_else(|| {
            Problem::new(
                Reason::CredentialsSecretNotFound,
                format!("there is no Secret {name} in namespace {namespace}"),
            )
        })?;
        let parsed = match secret
            .data
            .as_ref()
            .and_then(|d| d.get(names::CLOUDS_YAML_KEY))
        {
            Some(file) => {
                Credentials::parse(&file.0, &credentials.cloud_name, &service.spec.auth_url)
                    .map_err(Into::into)
            }
            None => Err(Problem::new(
                Reason::CredentialsInvalid,
                format!("the Secret {name} has no key {}", names::CLOUDS_YAML_KEY),
            )),
        };
        wipe(&mut secret);
        Ok(self.sessions.key_manager(service, parsed?)?)
    }

    /// The version of a Secret when it was last read.
    pub fn seen(&self, namespace: &str, name: &str) -> Option<String> {
        let seen = self
            .seen
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
            .flatten()
    }

    fn saw(&self, namespace: &str, name: &str, version: Option<String>) {
        let mut seen = self
            .seen
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.insert((namespace.to_owned(), name.to_owned()), version);
    }
}

/// Overwrites what a Secret held.
pub fn wipe(secret: &mut Secret) {
    for value in secret.data.iter_mut().flat_map(|d| d.values_mut()) {
        value.0.zeroize();
    }
}

/// What the API server says, without anything that a client may have added.
pub fn api_words(e: &kube::Error) -> String {
    match e {
        kube::Error::Api(status) => status.message.clone(),
        _ => "the API server does not answer".to_owned(),
    }
}

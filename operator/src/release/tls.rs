//! The certificate of the key-release endpoint: read from files, read again when they change.

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum_server::tls_rustls::RustlsConfig;
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use sha2::{Digest, Sha256};

/// How often the files are looked at. kubelet takes a minute to bring a changed Secret into a pod anyway.
const LOOK: Duration = Duration::from_secs(10);

/// Where certificate and key lie.
#[derive(Clone, Debug)]
pub struct Files {
    /// Certificate chain (PEM).
    pub cert: PathBuf,
    /// Private key (PEM).
    pub key: PathBuf,
}

/// Why the certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// File.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{path} holds no {what} in PEM form")]
    Pem {
        /// File.
        path: String,
        /// What was looked for.
        what: &'static str,
    },
    /// They do not fit together.
    #[error("certificate and key cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

impl Files {
    /// Loads both.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(&self) -> Result<(RustlsConfig, [u8; 32]), TlsError> {
        let (config, digest) = self.config()?;
        Ok((RustlsConfig::from_config(config), digest))
    }

    fn config(&self) -> Result<(Arc<ServerConfig>, [u8; 32]), TlsError> {
        let read = |path: &PathBuf| {
            let bytes = std::fs::read(path).map(zeroize::Zeroizing::new);
            bytes.map_err(|source| TlsError::Read {
                path: path.display().to_string(),
                source,
            })
        };
        let pem = |path: &PathBuf, what| TlsError::Pem {
            path: path.display().to_string(),
            what,
        };
        let (cert, key) = (read(&self.cert)?, read(&self.key)?);
        let mut hash = Sha256::new();
        hash.update(&*cert);
        hash.update(&*key);
        let chain = CertificateDer::pem_slice_iter(&cert)
            .collect::<Result<Vec<_>, _>>()
            .ok()
            .filter(|c| !c.is_empty())
            .ok_or_else(|| pem(&self.cert, "certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| pem(&self.key, "private key"))?;
        // Both ends are ours: nothing older than TLS 1.3.
        let mut config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok((Arc::new(config), hash.finalize().into()))
    }

    /// Puts changed files into force for new connections, for ever. Files that cannot be used leave the old certificate
    /// in force and are logged.
    pub async fn follow(self, tls: RustlsConfig, mut loaded: [u8; 32]) {
        let mut failed = false;
        loop {
            tokio::time::sleep(LOOK).await;
            match self.config() {
                Ok((config, digest)) => {
                    if digest != loaded {
                        tls.reload_from_config(config);
                        loaded = digest;
                        tracing::info!(cert = %self.cert.display(), "certificate read again");
                    }
                    failed = false;
                }
                // Half of a change may be seen; only what lasts is worth a line.
                Err(e) if failed => {
                    tracing::warn!(error = %e, "the changed certificate cannot be used")
                }
                Err(_) => failed = true,
            }
        }
    }
}

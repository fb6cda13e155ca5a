//! TLS to a directory's servers: whose certificates are trusted, and the two lesser settings of `tls_req_cert`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use thiserror::Error;

use super::tls::{Authorities, Verify};

/// The authorities of the system, as Debian and most others keep them.
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why nobody's certificate can be judged.
#[derive(Debug, Error)]
pub enum TrustError {
    /// The file or folder cannot be read.
    #[error("cannot read the certificates of authorities in {path}: {source}")]
    Read {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing in it is a certificate.
    #[error(
        "there is no certificate (PEM) of an authority in {0}; set [ldap] tls_cacertfile or tls_cacertdir"
    )]
    None(PathBuf),
    /// TLS itself.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// Reads the authorities and makes the settings of connections.
///
/// # Errors
/// Any [`TrustError`].
pub fn client_config(verify: Verify, from: &Authorities) -> Result<Arc<ClientConfig>, TrustError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| TrustError::Tls(error.to_string()))?;
    if verify == Verify::Never {
        let lenient = Lenient {
            inner: None,
            provider,
        };
        return Ok(Arc::new(
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(lenient))
                .with_no_client_auth(),
        ));
    }
    let roots = authorities(from)?;
    if verify == Verify::Demand {
        return Ok(Arc::new(
            builder.with_root_certificates(roots).with_no_client_auth(),
        ));
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| TrustError::Tls(error.to_string()))?;
    let lenient = Lenient {
        inner: Some(inner),
        provider,
    };
    Ok(Arc::new(
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(lenient))
            .with_no_client_auth(),
    ))
}

fn authorities(from: &Authorities) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    let path: &Path = match from {
        Authorities::File(path) | Authorities::Folder(path) => path,
        Authorities::System => Path::new(SYSTEM),
    };
    let read_error = |source| TrustError::Read {
        path: path.into(),
        source,
    };
    if matches!(from, Authorities::Folder(_)) {
        let mut files = Vec::new();
        for entry in fs::read_dir(path).map_err(read_error)? {
            files.push(entry.map_err(read_error)?.path());
        }
        files.sort();
        for file in files.iter().filter(|file| file.is_file()) {
            add(&mut roots, &fs::read(file).map_err(read_error)?);
        }
    } else {
        add(&mut roots, &fs::read(path).map_err(read_error)?);
    }
    if roots.is_empty() {
        return Err(TrustError::None(path.into()));
    }
    Ok(roots)
}

/// Adds what is a certificate; a folder may hold other things.
fn add(roots: &mut RootCertStore, text: &[u8]) {
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(text).flatten());
}

/// Takes certificates that are not right: with a warning where they are looked at (`allow`), silently where they are
/// not (`never`). That the server holds the certificate's key is checked all the same.
#[derive(Debug)]
struct Lenient {
    inner: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(inner) = &self.inner
            && let Err(error) =
                inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        {
            tracing::warn!(%error, server = server_name.to_str().as_ref(),
                "the directory's certificate is not right and is taken all the same ([ldap] tls_req_cert = allow)");
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_authorities_nothing_is_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let empty = Authorities::Folder(dir.path().into());
        assert!(matches!(
            client_config(Verify::Demand, &empty),
            Err(TrustError::None(_))
        ));
        assert!(matches!(
            client_config(Verify::Allow, &empty),
            Err(TrustError::None(_))
        ));
        assert!(client_config(Verify::Never, &empty).is_ok());
        let missing = Authorities::File(dir.path().join("nosuch"));
        let said = client_config(Verify::Demand, &missing)
            .unwrap_err()
            .to_string();
        assert!(said.contains("nosuch"), "{said}");
        std::fs::write(dir.path().join("note.txt"), "no certificate").unwrap();
        assert!(client_config(Verify::Demand, &empty).is_err());
    }
}

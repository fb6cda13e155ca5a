//! TLS in front of a service that speaks plain HTTP, as a load balancer does it in deployments.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::control_plane::init_tls;
use crate::pki::Identity;

/// Takes connections for as long as it lives.
#[derive(Debug)]
pub struct TlsFront {
    port: u16,
    taking: JoinHandle<()>,
}

impl TlsFront {
    /// On a port of loopback, for the service at `to`. While that does not run, connections end without an answer.
    pub async fn start(to: SocketAddr, identity: &Identity) -> Result<Self> {
        init_tls();
        let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .context("the certificate")?;
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).context("the key")?;
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let taking = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut client = acceptor.accept(client).await?;
                    let mut service = TcpStream::connect(to).await?;
                    copy_bidirectional(&mut client, &mut service).await
                });
            }
        });
        Ok(Self { port, taking })
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.taking.abort();
    }
}

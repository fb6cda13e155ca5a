//! The server on the network: it has to show a certificate of its name, from the authority that the URL names.

use std::{fs, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

use super::server::{Server, comes_back};
use crate::{
    store::{Place, PlaceError, PostgresUrl, Store, StoreError},
    testing::Bench,
};

/// A certificate authority.
struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        fs::write(dir.path().join("ca.crt"), certificate).unwrap();
        let issuer = Issuer::new(params, key);
        Self { dir, issuer }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// Certificate and key of a server.
    fn server(&self, name: &str, expired: bool) -> (String, String) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        if expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 2, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        (certificate, key.serialize_pem())
    }
}

fn url(server: &Server, port: u16, query: &str) -> Result<PostgresUrl, PlaceError> {
    let text = format!("postgres://keys@localhost:{port}/postgres?{query}");
    PostgresUrl::read(&server.url_file(&text))
}

/// The message of the refusal.
async fn refused(url: &PostgresUrl) -> String {
    match Store::connect(url).await {
        Err(error @ StoreError::Connect { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{url:?} was let in"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_has_to_prove_who_it_is() {
    let server = Server::new();
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let ca = format!("sslrootcert={}", ours.path().display());

    // Without TLS: not by itself, and not with TLS wanted; on this machine for who says that he wants it so.
    let port = server.up_on_loopback("");
    for query in ["", &ca, "sslmode=require"] {
        let told = refused(&url(&server, port, query).unwrap()).await;
        assert!(told.contains("does not support TLS"), "{told}");
        assert!(told.contains("docs/postgresql.md"), "{told}");
    }
    let here = url(&server, port, "sslmode=disable").unwrap();
    Store::connect(&here).await.unwrap().close().await;
    let elsewhere = server.url_file("postgres://keys@192.0.2.1/postgres?sslmode=disable");
    assert!(matches!(
        PostgresUrl::read(&elsewhere),
        Err(PlaceError::Unverified(_))
    ));
    server.down();

    // With it: every certificate that is not right is refused.
    let good = ours.server("localhost", false);
    for (certificate, query, part) in [
        (
            other.server("localhost", false),
            ca.as_str(),
            "UnknownIssuer",
        ),
        (good.clone(), "", "UnknownIssuer"),
        (
            ours.server("db.example.org", false),
            &ca,
            "not valid for name",
        ),
        (ours.server("localhost", true), &ca, "expired"),
    ] {
        server.certificate(&certificate);
        let port = server.up_on_loopback("-c ssl=on");
        let told = refused(&url(&server, port, query).unwrap()).await;
        assert!(told.contains(part), "{told}");
        assert!(told.contains("sslrootcert"), "{told}");
        server.down();
    }

    // The right one; all connections are encrypted.
    server.certificate(&good);
    let port = server.up_on_loopback("-c ssl=on");
    let place = Place::Postgres(url(&server, port, &ca).unwrap());
    let bench = Bench::with(|config| config.place = place).await;
    assert_eq!(bench.status_of(&bench.admin).await, 200);
    let encrypted = server.sql(
        "SELECT count(*) > 1 AND bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
         WHERE application_name = 'cryptvol-identity'",
    );
    assert_eq!(encrypted, "t");

    // Another server in its place gets nothing, and no request goes through; nor when the server lets nobody in from the network.
    // When all is right again all goes on.
    let open = "local all all trust\nhostssl all all 127.0.0.1/32 trust\n";
    let closed = "local all all trust\n";
    for (certificate, admission) in [
        (other.server("localhost", false), open),
        (good.clone(), closed),
    ] {
        for (certificate, admission, there) in
            [(&certificate, admission, false), (&good, open, true)]
        {
            server.down();
            server.certificate(certificate);
            server.put("pg_hba.conf", admission);
            server.up_again("-c ssl=on");
            if there {
                comes_back(&bench, &bench.admin).await;
            } else {
                assert_eq!(bench.status_of(&bench.admin).await, 503);
            }
        }
    }
    bench.app.store.close().await;
}

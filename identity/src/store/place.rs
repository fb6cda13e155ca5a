//! Where the records are.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use thiserror::Error;
use url::{Host, Url};

/// Connections that read, unless the URL says otherwise.
const CONNECTIONS: u32 = 8;
/// Parameter of the URL that says so; ours, not the driver's.
const CONNECTIONS_PARAMETER: &str = "connections";

/// Where the records are.
#[derive(Debug, Clone)]
pub enum Place {
    /// SQLite, in this directory.
    Directory(PathBuf),
    /// A PostgreSQL server.
    Postgres(PostgresUrl),
}

/// Why a file does not say where a PostgreSQL database is. The URL itself is never shown: it holds a password.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// The file cannot be read.
    #[error("cannot read the database URL in {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no URL of a PostgreSQL database.
    #[error(
        "{0} does not hold a URL such as postgres://USER:PASSWORD@HOST:5432/DATABASE?sslrootcert=/path/ca.pem"
    )]
    Malformed(PathBuf),
    /// The server would not be known by its certificate.
    #[error(
        "{0}: sslmode must be verify-full (the default), unless the server is on the loopback or a socket of this machine"
    )]
    Unverified(PathBuf),
    /// Something that is about the files of SQLite.
    #[error(
        "the records are in a PostgreSQL server: back them up and restore them with its own tools (pg_dump, pg_restore, or an archive of \
         its log), keep the key-encryption key elsewhere, and after a restore run `cryptvol-identity token-keys rotate --end-tokens`"
    )]
    NotADirectory,
}

impl PlaceError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "DatabaseUrlUnreadable",
            Self::Malformed(_) => "DatabaseUrlMalformed",
            Self::Unverified(_) => "DatabaseNotVerified",
            Self::NotADirectory => "RecordsNotInDirectory",
        }
    }
}

/// A URL with a password in it.
#[derive(Clone)]
pub struct PostgresUrl {
    secret: SecretString,
    shown: String,
    connections: u32,
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresUrl").field(&self.shown).finish()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Postgres(url) => write!(f, "the PostgreSQL database {}", url.shown),
        }
    }
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        Self::Directory(path.into())
    }
}

impl PostgresUrl {
    /// Reads the URL of a file, whose path is for messages. Without `sslmode` the server has to prove by its certificate that it is
    /// the one of the URL; a weaker mode is for the same machine only.
    ///
    /// # Errors
    /// Any [`PlaceError`].
    pub fn read(path: &Path) -> Result<Self, PlaceError> {
        let text = fs::read_to_string(path)
            .map(zeroize::Zeroizing::new)
            .map_err(|source| PlaceError::Read {
                path: path.into(),
                source,
            })?;
        Self::parse(text.trim(), path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, PlaceError> {
        let malformed = || PlaceError::Malformed(path.into());
        let mut url = Url::parse(text).map_err(|_| malformed())?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(malformed());
        }
        let (ours, theirs): (Vec<_>, Vec<_>) = url
            .query_pairs()
            .into_owned()
            .partition(|(name, _)| name == CONNECTIONS_PARAMETER);
        let connections = match ours.first() {
            Some((_, number)) => number
                .parse()
                .ok()
                .filter(|number| (1..=1000).contains(number))
                .ok_or_else(malformed)?,
            None => CONNECTIONS,
        };
        url.set_query(None);
        let told = theirs
            .iter()
            .any(|(name, _)| matches!(name.as_str(), "sslmode" | "ssl-mode"));
        for (name, value) in &theirs {
            url.query_pairs_mut().append_pair(name, value);
        }
        let driver = |url: &Url| PgConnectOptions::from_str(url.as_str()).map_err(|_| malformed());
        if !told {
            // PostgreSQL has no TLS on a socket.
            let mode = match driver(&url)?.get_socket() {
                Some(_) => "disable",
                None => "verify-full",
            };
            url.query_pairs_mut().append_pair("sslmode", mode);
        }
        let options = driver(&url)?;
        let Some(database) = options.get_database() else {
            return Err(malformed());
        };
        let here = options.get_socket().is_some() || is_loopback(options.get_host());
        if !here && !matches!(options.get_ssl_mode(), PgSslMode::VerifyFull) {
            return Err(PlaceError::Unverified(path.into()));
        }
        let shown = format!(
            "{database} at {}:{}",
            options.get_host(),
            options.get_port()
        );
        Ok(Self {
            secret: String::from(url).into(),
            shown,
            connections,
        })
    }

    /// For the driver.
    ///
    /// # Errors
    /// None in practice: the URL was parsed before.
    pub(super) fn options(&self) -> sqlx::Result<PgConnectOptions> {
        let options = PgConnectOptions::from_str(self.secret.expose_secret())?;
        Ok(options.application_name("cryptvol-identity"))
    }

    /// Connections that read.
    pub(super) fn connections(&self) -> u32 {
        self.connections
    }
}

fn is_loopback(host: &str) -> bool {
    match Host::parse(host) {
        Ok(Host::Domain(name)) => name == "localhost",
        Ok(Host::Ipv4(address)) => address.is_loopback(),
        Ok(Host::Ipv6(address)) => address.is_loopback(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(text: &str) -> Result<PostgresUrl, PlaceError> {
        PostgresUrl::parse(text, Path::new("url"))
    }

    #[test]
    fn a_server_elsewhere_has_to_prove_who_it_is() {
        let plain = parse("postgres://u:geheim@db.example.org/keys?connections=3").unwrap();
        let options = plain.options().unwrap();
        assert!(matches!(options.get_ssl_mode(), PgSslMode::VerifyFull));
        assert_eq!(plain.connections(), 3);
        for weak in ["disable", "prefer", "require", "verify-ca"] {
            let elsewhere = parse(&format!("postgres://u@db.example.org/keys?sslmode={weak}"));
            assert!(
                matches!(elsewhere, Err(PlaceError::Unverified(_))),
                "{weak}"
            );
            parse(&format!("postgres://u@127.0.0.1/keys?sslmode={weak}")).unwrap();
        }
    }

    #[test]
    fn a_socket_of_this_machine_needs_no_proof() {
        let here = parse("postgres://u@localhost/keys?host=/run/postgresql").unwrap();
        let options = here.options().unwrap();
        assert!(options.get_socket().is_some());
        assert!(matches!(options.get_ssl_mode(), PgSslMode::Disable));
    }

    #[test]
    fn no_message_shows_the_password() {
        let place = Place::Postgres(parse("postgres://u:geheim@db.example.org/keys").unwrap());
        assert!(!format!("{place} {place:?}").contains("geheim"));
        for bad in [
            "",
            "geheim",
            "mysql://u:geheim@h/d",
            "postgres://u:geheim@h/d?connections=0",
            "postgres://u:geheim@h/",
        ] {
            let error = parse(bad).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("geheim"), "{bad}");
        }
    }
}

//! Where a directory is and how its certificate is judged, from the options `url`, `use_tls`, `tls_req_cert`,
//! `tls_cacertfile` and `tls_cacertdir`.

use std::path::PathBuf;

use thiserror::Error;

/// How the server's certificate is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// It must be right.
    Demand,
    /// It should be right: a wrong one is taken, with a warning each time.
    Allow,
    /// It is not looked at.
    Never,
}

/// Where trusted authorities come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authorities {
    /// One PEM file.
    File(PathBuf),
    /// All PEM files of a folder.
    Folder(PathBuf),
    /// Those of the system.
    System,
}

/// When TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the connection (`ldaps://`).
    AtOnce,
    /// By the StartTLS operation, before anything else is sent.
    StartTls,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// As written.
    pub url: String,
    /// When TLS begins.
    pub start: Start,
}

/// Why a directory cannot be reached as configured.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum TlsError {
    /// No server.
    #[error("[ldap] url is missing; give ldaps://HOST, or ldap://HOST with use_tls = true")]
    NoUrl,
    /// Another scheme.
    #[error("[ldap] url: {0} begins neither with ldaps:// nor with ldap://")]
    Scheme(String),
    /// Passwords would cross the network readable.
    #[error(
        "[ldap] url: {0} without TLS would send passwords in the clear; write ldaps:// or set use_tls = true"
    )]
    Clear(String),
    /// Both kinds of TLS.
    #[error(
        "[ldap] use_tls = true is StartTLS and does not go with {0}; write ldap:// or leave use_tls out"
    )]
    Both(String),
    /// Another word.
    #[error("[ldap] tls_req_cert is none of demand, allow, never")]
    Verify,
}

/// The servers of a comma-separated list, in the order in which they are tried.
///
/// # Errors
/// `NoUrl`, `Scheme`, `Clear`, `Both`.
pub fn servers(urls: &str, use_tls: bool) -> Result<Vec<Server>, TlsError> {
    let servers = urls
        .split(',')
        .map(str::trim)
        .filter(|url| !url.is_empty())
        .map(|url| {
            let scheme = url
                .split_once("://")
                .map(|(scheme, _)| scheme.to_ascii_lowercase());
            let start = match (scheme.as_deref(), use_tls) {
                (Some("ldaps"), false) => Start::AtOnce,
                (Some("ldaps"), true) => return Err(TlsError::Both(url.into())),
                (Some("ldap"), true) => Start::StartTls,
                (Some("ldap"), false) => return Err(TlsError::Clear(url.into())),
                _ => return Err(TlsError::Scheme(url.into())),
            };
            Ok(Server {
                url: url.into(),
                start,
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if servers.is_empty() {
        Err(TlsError::NoUrl)
    } else {
        Ok(servers)
    }
}

/// The word of `tls_req_cert`; without one `demand`, as in Keystone.
///
/// # Errors
/// `Verify`.
pub fn verify(word: Option<&str>) -> Result<Verify, TlsError> {
    match word {
        None | Some("demand") => Ok(Verify::Demand),
        Some("allow") => Ok(Verify::Allow),
        Some("never") => Ok(Verify::Never),
        Some(_) => Err(TlsError::Verify),
    }
}

/// The authorities; the file goes before the folder, as in Keystone.
pub fn authorities(file: Option<&str>, folder: Option<&str>) -> Authorities {
    match (file, folder) {
        (Some(file), _) => Authorities::File(file.into()),
        (None, Some(folder)) => Authorities::Folder(folder.into()),
        (None, None) => Authorities::System,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_tried_in_order_and_never_in_the_clear() {
        let urls = |found: Vec<Server>| {
            found
                .into_iter()
                .map(|one| (one.url, one.start))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            urls(servers("ldaps://a:636,\n LDAPS://b", false).unwrap()),
            [
                ("ldaps://a:636".into(), Start::AtOnce),
                ("LDAPS://b".into(), Start::AtOnce)
            ]
        );
        assert_eq!(
            urls(servers("ldap://a", true).unwrap()),
            [("ldap://a".into(), Start::StartTls)]
        );
        for (text, use_tls, error) in [
            (" , ", false, TlsError::NoUrl),
            ("ldap://a", false, TlsError::Clear("ldap://a".into())),
            (
                "ldaps://a,ldap://b",
                false,
                TlsError::Clear("ldap://b".into()),
            ),
            ("ldaps://a", true, TlsError::Both("ldaps://a".into())),
            ("ldapi://a", true, TlsError::Scheme("ldapi://a".into())),
            ("a", false, TlsError::Scheme("a".into())),
        ] {
            assert_eq!(servers(text, use_tls), Err(error), "{text}");
        }
    }

    #[test]
    fn certificates_are_demanded_unless_a_word_says_otherwise() {
        assert_eq!(verify(None), Ok(Verify::Demand));
        assert_eq!(verify(Some("allow")), Ok(Verify::Allow));
        assert_eq!(verify(Some("never")), Ok(Verify::Never));
        assert_eq!(verify(Some("try")), Err(TlsError::Verify));
        assert_eq!(verify(Some("")), Err(TlsError::Verify));
    }

    #[test]
    fn the_file_goes_before_the_folder() {
        assert_eq!(
            authorities(Some("/f"), Some("/d")),
            Authorities::File("/f".into())
        );
        assert_eq!(
            authorities(None, Some("/d")),
            Authorities::Folder("/d".into())
        );
        assert_eq!(authorities(None, None), Authorities::System);
    }
}

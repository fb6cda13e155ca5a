//! Where a site says that a domain has a directory: a folder of files `keystone.DOMAIN.conf` as Keystone's
//! `domain_config_dir`, and the domain configuration of the API. A file goes before the API.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{
    config::Options,
    ini::{self, IniError},
    tls::Authorities,
};

/// Longest file, in bytes.
const LONGEST: u64 = 256 * 1024;

/// Why the folder or a file cannot be used.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The folder.
    #[error("cannot read the folder of domain configurations {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What is said about one domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Its users are in the database.
    Database,
    /// They are in a directory with these options.
    Directory(Options),
    /// What is written cannot be understood; why.
    Unreadable(String),
}

/// The files of a folder, by the name of the domain.
///
/// # Errors
/// `Folder`. A file that cannot be read is `Said::Unreadable`.
pub fn files(folder: &Path) -> Result<BTreeMap<String, Said>, SourceError> {
    let error = |source| SourceError::Folder {
        path: folder.into(),
        source,
    };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let Some(domain) = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(domain_of)
        else {
            continue;
        };
        let said = match read(&path) {
            Ok(text) => of_file(&text),
            Err(source) => Said::Unreadable(source.to_string()),
        };
        let said = match said {
            Said::Unreadable(why) => Said::Unreadable(format!("{}: {why}", path.display())),
            other => other,
        };
        found.insert(domain.to_owned(), said);
    }
    Ok(found)
}

fn read(path: &Path) -> io::Result<zeroize::Zeroizing<String>> {
    if fs::metadata(path)?.len() > LONGEST {
        return Err(io::Error::other("longer than 256 KiB"));
    }
    fs::read_to_string(path).map(zeroize::Zeroizing::new)
}

/// `keystone.DOMAIN.conf`.
fn domain_of(file: &str) -> Option<&str> {
    file.strip_prefix("keystone.")?
        .strip_suffix(".conf")
        .filter(|domain| !domain.is_empty())
}

fn of_file(text: &str) -> Said {
    let settings = match ini::parse(text) {
        Ok(settings) => settings,
        Err(
            error @ (IniError::NoSection(_)
            | IniError::Section(_)
            | IniError::Line(_)
            | IniError::Twice { .. }),
        ) => {
            return Said::Unreadable(error.to_string());
        }
    };
    let mut driver = None;
    let mut options = Options::new();
    for setting in settings {
        match (setting.section.as_str(), setting.name.as_str()) {
            ("identity", "driver") => driver = Some(setting.value),
            ("ldap", _) => {
                options.insert(setting.name, setting.value);
            }
            (section, name) => {
                return Said::Unreadable(format!(
                    "line {}: [{section}] {name} is no option of a domain; there are [identity] driver and [ldap]",
                    setting.line
                ));
            }
        }
    }
    decide(driver.as_deref(), options)
}

fn decide(driver: Option<&str>, options: Options) -> Said {
    match driver {
        Some("ldap") => Said::Directory(options),
        None | Some("sql") => Said::Database,
        Some(other) => Said::Unreadable(format!(
            "[identity] driver {other:?} is not there; the drivers are sql and ldap"
        )),
    }
}

/// Options of the API, as `(section, name, value)`.
pub fn of_api(options: impl IntoIterator<Item = (String, String, Value)>) -> Said {
    let mut driver = None;
    let mut ldap = Options::new();
    for (section, name, value) in options {
        let Some(text) = text(&value) else {
            return Said::Unreadable(format!(
                "[{section}] {name} is neither a text, nor a number, nor a list of texts"
            ));
        };
        match (section.as_str(), name.as_str()) {
            ("identity", "driver") => driver = text,
            ("ldap", _) => {
                if let Some(text) = text {
                    ldap.insert(name, text);
                }
            }
            _ => {}
        }
    }
    decide(driver.as_deref(), ldap)
}

/// A value as a file would have it; `Some(None)` is null, an option that is not set.
fn text(value: &Value) -> Option<Option<String>> {
    match value {
        Value::Null => Some(None),
        Value::String(text) => Some(Some(text.clone())),
        Value::Bool(flag) => Some(Some(flag.to_string())),
        Value::Number(number) => Some(Some(number.to_string())),
        Value::Array(list) => list
            .iter()
            .map(Value::as_str)
            .collect::<Option<Vec<_>>>()
            .map(|list| Some(list.join(","))),
        Value::Object(_) => None,
    }
}

/// Tells whether anything changed: the options, and the certificates of the authorities they name.
pub fn digest(options: &Options, authorities: &Authorities) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    for (name, value) in options {
        add(name.as_bytes());
        add(value.as_bytes());
    }
    let mut files = Vec::new();
    match authorities {
        Authorities::File(path) => files.push(path.clone()),
        Authorities::Folder(path) => {
            files.extend(
                fs::read_dir(path)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| entry.path()),
            );
            files.sort();
        }
        Authorities::System => {}
    }
    for file in files {
        add(file.as_os_str().as_encoded_bytes());
        add(&fs::read(&file).unwrap_or_default());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files_are_named_by_their_domain() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write(
            "keystone.Corp.Example.conf",
            "[identity]\ndriver = ldap\n[ldap]\nurl = ldaps://a\n",
        );
        write("keystone.plain.conf", "[identity]\ndriver = sql\n");
        write("keystone.other.conf", "[identity]\ndriver = pam\n");
        write(
            "keystone.more.conf",
            "[identity]\ndriver = ldap\n[cache]\nenabled = true\n",
        );
        write("keystone..conf", "x");
        write("keystone.conf", "x");
        write("notes.txt", "x");
        let found = files(dir.path()).unwrap();
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["Corp.Example", "more", "other", "plain"]);
        assert_eq!(found["plain"], Said::Database);
        assert_eq!(
            found["Corp.Example"],
            Said::Directory(Options::from_iter([("url".into(), "ldaps://a".into())]))
        );
        for (name, words) in [("other", "pam"), ("more", "[cache] enabled")] {
            let Said::Unreadable(why) = &found[name] else {
                unreachable!("{name}")
            };
            assert!(why.contains(words) && why.contains("keystone."), "{why}");
        }
        assert!(files(&dir.path().join("nosuch")).is_err());
    }

    #[test]
    fn options_of_the_api_are_read_as_a_file_has_them() {
        let option = |section: &str, name: &str, value: Value| (section.into(), name.into(), value);
        let said = of_api([
            option("identity", "driver", json!("ldap")),
            option("ldap", "use_tls", json!(true)),
            option("ldap", "page_size", json!(500)),
            option(
                "ldap",
                "user_additional_attribute_mapping",
                json!(["l:town", "st:state"]),
            ),
            option("ldap", "user_filter", Value::Null),
        ]);
        let Said::Directory(options) = said else {
            unreachable!()
        };
        assert_eq!(options["use_tls"], "true");
        assert_eq!(options["page_size"], "500");
        assert_eq!(
            options["user_additional_attribute_mapping"],
            "l:town,st:state"
        );
        assert!(!options.contains_key("user_filter"));
        assert_eq!(of_api([option("ldap", "url", json!("x"))]), Said::Database);
        assert!(matches!(
            of_api([option("ldap", "url", json!({}))]),
            Said::Unreadable(_)
        ));
    }
}

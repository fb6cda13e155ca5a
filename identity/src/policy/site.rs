//! The policy in force: built-in defaults with a site's files over them, read again when the files change.
//!
//! Files are compared by content: Kubernetes changes a mounted ConfigMap by turning symlinks, which neither
//! modification times nor watches show well. A set of files that cannot be taken leaves the rules of before
//! in force; at start there are none of before, so the start fails rather than falling back to defaults that
//! may permit more.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{
    eval::{Creds, Target},
    file::{self, FileError},
    rules::{Policy, PolicyError, identity_defaults, key_manager_defaults},
};

/// One of the two APIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// Keystone v3.
    Identity,
    /// Barbican v1.
    KeyManager,
}

impl Api {
    /// As it begins the names of policy files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::KeyManager => "key-manager",
        }
    }

    /// The built-in rules.
    ///
    /// # Errors
    /// If a built-in line does not parse.
    pub fn defaults(self) -> Result<Policy, PolicyError> {
        match self {
            Self::Identity => identity_defaults(),
            Self::KeyManager => key_manager_defaults(),
        }
    }
}

/// Where a site's rules are. Later files win: first the file, then the folder's files by name.
#[derive(Debug, Clone, Default)]
pub struct PolicySources {
    /// Folder with `identity*.yaml` and `key-manager*.yaml` (or `.yml`, `.json`).
    pub dir: Option<PathBuf>,
    /// File for the identity API.
    pub identity: Option<PathBuf>,
    /// File for the key manager.
    pub key_manager: Option<PathBuf>,
}

/// Why a site's rules are not taken.
#[derive(Debug, Error)]
pub enum SiteError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// All files together make a circle.
    #[error(
        "the {api} policy: rule {rule} refers to itself, directly or through others; break the circle"
    )]
    Circle {
        /// Which API.
        api: &'static str,
        /// A rule of the circle.
        rule: String,
    },
    /// A built-in rule.
    #[error(transparent)]
    Default(#[from] PolicyError),
}

impl SiteError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File(_) | Self::Circle { .. } => "PolicyFileUnusable",
            Self::Default(error) => error.reason(),
        }
    }
}

impl PolicySources {
    /// The files that count for an API, in the order in which they are laid over the defaults.
    ///
    /// # Errors
    /// If the folder cannot be read or holds a file that belongs to neither API.
    pub fn files(&self, api: Api) -> Result<Vec<PathBuf>, FileError> {
        let single = match api {
            Api::Identity => &self.identity,
            Api::KeyManager => &self.key_manager,
        };
        let mut files: Vec<PathBuf> = single.iter().cloned().collect();
        let Some(dir) = &self.dir else {
            return Ok(files);
        };
        let error = |source| FileError::Read {
            path: dir.clone(),
            source,
        };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(error)? {
            names.push(entry.map_err(error)?.file_name());
        }
        names.sort();
        for name in names {
            let text = name.to_string_lossy();
            // Hidden names are how Kubernetes and editors keep their own files beside.
            if text.starts_with('.') {
                continue;
            }
            let path = dir.join(&name);
            let known = [".yaml", ".yml", ".json"]
                .iter()
                .any(|end| text.ends_with(end));
            match [Api::Identity, Api::KeyManager]
                .into_iter()
                .find(|api| text.starts_with(api.as_str()))
            {
                Some(owner) if known => {
                    if owner == api {
                        files.push(path);
                    }
                }
                _ => return Err(FileError::Name(path)),
            }
        }
        Ok(files)
    }

    /// The rules of an API as they would be in force.
    ///
    /// # Errors
    /// [`SiteError`].
    pub fn load(&self, api: Api) -> Result<Policy, SiteError> {
        self.read(api).and_then(|texts| build(api, &texts))
    }

    fn read(&self, api: Api) -> Result<Vec<(PathBuf, String)>, SiteError> {
        let mut texts = Vec::new();
        for path in self.files(api)? {
            let text = file::read(&path)?;
            texts.push((path, text));
        }
        Ok(texts)
    }
}

fn build(api: Api, texts: &[(PathBuf, String)]) -> Result<Policy, SiteError> {
    let mut policy = api.defaults()?;
    for (path, text) in texts {
        policy.overlay(file::parse(path, text)?);
    }
    match policy.circle() {
        None => Ok(policy),
        Some(rule) => Err(SiteError::Circle {
            api: api.as_str(),
            rule,
        }),
    }
}

fn digest(texts: &[(PathBuf, String)]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for (path, text) in texts {
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update(text.as_bytes());
        hash.update([0]);
    }
    hash.finalize().into()
}

/// The rules of one API in force.
pub struct SitePolicy {
    api: Api,
    sources: PolicySources,
    state: RwLock<State>,
}

struct State {
    policy: Arc<Policy>,
    /// Of the files that are in force or were refused last.
    seen: [u8; 32],
    /// Why the files as they are now are not in force.
    refused: Option<String>,
}

impl SitePolicy {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// [`SiteError`]: without usable files the service does not start.
    pub fn open(api: Api, sources: PolicySources) -> Result<Self, SiteError> {
        let texts = sources.read(api)?;
        let policy = build(api, &texts)?;
        if !texts.is_empty() {
            told(api, &policy, &texts)?;
        }
        let state = RwLock::new(State {
            policy: Arc::new(policy),
            seen: digest(&texts),
            refused: None,
        });
        Ok(Self {
            api,
            sources,
            state,
        })
    }

    /// Whether `creds` may do `rule` to `target`.
    pub fn authorize(&self, rule: &str, target: &Target, creds: &Creds) -> bool {
        self.current().authorize(rule, target, creds)
    }

    /// The rules in force.
    pub fn current(&self) -> Arc<Policy> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state.policy)
    }

    /// Why the files as they are now are not in force; `None` if they are.
    pub fn refused(&self) -> Option<String> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.refused.clone()
    }

    /// Whether there are files to look at.
    pub fn has_files(&self) -> bool {
        self.sources.dir.is_some()
            || match self.api {
                Api::Identity => self.sources.identity.is_some(),
                Api::KeyManager => self.sources.key_manager.is_some(),
            }
    }

    /// Looks at the files and takes them if they changed. Says so in the log, once a change.
    pub fn refresh(&self) {
        let read = self.sources.read(self.api);
        let (seen, built) = match &read {
            Ok(texts) => {
                let seen = digest(texts);
                let same = {
                    let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
                    state.seen == seen
                };
                if same {
                    return;
                }
                (seen, build(self.api, texts))
            }
            // Not readable: another state than any content.
            Err(error) => {
                let text = error.to_string();
                let seen = digest(&[(PathBuf::new(), text.clone())]);
                if self.refused().is_some_and(|known| known == text) {
                    return;
                }
                tracing::error!(
                    api = self.api.as_str(),
                    error = text,
                    reason = error.reason(),
                    "policy files cannot be used; the rules of before stay in force"
                );
                self.set(None, seen, Some(text));
                return;
            }
        };
        match built {
            Ok(policy) => {
                if let Ok(texts) = &read
                    && let Err(error) = told(self.api, &policy, texts)
                {
                    tracing::error!(%error, "built-in policy cannot be read");
                }
                self.set(Some(policy), seen, None);
            }
            Err(error) => {
                tracing::error!(api = self.api.as_str(), %error, reason = error.reason(), "policy files cannot be used; the rules of before stay in force");
                self.set(None, seen, Some(error.to_string()));
            }
        }
    }

    fn set(&self, policy: Option<Policy>, seen: [u8; 32], refused: Option<String>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(policy) = policy {
            state.policy = Arc::new(policy);
        }
        state.seen = seen;
        state.refused = refused;
    }
}

/// Logs what was taken, and what looks like a slip of the pen.
fn told(api: Api, policy: &Policy, texts: &[(PathBuf, String)]) -> Result<(), PolicyError> {
    let files: Vec<String> = texts.iter().map(|(path, _)| display(path)).collect();
    let own = policy.rules().filter(|rule| rule.is_own()).count();
    tracing::info!(
        api = api.as_str(),
        files = files.join(", "),
        rules = own,
        "policy files taken"
    );
    for doubt in policy.doubts(&api.defaults()?) {
        tracing::warn!(api = api.as_str(), doubt, "policy file");
    }
    Ok(())
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn may(policy: &SitePolicy) -> bool {
        let creds = Creds(json!({"roles": ["smith"], "user_id": "u", "project_id": "p"}));
        policy.authorize("identity:create_user", &Target::new(), &creds)
    }

    #[test]
    fn changed_files_are_taken_and_broken_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("identity.yaml");
        let write = |text: &str| fs::write(&file, text).unwrap();
        let sources = PolicySources {
            dir: Some(dir.path().into()),
            ..PolicySources::default()
        };
        let policy = SitePolicy::open(Api::Identity, sources.clone()).unwrap();
        assert!(!may(&policy));
        write("\"identity:create_user\": \"role:smith\"");
        policy.refresh();
        assert!(may(&policy));
        for broken in [
            "\"identity:create_user\": \"role:smith or\"",
            "not: [",
            "\"a\": \"rule:a\"",
            "- list",
        ] {
            write(broken);
            policy.refresh();
            assert!(may(&policy), "{broken}");
            assert!(policy.refused().is_some(), "{broken}");
            assert!(
                SitePolicy::open(Api::Identity, sources.clone()).is_err(),
                "{broken}"
            );
        }
        write("\"identity:create_user\": \"!\"");
        policy.refresh();
        assert_eq!((may(&policy), policy.refused()), (false, None));
        // The same content as before it broke is taken again.
        write("x: [");
        policy.refresh();
        assert!(policy.refused().is_some());
        write("\"identity:create_user\": \"!\"");
        policy.refresh();
        assert_eq!(policy.refused(), None);
        fs::remove_file(&file).unwrap();
        policy.refresh();
        assert_eq!((may(&policy), policy.refused()), (false, None));
        fs::remove_dir_all(dir.path()).unwrap();
        policy.refresh();
        assert!(policy.refused().unwrap().contains("cannot read"));
    }

    #[test]
    fn files_are_laid_over_each_other_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("identity.yaml", "a: \"role:one\"\nb: \"role:one\"");
        put("identity-later.json", r#"{"c": "@"}"#);
        put("identity_z.yml", "b: \"role:two\"");
        put("key-manager.yaml", "d: \"@\"");
        put(".hidden", "rubbish");
        let sources = PolicySources {
            dir: Some(dir.path().into()),
            identity: None,
            key_manager: None,
        };
        let policy = sources.load(Api::Identity).unwrap();
        let text = |name: &str| policy.rule(name).unwrap().check().to_string();
        assert_eq!(
            (text("a"), text("b"), text("c")),
            ("role:one".into(), "role:two".into(), "@".into())
        );
        assert!(policy.rule("d").is_none());
        assert!(sources.load(Api::KeyManager).unwrap().rule("d").is_some());
        put("keystone.yaml", "");
        let error = sources.load(Api::Identity).unwrap_err().to_string();
        assert!(error.contains("must begin with `identity`"), "{error}");
    }
}

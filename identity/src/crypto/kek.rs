//! The key-encryption key: 32 bytes in a file that is not in the data directory.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use thiserror::Error;
use zeroize::Zeroizing;

use super::seal::{KEY_LEN, SealingKey};
use crate::ids::random_bytes;

/// Why the key-encryption key could not be read or made.
#[derive(Debug, Error)]
pub enum KekError {
    /// The file could not be read.
    #[error(
        "cannot read the key-encryption key {path}: {source}; make one with `cryptvol-identity kek generate --out FILE`"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else than 32 bytes in hex or base64.
    #[error(
        "{path} does not hold 32 bytes as 64 hex digits or as base64; make one with `cryptvol-identity kek generate --out FILE`"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The file lies where the database lies, so that one stolen directory would be enough.
    #[error(
        "the key-encryption key {path} lies in the data directory; keep it elsewhere (a Secret, another disk)"
    )]
    InDataDir {
        /// The file.
        path: PathBuf,
    },
    /// The new file could not be written.
    #[error("cannot write {path}: {source}; an existing file is never overwritten")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl KekError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "KekUnreadable",
            Self::Malformed { .. } => "KekMalformed",
            Self::InDataDir { .. } => "KekInDataDir",
            Self::Write { .. } => "KekNotWritten",
        }
    }
}

/// The key-encryption key in memory; wiped on drop.
pub struct Kek(SealingKey);

impl Kek {
    /// Reads the key from `path`; refuses a file inside of `data_dir`.
    ///
    /// # Errors
    /// Any [`KekError`] but `Write`.
    pub fn read(path: &Path, data_dir: &Path) -> Result<Self, KekError> {
        if let (Ok(file), Ok(dir)) = (path.canonicalize(), data_dir.canonicalize())
            && file.starts_with(&dir)
        {
            return Err(KekError::InDataDir { path: path.into() });
        }
        let text = fs::read_to_string(path)
            .map(Zeroizing::new)
            .map_err(|source| KekError::Read {
                path: path.into(),
                source,
            })?;
        if let Ok(metadata) = fs::metadata(path)
            && metadata.permissions().mode() & 0o007 != 0
        {
            tracing::warn!(path = %path.display(), "everybody on this machine can read the key-encryption key; chmod 0400 it");
        }
        let key = decode(text.trim()).ok_or_else(|| KekError::Malformed { path: path.into() })?;
        Ok(Self(SealingKey::new(&key)))
    }

    /// A key from bytes, for tests and for callers that hold it in memory already.
    pub fn from_bytes(bytes: &[u8; KEY_LEN]) -> Self {
        Self(SealingKey::new(bytes))
    }

    /// Writes a new random key as hex into `path` (mode 0400), which must not exist.
    ///
    /// # Errors
    /// [`KekError::Write`].
    pub fn generate(path: &Path) -> Result<(), KekError> {
        let error = |source| KekError::Write {
            path: path.into(),
            source,
        };
        let key = Zeroizing::new(random_bytes::<KEY_LEN>());
        let text = Zeroizing::new(hex::encode(key.as_slice()) + "\n");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(path)
            .map_err(error)?;
        file.write_all(text.as_bytes()).map_err(error)?;
        file.sync_all().map_err(error)
    }

    /// The sealing key.
    pub fn key(&self) -> &SealingKey {
        &self.0
    }
}

fn decode(text: &str) -> Option<Zeroizing<[u8; KEY_LEN]>> {
    let bytes = Zeroizing::new(match text.len() {
        64 => hex::decode(text).ok()?,
        _ => STANDARD.decode(text).ok()?,
    });
    bytes.as_slice().try_into().ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_key_is_read_back_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let data = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        Kek::generate(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o400
        );
        Kek::read(&path, data.path()).unwrap();
        assert!(matches!(Kek::generate(&path), Err(KekError::Write { .. })));
    }

    #[test]
    fn a_key_in_the_data_directory_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("kek");
        Kek::generate(&path).unwrap();
        assert!(matches!(
            Kek::read(&path, data.path()),
            Err(KekError::InDataDir { .. })
        ));
    }

    #[test]
    fn hex_and_base64_are_read_other_text_is_not() {
        assert!(decode(&"ab".repeat(32)).is_some());
        assert!(decode("q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=").is_some());
        assert!(decode("q6urq6s=").is_none());
        assert!(decode("password").is_none());
    }
}

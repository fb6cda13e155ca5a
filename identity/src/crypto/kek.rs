//! The key-encryption key: 32 bytes in a file that is not in the data directory, or where that file says. During a rotation there are
//! several, one a line, the newest first: all open, and the one that sealed the check record seals (see `rekey`).

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::runtime::{Handle, RuntimeFlavor};
use zeroize::Zeroizing;

use super::{
    kek_reference::{Elsewhere, is_reference},
    seal::{KEY_LEN, SealError, SealingKey},
};
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
    /// The file could not be replaced by one with another key in it.
    #[error(
        "cannot write {path}: {source}; if it is mounted from elsewhere (a Kubernetes Secret), put a new line with a new key above the old one there, wait until it shows here, and run this again"
    )]
    Replace {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file says where the keys are, but not rightly.
    #[error(
        "{path} does not say where the key-encryption key is: {why}; see docs/key-encryption-key.md"
    )]
    Reference {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key manager that has the keys cannot be asked just now. It may pass by itself.
    #[error("the key manager at {host} that has the key-encryption key cannot be asked: {why}")]
    Unreachable {
        /// Scheme, host and port.
        host: String,
        /// What happened.
        why: String,
    },
    /// It does not give the keys.
    #[error(
        "{host} does not give the key-encryption key: {why}; see to the application credential and the secret there"
    )]
    Refused {
        /// Scheme, host and port.
        host: String,
        /// What it said.
        why: String,
    },
    /// The keys are in another key manager, where nothing is changed from here.
    #[error(
        "the keys that {path} names are in another key manager, and nothing is changed there from here: to rotate, store 32 \
         random bytes there, put their reference before the others in that file, and run this again; to forget old keys, \
         take their references out of it"
    )]
    NotHere {
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
    /// Whether somebody may mend it where the keys are, so that it is worth asking again.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Refused { .. })
    }

    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "KekUnreadable",
            Self::Malformed { .. } => "KekMalformed",
            Self::InDataDir { .. } => "KekInDataDir",
            Self::Replace { .. } => "KekNotReplaced",
            Self::Write { .. } => "KekNotWritten",
            Self::Reference { .. } => "KekReferenceInvalid",
            Self::Unreachable { .. } => "KekUnreachable",
            Self::Refused { .. } => "KekRefused",
            Self::NotHere { .. } => "KekNotHere",
        }
    }
}

/// One key, as it is read.
pub type KeyBytes = Zeroizing<[u8; KEY_LEN]>;

/// Where key-encryption keys come from: a file, which may be mounted from a Kubernetes Secret, or what else can
/// hand out keys.
pub trait KekSource: Send + Sync {
    /// The keys, newest first; at least one.
    ///
    /// # Errors
    /// Any [`KekError`].
    fn keys(&self) -> Result<Vec<KeyBytes>, KekError>;

    /// Whether that may wait for the network.
    fn waits(&self) -> bool {
        false
    }

    /// Keeps these keys from now on, newest first.
    ///
    /// # Errors
    /// [`KekError::Replace`].
    fn replace(&self, keys: &[KeyBytes]) -> Result<(), KekError>;
}

/// What is in the file with the keys, or with their place.
pub(super) fn contents(path: &Path) -> Result<Zeroizing<String>, KekError> {
    let text = fs::read_to_string(path).map(Zeroizing::new);
    text.map_err(|source| KekError::Read {
        path: path.into(),
        source,
    })
}

/// Keys in a file, one a line as hex or base64. Empty lines and lines that begin with # do not count.
struct KeyFile(PathBuf);

impl KeyFile {
    fn keys_in(&self, text: &str) -> Result<Vec<KeyBytes>, KekError> {
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Option<Vec<KeyBytes>> = lines.map(decode).collect();
        keys.filter(|keys| !keys.is_empty())
            .ok_or_else(|| KekError::Malformed {
                path: self.0.clone(),
            })
    }
}

impl KekSource for KeyFile {
    fn keys(&self) -> Result<Vec<KeyBytes>, KekError> {
        self.keys_in(&contents(&self.0)?)
    }

    /// The file is there whole at every moment, with the old keys or with the new.
    fn replace(&self, keys: &[KeyBytes]) -> Result<(), KekError> {
        let path = &self.0;
        let error = |source| KekError::Replace {
            path: path.clone(),
            source,
        };
        let folder = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let mut file = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(0o400))
            .tempfile_in(folder.unwrap_or_else(|| Path::new(".")))
            .map_err(error)?;
        for key in keys {
            let line = Zeroizing::new(hex::encode(key.as_slice()) + "\n");
            file.write_all(line.as_bytes()).map_err(error)?;
        }
        file.as_file().sync_all().map_err(error)?;
        file.persist(path).map_err(|failed| error(failed.error))?;
        fs::File::open(folder.unwrap_or_else(|| Path::new(".")))
            .and_then(|dir| dir.sync_all())
            .map_err(error)
    }
}

/// Keys in memory, for tests and for callers that have them already.
struct InMemory(Mutex<Vec<KeyBytes>>);

impl KekSource for InMemory {
    fn keys(&self) -> Result<Vec<KeyBytes>, KekError> {
        Ok(self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone())
    }

    fn replace(&self, keys: &[KeyBytes]) -> Result<(), KekError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = keys.to_vec();
        Ok(())
    }
}

/// The key-encryption keys in memory; wiped on drop.
pub struct Kek {
    source: Box<dyn KekSource>,
    ring: RwLock<Arc<Vec<SealingKey>>>,
}

impl Kek {
    /// Reads the keys from `path`, or from the key manager that it names; refuses a file inside of `data_dir`.
    ///
    /// # Errors
    /// Any [`KekError`] but `Write` and `Replace`.
    pub fn read(path: &Path, data_dir: &Path) -> Result<Self, KekError> {
        if let (Ok(file), Ok(dir)) = (path.canonicalize(), data_dir.canonicalize())
            && file.starts_with(&dir)
        {
            return Err(KekError::InDataDir { path: path.into() });
        }
        let text = contents(path)?;
        let (source, keys): (Box<dyn KekSource>, _) = if is_reference(&text) {
            let elsewhere = Elsewhere::new(path);
            let keys = elsewhere.keys_by(&text)?;
            (Box::new(elsewhere), keys)
        } else {
            let file = KeyFile(path.into());
            let keys = file.keys_in(&text)?;
            (Box::new(file), keys)
        };
        let kek = Self {
            ring: RwLock::new(ring(&keys)),
            source,
        };
        if let Ok(metadata) = fs::metadata(path)
            && metadata.permissions().mode() & 0o007 != 0
        {
            tracing::warn!(path = %path.display(), "everybody on this machine can read the key-encryption key; chmod 0400 it");
        }
        Ok(kek)
    }

    /// A key from bytes, for tests and for callers that hold it in memory already.
    pub fn from_bytes(bytes: &[u8; KEY_LEN]) -> Self {
        let keys = vec![Zeroizing::new(*bytes)];
        Self {
            ring: RwLock::new(ring(&keys)),
            source: Box::new(InMemory(Mutex::new(keys))),
        }
    }

    fn ring(&self) -> Arc<Vec<SealingKey>> {
        Arc::clone(&self.ring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The keys as they are in the source now. The tasks of this thread are not held up where that waits.
    fn asked(&self) -> Result<Vec<KeyBytes>, KekError> {
        // A runtime of one thread, as tests have it, has nowhere to put them.
        let elsewhere = Handle::try_current()
            .is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
        if self.source.waits() && elsewhere {
            tokio::task::block_in_place(|| self.source.keys())
        } else {
            self.source.keys()
        }
    }

    /// Reads the keys again. If that fails, those that are there stay.
    ///
    /// # Errors
    /// Those of the source.
    pub fn reload(&self) -> Result<(), KekError> {
        let new = ring(&self.asked()?);
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Reads the keys again because something did not open.
    fn look_again(&self) {
        if let Err(error) = self.reload() {
            tracing::error!(%error, reason = error.reason(), "key-encryption keys not read again");
        }
    }

    /// Opens a record with whichever key sealed it. If none did, the keys may have been rotated: they are read
    /// again.
    ///
    /// # Errors
    /// [`SealError::Open`], [`SealError::Format`].
    pub fn open(&self, place: &[&str], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        match open_with(&self.ring(), place, sealed) {
            Err(SealError::Open) => {
                self.look_again();
                open_with(&self.ring(), place, sealed)
            }
            done => done,
        }
    }

    /// Seals a record with the key that sealed `check`, the record that says which key seals now.
    ///
    /// # Errors
    /// [`SealError::Open`] if that key is not among ours, [`SealError::Seal`].
    pub fn seal_like(
        &self,
        (check_place, check): (&[&str], &[u8]),
        place: &[&str],
        plain: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let find = |ring: &[SealingKey]| {
            ring.iter()
                .position(|key| key.open(check_place, check).is_ok())
        };
        let mut ring = self.ring();
        if find(&ring).is_none() {
            self.look_again();
            ring = self.ring();
        }
        let key = find(&ring).and_then(|at| ring.get(at));
        key.ok_or(SealError::Open)?.seal(place, plain)
    }

    /// Seals a record with the newest key.
    ///
    /// # Errors
    /// [`SealError::Seal`].
    pub fn seal_newest(&self, place: &[&str], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let ring = self.ring();
        ring.first().ok_or(SealError::Seal)?.seal(place, plain)
    }

    /// Whether the newest key sealed this record.
    pub fn is_newest(&self, place: &[&str], sealed: &[u8]) -> bool {
        let ring = self.ring();
        ring.first()
            .is_some_and(|key| key.open(place, sealed).is_ok())
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.ring().len()
    }

    /// What tells the keys in the source apart without being them, newest first. The keys are read again for it. A random key of 32
    /// bytes cannot be found by its digest.
    ///
    /// # Errors
    /// Those of the source.
    pub fn fingerprints(&self) -> Result<Vec<String>, KekError> {
        let digest = |key: &KeyBytes| {
            let mut hash = Sha256::new();
            hash.update(b"cryptvol key-encryption key\0");
            hash.update(key.as_slice());
            hex::encode(hash.finalize())
        };
        Ok(self.asked()?.iter().map(digest).collect())
    }

    /// Puts a new random key before the others.
    ///
    /// # Errors
    /// Those of the source.
    pub fn add_newest(&self) -> Result<(), KekError> {
        let mut keys = self.asked()?;
        keys.insert(0, Zeroizing::new(random_bytes::<KEY_LEN>()));
        self.source.replace(&keys)?;
        self.reload()
    }

    /// Forgets all keys but the newest.
    ///
    /// # Errors
    /// Those of the source.
    pub fn forget_old(&self) -> Result<(), KekError> {
        let mut keys = self.asked()?;
        keys.truncate(1);
        self.source.replace(&keys)?;
        self.reload()
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
}

fn ring(keys: &[KeyBytes]) -> Arc<Vec<SealingKey>> {
    Arc::new(keys.iter().map(|key| SealingKey::new(key)).collect())
}

fn open_with(
    ring: &[SealingKey],
    place: &[&str],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    for key in ring {
        match key.open(place, sealed) {
            Err(SealError::Open) => {}
            done => return done,
        }
    }
    Err(SealError::Open)
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

    /// A key manager that is asked for a while.
    struct Slow {
        asked: tokio::sync::mpsc::UnboundedSender<()>,
        answer: Mutex<std::sync::mpsc::Receiver<()>>,
    }

    impl KekSource for Slow {
        fn keys(&self) -> Result<Vec<KeyBytes>, KekError> {
            let _ = self.asked.send(());
            let answer = self.answer.lock().unwrap();
            match answer.recv_timeout(std::time::Duration::from_secs(60)) {
                Ok(()) => Ok(vec![Zeroizing::new([2; KEY_LEN])]),
                Err(error) => Err(KekError::Unreachable {
                    host: "https://keys.example.org".into(),
                    why: error.to_string(),
                }),
            }
        }

        fn waits(&self) -> bool {
            true
        }

        fn replace(&self, _: &[KeyBytes]) -> Result<(), KekError> {
            Ok(())
        }
    }

    /// The one who answers needs the same thread.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_look_elsewhere_holds_nobody_up() {
        let (asked, mut asking) = tokio::sync::mpsc::unbounded_channel();
        let (answers, answer) = std::sync::mpsc::channel();
        let kek = Kek {
            ring: RwLock::new(ring(&[Zeroizing::new([1; KEY_LEN])])),
            source: Box::new(Slow {
                asked,
                answer: Mutex::new(answer),
            }),
        };
        let sealed = Kek::from_bytes(&[2; KEY_LEN])
            .seal_newest(&["place"], b"text")
            .unwrap();
        let opening = tokio::spawn(async move { kek.open(&["place"], &sealed) });
        asking.recv().await.unwrap();
        tokio::spawn(async move { answers.send(()) })
            .await
            .unwrap()
            .unwrap();
        assert_eq!(opening.await.unwrap().unwrap().as_slice(), b"text");
    }

    #[test]
    fn hex_and_base64_are_read_other_text_is_not() {
        assert!(decode(&"ab".repeat(32)).is_some());
        assert!(decode("q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=").is_some());
        assert!(decode("q6urq6s=").is_none());
        assert!(decode("password").is_none());
    }
}

//! What a decision is made from, and what it is. Nothing here does anything.

use std::{collections::BTreeMap, sync::Arc};

use cryptvol_crds::{
    EncryptedVolume, KeyService, NodeVolume,
    conditions::Reason,
    v1alpha1::{Activation, EncryptedVolumeStatus, Encryption, HeaderBackup},
};
use k8s_openapi::jiff::Timestamp;

use super::{quota::Usage, second_copy::SecondCopy};
use crate::keymanager::{KeyError, KeyInfo, limits::Limits};

/// Why something cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The word in the condition.
    pub reason: Reason,
    /// What happened, without the next step, which comes with the reason.
    pub what: String,
}

impl Problem {
    /// A problem.
    pub fn new(reason: Reason, what: impl Into<String>) -> Self {
        Self {
            reason,
            what: what.into(),
        }
    }
}

impl From<KeyError> for Problem {
    fn from(e: KeyError) -> Self {
        Self::new(e.reason(), e.to_string())
    }
}

/// What is known of the volume's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// The key manager was not asked.
    NotAsked,
    /// It was asked and something is wrong.
    Failed {
        /// Whether the login worked.
        logged_in: bool,
        /// What is wrong.
        problem: Problem,
    },
    /// It was asked and answered.
    Known {
        /// Project of the credentials.
        project_id: String,
        /// What the project may have. Nothing is limited where this was not asked: for a volume that is being deleted.
        limits: Limits,
        /// The key, if there is one.
        key: Option<KeyInfo>,
    },
}

/// What is known of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeState {
    /// Whether kubelet says that it is ready.
    pub ready: bool,
    /// Whether a person said that it is powered off.
    pub out_of_service: bool,
    /// What the agent's own check says: fit, unfit and why, or nothing because no agent has spoken there.
    pub fit: Option<Result<(), String>>,
}

/// Another volume that has the same disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOwner {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// What the key manager answered in this pass about the keys of a rotation, with the version of the key that it brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RotationKeys {
    /// The id of the new key.
    pub made: Option<(i64, Result<String, Problem>)>,
    /// Whether the former one is gone.
    pub destroyed: Option<(i64, Result<(), Problem>)>,
}

impl RotationKeys {
    /// The new key of a version, if it was asked for.
    pub fn made(&self, version: i64) -> Option<&Result<String, Problem>> {
        self.made.as_ref().filter(|m| m.0 == version).map(|m| &m.1)
    }

    /// What became of the key that a version replaces, if anything was done.
    pub fn destroyed(&self, version: i64) -> Option<&Result<(), Problem>> {
        let this = self.destroyed.as_ref().filter(|d| d.0 == version);
        this.map(|d| &d.1)
    }
}

/// A header that lies apart from its disk, as it was read back from the key manager in this pass.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderAnswer {
    /// Version of the key that it is sealed under; none where the user named the secret.
    pub version: Option<i64>,
    /// Id of the secret, and what is in it.
    pub found: Result<(String, HeaderBackup), Problem>,
}

/// A header that the key manager has under the volume's own name: the id of its secret, and what is in it; or that it has none.
pub type Unrecorded = Result<Option<(String, HeaderBackup)>, Problem>;

/// Random values, chosen outside so that a decision is a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// For a LUKS header that does not exist yet.
    pub luks_uuid: String,
    /// For a format permit.
    pub permit_id: String,
}

/// Everything that a decision about one volume is made from.
#[derive(Clone, Debug)]
pub struct World {
    /// The volume.
    pub volume: EncryptedVolume,
    /// How its sectors are encrypted, by its own spec or its class.
    pub encryption: Result<Encryption, Problem>,
    /// How its mapping is made at the next attachment, by its own spec or its class.
    pub activation: Activation,
    /// The KeyService that holds its key.
    pub key_service: Result<Arc<KeyService>, Problem>,
    /// Its key.
    pub key: KeyState,
    /// What was done in this pass with the keys of a rotation.
    pub rotation: RotationKeys,
    /// What the key manager has of its header, where that lies apart from the disk.
    pub header: Option<HeaderAnswer>,
    /// What the key manager has of a header that is not on record, where it was asked for that in this pass.
    pub unrecorded: Option<Unrecorded>,
    /// What the key manager has under names that begin with that of the volume's key, where it was asked for that in this pass.
    pub later: Option<Result<Vec<KeyInfo>, Problem>>,
    /// What is known of the header's second copy.
    pub second_copy: SecondCopy,
    /// The nodes that it has to do with; one that is missing here does not exist.
    pub nodes: BTreeMap<String, NodeState>,
    /// Its NodeVolumes.
    pub node_volumes: Vec<NodeVolume>,
    /// Whether its namespace is being deleted: nothing new can be made in it, and what is gone does not come back.
    pub namespace_goes: bool,
    /// Another volume with the same disk that came first.
    pub source_owner: Option<SourceOwner>,
    /// What the other volumes of its project have, where something is limited.
    pub used: Usage,
    /// Now.
    pub now: Timestamp,
    /// Random values.
    pub fresh: Fresh,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Put our finalizer on the volume.
    AddFinalizer,
    /// Take our finalizer from the volume: it may go.
    RemoveFinalizer,
    /// Remove an annotation that was acted upon.
    RemoveAnnotation(&'static str),
    /// Log in and look for the key.
    AskKeyManager,
    /// Have the key made.
    CreateKey,
    /// Destroy a key.
    DeleteKey(String),
    /// Have the key made that a rotation brings, of this version.
    CreateNextKey(i64),
    /// Destroy the key that a rotation has replaced.
    DestroyFormerKey {
        /// Version of the key that replaced it.
        version: i64,
        /// Its id.
        id: String,
    },
    /// Store a header that lies apart from its disk in the key manager, unless it is there, and read it back.
    KeepHeader {
        /// Version of the key that it is sealed under.
        version: i64,
        /// The header.
        record: Box<HeaderBackup>,
    },
    /// Read a header from the key manager: the one that the user named, or the second copy of one that is not on record as it was pinned.
    ReadHeader(String),
    /// Look for a header of the volume's own name in the key manager, which nothing is on record of, under this version of the key.
    FindHeader(i64),
    /// Looks for keys of later versions of the volume's name, whose record was lost.
    FindLater,
    /// Look whether a secret still is what the record of the header says.
    LookAtSecondCopy {
        /// Id of the secret.
        id: String,
        /// Id of the volume's key: where that is not there either, another thing is wrong.
        key_id: String,
        /// The header.
        record: Box<HeaderBackup>,
    },
    /// Store the header on record in the key manager once more, unless it is there.
    StoreSecondCopy {
        /// Version of the key that it is sealed under.
        version: i64,
        /// The header.
        record: Box<HeaderBackup>,
    },
    /// Write a NodeVolume.
    Apply(Box<NodeVolume>),
    /// Let a NodeVolume go: nothing of the volume is left on its node.
    Release(Box<NodeVolume>),
    /// Tell the user something that no condition shows.
    Tell {
        /// Whether it is a warning.
        warning: bool,
        /// One word.
        reason: &'static str,
        /// A sentence.
        note: String,
    },
}

/// When to look again without being told of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// All is well: only to see whether the key is still there.
    Seldom,
    /// A person must change something that we watch.
    Long,
    /// It may heal by itself, or be healed where we do not see it: soon, then less and less often.
    Backoff,
}

/// What to write and do. The order is: `first`, then the status (where it changed), then `then`.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Done before the status is written.
    pub first: Vec<Action>,
    /// The status as it should be.
    pub status: EncryptedVolumeStatus,
    /// Done once the status is written.
    pub then: Vec<Action>,
    /// When to look again.
    pub again: Again,
}

impl Decision {
    /// Whether nothing is to be done or written.
    pub fn is_idle(&self, volume: &EncryptedVolume) -> bool {
        let unchanged = match &volume.status {
            Some(old) => *old == self.status,
            None => self.status == EncryptedVolumeStatus::default(),
        };
        self.first.is_empty() && self.then.is_empty() && unchanged
    }
}

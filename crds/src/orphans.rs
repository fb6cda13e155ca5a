//! What of cryptvol's is on a node and belongs to no NodeVolume there, as the agent writes it down and the command line reads it: JSON in
//! the annotation `names::ORPHANS_ANNOTATION` of the Node. Events are gone after an hour; this stays until it is mended.

use serde::{Deserialize, Serialize};

/// Content of the annotation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Orphans {
    /// Each of them, at most [`Orphans::MOST`].
    pub orphans: Vec<Orphan>,
    /// How many more there are: an annotation has room for 256 KiB, all of a Node's together.
    #[serde(default, skip_serializing_if = "none")]
    pub more: usize,
}

impl Orphans {
    /// Most that are written down.
    pub const MOST: usize = 64;
}

// serde gives a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn none(count: &usize) -> bool {
    *count == 0
}

/// What kind of thing it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrphanKind {
    /// A mapping with our mark.
    Mapping,
    /// A map with our mark above the paths to a disk.
    Paths,
    /// A link in our directory.
    Link,
    /// An iSCSI session.
    Session,
    /// A loop device over a file in our directory.
    Loop,
}

impl OrphanKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Mapping,
        Self::Paths,
        Self::Link,
        Self::Session,
        Self::Loop,
    ];

    /// The word in metrics and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mapping => "mapping",
            Self::Paths => "paths",
            Self::Link => "link",
            Self::Session => "session",
            Self::Loop => "loop",
        }
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Orphan {
    /// What kind of thing it is.
    pub kind: OrphanKind,
    /// What tells it from the others of its kind: device-mapper name, path, session id, loop device.
    pub name: String,
    /// What it is, with all that tells it.
    pub what: String,
    /// UID of the volume that it is of, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_uid: Option<String>,
    /// Whose it probably is.
    pub whose: String,
    /// What to do, with the command.
    pub next_step: String,
    /// When the agent saw it first, RFC 3339.
    pub since: String,
}

//! What on a node is ours, or may be, whatever volume it is of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Mapping, Session};

/// All that a node has of that kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Belongings {
    /// Mappings with our mark.
    pub mappings: Vec<Mapping>,
    /// The devices below them, by major:minor; one that is gone is not there.
    pub below: BTreeMap<String, Below>,
    /// Symbolic links in our directory, with what they lead to.
    pub links: BTreeMap<String, String>,
    /// Sessions to targets that were not asked about, whoever made them.
    pub sessions: Vec<OtherSession>,
    /// Loop devices over files in our directory.
    #[serde(default)]
    pub loops: Vec<LoopDevice>,
}

/// A loop device over a file in our directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopDevice {
    /// Kernel path, for example `/dev/loop0`.
    pub path: String,
    /// Major and minor number.
    pub dev: String,
    /// The file.
    pub file: String,
    /// What uses it, as far as that can be seen; what is stacked on it by its kernel name.
    pub users: Vec<String>,
}

/// A device below a mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Below {
    /// Kernel path, for example `/dev/sda`.
    pub path: String,
    /// The session that it is of, with its target.
    pub session: Option<(String, Session)>,
}

/// A session that no volume was named for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherSession {
    /// Target.
    pub iqn: String,
    /// The session.
    pub session: Session,
    /// Whether open-iscsi has a record of the target. Its own tools log in to no target without one; we make none.
    pub recorded: bool,
    /// What uses its disks, as far as that can be seen without opening them; what is stacked on one by its kernel name.
    pub users: Vec<String>,
}

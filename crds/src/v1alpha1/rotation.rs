//! Rotation of the passphrase: what the volume's record, the hand-over and the node's report say of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{header_backup::HeaderBackup, status::LastError};

/// How far a rotation is. At each of them the key in `status.key` opens the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RotationPhase {
    /// The new key is made and gets a key slot beside the present one's.
    #[default]
    Adding,
    /// The new key is the volume's key; the key slot of the former one is wiped.
    Dropping,
    /// No key slot of the former key is left; it is destroyed in the key manager.
    Destroying,
}

/// A rotation that is under way, in the volume's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RotationStatus {
    /// How far it is.
    pub phase: RotationPhase,
    /// Version of the new key.
    pub version: i64,
    /// Id of the new key, once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// Id of the key that goes.
    pub former_key_id: String,
    /// Key slots that the key that goes was seen to open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_slots: Vec<KeySlotRef>,
    /// When it was begun.
    pub since: Time,
}

/// A key slot of a header, known again by what it was made with: its number is given to others once it is free.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeySlotRef {
    /// Number.
    pub number: i32,
    /// SHA-256 (lower-case hex) over the salt of its key derivation and the place of its area.
    pub fingerprint: String,
}

/// A part of a rotation that a node shall do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeRotation {
    /// `Adding` or `Dropping`.
    pub phase: RotationPhase,
    /// Id of the new key.
    pub key_id: String,
    /// Key slots to wipe, for `Dropping`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_slots: Vec<KeySlotRef>,
}

/// What the node did of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeRotationStatus {
    /// The phase that this speaks of.
    pub phase: RotationPhase,
    /// Id of the new key that this speaks of.
    pub key_id: String,
    /// Whether the phase is done, and was proven by opening the header as it is on the disk.
    #[serde(default)]
    pub done: bool,
    /// Key slots that the present key opens, for `Adding`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_slots: Vec<KeySlotRef>,
    /// Backup of the header under the new key, for `Adding`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_backup: Option<HeaderBackup>,
    /// Why it is not done. The volume stays attached, and the present key opens it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<LastError>,
}

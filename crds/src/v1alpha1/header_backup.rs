//! Backup of a LUKS2 header in so few bytes that it lies in the volume's record, and the order to write the header anew from it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::node_volume::HeaderFacts;

/// What a LUKS2 header can be written anew from: its facts, the digest of its volume key, and the volume key sealed under the
/// volume's passphrase. Like a key slot of the header itself it opens with that passphrase and with nothing else.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderBackup {
    /// Facts of the header.
    pub header: HeaderFacts,
    /// Digest of the volume key, as the header has it.
    pub digest: VolumeKeyDigest,
    /// Volume key under AES-256-GCM (base64, with its tag). The key of the seal comes by HKDF-SHA256 from the passphrase and from
    /// all that stands here, so that nothing of it can be changed.
    #[schemars(length(min = 1, max = 512))]
    pub sealed: String,
}

/// Facts alone: what opens with the key is not for logs.
impl std::fmt::Debug for HeaderBackup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("HeaderBackup");
        shown.field("header", &self.header).finish_non_exhaustive()
    }
}

/// The second copy of a header that lies apart from its disk, in the key manager.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderSecretStatus {
    /// Id of the secret. Its payload is a [`HeaderBackup`] as JSON.
    pub id: String,
    /// Whether this volume's operator made it (and so may destroy it).
    pub generated: bool,
}

/// Digest object of a LUKS2 header, type `pbkdf2`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeKeyDigest {
    /// Hash of PBKDF2.
    pub hash: String,
    /// Iterations of PBKDF2.
    pub iterations: i64,
    /// Salt, base64.
    pub salt: String,
    /// Digest, base64.
    pub digest: String,
}

/// A restore of the header that a person ordered, in the volume's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderRestoreStatus {
    /// Random id of the order.
    pub id: String,
    /// When it was ordered.
    pub since: Time,
}

/// The order as the node gets it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderRestore {
    /// Id of the order.
    pub id: String,
    /// What to write the header from.
    pub backup: HeaderBackup,
}

//! EncryptionClass: the equivalent of an encrypted volume type.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::encryption::{Activation, Encryption};

/// How volumes of this class are encrypted. Immutable: make a new class and use it for new volumes.
///
/// The annotation `cryptvol.dev/is-default-class: "true"` makes a class the default.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "cryptvol.dev",
    version = "v1alpha1",
    kind = "EncryptionClass",
    shortname = "encclass",
    category = "cryptvol",
    derive = "PartialEq",
    doc = "How volumes of this class are encrypted, as an encrypted volume type does in Cinder.",
    printcolumn(json_path = ".spec.encryption.provider", name = "Provider", type_ = "string"),
    printcolumn(json_path = ".spec.encryption.cipher", name = "Cipher", type_ = "string"),
    printcolumn(json_path = ".spec.encryption.keySize", name = "Key size", type_ = "integer"),
    printcolumn(json_path = ".metadata.annotations.cryptvol\\.dev/is-default-class", name = "Default", type_ = "string"),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date"),
    validation = ("!has(self.spec.encryption) || !has(self.spec.encryption.integrity) || !has(self.spec.activation) || !self.spec.activation.allowDiscards", "activation.allowDiscards cannot be had with encryption.integrity: a discarded sector has no tag and could not be read. Remove one of them"),
    validation = ("self.spec == oldSelf.spec", "the spec of an EncryptionClass is immutable: create a class with another name for new volumes"),
)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionClassSpec {
    /// How sectors are encrypted.
    #[serde(default)]
    pub encryption: Encryption,
    /// How mappings are made: queues and discards.
    #[serde(default)]
    pub activation: Activation,
    /// KeyService of the volumes of this class; where absent, the one KeyService of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub key_service_name: Option<String>,
}

//! How sectors are encrypted: the fields of a Cinder volume type's encryption spec, with their names and meanings.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which volume encryptor makes and opens the mapping. The names are Cinder's; `luks` means LUKS1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// LUKS version 2.
    #[default]
    Luks2,
    /// LUKS version 1.
    Luks,
    /// dm-crypt without a header.
    Plain,
}

/// Where encryption happens. Only `front-end`, on the hypervisor node, keeps array and network blind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ControlLocation {
    /// On the hypervisor node.
    #[default]
    FrontEnd,
    /// In the array.
    BackEnd,
}

/// How sectors are encrypted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.provider == 'luks2'", "encryption providers luks (LUKS1) and plain are not implemented in this version: use luks2"),
    validation = ("self.controlLocation == 'front-end'", "controlLocation must be front-end: cryptvol encrypts on the node, back-end would leave plaintext on the network"),
)]
pub struct Encryption {
    /// Volume encryptor.
    #[serde(default)]
    pub provider: Provider,
    /// Cipher in dm-crypt's `cipher-chainmode-ivgen` form.
    #[serde(default = "Encryption::default_cipher")]
    #[x_kube(validation = ("self in ['aes-xts-plain64']", "cipher must be aes-xts-plain64"))]
    #[schemars(length(max = 64))]
    pub cipher: String,
    /// Size of the volume key in bits: 512 is AES-256 in XTS mode, 256 is AES-128.
    #[serde(default = "Encryption::default_key_size")]
    #[x_kube(validation = ("self in [256, 512]", "keySize must be 512 (AES-256 in XTS mode) or 256 (AES-128)"))]
    pub key_size: i32,
    /// Encryption sector in bytes, fixed when the header is written. 4096 changes the logical block size that a guest sees.
    #[serde(default = "Encryption::default_sector_size")]
    #[x_kube(validation = ("self in [512, 4096]", "sectorSize must be 512 or 4096 bytes"))]
    pub sector_size: i32,
    /// Where encryption happens.
    #[serde(default)]
    pub control_location: ControlLocation,
}

impl Encryption {
    fn default_cipher() -> String {
        "aes-xts-plain64".to_owned()
    }

    fn default_key_size() -> i32 {
        512
    }

    fn default_sector_size() -> i32 {
        512
    }
}

impl Default for Encryption {
    fn default() -> Self {
        Self {
            provider: Provider::default(),
            cipher: Self::default_cipher(),
            key_size: Self::default_key_size(),
            sector_size: Self::default_sector_size(),
            control_location: ControlLocation::default(),
        }
    }
}

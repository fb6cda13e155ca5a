//! How sectors are encrypted: the fields of a Cinder volume type's encryption spec, with their names and meanings.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which volume encryptor makes and opens the mapping. The names are Cinder's; `luks` means LUKS1, `none` is what Cinder
/// writes as no provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// LUKS version 2.
    #[default]
    Luks2,
    /// LUKS version 1.
    Luks,
    /// dm-crypt without a header. A wrong key cannot be noticed, and nothing on the disk says whose it is.
    Plain,
    /// No encryption: the data is written as it is, under the same link and with the same life.
    #[serde(rename = "none")]
    PassThrough,
}

impl Provider {
    /// Whether there is a header that says which key opens the volume, on the disk or apart from it.
    pub fn has_header(self) -> bool {
        match self {
            Self::Luks2 | Self::Luks => true,
            Self::Plain | Self::PassThrough => false,
        }
    }

    /// Whether what lies on the disk is ciphertext. Without that there is no key, and no key service is asked.
    pub fn encrypts(self) -> bool {
        self != Self::PassThrough
    }

    /// The word in a spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Luks2 => "luks2",
            Self::Luks => "luks",
            Self::Plain => "plain",
            Self::PassThrough => "none",
        }
    }
}

/// How plain dm-crypt makes its key from the passphrase. A header says it; without one it must be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlainHash {
    /// What cryptsetup does since 2.7.
    #[default]
    Sha256,
    /// What cryptsetup did before 2.7: for plain volumes that os-brick made with it.
    Ripemd160,
}

/// How sectors are authenticated. The words are cryptsetup's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Integrity {
    /// HMAC with SHA-256, a tag of 32 bytes a sector.
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
}

impl Integrity {
    /// Bytes of its key, which is the last part of the volume key.
    pub fn key_bytes(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
        }
    }

    /// Bytes of a sector's tag.
    pub fn tag_bytes(self) -> u64 {
        match self {
            Self::HmacSha256 => 32,
        }
    }

    /// The word in a spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
        }
    }

    /// Its name in the kernel's crypto API, and in a LUKS2 header.
    pub fn kernel_name(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac(sha256)",
        }
    }
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
    validation = ("!self.detachedHeader || self.provider == 'luks2'", "detachedHeader is for provider luks2 alone: provider plain has no header, and LUKS1 is for volumes that others made"),
    validation = ("!self.detachedHeader || !has(self.integrity)", "detachedHeader cannot be had with integrity: the tags of authenticated sectors have their own header on the disk, which the array could forge; remove one of them"),
    validation = ("!self.detachedHeader || self.headerBackup", "headerBackup false cannot be had with detachedHeader: what would be the backup is the header itself; remove headerBackup"),
    validation = ("self.provider != 'luks' || self.sectorSize == 512", "provider luks (LUKS1) knows no sectors but of 512 bytes: use luks2 for sectorSize 4096"),
    validation = ("!has(self.hash) || self.provider == 'plain'", "hash is for provider plain alone: LUKS headers say how their key is made"),
    validation = ("!has(self.integrity) || self.provider == 'luks2'", "integrity is for provider luks2 alone: no other header says how the tags are laid out"),
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
    /// Keep the LUKS2 header apart from the data: sealed under the volume's key in `status.headerBackup` and in a second secret of
    /// the key manager. The disk holds nothing but ciphertext, and is known by its WWID.
    #[serde(default)]
    pub detached_header: bool,
    /// Keep a backup of each LUKS2 header in its volume's `status.headerBackup`, sealed under the volume's key.
    #[serde(default = "Encryption::default_header_backup")]
    pub header_backup: bool,
    /// Authenticate sectors (dm-integrity below dm-crypt): what the array changes gives a read error instead of noise. The whole
    /// disk is written once before the volume can be used, and it cannot grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub integrity: Option<Integrity>,
    /// For provider `plain`: how the key is made from the passphrase; `sha256` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<PlainHash>,
}

/// How a mapping is made each time. Kept here and never on the disk: what lies there can be written by the array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Activation {
    /// Pass discards (TRIM, UNMAP) on to the array, so that a thin volume shrinks. Shows the array which blocks are free.
    #[serde(default)]
    pub allow_discards: bool,
    /// Decrypt where the read completes instead of in a work queue: less latency on fast local disks.
    #[serde(default)]
    pub no_read_workqueue: bool,
    /// Encrypt where the write is submitted instead of in a work queue.
    #[serde(default)]
    pub no_write_workqueue: bool,
    /// Encrypt on the CPU that submitted the request.
    #[serde(default)]
    pub same_cpu_crypt: bool,
    /// Submit from the CPUs that encrypt instead of from one thread that sorts.
    #[serde(default)]
    pub submit_from_crypt_cpus: bool,
    /// Let the work queues go before others (Linux 6.10 and newer; a node without it says so).
    #[serde(default)]
    pub high_priority: bool,
}

impl Activation {
    /// All options.
    pub const OPTIONS: [&str; 6] = [
        "allow_discards",
        "same_cpu_crypt",
        "submit_from_crypt_cpus",
        "no_read_workqueue",
        "no_write_workqueue",
        "high_priority",
    ];

    /// The options of dm-crypt's table, in the order in which the kernel shows them.
    pub fn options(&self) -> Vec<&'static str> {
        let set = [
            self.allow_discards,
            self.same_cpu_crypt,
            self.submit_from_crypt_cpus,
            self.no_read_workqueue,
            self.no_write_workqueue,
            self.high_priority,
        ];
        let pairs = Self::OPTIONS.into_iter().zip(set);
        pairs
            .filter_map(|(word, set)| set.then_some(word))
            .collect()
    }
}

impl Encryption {
    /// Whether a header on the disk says what it is and which key opens it.
    pub fn has_header_on_disk(&self) -> bool {
        self.provider.has_header() && !self.detached_header
    }

    fn default_cipher() -> String {
        "aes-xts-plain64".to_owned()
    }

    fn default_key_size() -> i32 {
        512
    }

    fn default_sector_size() -> i32 {
        512
    }

    fn default_header_backup() -> bool {
        true
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
            detached_header: false,
            header_backup: true,
            integrity: None,
            hash: None,
        }
    }
}

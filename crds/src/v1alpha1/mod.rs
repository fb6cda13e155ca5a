//! `cryptvol.dev/v1alpha1`, one file a kind; what several kinds share has a file of its own.

pub mod encrypted_volume;
pub mod encryption;
pub mod encryption_class;
pub mod header_backup;
pub mod key_service;
pub mod node_volume;
pub mod rotation;
pub mod source;
pub mod status;

pub use encrypted_volume::{
    Access, Attachment, AttachmentStatus, Credentials, DeletionPolicy, EncryptedVolume,
    EncryptedVolumeSpec, EncryptedVolumeStatus, FormatPermitStatus, FormatPolicy, GeneratedKey,
    KeyReferenceStatus, KeySource, Link, PermitState, Rotation,
};
pub use encryption::{Activation, ControlLocation, Encryption, Integrity, PlainHash, Provider};
pub use encryption_class::{EncryptionClass, EncryptionClassSpec};
pub use header_backup::{
    HeaderBackup, HeaderRestore, HeaderRestoreStatus, HeaderSecretStatus, VolumeKeyDigest,
};
pub use key_service::{
    Backend, Interface, KeyService, KeyServiceSpec, KeyServiceStatus, QuotaStatus, Tenancy,
};
pub use node_volume::{
    Desired, DeviceStatus, DiscoveryStatus, EraseReceipt, FormatPermit, HeaderFacts,
    IntegrityFacts, MappingStatus, NodeDevice, NodeFile, NodeIscsi, NodeSource, NodeVolume,
    NodeVolumeSpec, NodeVolumeStatus, PathStatus, PermitReceipt, ProofStatus, Stage, VolumeRef,
};
pub use rotation::{KeySlotRef, NodeRotation, NodeRotationStatus, RotationPhase, RotationStatus};
pub use source::{DeviceSource, EphemeralSource, FileSource, IscsiSource, SecretName, Source};
pub use status::LastError;

/// API group of every kind.
pub const GROUP: &str = "cryptvol.dev";
/// Version of every kind in this module.
pub const VERSION: &str = "v1alpha1";

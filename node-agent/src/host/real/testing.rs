//! Devices and orders for tests of this module: plain files, no device-mapper.

use cryptvol_crds::v1alpha1::{Encryption, Provider};

use super::disk::Disk;
use crate::host::{FormatOrder, Passphrase};

/// A sparse file of this size; gone with the first part of the pair.
pub fn device(size: u64) -> (tempfile::NamedTempFile, Disk) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    let disk = Disk::plain_file(file.path()).unwrap();
    (file, disk)
}

/// An order for a header as the default class makes it.
pub fn order() -> FormatOrder {
    FormatOrder {
        luks_uuid: "0f6e6f0a-5a7c-4c0e-9a55-0c5a2f0d4e11".into(),
        encryption: Encryption::default(),
        passphrase: Passphrase("7".repeat(64)),
        mapping_name: "cryptvol-test".into(),
        mapping_uuid: "CRYPTVOL-test".into(),
        over_torn: false,
    }
}

/// The same for LUKS1.
pub fn order_luks1() -> FormatOrder {
    let mut order = order();
    order.encryption.provider = Provider::Luks;
    order
}

/// Writes bytes somewhere.
pub fn rewrite(disk: &Disk, at: u64, bytes: &[u8]) {
    disk.write(at, bytes).unwrap();
}

use super::*;
use crate::host::real::testing::{device, order, rewrite};

const SIZE: u64 = 64 << 20;

struct Volume {
    path: tempfile::NamedTempFile,
    disk: Disk,
    backup: HeaderBackup,
    restore: RestoreOrder,
    key: Vec<u8>,
}

/// A disk with a header, bytes where data is, and a backup.
fn volume(sector_size: i32) -> Volume {
    let (path, disk) = device(SIZE);
    let mut format = order();
    format.encryption.sector_size = sector_size;
    let facts = luks::format(&disk, &format).unwrap().facts;
    rewrite(&disk, 16 << 20, &[7; 4096]);
    let luks = header::read_luks(&disk).unwrap().unwrap();
    let key = luks::unlock(&disk, &luks, &format.passphrase).unwrap();
    let order = BackupOrder {
        derivations: vec![],
        expected: facts.clone(),
        unlock_memory_kib: 0,
        passphrase: format.passphrase.clone(),
    };
    let backup = make(&disk, &order).unwrap();
    assert_eq!(make(&disk, &order).unwrap(), backup, "the same each time");
    let restore = RestoreOrder {
        derivations: vec![],
        expected: facts,
        backup: backup.clone(),
        passphrase: format.passphrase,
    };
    let key = key.bytes().to_vec();
    Volume {
        path,
        disk,
        backup,
        restore,
        key,
    }
}

impl Volume {
    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path.path()).unwrap()
    }

    fn assert_restored(&self) {
        let luks = pinned_header(&self.disk, &self.restore.expected, &[]).unwrap();
        let key = luks::unlock(&self.disk, &luks, &self.restore.passphrase).unwrap();
        assert_eq!(key.bytes(), self.key);
        assert_eq!(self.bytes()[16 << 20..(16 << 20) + 4096], [7; 4096]);
    }
}

#[test]
fn a_zeroed_header_of_authenticated_sectors_is_written_anew() {
    use crate::host::real::integrity::tests::made_by_kernel;
    let (path, disk) = device(128 << 20);
    rewrite(&disk, 16 << 20, &made_by_kernel(4096));
    let mut format = order();
    format.encryption.sector_size = 4096;
    format.encryption.integrity = Some(cryptvol_crds::v1alpha1::Integrity::HmacSha256);
    let facts = luks::format(&disk, &format).unwrap().facts;
    let luks = header::read_luks(&disk).unwrap().unwrap();
    let key = luks::unlock(&disk, &luks, &format.passphrase).unwrap();
    let backup = make(
        &disk,
        &BackupOrder {
            derivations: vec![],
            expected: facts.clone(),
            unlock_memory_kib: 0,
            passphrase: format.passphrase.clone(),
        },
    )
    .unwrap();
    rewrite(&disk, 0, &vec![0; 1 << 20]);
    let order = RestoreOrder {
        derivations: vec![],
        expected: facts.clone(),
        backup,
        passphrase: format.passphrase.clone(),
    };
    restore(&disk, &order).unwrap();
    let luks = pinned_header(&disk, &facts, &[]).unwrap();
    let again = luks::unlock(&disk, &luks, &format.passphrase).unwrap();
    assert_eq!((again.bytes(), again.bytes().len()), (key.bytes(), 96));
    // With what stands behind the header gone, too, there is nothing to which it could be restored.
    rewrite(&disk, 0, &vec![0; (16 << 20) + 4096]);
    let before = std::fs::read(path.path()).unwrap();
    let error = restore(&disk, &order).unwrap_err();
    assert!(error.message.contains("dm-integrity"), "{error}");
    assert!(before == std::fs::read(path.path()).unwrap(), "written");
}

#[test]
fn a_zeroed_header_is_written_anew() {
    for sector_size in [512, 4096] {
        let v = volume(sector_size);
        let text = serde_json::to_string(&v.backup).unwrap();
        assert!(text.len() < 1024, "{}", text.len());
        let before = v.bytes();
        restore(&v.disk, &v.restore).unwrap();
        assert!(before == v.bytes(), "a header that opens is left alone");
        for damage in [vec![0; 16 << 20], vec![0x55; 16 << 20], vec![0; 300 << 10]] {
            rewrite(&v.disk, 0, &damage);
            restore(&v.disk, &v.restore).unwrap();
            v.assert_restored();
        }
        // Both copies are good, and only the key slot is gone.
        rewrite(&v.disk, 0x8000, &vec![0; 258_048]);
        restore(&v.disk, &v.restore).unwrap();
        v.assert_restored();
    }
}

#[test]
fn a_restore_that_is_cut_anywhere_is_done_by_the_next() {
    let mut writes = 0;
    loop {
        let v = volume(512);
        rewrite(&v.disk, 0, &vec![0; 16 << 20]);
        v.disk.cut_after(writes);
        let cut = restore(&v.disk, &v.restore).is_err();
        v.disk.cut_after(u32::MAX);
        restore(&v.disk, &v.restore).unwrap();
        v.assert_restored();
        if !cut {
            break;
        }
        writes += 1;
    }
    assert!(writes >= 4, "{writes}");
}

#[test]
fn what_is_not_this_volumes_backup_or_disk_writes_nothing() {
    let other = volume(512);
    let refused = |change: &dyn Fn(&mut RestoreOrder), reason| {
        let v = volume(512);
        rewrite(&v.disk, 0, &vec![0; 16 << 20]);
        let before = v.bytes();
        let mut order = v.restore.clone();
        change(&mut order);
        assert_eq!(restore(&v.disk, &order).unwrap_err().reason(), reason);
        assert!(before == v.bytes(), "{reason}");
    };
    let invalid = Reason::HeaderBackupInvalid;
    refused(&|o| o.backup = other.backup.clone(), invalid);
    refused(&|o| o.passphrase = Passphrase("8".repeat(64)), invalid);
    refused(&|o| o.backup.sealed.replace_range(..1, "?"), invalid);
    refused(&|o| o.backup.sealed = other.backup.sealed.clone(), invalid);
    refused(&|o| o.backup.header.data_offset += 4096, invalid);
    refused(&|o| o.backup.digest.iterations += 1, invalid);
    refused(&|o| o.backup.digest = other.backup.digest.clone(), invalid);
    refused(
        &|o| o.passphrase = Passphrase("weak".into()),
        Reason::HeaderBackupUnsupported,
    );
    // A whole header that is another one: of another volume, or of this UUID with another volume key.
    for (uuid, reason) in [
        (
            "5a2a5f3a-0000-4000-8000-000000000000",
            Reason::ForeignSignature,
        ),
        (order().luks_uuid.as_str(), Reason::HeaderMismatch),
    ] {
        let v = volume(512);
        rewrite(&v.disk, 0, &vec![0; 17 << 20]);
        let mut format = order();
        format.luks_uuid = uuid.into();
        luks::format(&v.disk, &format).unwrap();
        let before = v.bytes();
        assert_eq!(restore(&v.disk, &v.restore).unwrap_err().reason(), reason);
        assert!(before == v.bytes(), "{reason}");
    }
}

#[test]
fn a_passphrase_that_can_be_guessed_seals_nothing() {
    let (_path, disk) = device(SIZE);
    let mut format = order();
    format.passphrase = Passphrase("correct horse battery staple".into());
    let facts = luks::format(&disk, &format).unwrap().facts;
    let order = BackupOrder {
        derivations: vec![],
        expected: facts,
        unlock_memory_kib: 0,
        passphrase: format.passphrase,
    };
    let error = make(&disk, &order).unwrap_err();
    assert_eq!(error.reason(), Reason::HeaderBackupUnsupported);
}

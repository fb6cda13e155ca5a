use super::*;
use crate::host::real::testing::order;

fn passphrase(digit: &str) -> Passphrase {
    Passphrase(digit.repeat(64))
}

fn made(sector_size: i32) -> HeaderBackup {
    let mut order = order();
    order.encryption.detached_header = true;
    order.encryption.sector_size = sector_size;
    record(&RecordOrder::Make(order)).unwrap()
}

fn key(record: &HeaderBackup, passphrase: &Passphrase) -> Vec<u8> {
    let key = open(record, &record.header, passphrase).unwrap();
    key.bytes().to_vec()
}

fn reason(result: Result<VolumeKey, StepError>) -> Reason {
    match result {
        Ok(_) => panic!("it opens"),
        Err(e) => e.reason(),
    }
}

#[test]
fn each_header_has_a_volume_key_of_its_own_and_opens_with_its_passphrase_alone() {
    for sector_size in [512, 4096] {
        let (one, other) = (made(sector_size), made(sector_size));
        assert_eq!(one.header.data_offset, 0);
        assert_eq!(one.header.sector_size, sector_size);
        assert!(one.header.is_detached() && one.header.digest != other.header.digest);
        let right = passphrase("7");
        assert_eq!(key(&one, &right).len(), 64);
        assert_ne!(key(&one, &right), key(&other, &right));
        let wrong = open(&one, &one.header, &passphrase("8"));
        assert_eq!(reason(wrong), Reason::HeaderRecordUnusable);
        let pinned = open(&one, &other.header, &right);
        assert_eq!(reason(pinned), Reason::HeaderRecordUnusable);
        let text = serde_json::to_string(&one).unwrap();
        assert!(text.len() < 1024, "{}", text.len());
    }
}

#[test]
fn nothing_in_it_can_be_changed() {
    let right = passphrase("7");
    let changes: [fn(&mut HeaderBackup); 6] = [
        |r| r.header.luks_uuid = "5a2a5f3a-0000-4000-8000-000000000000".into(),
        |r| r.header.cipher = "cipher_null-ecb".into(),
        |r| r.header.sector_size = 4096,
        |r| r.header.data_offset = 16 << 20,
        |r| r.digest.iterations += 1,
        |r| r.sealed.replace_range(..4, "AAAA"),
    ];
    for (n, change) in changes.iter().enumerate() {
        let mut record = made(512);
        change(&mut record);
        // As if it had been pinned like that.
        let facts = record.header.clone();
        let opened = open(&record, &facts, &right);
        assert_eq!(reason(opened), Reason::HeaderRecordUnusable, "{n}");
    }
}

#[test]
fn sealed_anew_it_opens_with_the_new_passphrase_alone_and_holds_the_same_key() {
    let (old, next) = (passphrase("7"), passphrase("9"));
    let before = made(512);
    let order = RecordOrder::Reseal {
        record: Box::new(before.clone()),
        passphrase: old.clone(),
        next: next.clone(),
    };
    let after = record(&order).unwrap();
    assert_eq!(record(&order).unwrap(), after, "the same each time");
    assert_eq!(after.header, before.header);
    assert_eq!(key(&after, &next), key(&before, &old));
    assert!(open(&after, &after.header, &old).is_err());
    let prove = |record: &HeaderBackup, passphrase: &Passphrase| RecordOrder::Prove {
        record: Box::new(record.clone()),
        passphrase: passphrase.clone(),
    };
    assert_eq!(record(&prove(&after, &next)).unwrap(), after);
    assert!(record(&prove(&after, &old)).is_err());
}

#[test]
fn what_can_be_guessed_seals_nothing() {
    let mut weak = order();
    weak.passphrase = Passphrase("correct horse".into());
    let refused = record(&RecordOrder::Make(weak)).unwrap_err();
    assert_eq!(refused.reason(), Reason::HeaderBackupUnsupported);
}

#[test]
fn the_file_for_cryptsetup_has_data_from_byte_0_and_opens_to_the_same_key() {
    let (right, made) = (passphrase("7"), made(4096));
    let file = tempfile::NamedTempFile::new().unwrap();
    write_file(&made, &right, file.as_file()).unwrap();
    assert_eq!(file.as_file().metadata().unwrap().len(), ROOM);
    // libcryptsetup reads the file itself, with the metadata that says where data begins.
    let mut head = vec![0; header::USUAL_HEADER as usize];
    file.as_file().read_exact_at(&mut head, 0).unwrap();
    let text = String::from_utf8_lossy(&head);
    assert!(text.contains(r#""offset":"0""#), "{text}");
    let mut device = libcryptsetup_rs::CryptInit::init(file.path()).unwrap();
    let format = libcryptsetup_rs::consts::vals::EncryptionFormat::Luks2;
    device
        .context_handle()
        .load::<()>(Some(format), None)
        .unwrap();
    let mut found = libcryptsetup_rs::SafeMemHandle::alloc(64).unwrap();
    device
        .volume_key_handle()
        .get(None, found.as_mut(), Some(right.0.as_bytes()))
        .unwrap();
    assert_eq!(found.as_ref(), key(&made, &right));
}

use super::*;
use crate::host::real::{
    disk::is_zero,
    testing::{device, order},
};

fn next() -> Passphrase {
    Passphrase("8".repeat(64))
}

fn add_order(disk: &Disk) -> AddSlotOrder {
    AddSlotOrder {
        derivations: vec![],
        expected: header::read_luks(disk).unwrap().unwrap().header.facts,
        passphrase: order().passphrase,
        next: next(),
    }
}

fn drop_order(disk: &Disk, former: Vec<KeySlotRef>) -> DropSlotsOrder {
    DropSlotsOrder {
        derivations: vec![],
        expected: header::read_luks(disk).unwrap().unwrap().header.facts,
        passphrase: next(),
        former,
    }
}

#[test]
fn the_key_of_authenticated_sectors_keeps_both_its_parts() {
    use crate::host::real::integrity::tests::made_by_kernel;
    let (_path, disk) = device(128 << 20);
    disk.write(16 << 20, &made_by_kernel(512)).unwrap();
    let mut first = order();
    first.encryption.integrity = Some(cryptvol_crds::v1alpha1::Integrity::HmacSha256);
    luks::format(&disk, &first).unwrap();
    let key = opened(&disk, &first.passphrase).unwrap();
    assert_eq!(key.len(), 96);
    let former = add(&disk, &add_order(&disk)).unwrap();
    assert_eq!(opened(&disk, &next()).as_ref(), Some(&key));
    drop_slots(&disk, &drop_order(&disk, former)).unwrap();
    assert_eq!(opened(&disk, &first.passphrase), None);
    assert_eq!(opened(&disk, &next()).as_ref(), Some(&key));
}

/// The volume key, by a passphrase, from the disk as it is.
fn opened(disk: &Disk, passphrase: &Passphrase) -> Option<Vec<u8>> {
    let luks = header::read_luks(disk).unwrap().unwrap();
    assert_eq!(luks.header.objections, Vec::<String>::new());
    match luks::unlock(disk, &luks, passphrase) {
        Ok(key) => Some(key.bytes().to_vec()),
        Err(e) => {
            assert_eq!(e.reason(), Reason::KeyDoesNotOpen, "{e}");
            None
        }
    }
}

#[test]
fn invariant_08_a_key_slot_more_and_the_former_one_gone() {
    let (path, disk) = device(64 << 20);
    luks::format(&disk, &order()).unwrap();
    let key = opened(&disk, &order().passphrase).unwrap();
    let former = add(&disk, &add_order(&disk)).unwrap();
    assert_eq!(former.len(), 1);
    assert_eq!(opened(&disk, &order().passphrase).as_ref(), Some(&key));
    assert_eq!(opened(&disk, &next()).as_ref(), Some(&key));
    // A second time: nothing changes.
    let before = std::fs::read(path.path()).unwrap();
    assert_eq!(add(&disk, &add_order(&disk)).unwrap(), former);
    assert!(before == std::fs::read(path.path()).unwrap());

    let area = header::read_luks(&disk).unwrap().unwrap().slots[0]
        .area
        .clone();
    drop_slots(&disk, &drop_order(&disk, former.clone())).unwrap();
    assert_eq!(opened(&disk, &order().passphrase), None);
    assert_eq!(opened(&disk, &next()).as_ref(), Some(&key));
    let bytes = std::fs::read(path.path()).unwrap();
    assert!(is_zero(&bytes[area.start as usize..area.end as usize]));
    drop_slots(&disk, &drop_order(&disk, former)).unwrap();
    assert!(bytes == std::fs::read(path.path()).unwrap());

    // Twice more: numbers and areas are used again, and the tools of others agree.
    let third = Passphrase("9".repeat(64));
    let order = AddSlotOrder {
        derivations: vec![],
        expected: add_order(&disk).expected,
        passphrase: next(),
        next: third.clone(),
    };
    let former = add(&disk, &order).unwrap();
    let order = DropSlotsOrder {
        derivations: vec![],
        passphrase: third.clone(),
        ..drop_order(&disk, former)
    };
    drop_slots(&disk, &order).unwrap();
    assert_eq!(opened(&disk, &third).as_ref(), Some(&key));
    let mut other = libcryptsetup_rs::CryptInit::init(path.path()).unwrap();
    other
        .context_handle()
        .load::<()>(Some(EncryptionFormat::Luks2), None)
        .unwrap();
    let mut theirs = vec![0; 64];
    other
        .volume_key_handle()
        .get(None, &mut theirs, Some(third.0.as_bytes()))
        .unwrap();
    assert_eq!(theirs, key);
}

/// Cuts a change off in the middle of each of its writes, checks, and lets it be done again.
fn cut_off_at_every_write(
    prepare: impl Fn(&Disk),
    change: impl Fn(&Disk) -> Result<(), StepError>,
    check: impl Fn(&Disk),
    done: impl Fn(&Disk),
) {
    for writes in 0..100 {
        let (_path, disk) = device(64 << 20);
        prepare(&disk);
        disk.cut_after(writes);
        let result = change(&disk);
        disk.cut_after(u32::MAX);
        check(&disk);
        change(&disk).unwrap();
        check(&disk);
        done(&disk);
        if result.is_ok() {
            assert!(writes > 2, "only {writes} writes");
            return;
        }
    }
    panic!("no end");
}

#[test]
fn invariant_08_adding_cut_off_in_any_write_leaves_the_present_key_opening() {
    cut_off_at_every_write(
        |disk| drop(luks::format(disk, &order()).unwrap()),
        |disk| add(disk, &add_order(disk)).map(drop),
        |disk| assert!(opened(disk, &order().passphrase).is_some()),
        |disk| {
            assert!(opened(disk, &next()).is_some());
            let luks = header::read_luks(disk).unwrap().unwrap();
            assert_eq!(luks.slots.len(), 2);
            assert!(!is_zero(&luks.bytes[luks.copy_size()..]), "two like copies");
        },
    );
}

#[test]
fn invariant_08_dropping_cut_off_in_any_write_leaves_the_new_key_opening() {
    let former = std::cell::RefCell::new(vec![]);
    cut_off_at_every_write(
        |disk| {
            luks::format(disk, &order()).unwrap();
            *former.borrow_mut() = add(disk, &add_order(disk)).unwrap();
        },
        |disk| drop_slots(disk, &drop_order(disk, former.borrow().clone())),
        |disk| assert!(opened(disk, &next()).is_some()),
        |disk| {
            assert!(opened(disk, &order().passphrase).is_none());
            let luks = header::read_luks(disk).unwrap().unwrap();
            assert_eq!(luks.slots.len(), 1);
            assert!(!is_zero(&luks.bytes[luks.copy_size()..]), "two like copies");
        },
    );
}

#[test]
fn what_would_leave_no_key_is_refused_and_nothing_is_written() {
    let (path, disk) = device(64 << 20);
    luks::format(&disk, &order()).unwrap();
    let former = add(&disk, &add_order(&disk)).unwrap();
    let before = std::fs::read(path.path()).unwrap();
    let wrong = Passphrase("0".repeat(64));
    let refused = |result: Result<(), StepError>, reason| {
        assert_eq!(result.unwrap_err().reason(), reason);
        assert!(before == std::fs::read(path.path()).unwrap());
    };
    // The key that stays opens nothing, or only what goes.
    for passphrase in [wrong.clone(), order().passphrase] {
        let order = DropSlotsOrder {
            derivations: vec![],
            passphrase,
            ..drop_order(&disk, former.clone())
        };
        refused(drop_slots(&disk, &order), Reason::KeyDoesNotOpen);
    }
    // The present key opens nothing; the new key is the present one.
    let mut order = AddSlotOrder {
        derivations: vec![],
        passphrase: wrong,
        ..add_order(&disk)
    };
    refused(add(&disk, &order).map(drop), Reason::KeyDoesNotOpen);
    order = add_order(&disk);
    order.next = order.passphrase.clone();
    refused(add(&disk, &order).map(drop), Reason::StepFailed);
    // Another header than the one that is pinned.
    order = add_order(&disk);
    order.expected.digest = "another".into();
    refused(add(&disk, &order).map(drop), Reason::HeaderMismatch);
}

#[test]
fn invariant_06_a_key_slot_that_we_did_not_make_is_not_dropped() {
    let (path, disk) = device(64 << 20);
    luks::format(&disk, &order()).unwrap();
    let former = add(&disk, &add_order(&disk)).unwrap();
    // Somebody removes ours and puts his own under its number.
    let mut other = libcryptsetup_rs::CryptInit::init(path.path()).unwrap();
    other
        .context_handle()
        .load::<()>(Some(EncryptionFormat::Luks2), None)
        .unwrap();
    other
        .settings_handle()
        .set_pbkdf_type(&luks::pbkdf())
        .unwrap();
    other.keyslot_handle().destroy(0).unwrap();
    let added = other
        .keyslot_handle()
        .add_by_passphrase(Some(0), next().0.as_bytes(), b"his own")
        .unwrap();
    assert_eq!(added, 0);
    drop(other);
    drop_slots(&disk, &drop_order(&disk, former)).unwrap();
    assert!(opened(&disk, &Passphrase("his own".into())).is_some());
}

#[test]
fn a_header_without_room_says_so() {
    let (_path, disk) = device(64 << 20);
    luks::format(&disk, &order()).unwrap();
    let mut order = add_order(&disk);
    let error = loop {
        match add(&disk, &order) {
            Ok(_) => {
                let number = header::read_luks(&disk).unwrap().unwrap().slots.len();
                assert!(number <= MAX_SLOTS);
                order.next = Passphrase(format!("{number:064}"));
            }
            Err(e) => break e,
        }
    };
    assert_eq!(error.reason(), Reason::NoFreeKeySlot);
    assert!(opened(&disk, &order.passphrase).is_some());
}

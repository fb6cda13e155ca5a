//! One path to a LUN: there, back, for good; with CHAP, by a name of udev's, and over disks that went.

use super::*;
use crate::host::TargetChap;

pub(super) const WAYS: &[Way] = &[
    formats("first attach", || Lab::new(1)),
    up("attach", reattach),
    down("detach", attached_with_data),
    erase("erase attached", attached_with_data),
    erase("erase detached", || detached(attached_with_data())),
    up("import", import),
    up("restore the header", || {
        overwritten(detached(attached_with_data()), Content::Garbage)
    }),
    formats("first attach, CHAP", chap),
    up("attach, CHAP", || detached(written(chap()))),
    down("detach, CHAP", || written(chap())),
    erase("erase detached, CHAP", || detached(written(chap()))),
    formats("first attach by name", first_attach_by_name),
    down("detach by name", attached_by_name),
    erase("erase by name", deleted_by_name),
    up("make a zombie anew", zombie),
    down("take a zombie down", zombie),
    up("find a disk anew that is off line", offline),
];

/// Attached once before, detached now.
pub(in super::super) fn reattach() -> Lab {
    let lab = Lab::new(1);
    lab.settle(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab
}

/// Both prove themselves at the login.
pub(super) fn chap() -> Lab {
    let lab = Lab::new(1);
    with_chap(&lab);
    lab
}

pub(super) fn with_chap(lab: &Lab) {
    let own = ("array".to_owned(), "proof-of-target".to_owned());
    *lab.target_chap.borrow_mut() = Some(TargetChap {
        username: own.0.clone(),
        password: own.1.clone(),
    });
    lab.target(|t| {
        t.chap = Some((CHAP.0.to_owned(), CHAP.1.to_owned()));
        t.own_chap = Some(own);
    });
    lab.change(1, |s| s.source.iscsi.as_mut().unwrap().chap = true);
}

/// A disk that somebody else made, to be imported.
fn import() -> Lab {
    let lab = Lab::new(1);
    lab.disk(1, |d| {
        d.content = Content::Luks(SimHeader::new(&luks_uuid(42), KEY));
    });
    lab.change(1, |s| (s.luks_uuid, s.format_permit) = (None, None));
    lab
}

/// Attached, and the disk went from the kernel below the mapping.
fn zombie() -> Lab {
    let lab = attached_with_data();
    lab.world.borrow_mut().kernel.devices.clear();
    lab
}

/// Attached, and the kernel took the disk off line.
fn offline() -> Lab {
    let lab = attached_with_data();
    lab.world.borrow_mut().kernel.devices[0].state = "offline".into();
    lab
}

/// As a first attach, with a name of udev's that leads to the mapping.
fn first_attach_by_name() -> Lab {
    let lab = Lab::new(1);
    lab.change(1, |s| s.shadow = Some(by_path(IQN, 1)));
    lab
}

fn attached_by_name() -> Lab {
    let lab = first_attach_by_name();
    lab.settle(1);
    lab
}

/// The operator takes the name out of the spec when the volume is being deleted.
fn deleted_by_name() -> Lab {
    let lab = attached_by_name();
    lab.change(1, |s| s.shadow = None);
    lab
}

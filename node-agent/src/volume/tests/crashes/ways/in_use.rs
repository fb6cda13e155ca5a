//! What is ordered of a volume in use, and its proof: of each encryptor, on one path, below several, and on what is the node's own.

use super::{encryptors::*, *};

/// What is ordered of every volume that encrypts. A proof that does not hold closes it.
macro_rules! in_use {
    ($what:literal, $attached:expr) => {
        &[
            up(concat!("suspend", $what), || suspended(($attached)())),
            up(concat!("resume", $what), || resumed(($attached)())),
            down(concat!("detach suspended", $what), || {
                out_of_use(($attached)())
            }),
            erase(concat!("erase suspended", $what), || {
                out_of_use(($attached)())
            }),
            up(concat!("grow", $what), || larger(($attached)())),
            up(concat!("prove", $what), || proven(($attached)())),
            closes(
                concat!("close what is plaintext", $what),
                || plaintext(($attached)()),
                Reason::PlaintextOnDisk,
            ),
            up(concat!("reopen what was closed", $what), || {
                reopened(($attached)())
            }),
            down(concat!("detach closed", $what), || closed(($attached)())),
        ]
    };
}

/// Another key, of every volume of which a header has key slots or is sealed.
macro_rules! rotate {
    ($what:literal, $attached:expr) => {
        &[
            up(concat!("rotate", $what), || rotated(($attached)())),
            up(concat!("rotate suspended", $what), || {
                rotated_suspended(($attached)())
            }),
        ]
    };
}

pub(super) const WAYS: &[&[Way]] = &[
    in_use!("", attached_with_data),
    in_use!(", two paths", paths::with_data),
    rotate!("", attached_with_data),
    rotate!(", two paths", paths::with_data),
];

/// The same steps over other disks and headers.
pub(super) const ALIKE: &[&[Way]] = &[
    in_use!(", LUKS1", luks1),
    in_use!(", two paths and LUKS1", paths::luks1),
    in_use!(", plain", plain),
    in_use!(", two paths and plain", paths::plain),
    in_use!(", header apart", || written(apart())),
    in_use!(", two paths, header apart", || written(paths::apart())),
    in_use!(", local", local::local),
    rotate!(", LUKS1", luks1),
    rotate!(", two paths and LUKS1", paths::luks1),
    rotate!(", authenticated", authenticated),
    rotate!(", two paths, authenticated", || written(
        paths::authenticated()
    )),
    rotate!(", header apart", || written(apart())),
    rotate!(", two paths, header apart", || written(paths::apart())),
    rotate!(", local", local::local),
    rotate!(", file", local::file),
];

const NEXT: &str = "0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77";

fn suspended(lab: Lab) -> Lab {
    lab.change(1, |s| s.suspended = true);
    lab
}

/// Suspended, and it is reported.
fn out_of_use(lab: Lab) -> Lab {
    let lab = suspended(lab);
    lab.settle(1);
    assert!(lab.status(1).suspended);
    lab
}

fn resumed(lab: Lab) -> Lab {
    let lab = out_of_use(lab);
    lab.change(1, |s| s.suspended = false);
    lab
}

/// The disk became longer, and a person asked for a look.
fn larger(lab: Lab) -> Lab {
    lab.disk(1, |d| d.size = LARGER);
    for device in &mut lab.world.borrow_mut().kernel.devices {
        // A disk of the node's own is as long as its kernel says.
        if device.sid == 0 {
            device.size = LARGER;
        }
    }
    lab.change(1, |s| s.rescan = Some("a look".into()));
    lab
}

fn rotated(lab: Lab) -> Lab {
    lab.rotate(1, NEXT);
    lab
}

/// Ordered while it is out of use, and resumed later by the same person.
fn rotated_suspended(lab: Lab) -> Lab {
    let lab = out_of_use(lab);
    lab.rotate(1, NEXT);
    lab.change(1, |s| s.suspended = false);
    lab
}

/// Each run proves.
fn proven(lab: Lab) -> Lab {
    lab.change(1, |s| s.fail_closed = true);
    lab.settle(1);
    lab.prove.set(true);
    lab
}

fn plaintext(lab: Lab) -> Lab {
    let lab = proven(lab);
    lab.world.borrow_mut().bad_sample = Some(Reason::PlaintextOnDisk);
    lab
}

fn closed(lab: Lab) -> Lab {
    let lab = plaintext(lab);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("PlaintextOnDisk"));
    lab
}

/// What was wrong is mended, and a person took note of it by a suspension.
fn reopened(lab: Lab) -> Lab {
    let lab = closed(lab);
    lab.world.borrow_mut().bad_sample = None;
    let lab = suspended(lab);
    lab.settle(1);
    lab.change(1, |s| s.suspended = false);
    lab
}

//! What is ordered of a volume in use, CHAP, and headers apart from their disk, each as the beginning of a way.

use super::{super::lab::*, ways::*};
use crate::host::TargetChap;

const NEXT: &str = "0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77";

/// Both prove themselves at the login.
pub(super) fn chap() -> Lab {
    let lab = Lab::new(1);
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
    lab
}

pub(super) fn to_suspend() -> Lab {
    let lab = attached_with_data();
    lab.change(1, |s| s.suspended = true);
    lab
}

pub(super) fn to_resume() -> Lab {
    let lab = to_suspend();
    lab.settle(1);
    assert!(lab.status(1).suspended);
    lab.change(1, |s| s.suspended = false);
    lab
}

/// The array made the disk longer, and a person asked for a look.
pub(super) fn larger() -> Lab {
    let lab = attached_with_data();
    lab.disk(1, |d| d.size = 2 << 30);
    lab.change(1, |s| s.rescan = Some("a look".into()));
    lab
}

pub(super) fn to_rotate() -> Lab {
    let lab = attached_with_data();
    lab.rotate(1, NEXT);
    lab
}

pub(super) fn to_rotate_apart() -> Lab {
    let lab = written(apart());
    lab.rotate(1, NEXT);
    lab
}

/// Each run proves.
pub(super) fn proven() -> Lab {
    let lab = attached_with_data();
    lab.prove.set(true);
    lab
}

pub(super) fn apart() -> Lab {
    let lab = Lab::new(1);
    lab.change(1, |s| s.encryption.detached_header = true);
    lab
}

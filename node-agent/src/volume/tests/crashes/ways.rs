//! The ways that the agent goes, by what they are about.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Desired, Stage},
};

use super::super::lab::*;
use crate::host::sim::*;

mod encryptors;
mod in_use;
mod iscsi;
mod local;
mod paths;

pub(super) use iscsi::reattach;

/// A way that the agent goes, from a prepared laboratory to a desired state.
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) prepare: fn() -> Lab,
    pub(super) desired: Desired,
    pub(super) last: Stage,
    pub(super) formats: bool,
    /// What it ends in, where it ends in a condition: the volume is closed then.
    pub(super) stops: Option<Reason>,
}

impl Way {
    /// There are key slots on the disk of a volume that was written to.
    pub(super) fn slots(&self) -> bool {
        ["plain", "header apart", "scratch", "not encrypted"]
            .iter()
            .all(|without| !self.name.contains(without))
    }
}

/// Size of the disk of a volume that is to grow.
pub(super) const LARGER: u64 = 2 << 30;

/// All of them.
pub(super) fn ways() -> impl Iterator<Item = &'static Way> {
    let alike = in_use::ALIKE.iter().copied().flatten();
    ways_of_their_own().chain(alike)
}

/// Without those in which the agent takes the same steps as in another.
pub(super) fn ways_of_their_own() -> impl Iterator<Item = &'static Way> {
    let all = [iscsi::WAYS, paths::WAYS, local::WAYS, encryptors::WAYS];
    all.into_iter()
        .chain(in_use::WAYS.iter().copied())
        .flatten()
}

const fn way(name: &'static str, prepare: fn() -> Lab, desired: Desired) -> Way {
    Way {
        name,
        prepare,
        desired,
        last: match desired {
            Desired::Attached => Stage::Attached,
            Desired::Detached => Stage::Detached,
            Desired::Erased => Stage::Erased,
        },
        formats: false,
        stops: None,
    }
}

const fn up(name: &'static str, prepare: fn() -> Lab) -> Way {
    way(name, prepare, Desired::Attached)
}

/// On a blank disk, by a permit.
const fn formats(name: &'static str, prepare: fn() -> Lab) -> Way {
    Way {
        formats: true,
        ..up(name, prepare)
    }
}

/// The volume is attached, and the proof finds what is wrong.
const fn closes(name: &'static str, prepare: fn() -> Lab, stops: Reason) -> Way {
    Way {
        stops: Some(stops),
        ..up(name, prepare)
    }
}

const fn down(name: &'static str, prepare: fn() -> Lab) -> Way {
    way(name, prepare, Desired::Detached)
}

const fn erase(name: &'static str, prepare: fn() -> Lab) -> Way {
    way(name, prepare, Desired::Erased)
}

/// Attached, with data, and nobody has it open.
pub(super) fn written(lab: Lab) -> Lab {
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab.world
        .borrow_mut()
        .guests_leave(&cryptvol_crds::names::mapping_name(&uid(1)));
    lab
}

fn detached(lab: Lab) -> Lab {
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab
}

pub(super) fn attached_with_data() -> Lab {
    written(Lab::new(1))
}

fn powerless(lab: Lab) -> Lab {
    lab.world.borrow_mut().power_cut();
    lab
}

/// Detached with data, and somebody overwrote the header; a person ordered its restore.
fn overwritten(lab: Lab, with: Content) -> Lab {
    lab.overwrite(1, with);
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("HeaderMissing"));
    lab.order_restore(1);
    lab
}

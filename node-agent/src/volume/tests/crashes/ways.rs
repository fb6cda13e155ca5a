//! The ways that the agent goes.

use cryptvol_crds::v1alpha1::{Desired, Provider, Stage};

use super::{
    super::{alua, lab::*},
    more,
};
use crate::host::sim::*;

/// A way that the agent goes, from a prepared laboratory to a desired state.
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) prepare: fn() -> Lab,
    pub(super) desired: Desired,
    pub(super) last: Stage,
    pub(super) formats: bool,
}

fn first_attach() -> Lab {
    Lab::new(1)
}

fn first_attach_luks1() -> Lab {
    Lab::of(Provider::Luks, 1)
}

fn first_attach_plain() -> Lab {
    Lab::of(Provider::Plain, 1)
}

/// Attached once before, detached now.
pub(super) fn reattach() -> Lab {
    let lab = Lab::new(1);
    lab.settle(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab
}

pub(super) fn attached_with_data() -> Lab {
    with_data(Provider::Luks2)
}

fn luks1_with_data() -> Lab {
    with_data(Provider::Luks)
}

fn plain_with_data() -> Lab {
    with_data(Provider::Plain)
}

fn with_data(provider: Provider) -> Lab {
    written(Lab::of(provider, 1))
}

fn local_with_data() -> Lab {
    written(Lab::local(Provider::Luks2, 1))
}

fn file_with_data() -> Lab {
    written(Lab::file(Provider::Luks2, 1))
}

fn paths_with_data() -> Lab {
    written(Lab::paths(Provider::Luks2, 1))
}

fn discovered_with_data() -> Lab {
    written(Lab::discovering(Provider::Luks2, 1))
}

/// Its session is there again, and the kernel uses the other path alone until we act.
fn path_is_back() -> Lab {
    let lab = paths_with_data();
    lab.world.borrow_mut().cut(IQN, PORTALS[1]);
    lab.settle(1);
    lab.world.borrow_mut().mend(IQN, PORTALS[1]);
    lab
}

fn no_path_left() -> Lab {
    let lab = paths_with_data();
    for portal in PORTALS {
        lab.world.borrow_mut().cut(IQN, portal);
    }
    lab
}

pub(super) fn written(lab: Lab) -> Lab {
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab.world
        .borrow_mut()
        .guests_leave(&cryptvol_crds::names::mapping_name(&uid(1)));
    lab
}

/// More of the file is wanted than there is.
fn longer(lab: Lab) -> Lab {
    lab.change(1, |s| s.source.file.as_mut().unwrap().size_bytes = 2 << 30);
    lab
}

fn powerless(lab: Lab) -> Lab {
    lab.world.borrow_mut().power_cut();
    lab
}

fn detached_with_data() -> Lab {
    detached(attached_with_data())
}

fn detached(lab: Lab) -> Lab {
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab
}

/// A plain disk that somebody else made, of which the user names the WWID.
fn import_plain() -> Lab {
    let lab = Lab::of(Provider::Plain, 1);
    lab.disk(1, |d| d.content = Content::Garbage);
    lab.change(1, |s| s.format_permit = None);
    lab
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

/// Detached with data, and somebody overwrote the header; a person ordered its restore.
fn header_restore_ordered() -> Lab {
    overwritten(detached_with_data(), Content::Garbage)
}

fn overwritten(lab: Lab, with: Content) -> Lab {
    lab.overwrite(1, with);
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("HeaderMissing"));
    lab.order_restore(1);
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

/// As `first_attach`, with a name of udev's that leads to the mapping.
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
    }
}

pub(super) const WAYS: &[Way] = &[
    Way {
        name: "first attach, authenticated",
        prepare: || Lab::authenticated(1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach, authenticated",
        prepare: || detached(written(Lab::authenticated(1))),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "erase attached, authenticated",
        prepare: || written(Lab::authenticated(1)),
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "first attach, two paths",
        prepare: || Lab::paths(Provider::Luks2, 1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach, two paths",
        prepare: || detached(paths_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "first attach, a portal discovered",
        prepare: || Lab::discovering(Provider::Luks2, 1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach, a portal discovered",
        prepare: || detached(discovered_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, a portal discovered",
        prepare: discovered_with_data,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase attached, a portal discovered",
        prepare: discovered_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "a path comes back",
        prepare: path_is_back,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, two paths",
        prepare: paths_with_data,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "first attach, two controllers",
        prepare: alua::two_controllers,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach, two controllers",
        prepare: || detached(alua::two_controllers_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "controllers change places",
        prepare: alua::changed_places,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, two controllers that changed places",
        prepare: alua::changed_places,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "detach, no path left",
        prepare: no_path_left,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase attached, two paths",
        prepare: paths_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "restore the header",
        prepare: header_restore_ordered,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "restore the header, file",
        prepare: || overwritten(detached(file_with_data()), Content::Blank),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "restore the header, local",
        prepare: || overwritten(detached(local_with_data()), Content::Blank),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "first attach, scratch file",
        prepare: || Lab::scratch_file(1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, scratch file",
        prepare: || written(Lab::scratch_file(1)),
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "attach anew, scratch file",
        prepare: || detached(written(Lab::scratch_file(1))),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "begin anew after a power cut, scratch file",
        prepare: || powerless(written(Lab::scratch_file(1))),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "first attach, scratch device",
        prepare: || Lab::scratch_device(1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "begin anew after a power cut, scratch device",
        prepare: || powerless(written(Lab::scratch_device(1))),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "first attach, file",
        prepare: || Lab::file(Provider::Luks2, 1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach, file",
        prepare: || detached(file_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "grow, file",
        prepare: || longer(file_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "attach and grow, file",
        prepare: || longer(detached(file_with_data())),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, file",
        prepare: file_with_data,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase attached, file",
        prepare: file_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "erase detached, file",
        prepare: || detached(file_with_data()),
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "first attach, local",
        prepare: || Lab::local(Provider::Luks2, 1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach, local",
        prepare: || detached(local_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, local",
        prepare: local_with_data,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase attached, local",
        prepare: local_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "erase detached, local",
        prepare: || detached(local_with_data()),
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "first attach, local and plain",
        prepare: || Lab::local(Provider::Plain, 1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "first attach, local, not encrypted",
        prepare: || Lab::local(Provider::PassThrough, 1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "attach, not encrypted",
        prepare: || detached(with_data(Provider::PassThrough)),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, not encrypted",
        prepare: || with_data(Provider::PassThrough),
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "first attach by name",
        prepare: first_attach_by_name,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "detach by name",
        prepare: attached_by_name,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase by name",
        prepare: deleted_by_name,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "import",
        prepare: import,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "make a zombie anew",
        prepare: zombie,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "take a zombie down",
        prepare: zombie,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "find a disk anew that is off line",
        prepare: offline,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "first attach",
        prepare: first_attach,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach",
        prepare: reattach,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach",
        prepare: attached_with_data,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase attached",
        prepare: attached_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "erase detached",
        prepare: detached_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "first attach, LUKS1",
        prepare: first_attach_luks1,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach, LUKS1",
        prepare: || detached(luks1_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, LUKS1",
        prepare: luks1_with_data,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase attached, LUKS1",
        prepare: luks1_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "erase detached, LUKS1",
        prepare: || detached(luks1_with_data()),
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "first attach, plain",
        prepare: first_attach_plain,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "attach, plain",
        prepare: || detached(plain_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, plain",
        prepare: plain_with_data,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase attached, plain",
        prepare: plain_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "erase detached, plain",
        prepare: || detached(plain_with_data()),
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "import, plain",
        prepare: import_plain,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        formats: true,
        ..way("first attach, CHAP", more::chap, Desired::Attached)
    },
    way(
        "attach, CHAP",
        || detached(written(more::chap())),
        Desired::Attached,
    ),
    way("detach, CHAP", || written(more::chap()), Desired::Detached),
    way("suspend", more::to_suspend, Desired::Attached),
    way("resume", more::to_resume, Desired::Attached),
    way("grow", more::larger, Desired::Attached),
    way("rotate", more::to_rotate, Desired::Attached),
    way("prove", more::proven, Desired::Attached),
    way("first attach, header apart", more::apart, Desired::Attached),
    way(
        "attach, header apart",
        || detached(written(more::apart())),
        Desired::Attached,
    ),
    way(
        "detach, header apart",
        || written(more::apart()),
        Desired::Detached,
    ),
    way(
        "rotate, header apart",
        more::to_rotate_apart,
        Desired::Attached,
    ),
    way(
        "erase attached, header apart",
        || written(more::apart()),
        Desired::Erased,
    ),
];

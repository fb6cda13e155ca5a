//! Several paths to one disk: of each encryptor, with CHAP, portals that an array tells of, and paths that come, go and change places.

use cryptvol_crds::v1alpha1::{Integrity, Provider};

use super::{super::super::alua, iscsi::with_chap, *};

pub(super) const WAYS: &[Way] = &[
    formats("first attach, two paths", || Lab::paths(Provider::Luks2, 1)),
    up("attach, two paths", || detached(with_data())),
    down("detach, two paths", with_data),
    erase("erase attached, two paths", with_data),
    erase("erase detached, two paths", || detached(with_data())),
    up("a path comes back", path_is_back),
    down("detach, no path left", no_path_left),
    up("restore the header, two paths", || {
        overwritten(detached(with_data()), Content::Garbage)
    }),
    formats("first attach, a portal discovered", || {
        Lab::discovering(Provider::Luks2, 1)
    }),
    up("attach, a portal discovered", || detached(discovered())),
    down("detach, a portal discovered", discovered),
    erase("erase attached, a portal discovered", discovered),
    formats("first attach, two controllers", alua::two_controllers),
    up("attach, two controllers", || {
        detached(alua::two_controllers_with_data())
    }),
    up("controllers change places", alua::changed_places),
    down(
        "detach, two controllers that changed places",
        alua::changed_places,
    ),
    formats("first attach, two paths and CHAP", chap),
    up("attach, two paths and CHAP", || detached(written(chap()))),
    formats("first attach, two paths and LUKS1", || {
        Lab::paths(Provider::Luks, 1)
    }),
    up("attach, two paths and LUKS1", || detached(luks1())),
    erase("erase attached, two paths and LUKS1", luks1),
    up("first attach, two paths and plain", || {
        Lab::paths(Provider::Plain, 1)
    }),
    up("attach, two paths and plain", || detached(plain())),
    erase("erase attached, two paths and plain", plain),
    up("first attach, two paths, not encrypted", || {
        Lab::paths(Provider::PassThrough, 1)
    }),
    formats("first attach, two paths, authenticated", authenticated),
    up("attach, two paths, authenticated", || {
        detached(written(authenticated()))
    }),
    up("first attach, two paths, header apart", apart),
    up("attach, two paths, header apart", || {
        detached(written(apart()))
    }),
];

pub(super) fn with_data() -> Lab {
    written(Lab::paths(Provider::Luks2, 1))
}

pub(super) fn luks1() -> Lab {
    written(Lab::paths(Provider::Luks, 1))
}

pub(super) fn plain() -> Lab {
    written(Lab::paths(Provider::Plain, 1))
}

fn discovered() -> Lab {
    written(Lab::discovering(Provider::Luks2, 1))
}

fn chap() -> Lab {
    let lab = Lab::paths(Provider::Luks2, 1);
    with_chap(&lab);
    lab
}

pub(super) fn authenticated() -> Lab {
    let lab = Lab::paths(Provider::Luks2, 1);
    lab.change(1, |s| s.encryption.integrity = Some(Integrity::HmacSha256));
    lab
}

pub(super) fn apart() -> Lab {
    let lab = Lab::paths(Provider::Luks2, 1);
    lab.change(1, |s| s.encryption.detached_header = true);
    lab
}

/// Its session is there again, and the kernel uses the other path alone until we act.
fn path_is_back() -> Lab {
    let lab = with_data();
    lab.world.borrow_mut().cut(IQN, PORTALS[1]);
    lab.settle(1);
    lab.world.borrow_mut().mend(IQN, PORTALS[1]);
    lab
}

fn no_path_left() -> Lab {
    let lab = with_data();
    for portal in PORTALS {
        lab.world.borrow_mut().cut(IQN, portal);
    }
    lab
}

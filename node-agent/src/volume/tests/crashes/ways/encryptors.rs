//! Each encryptor on one path: LUKS1, plain dm-crypt, none, LUKS2 with authenticated sectors, and with its header apart from the disk.

use cryptvol_crds::v1alpha1::Provider;

use super::*;

pub(super) const WAYS: &[Way] = &[
    formats("first attach, LUKS1", || Lab::of(Provider::Luks, 1)),
    up("attach, LUKS1", || detached(luks1())),
    down("detach, LUKS1", luks1),
    erase("erase attached, LUKS1", luks1),
    erase("erase detached, LUKS1", || detached(luks1())),
    up("first attach, plain", || Lab::of(Provider::Plain, 1)),
    up("attach, plain", || detached(plain())),
    down("detach, plain", plain),
    erase("erase attached, plain", plain),
    erase("erase detached, plain", || detached(plain())),
    up("import, plain", import_plain),
    up("attach, not encrypted", || detached(not_encrypted())),
    down("detach, not encrypted", not_encrypted),
    formats("first attach, authenticated", || Lab::authenticated(1)),
    up("attach, authenticated", || detached(authenticated())),
    erase("erase attached, authenticated", authenticated),
    up("first attach, header apart", apart),
    up("attach, header apart", || detached(written(apart()))),
    down("detach, header apart", || written(apart())),
    erase("erase attached, header apart", || written(apart())),
];

pub(super) fn luks1() -> Lab {
    written(Lab::of(Provider::Luks, 1))
}

pub(super) fn plain() -> Lab {
    written(Lab::of(Provider::Plain, 1))
}

fn not_encrypted() -> Lab {
    written(Lab::of(Provider::PassThrough, 1))
}

pub(super) fn authenticated() -> Lab {
    written(Lab::authenticated(1))
}

pub(super) fn apart() -> Lab {
    let lab = Lab::new(1);
    lab.change(1, |s| s.encryption.detached_header = true);
    lab
}

/// A plain disk that somebody else made, of which the user names the WWID.
fn import_plain() -> Lab {
    let lab = Lab::of(Provider::Plain, 1);
    lab.disk(1, |d| d.content = Content::Garbage);
    lab.change(1, |s| s.format_permit = None);
    lab
}

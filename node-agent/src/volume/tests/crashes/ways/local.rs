//! What is on the node itself: its disks, its files, and the scratch space of ephemeral volumes, which nobody erases: it is worth nothing
//! without its key, and that ends with the attachment. A spec that orders it is refused before there is a plan.

use cryptvol_crds::v1alpha1::Provider;

use super::*;

pub(super) const WAYS: &[Way] = &[
    formats("first attach, local", || Lab::local(Provider::Luks2, 1)),
    up("attach, local", || detached(local())),
    down("detach, local", local),
    erase("erase attached, local", local),
    erase("erase detached, local", || detached(local())),
    up("restore the header, local", || {
        overwritten(detached(local()), Content::Blank)
    }),
    up("first attach, local and plain", || {
        Lab::local(Provider::Plain, 1)
    }),
    up("first attach, local, not encrypted", || {
        Lab::local(Provider::PassThrough, 1)
    }),
    formats("first attach, file", || Lab::file(Provider::Luks2, 1)),
    up("attach, file", || detached(file())),
    up("grow, file", || longer(file())),
    up("attach and grow, file", || longer(detached(file()))),
    down("detach, file", file),
    erase("erase attached, file", file),
    erase("erase detached, file", || detached(file())),
    up("restore the header, file", || {
        overwritten(detached(file()), Content::Blank)
    }),
    up("first attach, scratch file", || Lab::scratch_file(1)),
    down("detach, scratch file", || written(Lab::scratch_file(1))),
    up("attach anew, scratch file", || {
        detached(written(Lab::scratch_file(1)))
    }),
    up("begin anew after a power cut, scratch file", || {
        powerless(written(Lab::scratch_file(1)))
    }),
    down("detach after a power cut, scratch file", || {
        powerless(written(Lab::scratch_file(1)))
    }),
    up("first attach, scratch device", || Lab::scratch_device(1)),
    down("detach, scratch device", || written(Lab::scratch_device(1))),
    up("attach anew, scratch device", || {
        detached(written(Lab::scratch_device(1)))
    }),
    up("begin anew after a power cut, scratch device", || {
        powerless(written(Lab::scratch_device(1)))
    }),
    down("detach after a power cut, scratch device", || {
        powerless(written(Lab::scratch_device(1)))
    }),
];

pub(super) fn local() -> Lab {
    written(Lab::local(Provider::Luks2, 1))
}

pub(super) fn file() -> Lab {
    written(Lab::file(Provider::Luks2, 1))
}

/// More of the file is wanted than there is.
fn longer(lab: Lab) -> Lab {
    lab.change(1, |s| s.source.file.as_mut().unwrap().size_bytes = 2 << 30);
    lab
}

//! What somebody else uses stays, although nothing but a look for it shows that.

use cryptvol_crds::v1alpha1::{Desired, Provider, Stage};

use super::lab::*;
use crate::host::sim::by_path;

const WHO: &str = "qemu-system-x86 (pid 4321)";

/// Somebody opens all disks of the volume's source, past its mapping.
fn opened(lab: &Lab, by: Option<&str>) {
    for disk in &mut lab.world.borrow_mut().kernel.devices {
        disk.opened_by = by.map(str::to_owned);
    }
}

#[test]
fn invariant_06_a_disk_that_somebody_has_open_is_not_taken_away() {
    for (kind, lab) in [
        ("one path", Lab::new(1)),
        ("several paths", Lab::paths(Provider::Luks2, 1)),
        ("a scratch file", Lab::scratch_file(1)),
    ] {
        if kind == "one path" {
            lab.change(1, |s| s.shadow = Some(by_path(IQN, 1)));
        }
        lab.settle(1);
        assert_eq!(lab.status(1).stage, Stage::Attached, "{kind}");
        let before = lab.world.borrow().kernel.clone();
        opened(&lab, Some(WHO));
        lab.want(1, Desired::Detached);
        lab.settle(1);
        let said = lab.status(1).error.unwrap();
        assert_eq!(said.reason, "DeviceBusy", "{kind}: {said:?}");
        assert!(said.message.contains(WHO), "{kind}: {said:?}");
        {
            let world = lab.world.borrow();
            assert_eq!(world.kernel.devices.len(), before.devices.len(), "{kind}");
            assert_eq!(world.kernel.sessions.len(), before.sessions.len(), "{kind}");
            assert!(world.kernel.mappings.is_empty() && world.links.is_empty());
            // He has the disk, and nobody gets it by the volume's name.
            let shadowed = lab.volume(1).spec.shadow.is_some();
            assert!(!shadowed || world.name_leads(&by_path(IQN, 1)).is_none());
        }
        opened(&lab, None);
        lab.settle(1);
        let status = lab.status(1);
        assert_eq!((status.stage, status.error), (Stage::Detached, None));
        let world = lab.world.borrow();
        assert!(world.kernel.devices.is_empty() && world.kernel.sessions.is_empty());
    }
}

/// One that the kernel took off line is found anew, where nobody has it.
#[test]
fn invariant_06_a_dead_disk_that_somebody_has_open_is_not_taken_away_either() {
    let lab = Lab::new(1);
    lab.settle(1);
    {
        let mut world = lab.world.borrow_mut();
        world.kernel.mappings.clear();
        world.links.clear();
        "offline".clone_into(&mut world.kernel.devices[0].state);
    }
    opened(&lab, Some(WHO));
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("DeviceBusy"));
    assert_eq!(lab.world.borrow().kernel.devices[0].state, "offline");
    opened(&lab, None);
    lab.settle(1);
    let status = lab.status(1);
    assert_eq!((status.stage, status.error), (Stage::Attached, None));
}

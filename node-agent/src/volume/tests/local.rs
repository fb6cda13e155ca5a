//! Devices that were on the node before us: never touched while anything else uses them, and left where they are. Files through loop
//! devices.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Desired, Provider, Stage},
};

use super::lab::*;
use crate::host::sim::*;

fn device(lab: &Lab, change: impl FnOnce(&mut SimDevice)) {
    change(&mut lab.world.borrow_mut().kernel.devices[0]);
}

#[test]
fn a_device_of_the_node_comes_up_without_a_session_and_stays_when_the_volume_goes() {
    let lab = Lab::local(Provider::Luks2, 1);
    lab.settle(1);
    let status = lab.status(1);
    assert_eq!(status.stage, Stage::Attached, "{status:?}");
    assert_eq!(status.device.unwrap().path, local(1));
    assert_eq!(status.portal, None);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Detached);
    let world = lab.world.borrow();
    assert!(world.kernel.mappings.is_empty() && world.links.is_empty());
    assert_eq!(world.kernel.devices.len(), 1);
}

#[test]
fn a_power_cut_leads_back_to_the_data() {
    let lab = Lab::local(Provider::Luks2, 1);
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    let data = lab.disk(1, |d| d.data.clone());
    let written = lab.world.borrow().bytes_written();
    lab.world.borrow_mut().power_cut();
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
    assert_eq!(lab.disk(1, |d| d.data.clone()), data);
    assert_eq!(lab.world.borrow().bytes_written(), written);
}

#[test]
fn invariant_06_a_device_in_use_is_not_touched() {
    let lab = Lab::local(Provider::Luks2, 1);
    device(&lab, |d| d.in_use = true);
    let said = lab.stops(Reason::DeviceInUse);
    assert!(said.contains("a mount at /mnt"), "{said}");
    device(&lab, |d| d.in_use = false);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
}

#[test]
fn invariant_01_another_device_at_the_path_is_not_opened() {
    let lab = Lab::local(Provider::Luks2, 1);
    lab.disk(1, |d| d.wwid = Some(wwid(9)));
    device(&lab, |d| d.wwid = Some(wwid(9)));
    let said = lab.stops(Reason::WwidMismatch);
    assert!(said.contains(&local(1)), "{said}");
}

#[test]
fn what_is_not_there_small_or_broken_is_told() {
    for (change, reason) in [
        (
            (|d| d.path = "/dev/elsewhere".to_owned()) as fn(&mut SimDevice),
            Reason::DeviceNotFound,
        ),
        (|d| d.state = "offline".to_owned(), Reason::DeviceUnreadable),
        (|d| d.size = 0, Reason::DeviceUnreadable),
    ] {
        let lab = Lab::local(Provider::Luks2, 1);
        device(&lab, change);
        lab.stops(reason);
    }
    let lab = Lab::local(Provider::Luks2, 1);
    lab.change(1, |s| s.size_bytes = Some(2 << 30));
    lab.stops(Reason::SizeMismatch);
}

#[test]
fn invariant_02_what_is_not_blank_is_not_formatted() {
    for (content, reason) in [
        (Content::Garbage, Reason::DeviceNotBlank),
        (
            Content::Foreign("LVM2_member".into()),
            Reason::ForeignSignature,
        ),
        (Content::Foreign("gpt".into()), Reason::ForeignSignature),
    ] {
        let lab = Lab::local(Provider::Luks2, 1);
        lab.disk(1, |d| d.content = content.clone());
        lab.stops(reason);
    }
}

#[test]
fn a_path_that_leads_elsewhere_by_now_moves_nothing_that_is_open() {
    let lab = Lab::local(Provider::Luks2, 1);
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    device(&lab, |d| d.path = "/dev/renamed".to_owned());
    lab.settle(1);
    let status = lab.status(1);
    assert_eq!((status.stage, status.error), (Stage::Attached, None));
    assert_eq!(lab.world.borrow().kernel.mappings.len(), 1);
}

/// Length of the file of volume 1, where it is there.
fn file_size(lab: &Lab) -> Option<u64> {
    lab.world.borrow().files[&file(1)].size
}

fn set_file(lab: &Lab, size: Option<u64>) {
    let mut world = lab.world.borrow_mut();
    world.files.get_mut(&file(1)).unwrap().size = size;
}

#[test]
fn a_file_is_made_once_and_stays_when_the_volume_is_detached() {
    let lab = Lab::file(Provider::Luks2, 1);
    lab.settle(1);
    let status = lab.status(1);
    assert_eq!(status.stage, Stage::Attached, "{status:?}");
    assert_eq!(status.device.unwrap().path, "/dev/loop0");
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab.world.borrow_mut().power_cut();
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Detached);
    assert_eq!(file_size(&lab), Some(1 << 30));
    assert!(lab.world.borrow().kernel.devices.is_empty());

    // Gone: never made anew, whatever the volume once was allowed.
    set_file(&lab, None);
    lab.want(1, Desired::Attached);
    let written = lab.world.borrow().bytes_written();
    lab.settle(1);
    assert_eq!(
        lab.reason(1).as_deref(),
        Some(Reason::DeviceNotFound.as_str())
    );
    assert_eq!(file_size(&lab), None);
    // Cut short.
    set_file(&lab, Some(1 << 29));
    lab.settle(1);
    assert_eq!(
        lab.reason(1).as_deref(),
        Some(Reason::SizeMismatch.as_str())
    );
    assert_eq!(lab.world.borrow().bytes_written(), written);
    set_file(&lab, Some(1 << 30));
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
}

#[test]
fn a_file_that_is_there_is_taken_only_as_a_blank_disk_would_be() {
    let lab = Lab::file(Provider::Luks2, 1);
    set_file(&lab, Some(1 << 30));
    lab.disk(1, |d| d.content = Content::Foreign("ext4".into()));
    lab.stops(Reason::ForeignSignature);
    set_file(&lab, Some(4096));
    lab.world.borrow_mut().kernel.devices.clear();
    lab.stops(Reason::FileNotUsable);
    let lab = Lab::file(Provider::Luks2, 1);
    set_file(&lab, Some(0)); // cut off between making and sizing
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
}

#[test]
fn invariant_01_a_file_needs_a_header_to_be_known_by() {
    let lab = Lab::file(Provider::Plain, 1);
    lab.stops(Reason::IdentityUnproven);
    assert_eq!(file_size(&lab), None);
    // An import makes nothing.
    let lab = Lab::file(Provider::Luks2, 1);
    lab.change(1, |s| {
        s.format_permit = None;
        s.luks_uuid = None;
    });
    lab.stops(Reason::DeviceNotFound);
    assert_eq!(file_size(&lab), None);
}

#[test]
fn invariant_06_an_erased_volumes_file_goes_and_one_that_carries_something_stays() {
    let lab = Lab::file(Provider::Luks2, 1);
    lab.settle(1);
    lab.want(1, Desired::Erased);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Erased);
    assert_eq!(file_size(&lab), None);
    // Somebody puts another file there before the agent looks again.
    set_file(&lab, Some(1 << 30));
    lab.disk(1, |d| d.content = Content::Foreign("ext4".into()));
    lab.change(1, |s| s.desired = Desired::Detached);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Detached);
    assert_eq!(file_size(&lab), Some(1 << 30));
}

//! Changes of a mapping that is in use: longer, suspended without its key, resumed with it.

use cryptvol_crds::{conditions::Reason, names::DM_UUID_PREFIX};
use devicemapper::{DM, DevId, DmFlags, DmOptions, DmUuid};

use super::{
    dm::{self, Plan},
    error::{because, failed},
    luks::VolumeKey,
    sys::{self, DmCommand},
};
use crate::host::{Mapping, StepError};

/// See [`crate::host::Host::grow`]. The longer table takes the place of the shorter one in one step of the kernel; I/O waits as
/// long as that takes.
pub fn grow(plan: &Plan<'_>, key: Option<&VolumeKey>) -> Result<Mapping, StepError> {
    let what = |step: &str| format!("{step} mapping {}", plan.name);
    let dm = device_mapper()?;
    let found = live(&dm, plan)?;
    if plan.is(&found) {
        return Ok(found);
    }
    if plan.facts.integrity.is_some() {
        return Err(failed(what("growing"), "its sectors are authenticated"));
    }
    if found.suspended {
        return Err(failed(what("growing"), "it is suspended"));
    }
    if found.size_bytes > plan.length() * 512 {
        return Err(because(
            Reason::SizeMismatch,
            format!(
                "mapping {} has {} bytes and the disk has room for {}",
                plan.name,
                found.size_bytes,
                plan.length() * 512
            ),
        ));
    }
    let uuid = DmUuid::new(plan.uuid).map_err(|e| failed("mapping UUID", e))?;
    let id = DevId::Uuid(uuid);
    {
        let _key = plan.lend(key, "growing")?;
        let options = DmOptions::default().set_flags(DmFlags::DM_SECURE_DATA);
        dm.table_load(&id, &plan.table(None), options)
            .map_err(|e| failed(what("loading a longer table of"), e))?;
    }
    if let Err(e) = sys::dm_command(dm.file(), DmCommand::Resume, plan.uuid, dm::udev_flags()) {
        let _ = dm.table_clear(&id);
        return Err(failed(what("growing"), e));
    }
    checked(&dm, plan, "growing")
}

/// See [`crate::host::Host::suspend`].
pub fn suspend(name: &str, uuid: &str) -> Result<(), StepError> {
    let what = |step: &str| format!("{step} mapping {name}");
    let dm = device_mapper()?;
    let found = dm::describe(&dm, name)?.ok_or_else(|| failed(what("suspending"), "it is gone"))?;
    if found.uuid != uuid || !uuid.starts_with(DM_UUID_PREFIX) {
        return Err(dm::taken(&found));
    }
    let id = DmUuid::new(uuid).map_err(|e| failed("mapping UUID", e))?;
    let id = DevId::Uuid(id);
    // A longer table that was loaded and never resumed has the key as well, and would take the place of this one at the next resume.
    dm.table_clear(&id)
        .map_err(|e| failed(what("dropping the second table of"), e))?;
    if !found.suspended {
        let options = DmOptions::default().set_flags(DmFlags::DM_SUSPEND);
        dm.device_suspend(&id, options)
            .map_err(|e| failed(what("suspending"), e))?;
    }
    // A linear mapping has no key, be it one of provider none or one that somebody put in place of ours.
    if found
        .table
        .as_ref()
        .is_some_and(|t| t.target_type == "crypt")
    {
        dm.target_msg(&id, None, "key wipe")
            .map_err(|e| failed(what("wiping the key of"), e))?;
    }
    match dm::describe(&dm, name)? {
        Some(now) if now.is_closed() => Ok(()),
        now => Err(failed(what("checking"), format!("it is {now:?}"))),
    }
}

/// See [`crate::host::Host::resume`].
pub fn resume(plan: &Plan<'_>, key: Option<&VolumeKey>) -> Result<Mapping, StepError> {
    let what = |step: &str| format!("{step} mapping {}", plan.name);
    let dm = device_mapper()?;
    let found = live(&dm, plan)?;
    if !found.suspended {
        return Ok(found);
    }
    let uuid = DmUuid::new(plan.uuid).map_err(|e| failed("mapping UUID", e))?;
    if key.is_some() {
        let _key = plan.lend(key, "resuming")?;
        let message = format!("key set {}", plan.key_reference());
        dm.target_msg(&DevId::Uuid(uuid), None, &message)
            .map_err(|e| failed(what("giving its key to"), e))?;
    }
    sys::dm_command(dm.file(), DmCommand::Resume, plan.uuid, dm::udev_flags())
        .map_err(|e| failed(what("resuming"), e))?;
    let now = live(&dm, plan)?;
    match now.suspended || !plan.has_its_key(&now) {
        true => Err(failed(what("resuming"), format!("it is {now:?}"))),
        false => Ok(now),
    }
}

fn device_mapper() -> Result<DM, StepError> {
    dm::context()?.ok_or_else(|| failed("changing a mapping", "no device-mapper on this node"))
}

/// The mapping, where it is ours and lies over what the plan says.
fn live(dm: &DM, plan: &Plan<'_>) -> Result<Mapping, StepError> {
    match dm::describe(dm, plan.name)? {
        None => Err(failed(format!("mapping {}", plan.name), "it is gone")),
        Some(found) if found.uuid != plan.uuid => Err(dm::taken(&found)),
        Some(found) if plan.is_over_the_same(&found) => Ok(found),
        Some(found) => Err(failed(
            format!("mapping {} is there", plan.name),
            format!("but is not what it should be: {found:?}"),
        )),
    }
}

fn checked(dm: &DM, plan: &Plan<'_>, step: &str) -> Result<Mapping, StepError> {
    let now = live(dm, plan)?;
    match plan.is(&now) {
        true => Ok(now),
        false => Err(failed(
            format!("{step} mapping {}", plan.name),
            format!("it is {now:?}"),
        )),
    }
}

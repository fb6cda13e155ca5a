//! The map above several paths to one disk: a table of dm-multipath of our own, without a multipathd (ADR 36).
//!
//! The kernel takes a path out that fails, and goes to the next group when the paths of one are out; that a path is put in again, and the
//! better group taken back, is done here (ADR 55).

use cryptvol_crds::{conditions::Reason, names::DM_UUID_PREFIX};
use devicemapper::{DM, DevId, DmName, DmOptions, DmUuid};

use super::{
    alua,
    dm::{self, context},
    error::{because, failed, no_module},
    path_groups::{self, QUEUE, Status},
    sys::{self, DmCommand},
    sysfs::{Sysfs, paths_wwid},
};
use crate::host::{
    Device, DeviceId, MapName, MapOrder, Mapping, Member, PathMap, RawKind, StepError,
};

/// The kernel's target.
const TARGET: &str = "multipath";
/// The module of the selector `service-time`.
const SELECTOR_MODULE: &str = "dm_service_time";

/// The map of this name and UUID.
///
/// # Errors
/// `StepFailed` when device-mapper or sysfs cannot be read.
pub fn observe(sysfs: &Sysfs, name: &MapName) -> Result<Option<PathMap>, StepError> {
    let Some(dm) = context()? else {
        return Ok(None);
    };
    match dm::describe(&dm, &name.name)? {
        Some(found) if found.uuid == name.uuid => read(&dm, sysfs, &found),
        _ => Ok(None),
    }
}

fn read(dm: &DM, sysfs: &Sysfs, found: &Mapping) -> Result<Option<PathMap>, StepError> {
    let what = || format!("reading map {}", found.name);
    let mut map = PathMap {
        device: Device {
            id: DeviceId {
                path: found.path.clone(),
                dev: found.dev.clone(),
                kind: RawKind::Paths {
                    uuid: found.uuid.clone(),
                },
                wwid: None,
                size_bytes: found.size_bytes,
            },
            state: "running".to_owned(),
            holders: Vec::new(),
            access: None,
        },
        replaced_by: None,
        members: Vec::new(),
        queues: false,
        suspended: found.suspended,
        current: 0,
    };
    let Some(table) = &found.table else {
        return Ok(Some(map));
    };
    map.device.holders = sysfs
        .holders(&map.device.id)
        .map_err(|e| failed(what(), e))?;
    if table.target_type != TARGET {
        map.replaced_by = Some(table.target_type.clone());
        return Ok(Some(map));
    }
    let uuid = DmUuid::new(&found.uuid).map_err(|e| failed(what(), e))?;
    let id = DevId::Uuid(uuid);
    let table = DmOptions::default().set_flags(devicemapper::DmFlags::DM_STATUS_TABLE);
    let line = |options| match dm.table_status(&id, options) {
        Ok((_, lines)) => Ok(Some(
            lines.into_iter().map(|l| l.3).collect::<Vec<_>>().join(" "),
        )),
        Err(e) if dm::gone(&e) => Ok(None),
        Err(e) => Err(failed(what(), e)),
    };
    let (Some(table), Some(status)) = (line(table)?, line(DmOptions::default())?) else {
        return Ok(None);
    };
    map.queues = table.split(' ').any(|word| word == QUEUE);
    let Status { current, members } = path_groups::status(&status)
        .ok_or_else(|| failed(what(), format!("its status is {status:?}")))?;
    (map.current, map.members) = (current, members);
    let block = sysfs
        .block_dir(&map.device.id)
        .map_err(|e| failed(what(), e))?;
    if let Some(block) = block {
        map.device.id.wwid = paths_wwid(&block).map_err(|e| failed(what(), e))?;
    }
    Ok(Some(map))
}

/// As [`read`], of a map that is to be changed. One that somebody gave another table is not: below a guest that would only hide it.
fn unreplaced(dm: &DM, sysfs: &Sysfs, found: &Mapping) -> Result<Option<PathMap>, StepError> {
    let map = read(dm, sysfs, found)?;
    match map.as_ref().and_then(|m| m.replaced_by.as_ref()) {
        None => Ok(map),
        Some(table) => Err(because(
            Reason::MappingReplaced,
            format!(
                "the table of the map {} is {table}, not {TARGET}",
                found.name
            ),
        )),
    }
}

/// See [`crate::host::Host::gather`].
///
/// # Errors
/// As there.
pub fn gather(sysfs: &Sysfs, order: &MapOrder) -> Result<(), StepError> {
    let what = |step: &str| format!("{step} map {}", order.name);
    let Some(dm) = context()? else {
        return Err(unsupported("the node has no device-mapper"));
    };
    let found = dm::describe(&dm, &order.name)?;
    if let Some(found) = found.as_ref().filter(|f| f.uuid != order.uuid) {
        return Err(dm::taken(found));
    }
    let own = found.as_ref().map(|f| f.path.clone());
    let kept = match &found {
        Some(found) => unreplaced(&dm, sysfs, found)?.map_or_else(Vec::new, in_use),
        None => vec![],
    };
    let check = |path: &DeviceId| look_at(sysfs, path, &order.paths[0], own.as_deref(), &kept);
    let (paths, refused) = judge(&order.paths, !kept.is_empty(), check)?;
    let order = &MapOrder {
        paths,
        ..order.clone()
    };
    let uuid = DmUuid::new(&order.uuid).map_err(|e| failed(what("naming"), e))?;
    let id = DevId::Uuid(uuid);
    let made = match (&found, order.paths.is_empty()) {
        (None, true) => return Ok(()),
        (None, false) => {
            let name = DmName::new(&order.name).map_err(|e| failed(what("naming"), e))?;
            dm.device_create(name, Some(uuid), DmOptions::default())
                .map_err(|e| failed(what("creating"), e))?;
            true
        }
        (Some(_), _) => false,
    };
    let result = fill(&dm, sysfs, &id, order).and_then(|()| {
        let now = dm::describe(&dm, &order.name)?.map(|f| f.path);
        let mut paths = order.paths.iter();
        paths.try_for_each(|p| look_at(sysfs, p, &order.paths[0], now.as_deref(), &kept))
    });
    if let Err(e) = &result
        && made
    {
        tracing::warn!(map = order.name, error = %e, "a map that was not finished is taken away");
        if let Err(undo) = dm::remove(&dm, &order.uuid) {
            tracing::warn!(map = order.name, error = %undo, "half-made map stays");
        }
    }
    result.and(refused.map_or(Ok(()), Err))
}

/// Which paths are taken, and why one is not. Before anything is above the map each must be right; below a guest one that is not keeps the others
/// out no longer.
fn judge(
    paths: &[DeviceId],
    in_use: bool,
    check: impl Fn(&DeviceId) -> Result<(), StepError>,
) -> Result<(Vec<DeviceId>, Option<StepError>), StepError> {
    let mut taken = Vec::new();
    let mut refused = None;
    for path in paths {
        match check(path) {
            Ok(()) => taken.push(path.clone()),
            Err(e) if in_use => refused = refused.or(Some(e)),
            Err(e) => return Err(e),
        }
    }
    match refused {
        Some(e) if taken.is_empty() => Err(e),
        refused => Ok((taken, refused)),
    }
}

/// Makes the map what it shall be. The table is exchanged only where it must be: what is on its way has to end for that.
fn fill(dm: &DM, sysfs: &Sysfs, id: &DevId<'_>, order: &MapOrder) -> Result<(), StepError> {
    let what = |step: &str| format!("{step} map {}", order.name);
    let now = || -> Result<PathMap, StepError> {
        let found = dm::describe(dm, &order.name)?;
        let found = found.ok_or_else(|| failed(what("reading"), "it is gone"))?;
        unreplaced(dm, sysfs, &found)?.ok_or_else(|| failed(what("reading"), "it is gone"))
    };
    let message = |text: &str| {
        dm.target_msg(id, None, text)
            .map(drop)
            .map_err(|e| failed(what(&format!("sending {text} to")), e))
    };
    let before = now()?;
    let size = order.paths.iter().map(|p| p.size_bytes).min();
    let grows = size.is_some_and(|size| size > before.device.id.size_bytes);
    let lacks = order.paths.iter().any(|p| !before.has(&p.dev));
    let stranger = order.strangers.iter().any(|dev| before.has(dev));
    // A path that is down stays in, unless its disk is another by now or gone.
    let keeps = |m: &&Member| {
        !order.strangers.contains(&m.dev) && order.paths.iter().all(|p| p.dev != m.dev)
    };
    let mut devs: Vec<_> = order.paths.iter().map(|p| p.dev.as_str()).collect();
    devs.extend(before.members.iter().filter(keeps).map(|m| m.dev.as_str()));
    let groups = order.layout.groups_of(&devs);
    let moves = !before.is_grouped_as(&groups);
    if let Some(size) = size.filter(|_| grows || lacks || stranger || moves) {
        let failed_ones: Vec<_> = before
            .members
            .iter()
            .filter(|m| !m.active && keeps(m))
            .collect();
        let table = [(
            0,
            size / 512,
            TARGET.to_owned(),
            path_groups::params(&groups, order.layout.alua, order.queues),
        )];
        dm.table_load(id, &table, DmOptions::default())
            .map_err(|e| {
                match missing(
                    dm::has_target(dm, TARGET),
                    sysfs.has_module(SELECTOR_MODULE),
                    !order.layout.alua || sysfs.has_module(alua::HANDLER_MODULE),
                ) {
                    Some(module) => no_module("several paths", module),
                    None => failed(what("loading the table of"), e),
                }
            })?;
        let command = match grows {
            true => DmCommand::Resume,
            false => DmCommand::Exchange,
        };
        if let Err(e) = sys::dm_command(dm.file(), command, &order.uuid, dm::udev_flags()) {
            let _ = dm.table_clear(id);
            return Err(failed(what("resuming"), e));
        }
        // In a new table every path counts as good. What is behind these nobody has looked at.
        for path in failed_ones {
            message(&format!("fail_path {}", path.dev))?;
        }
    } else if before.suspended {
        sys::dm_command(
            dm.file(),
            DmCommand::Exchange,
            &order.uuid,
            dm::udev_flags(),
        )
        .map_err(|e| failed(what("resuming"), e))?;
    }
    let after = now()?;
    let takes_io = |dev: &str| !order.layout.is_idle(dev);
    let out = order.paths.iter().filter(|p| !after.uses(&p.dev));
    for path in out.filter(|p| takes_io(&p.dev)) {
        message(&format!("reinstate_path {}", path.dev))?;
    }
    if after.queues != order.queues {
        message(match order.queues {
            true => QUEUE,
            false => "fail_if_no_path",
        })?;
    }
    // The kernel goes on to the next group by itself, and never back.
    let back = now()?;
    if let Some(best) = back.best_group(takes_io).filter(|b| *b < back.current) {
        message(&format!("switch_group {best}"))?;
    }
    let end = now()?;
    let whole = order.paths.iter().all(|p| end.has(&p.dev));
    match whole && !end.suspended && end.queues == order.queues {
        true => Ok(()),
        false => Err(failed(what("checking"), format!("it is {end:?}"))),
    }
}

/// Paths of a map that something is above.
fn in_use(map: PathMap) -> Vec<Member> {
    match map.device.holders.is_empty() {
        true => vec![],
        false => map.members,
    }
}

/// A path is what it was, is the same disk as the first one, and nothing but this map is above it. The kernel does not keep two maps apart. `kept`:
/// paths that are below a guest already; what others made above them since keeps none of them out.
fn look_at(
    sysfs: &Sysfs,
    path: &DeviceId,
    first: &DeviceId,
    own: Option<&str>,
    kept: &[Member],
) -> Result<(), StepError> {
    let own = own.and_then(|path| path.strip_prefix("/dev/"));
    sysfs.same_device(path)?;
    if path.wwid.is_none() || path.wwid != first.wwid {
        return Err(because(
            Reason::WwidMismatch,
            format!("{} and {} are not the same disk", path.path, first.path),
        ));
    }
    let read = |e| failed(format!("reading sysfs of {}", path.path), e);
    let holders = sysfs.holders(path).map_err(read)?;
    let others: Vec<_> = holders
        .into_iter()
        .filter(|holder| Some(holder.as_str()) != own)
        .collect();
    let kept = kept.iter().any(|m| m.dev == path.dev);
    if !others.is_empty() && !kept {
        return Err(because(
            Reason::DeviceBusy,
            format!("{} is used by {}", path.path, others.join(", ")),
        ));
    }
    let block = sysfs.block_dir(path).map_err(read)?;
    let objection = match block {
        Some(block) => alua::other_objection(&block.join("device")).map_err(read)?,
        None => None,
    };
    match objection {
        None => Ok(()),
        Some((handler, state)) => Err(unsupported(&format!(
            "{} is {state} by the word of an array that does not know ALUA (the kernel's handler {handler}), and only with ALUA paths may differ",
            path.path
        ))),
    }
}

/// Takes the map away. I/O that waits for a path fails then, so that a disk that is gone can be let go of.
///
/// # Errors
/// `DeviceBusy`, `StepFailed`.
pub fn remove(id: &DeviceId, uuid: &str) -> Result<(), StepError> {
    let Some(dm) = context()? else {
        return Ok(());
    };
    if !uuid.starts_with(DM_UUID_PREFIX) {
        return Err(because(Reason::NotOurs, format!("{} is not ours", id.path)));
    }
    let target = DmUuid::new(uuid).map_err(|e| failed("the map's UUID", e))?;
    // Without a table, or gone already: either way there is nothing that waits.
    let _ = dm.target_msg(&DevId::Uuid(target), None, "fail_if_no_path");
    dm::remove(&dm, uuid)
}

/// The module for want of which the kernel refused a table. Asked only after a refusal: what is built into the kernel is not among its
/// modules, and nothing is refused for it.
fn missing(has_target: bool, has_selector: bool, has_handler: bool) -> Option<&'static str> {
    match (has_target, has_selector, has_handler) {
        (false, ..) => Some("dm_multipath"),
        (true, false, _) => Some(SELECTOR_MODULE),
        (true, true, false) => Some(alua::HANDLER_MODULE),
        (true, true, true) => None,
    }
}

fn unsupported(why: &str) -> StepError {
    because(Reason::MultipathUnsupported, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_path_ends_a_new_map_and_keeps_no_other_path_of_a_guest_out() {
        const ALL: [&str; 3] = ["sda", "sdb", "sdc"];
        let path = |dev: &str| DeviceId {
            path: format!("/dev/{dev}"),
            dev: dev.into(),
            kind: RawKind::Paths {
                uuid: String::new(),
            },
            wwid: None,
            size_bytes: 0,
        };
        let paths = ALL.map(path);
        let wrong = |those: &'static [&str]| {
            move |p: &DeviceId| match those.contains(&p.dev.as_str()) {
                true => Err(unsupported(&p.dev)),
                false => Ok(()),
            }
        };
        for in_use in [false, true] {
            let (taken, refused) = judge(&paths, in_use, wrong(&[])).unwrap();
            assert_eq!((taken.len(), refused), (3, None));
            let none = judge(&paths, in_use, wrong(&ALL)).unwrap_err();
            assert_eq!(none.message, "sda");
        }
        let ended = judge(&paths, false, wrong(&["sdb"])).unwrap_err();
        assert_eq!(ended.message, "sdb");
        let (taken, refused) = judge(&paths, true, wrong(&["sdb"])).unwrap();
        let taken: Vec<_> = taken.iter().map(|p| p.dev.as_str()).collect();
        assert_eq!(taken, ["sda", "sdc"]);
        assert_eq!(refused.unwrap().message, "sdb");
        assert_eq!(judge(&[], true, wrong(&ALL)).unwrap(), (vec![], None));
    }

    #[test]
    fn a_refused_table_names_the_module_that_is_not_there() {
        assert_eq!(missing(false, false, false), Some("dm_multipath"));
        assert_eq!(missing(false, true, true), Some("dm_multipath"));
        assert_eq!(missing(true, false, false), Some("dm_service_time"));
        assert_eq!(missing(true, true, false), Some("scsi_dh_alua"));
        assert_eq!(missing(true, true, true), None);
    }
}

//! Names of udev's that a volume shadows: `/dev/disk/by-path/…` and `/dev/disk/by-id/…`.
//!
//! A link of udev's cannot be replaced: udev puts it back at the next event. So udev itself is told, by one rule that never changes
//! and by a file a name, which the rule reads at each event: the raw disk loses all its names for as long as a name of it is kept,
//! and the mapping has the name for as long as it is given. What is in the files counts from the next event on, so each change asks
//! the kernel for one and waits for what udev makes of it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use cryptvol_crds::{conditions::Reason, names::DM_UUID_PREFIX};

use super::{
    error::{because, failed},
    sysfs::{attribute, names, set_attribute},
    udev::{self, RULES_READ, remove, write},
};
use crate::host::{NameOrder, NameTo, NamesFound, StepError};

/// The rule; after those that give names to disks.
const RULES: &str = include_str!("cryptvol.rules");
const RULES_FILE: &str = "rules.d/99-cryptvol.rules";
/// How long udev may take for an event.
const PATIENCE: Duration = Duration::from_secs(20);
/// An event may come before udev has read a new rule: so it is asked for again.
const AGAIN: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(5);

/// udev's directories.
#[derive(Clone, Debug)]
pub struct Names {
    /// udev's runtime directory; looked for where absent.
    udev: Option<PathBuf>,
    /// `/dev/disk`.
    disk: PathBuf,
    /// `/sys/class/block`.
    block: PathBuf,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            udev: None,
            disk: "/dev/disk".into(),
            block: "/sys/class/block".into(),
        }
    }
}

impl Names {
    /// Names below another directory that has udev's rule already, for tests.
    #[cfg(test)]
    pub fn at(root: &Path) -> Self {
        fs::create_dir_all(root.join("udev/rules.d")).unwrap();
        fs::write(root.join("udev").join(RULES_FILE), RULES).unwrap();
        fs::create_dir_all(root.join("disk/by-path")).unwrap();
        Self {
            udev: Some(root.join("udev")),
            disk: root.join("disk"),
            block: root.join("block"),
        }
    }

    /// What is known of the names of the volume with this mapping.
    ///
    /// # Errors
    /// `StepFailed` when the directories cannot be read.
    pub fn observe(&self, wanted: Option<&str>, owner: &str) -> Result<NamesFound, StepError> {
        let read = |e: io::Error| failed("reading the names that are kept", e);
        let mut found = NamesFound::default();
        let Some(state) = self.state() else {
            return Ok(found);
        };
        for kind in ["by-id", "by-path"] {
            let dir = state.join("kept").join(kind);
            for name in names(&dir).map_err(read)? {
                let path = format!("/dev/disk/{kind}/{name}");
                let file = attribute(&dir.join(&name))
                    .map_err(read)?
                    .unwrap_or_default();
                let kept_for = value(&file, KEPT_FOR).unwrap_or_default().to_owned();
                if kept_for == owner {
                    found.kept.push(path);
                } else if wanted == Some(&path) {
                    found.kept_for_another = Some(kept_for);
                }
            }
        }
        let Some(wanted) = wanted.map(str::to_owned).or(found.kept.first().cloned()) else {
            return Ok(found);
        };
        let short = below_dev(&wanted)?;
        let given = state.join("given");
        for uuid in names(&given).map_err(read)? {
            let file = attribute(&given.join(&uuid))
                .map_err(read)?
                .unwrap_or_default();
            if value(&file, NAME) == Some(short) {
                found.given = Some(uuid);
            }
        }
        found.leads = self.leads(&wanted)?;
        Ok(found)
    }

    /// Gives or takes the name, and waits until it leads where it should.
    ///
    /// # Errors
    /// `NotOurs` when another volume keeps it, `DeadlineExceeded` when udev does not follow, `StepFailed`.
    pub fn set(&self, order: &NameOrder) -> Result<(), StepError> {
        let found = self.observe(Some(&order.name), &order.mapping_name)?;
        if let Some(other) = found.kept_for_another {
            return Err(because(
                Reason::NotOurs,
                format!("{} is the name of another volume ({other})", order.name),
            ));
        }
        let state = self.state().ok_or_else(|| {
            failed(
                &order.name,
                "no udev runs on this node, so nobody gives this name",
            )
        })?;
        let kept = state.join("kept").join(in_disk(&order.name)?);
        let what = |e: io::Error| failed(format!("the name {}", order.name), e);
        match &order.to {
            NameTo::Everybody => {
                self.withdraw(&state, found.given.as_deref())
                    .map_err(what)?;
                remove(&kept).map_err(what)
            }
            NameTo::Nobody => {
                self.keep(&kept, &order.mapping_name).map_err(what)?;
                // The event that takes the name away is that of the device that has it to udev's knowledge: a link that somebody
                // put in its place leads to another one, of which udev knows no such name.
                let had = found.given.as_deref().and_then(|uuid| self.mapped(uuid));
                self.withdraw(&state, found.given.as_deref())
                    .map_err(what)?;
                self.leads_to(&order.name, None, had.as_deref())
            }
            NameTo::Mapping(mapping) => {
                if !mapping.uuid.starts_with(DM_UUID_PREFIX) {
                    return Err(because(
                        Reason::NotOurs,
                        format!("the mapping {} is not ours", mapping.name),
                    ));
                }
                self.keep(&kept, &order.mapping_name).map_err(what)?;
                let given = found.given.filter(|uuid| *uuid != mapping.uuid);
                self.withdraw(&state, given.as_deref()).map_err(what)?;
                let text = format!("{NAME}={}\n", below_dev(&order.name)?);
                write(&state.join("given").join(&mapping.uuid), &text).map_err(what)?;
                self.leads_to(&order.name, Some(&mapping.path), None)
            }
        }
    }

    /// Files that tell the rule, below udev's runtime directory.
    fn state(&self) -> Option<PathBuf> {
        self.udev().map(|udev| udev.join("cryptvol"))
    }

    fn udev(&self) -> Option<PathBuf> {
        self.udev.clone().or_else(udev::directory)
    }

    /// The rule, and the name's file.
    fn keep(&self, kept: &Path, owner: &str) -> io::Result<()> {
        let udev = self.udev().ok_or(io::ErrorKind::NotFound)?;
        let rules = udev.join(RULES_FILE);
        let there = fs::read_to_string(&rules).is_ok_and(|text| text == RULES);
        write(kept, &format!("{KEPT_FOR}={owner}\n"))?;
        if !there {
            write(&rules, RULES)?;
            thread::sleep(RULES_READ);
        }
        Ok(())
    }

    fn withdraw(&self, state: &Path, given: Option<&str>) -> io::Result<()> {
        match given {
            Some(uuid) => remove(&state.join("given").join(uuid)),
            None => Ok(()),
        }
    }

    /// Kernel path of the device that has the name.
    fn leads(&self, name: &str) -> Result<Option<String>, StepError> {
        let path = self.disk.join(in_disk(name)?);
        match fs::read_link(&path) {
            Ok(to) => Ok(to
                .file_name()
                .map(|n| format!("/dev/{}", n.to_string_lossy()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(format!("reading {name}"), e)),
        }
    }

    /// Kernel path of the mapping with this UUID, where there is one.
    fn mapped(&self, uuid: &str) -> Option<String> {
        let mut all = names(&self.block).ok()?;
        let has = |device: &String| {
            let file = self.block.join(device).join("dm/uuid");
            attribute(&file).ok().flatten().as_deref() == Some(uuid)
        };
        all.find(has).map(|device| format!("/dev/{device}"))
    }

    /// Asks for events until udev has the name where it should be. `had`: the device that had it before.
    fn leads_to(
        &self,
        name: &str,
        wanted: Option<&str>,
        had: Option<&str>,
    ) -> Result<(), StepError> {
        let begun = Instant::now();
        let mut asked: Option<Instant> = None;
        loop {
            let leads = self.leads(name)?;
            if leads.as_deref() == wanted {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(because(
                    Reason::DeadlineExceeded,
                    format!(
                        "udev did not take {name} to {} within {} s; it leads to {}",
                        wanted.unwrap_or("nothing"),
                        PATIENCE.as_secs(),
                        leads.as_deref().unwrap_or("nothing")
                    ),
                ));
            }
            if asked.is_none_or(|at| at.elapsed() > AGAIN) {
                // Who has it and should not, and who should.
                for device in [leads.as_deref(), wanted, had].into_iter().flatten() {
                    self.ask_for_event(device);
                }
                asked = Some(Instant::now());
            }
            thread::sleep(STEP);
        }
    }

    fn ask_for_event(&self, device: &str) {
        let name = device.rsplit('/').next().unwrap_or(device);
        let uevent = self.block.join(name).join("uevent");
        if let Err(e) = set_attribute(&uevent, "change") {
            // It may be gone by now, and its name with it.
            tracing::debug!(device, error = %e, "no event");
        }
    }
}

const KEPT_FOR: &str = "CRYPTVOL_KEPT_FOR";
const NAME: &str = "CRYPTVOL_NAME";

/// The value of a line `KEY=value`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// The name as udev has it: `disk/by-path/…`.
fn below_dev(name: &str) -> Result<&str, StepError> {
    in_disk(name)?;
    name.strip_prefix("/dev/")
        .ok_or_else(|| failed("name", format!("{name:?} is not below /dev")))
}

/// `by-path/NAME` or `by-id/NAME`. What comes here was checked (`volume::shadow`); here again for what leaves a directory.
fn in_disk(name: &str) -> Result<&str, StepError> {
    let good = |last: &str| !last.is_empty() && !last.starts_with('.') && !last.contains('/');
    name.strip_prefix("/dev/disk/")
        .filter(|n| {
            n.split_once('/')
                .is_some_and(|(kind, last)| matches!(kind, "by-path" | "by-id") && good(last))
        })
        .ok_or_else(|| failed("name", format!("{name:?} is not below /dev/disk")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::host::Mapping;

    const NAME_: &str = "/dev/disk/by-path/ip-192.0.2.1:3260-iscsi-iqn.x:y-lun-1";
    const OURS: &str = "cryptvol-9c1fbb0a";

    fn order(owner: &str, to: NameTo) -> NameOrder {
        NameOrder {
            name: NAME_.into(),
            mapping_name: owner.into(),
            to,
        }
    }

    fn mapping(uuid: &str) -> Mapping {
        Mapping {
            name: OURS.into(),
            uuid: uuid.into(),
            path: "/dev/dm-3".into(),
            dev: "253:3".into(),
            deps: vec![],
            table: None,
            suspended: false,
            open_count: 0,
            size_bytes: 0,
        }
    }

    #[test]
    fn invariant_03_a_link_put_in_the_names_place_goes_with_the_event_of_the_mapping() {
        let tmp = tempfile::tempdir().unwrap();
        let names = Names::at(tmp.path());
        let link = tmp.path().join("disk").join(in_disk(NAME_).unwrap());
        symlink("../../dm-3", &link).unwrap();
        names
            .set(&order(OURS, NameTo::Mapping(mapping("CRYPTVOL-1"))))
            .unwrap();
        let block = tmp.path().join("block");
        fs::create_dir_all(block.join("dm-3/dm")).unwrap();
        fs::write(block.join("dm-3/dm/uuid"), "CRYPTVOL-1\n").unwrap();
        fs::create_dir_all(block.join("sda")).unwrap();
        for device in ["dm-3", "sda"] {
            fs::write(block.join(device).join("uevent"), "").unwrap();
        }
        // By hand, to the raw disk.
        fs::remove_file(&link).unwrap();
        symlink("../../sda", &link).unwrap();
        // What udev does: at an event of the mapping, which has the name no more, nobody is left who has it.
        let event = block.join("dm-3/uevent");
        let (seen, gone) = (link.clone(), std::sync::Arc::new(()));
        let alive = std::sync::Arc::downgrade(&gone);
        let udev = thread::spawn(move || {
            while alive.upgrade().is_some() {
                if fs::read_to_string(&event).is_ok_and(|text| text.starts_with("change")) {
                    fs::remove_file(&seen).unwrap();
                    return true;
                }
                thread::sleep(STEP);
            }
            false
        });
        let set = names.set(&order(OURS, NameTo::Nobody));
        drop(gone);
        assert!(udev.join().unwrap(), "no event of the mapping");
        set.unwrap();
        assert!(!link.is_symlink());
    }

    #[test]
    fn a_name_is_kept_given_taken_back_and_freed() {
        let tmp = tempfile::tempdir().unwrap();
        let names = Names::at(tmp.path());
        let seen = || names.observe(Some(NAME_), OURS).unwrap();
        assert_eq!(seen(), NamesFound::default());
        names.set(&order(OURS, NameTo::Nobody)).unwrap();
        assert_eq!((seen().kept, seen().leads), (vec![NAME_.to_owned()], None));
        // As udev does at the next event.
        symlink(
            "../../dm-3",
            tmp.path().join("disk").join(in_disk(NAME_).unwrap()),
        )
        .unwrap();
        names
            .set(&order(OURS, NameTo::Mapping(mapping("CRYPTVOL-1"))))
            .unwrap();
        assert_eq!(seen().given.as_deref(), Some("CRYPTVOL-1"));
        assert_eq!(seen().leads.as_deref(), Some("/dev/dm-3"));
        // Neither another volume's order nor a foreign mapping gets it.
        for order in [
            order("cryptvol-other", NameTo::Nobody),
            order("cryptvol-other", NameTo::Everybody),
            order(OURS, NameTo::Mapping(mapping("LVM-1"))),
        ] {
            assert_eq!(names.set(&order).unwrap_err().reason(), Reason::NotOurs);
        }
        let other = names.observe(Some(NAME_), "cryptvol-other").unwrap();
        assert_eq!(other.kept_for_another.as_deref(), Some(OURS));
        fs::remove_file(tmp.path().join("disk").join(in_disk(NAME_).unwrap())).unwrap();
        names.set(&order(OURS, NameTo::Nobody)).unwrap();
        assert_eq!((seen().given, seen().kept.len()), (None, 1));
        assert_eq!(names.observe(None, OURS).unwrap().kept, [NAME_]);
        names.set(&order(OURS, NameTo::Everybody)).unwrap();
        assert_eq!(seen(), NamesFound::default());
    }

    #[test]
    fn a_name_stays_in_its_directory() {
        for bad in [
            "/dev/sda",
            "/dev/disk/by-path/../x",
            "/dev/disk/by-path/",
            "/dev/disk/by-uuid/x",
            "/dev/disk/by-id/.x",
        ] {
            assert!(in_disk(bad).is_err(), "{bad}");
        }
    }
}

//! The simulated udev, as far as names that volumes shadow: it is always done with all events.

use std::collections::BTreeMap;

use cryptvol_crds::conditions::Reason;

use super::World;
use crate::host::{NameOrder, NameTo, NamesFound, Query, StepError};

/// What udev is told.
#[derive(Clone, Debug, Default)]
pub struct SimNames {
    /// Kept names, with the mapping's name that each is kept for.
    pub kept: BTreeMap<String, String>,
    /// Names by the UUID of the mapping that has them.
    pub given: BTreeMap<String, String>,
    /// Links that somebody put in the place of udev's by hand, with what they lead to. udev puts its own back at the next event of a device
    /// that has the name; of a name that no device has it knows nothing.
    pub by_hand: BTreeMap<String, String>,
    /// It does nothing of what it is told.
    pub stuck: bool,
}

/// By-path name that udev gives to a LUN of the laboratory.
pub fn by_path(iqn: &str, lun: u32) -> String {
    format!("/dev/disk/by-path/ip-192.0.2.1:3260-iscsi-{iqn}-lun-{lun}")
}

/// By-id name that udev gives to a disk with this WWID.
pub fn by_id(wwid: &str) -> String {
    format!("/dev/disk/by-id/wwn-0x{}", wwid.trim_start_matches("naa."))
}

impl World {
    /// Kernel path of the device that the name leads to.
    pub fn name_leads(&self, name: &str) -> Option<String> {
        let by_hand = self.names.by_hand.get(name).cloned();
        by_hand.or_else(|| self.named_by_udev(name))
    }

    /// A raw disk that would have the name if nobody kept it.
    pub fn raw_disk_of_name(&self, name: &str) -> Option<String> {
        self.kernel.devices.iter().find_map(|d| {
            let session = self.kernel.sessions.iter().find(|s| s.sid == d.sid)?;
            let by_id = d.wwid.as_deref().map(by_id);
            let has = by_path(&session.iqn, d.lun) == name || by_id.as_deref() == Some(name);
            has.then(|| d.path.clone())
        })
    }

    /// An event of every block device (`udevadm trigger`). Gives the links that udev put back.
    pub fn udev_events(&mut self) -> Vec<String> {
        let by_hand: Vec<_> = self.names.by_hand.keys().cloned().collect();
        let claimed = by_hand
            .into_iter()
            .filter(|n| self.named_by_udev(n).is_some());
        let claimed: Vec<_> = claimed.collect();
        self.names.by_hand.retain(|name, _| !claimed.contains(name));
        claimed
    }

    /// Kernel path of the device that udev gives the name to.
    fn named_by_udev(&self, name: &str) -> Option<String> {
        let given = |uuid: &String| self.names.given.get(uuid).is_some_and(|n| n == name);
        let mapping = self.kernel.mappings.iter().find(|m| given(&m.mapping.uuid));
        if let Some(mapping) = mapping {
            return Some(mapping.mapping.path.clone());
        }
        if self.names.kept.contains_key(name) {
            return None;
        }
        self.raw_disk_of_name(name)
    }

    pub(super) fn names_found(&self, query: &Query) -> NamesFound {
        let owner = &query.mapping_name;
        let kept: Vec<_> = self
            .names
            .kept
            .iter()
            .filter(|(_, kept_for)| *kept_for == owner)
            .map(|(name, _)| name.clone())
            .collect();
        let name = query.shadow.clone().or(kept.first().cloned());
        let of_name = |name: &String| {
            let given = self.names.given.iter().find(|(_, n)| *n == name);
            (given.map(|(uuid, _)| uuid.clone()), self.name_leads(name))
        };
        let (given, leads) = name.as_ref().map(of_name).unwrap_or_default();
        NamesFound {
            kept_for_another: name
                .and_then(|n| self.names.kept.get(&n))
                .filter(|kept_for| *kept_for != owner)
                .cloned(),
            kept,
            given,
            leads,
        }
    }

    pub(super) fn set_name(&mut self, order: &NameOrder) -> Result<(), StepError> {
        let kept = self.names.kept.get(&order.name);
        if kept.is_some_and(|kept_for| *kept_for != order.mapping_name) {
            return Err(StepError::new(Reason::NotOurs, "another volume's name"));
        }
        if self.names.stuck {
            return Err(StepError::new(
                Reason::DeadlineExceeded,
                "udev does not follow",
            ));
        }
        let had = self.named_by_udev(&order.name).is_some();
        self.names.given.retain(|_, name| *name != order.name);
        match &order.to {
            NameTo::Everybody => {
                self.names.kept.remove(&order.name);
                return Ok(());
            }
            NameTo::Nobody => {}
            NameTo::Mapping(mapping) => {
                let uuid = mapping.uuid.clone();
                self.names.given.insert(uuid, order.name.clone());
            }
        }
        self.names
            .kept
            .insert(order.name.clone(), order.mapping_name.clone());
        // An event of the device that had the name, and of the one that has it now.
        let has = self.named_by_udev(&order.name).is_some();
        match (had || has, self.names.by_hand.contains_key(&order.name)) {
            (true, _) => drop(self.names.by_hand.remove(&order.name)),
            (false, true) => {
                return Err(StepError::new(
                    Reason::DeadlineExceeded,
                    "udev knows nothing of the link",
                ));
            }
            (false, false) => {}
        }
        Ok(())
    }
}

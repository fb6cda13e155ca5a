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
}

/// By-path name that udev gives to a LUN of the laboratory.
pub fn by_path(iqn: &str, lun: u32) -> String {
    format!("/dev/disk/by-path/ip-192.0.2.1:3260-iscsi-{iqn}-lun-{lun}")
}

impl World {
    /// Kernel path of the device that udev gives the name to.
    pub fn name_leads(&self, name: &str) -> Option<String> {
        let given = |uuid: &String| self.names.given.get(uuid).is_some_and(|n| n == name);
        let mapping = self.kernel.mappings.iter().find(|m| given(&m.mapping.uuid));
        if let Some(mapping) = mapping {
            return Some(mapping.mapping.path.clone());
        }
        if self.names.kept.contains_key(name) {
            return None;
        }
        self.kernel.devices.iter().find_map(|d| {
            let session = self.kernel.sessions.iter().find(|s| s.sid == d.sid)?;
            (by_path(&session.iqn, d.lun) == name).then(|| d.path.clone())
        })
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
        Ok(())
    }
}

//! The name of udev's that a volume shadows: taken from the raw device before it appears, given to the mapping once that is verified,
//! and never the raw device's again for as long as the volume lives.

use cryptvol_crds::{conditions::Reason, v1alpha1::Stage};

use super::{At, Next, Step, stop};
use crate::{
    host::{Mapping, NameTo, StepError},
    volume::shadow,
};

/// From what it is known that the name is this volume's to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It names the way to this LUN, whatever disk is there; or an earlier opening proved whose disk it names.
    ByPath,
    /// The disk that it names was identified in this run.
    ByIdentity,
}

impl At<'_> {
    /// The name leads nowhere, or to this volume's mapping. Nobody takes a name from another's disk by writing it into a spec:
    /// one by id waits for the proof of the first identity check.
    pub(super) fn keep_name(&self, known: Known) -> Result<(), Next> {
        let Some(name) = &self.wanted.query.shadow else {
            return Ok(());
        };
        let found = &self.observed.names;
        if let Some(other) = &found.kept_for_another {
            return Err(stop(
                Stage::Device,
                Reason::NotOurs,
                format!("{name} is the name of another volume's device ({other})"),
            ));
        }
        if known == Known::ByPath && !shadow::is_by_path(name) && !self.opened() {
            return Ok(());
        }
        let mapping = self.observed.mapping.as_ref();
        let leads_astray = found
            .leads
            .as_ref()
            .is_some_and(|path| mapping.is_none_or(|m| m.path != *path));
        let given_astray = found
            .given
            .as_ref()
            .is_some_and(|uuid| mapping.is_none_or(|m| m.uuid != *uuid));
        if found.kept.contains(name) && !leads_astray && !given_astray {
            return Ok(());
        }
        if known == Known::ByIdentity
            && let Some(path) = found.leads.as_ref().filter(|_| leads_astray)
            && !self.is_this_disk(path)
            && !self.opened()
            && !shadow::is_by_path(name)
        {
            return Err(stop(
                Stage::Device,
                Reason::NotOurs,
                format!("{name} leads to {path}, which is not this volume's disk"),
            ));
        }
        Err(self.name_to(name, NameTo::Nobody))
    }

    /// It is the disk that was identified, be it through another session, as somebody else may have one.
    fn is_this_disk(&self, path: &str) -> bool {
        let Some(device) = self.observed.device() else {
            return false;
        };
        let disks = self.observed.paths.iter().filter_map(|p| p.disk.as_ref());
        let mut same = disks.filter(|d| d.id.wwid.is_some() && d.id.wwid == device.id.wwid);
        device.id.path == path || same.any(|d| d.id.path == path)
    }

    /// The name leads to the mapping.
    pub(super) fn give_name(&self, mapping: &Mapping) -> Result<(), Next> {
        let Some(name) = &self.wanted.query.shadow else {
            return Ok(());
        };
        let found = &self.observed.names;
        if found.given.as_ref() == Some(&mapping.uuid)
            && found.leads.as_ref() == Some(&mapping.path)
        {
            return Ok(());
        }
        Err(self.name_to(name, NameTo::Mapping(mapping.clone())))
    }

    /// The name leads nowhere any more, before what it leads to goes. Where the volume is being deleted the spec does not name it
    /// any more.
    pub(super) fn withdraw_name(&self) -> Result<(), Next> {
        let found = &self.observed.names;
        let Some(name) = self.wanted.query.shadow.as_ref().or(found.kept.first()) else {
            return Ok(());
        };
        let mapping = self.observed.mapping.as_ref();
        let leads_there = mapping.is_some_and(|m| found.leads.as_ref() == Some(&m.path));
        if found.given.is_some() || leads_there {
            return Err(self.name_to(name, NameTo::Nobody));
        }
        Ok(())
    }

    /// The names of a volume that is being deleted are udev's again. Those of a volume that is only detached stay kept: the disk
    /// may come to this node by another's doing, and whoever opens the name would write what nobody encrypts.
    pub(super) fn free_names(&self) -> Result<(), Next> {
        let wanted = self.wanted.query.shadow.as_ref();
        match self.observed.names.kept.iter().find(|n| Some(*n) != wanted) {
            Some(name) => Err(self.name_to(name, NameTo::Everybody)),
            None => Ok(()),
        }
    }

    /// What is to be done of a volume that has its mapping, with its name beside that. Nothing that shuts the mapping waits for udev; and a name that
    /// cannot be kept keeps the mapping from being proven no more than from being shut, but nothing new leads to it.
    pub(super) fn beside_mapping(&self, next: Next) -> Next {
        if matches!(next, Next::Do(Step::Suspend { .. })) {
            return next;
        }
        let kept = match &self.run.name {
            Some(e) => Err(not_kept(e)),
            None => self.keep_name(Known::ByPath),
        };
        match (kept, next) {
            (Err(keep @ Next::Do(_)), _) => keep,
            (Err(stop), Next::Done(_) | Next::Do(Step::Link(_) | Step::Name { .. })) => stop,
            (_, next) => next,
        }
    }

    /// Whether the name cannot be kept, as far as this run knows.
    pub(super) fn lacks_name(&self) -> bool {
        let refused = || matches!(self.keep_name(Known::ByPath), Err(Next::Stop(_)));
        self.run.name.is_some() || refused()
    }

    fn name_to(&self, name: &str, to: NameTo) -> Next {
        match &self.run.name {
            // Once is enough in a run: udev gets its time for each.
            Some(e) => not_kept(e),
            None => Next::Do(Step::Name {
                name: name.to_owned(),
                to,
            }),
        }
    }
}

fn not_kept(error: &StepError) -> Next {
    stop(Stage::Device, error.reason(), &error.message)
}

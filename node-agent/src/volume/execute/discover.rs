//! The step that asks an array for further portals.

use super::{Executor, Node, Office, Progress, Receipt};
use crate::{
    host::{Portal, Source, StepError, Target},
    volume::{memory::Memory, wanted::Wanted},
};

impl<N: Node, O: Office> Executor<'_, N, O> {
    /// Asks for further portals and records those that are to be used before anybody logs in there. What was found earlier stays for as long as
    /// there is a session through it, whatever the array says now.
    pub(super) async fn discover(
        &self,
        wanted: &Wanted,
        memory: &mut Memory,
        at: &mut Progress,
    ) -> Result<(), StepError> {
        let (Some(discovery), Source::Iscsi(lun)) = (&wanted.discovery, &wanted.query.source)
        else {
            return Ok(());
        };
        let target = Target {
            portals: wanted.named.clone(),
            iqn: lun.target.iqn.clone(),
        };
        // Asked for each time: they may have been changed on the array.
        let chap = match discovery.chap {
            true => Some(self.office.discovery_chap().await?),
            false => None,
        };
        let found = self.node.discover(&target, chap).await?;
        let paths = at.observed.as_ref().map_or(&[][..], |o| &o.paths);
        let stays = |portal: &&Portal| {
            let mut sessions = paths.iter().filter_map(|p| p.session.as_ref());
            found.portals.iter().any(|p| p.is(portal))
                || sessions.any(|s| s.portal.as_ref().is_some_and(|p| p.is(portal)))
        };
        let former = memory.discovered.iter().filter(stays);
        let mut portals: Vec<_> = former.cloned().collect();
        for portal in &found.portals {
            if !portals.iter().any(|p| p.is(portal)) {
                portals.push(portal.clone());
            }
        }
        portals.truncate(wanted.room());
        if portals != memory.discovered {
            *memory = self.office.record(Receipt::Discovered(portals)).await?;
        }
        at.run.discovery = Some(Ok(found));
        Ok(())
    }
}

//! What must hold at every moment.

use super::*;

impl Lab {
    /// What must hold whatever happened: see the invariants of the design.
    pub fn check(&self) {
        if self.unchecked.get() {
            return;
        }
        let world = self.world.borrow();
        for (name, volume) in self.volumes.borrow().iter() {
            let truth = self.truth.borrow()[name];
            let opened = volume
                .status
                .as_ref()
                .is_some_and(|s| s.first_opened.is_some());
            let ours = |m: &&SimMapping| {
                m.mapping.name == names::mapping_name(&volume.spec.volume_ref.uid)
            };
            if let Some(m) = world.kernel.mappings.iter().find(ours)
                && m.mapping.uuid.starts_with(names::DM_UUID_PREFIX)
            {
                assert_eq!(m.disk, truth, "1: {name} is mapped from another disk");
            }
            if let Some(SimLink::Ours(path)) = world.links.get(&volume.spec.link) {
                let to = world
                    .kernel
                    .mappings
                    .iter()
                    .find(|m| m.mapping.path == *path);
                let Some(to) = to else {
                    assert!(
                        self.vandalised.get(),
                        "3: the link of {name} leads to {path}, which is no mapping"
                    );
                    continue;
                };
                assert!(
                    ours(&to),
                    "3: the link of {name} leads to the mapping {}",
                    to.mapping.name
                );
                assert!(opened, "2: {name} has a link and no record of its opening");
                let key = volume.status.as_ref().and_then(|s| s.key_made.as_ref());
                assert_eq!(
                    key.is_some(),
                    volume.spec.ephemeral,
                    "7: {name} has a link, and the end of its key could not be told"
                );
            }
            if let Some(name) = &volume.spec.shadow
                && let Some(path) = world.name_leads(name)
                && (world.names.kept.contains_key(name) || !self.names_free_until_kept.get())
            {
                let to = world
                    .kernel
                    .mappings
                    .iter()
                    .find(|m| m.mapping.path == path);
                assert!(
                    to.is_some_and(|m| ours(&m)),
                    "3: {name} leads to {path}, not to the mapping of its volume"
                );
                assert!(
                    opened,
                    "2: {name} leads to a mapping and no record of its opening"
                );
            }
            let disk = &world.disks[truth];
            let own = |h: &SimHeader| {
                h.slots.contains(&*self.stored.borrow())
                    && volume.spec.luks_uuid.as_ref() == Some(&h.facts.luks_uuid)
            };
            let whole = matches!(&disk.content, Content::Luks(h) if own(h));
            let mut overwritten = self.overwritten.borrow_mut();
            if overwritten.contains(&truth) {
                if !whole {
                    continue;
                }
                let pinned = volume.spec.header.as_ref();
                let same = matches!(&disk.content, Content::Luks(h) if Some(&h.facts) == pinned);
                assert!(same, "2: {name} was formatted and not restored");
                overwritten.remove(&truth);
            }
            if disk.data.is_some() && !volume.spec.ephemeral {
                let erased = volume.spec.desired == Desired::Erased;
                let intact = match &disk.content {
                    Content::Luks(h) => h.slots.contains(&*self.stored.borrow()),
                    content => {
                        let headerless = !volume.spec.encryption.has_header_on_disk();
                        headerless
                            && *content == Content::Garbage
                            && disk.written == 0
                            && self.record_opens(&volume.spec)
                    }
                };
                assert!(
                    intact || erased,
                    "7, 8: data of {name} lost: {:?}",
                    disk.content
                );
            }
        }
    }

    /// No secret in what others can read.
    pub fn check_secrets(&self) {
        for volume in self.volumes.borrow().values() {
            let text = serde_json::to_string(volume).unwrap();
            assert!(
                !text.contains(KEY) && !text.contains(CHAP.1),
                "4: a secret in the API"
            );
        }
    }
}

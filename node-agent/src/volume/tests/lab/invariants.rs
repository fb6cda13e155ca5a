//! The ten invariants of the design (its section 4), as far as they concern a node, each asked of what there is now and of what was noted
//! on the way. `Lab::check` asks all of them after every call of every test; `tests/invariants.rs` shows of each that it can fail.

use cryptvol_crds::conditions::Reason;

use super::*;

/// How an invariant does not hold.
pub type Held = Result<(), String>;

macro_rules! holds {
    ($what:expr, $($message:tt)+) => {
        if !$what {
            return Err(format!($($message)+));
        }
    };
}

/// All that the invariants look at.
pub struct Sight<'a> {
    lab: &'a Lab,
    world: &'a World,
    ledger: &'a Ledger,
    volumes: Vec<Volume<'a>>,
}

/// A volume with what there is of it.
struct Volume<'a> {
    name: &'a str,
    spec: &'a NodeVolumeSpec,
    status: Option<&'a NodeVolumeStatus>,
    generation: Option<i64>,
    mapping_name: String,
    truth: usize,
    stored: String,
}

impl Volume<'_> {
    fn opened(&self) -> bool {
        self.status.is_some_and(|s| s.first_opened.is_some())
    }

    /// The mapping of the volume's name.
    fn mapping<'a>(&self, world: &'a World) -> Option<&'a SimMapping> {
        let mut all = world.kernel.mappings.iter();
        all.find(|m| m.mapping.name == self.mapping_name)
    }

    fn leads_to<'a>(&self, world: &'a World, path: &str) -> Option<&'a SimMapping> {
        let mut all = world.kernel.mappings.iter();
        all.find(|m| m.mapping.path == path)
    }
}

impl Lab {
    /// All ten.
    pub fn check(&self) {
        if self.unchecked.get() {
            return;
        }
        self.find_headers();
        if let Err(broken) = self.invariants() {
            panic!("{broken}");
        }
        let mut ledger = self.ledger.borrow_mut();
        ledger.unread = false;
        ledger.read = self.world.borrow().log.len();
    }

    /// What of the invariants does not hold.
    pub fn invariants(&self) -> Held {
        let (world, volumes) = (self.world.borrow(), self.volumes.borrow());
        let (ledger, truth) = (self.ledger.borrow(), self.truth.borrow());
        let sight = Sight {
            lab: self,
            world: &world,
            ledger: &ledger,
            volumes: volumes
                .iter()
                .map(|(name, v)| Volume {
                    name,
                    spec: &v.spec,
                    status: v.status.as_ref(),
                    generation: v.metadata.generation,
                    mapping_name: names::mapping_name(&v.spec.volume_ref.uid),
                    truth: truth[name],
                    stored: self.stored(name),
                })
                .collect(),
        };
        INVARIANTS
            .iter()
            .try_for_each(|invariant| invariant(&sight))
    }

    /// A header that somebody wrote over is there again.
    fn find_headers(&self) {
        let (world, volumes) = (self.world.borrow(), self.volumes.borrow());
        let truth = self.truth.borrow();
        let mut overwritten = self.overwritten.borrow_mut();
        for (name, volume) in volumes.iter() {
            let Content::Luks(h) = &world.disks[truth[name]].content else {
                continue;
            };
            if Some(&h.facts) == volume.spec.header.as_ref() && h.slots.contains(&self.stored(name))
            {
                overwritten.remove(&truth[name]);
            }
        }
    }
}

/// In the order of the design.
pub const INVARIANTS: [fn(&Sight<'_>) -> Held; 10] = [
    invariant_01_identity_before_action,
    invariant_02_no_format_without_a_permit,
    invariant_03_the_link_never_leads_to_the_raw_device,
    invariant_04_the_key_is_never_at_rest,
    invariant_05_a_key_only_for_an_attachment_that_is_wanted,
    invariant_06_nothing_of_others_is_touched,
    invariant_07_every_step_may_be_the_last,
    invariant_08_the_stored_key_always_opens_the_disk,
    invariant_09_deletion_needs_no_key_and_cannot_outrun_it,
    invariant_10_one_operation_per_volume_and_bounded_work,
];

/// A mapping is over its volume's disk alone, and nothing was written or unlocked before it was known whose it is.
fn invariant_01_identity_before_action(at: &Sight<'_>) -> Held {
    for v in &at.volumes {
        let name = v.name;
        if let Some(m) = v.mapping(at.world)
            && m.mapping.uuid.starts_with(names::DM_UUID_PREFIX)
        {
            holds!(m.disk == v.truth, "1: {name} is mapped from another disk");
        }
    }
    for (i, disk) in at.world.disks.iter().enumerate() {
        let ours = at.volumes.iter().any(|v| v.truth == i);
        holds!(
            ours || disk.written == 0,
            "1: a stranger's disk was written"
        );
    }
    holds!(at.ledger.unproven.is_empty(), "1: {:?}", at.ledger.unproven);
    Ok(())
}

/// One format a permit that is on record as spent, and none once the volume was opened; what leads to a mapping comes after the record
/// of that.
fn invariant_02_no_format_without_a_permit(at: &Sight<'_>) -> Held {
    for v in &at.volumes {
        let (name, formats) = (v.name, at.world.disks[v.truth].formats);
        let permits = at.ledger.permits.get(name).map_or(0, BTreeSet::len);
        holds!(
            formats as usize <= permits,
            "2: {name} was formatted {formats} times with {permits} permits"
        );
        if let Some(before) = at.ledger.formats_at_opening.get(name) {
            holds!(
                formats == *before,
                "2: {name} was formatted after it was opened"
            );
        }
        if let Some(SimLink::Ours(_)) = at.world.links.get(&v.spec.link) {
            holds!(
                v.opened(),
                "2: {name} has a link and no record of its opening"
            );
        }
        if at.lab.overwritten.borrow().contains(&v.truth)
            && let Content::Luks(h) = &at.world.disks[v.truth].content
        {
            let own = v.spec.luks_uuid.as_ref() == Some(&h.facts.luks_uuid);
            holds!(
                !own || !h.slots.contains(&v.stored) || Some(&h.facts) == v.spec.header.as_ref(),
                "2: {name} was formatted and not restored"
            );
        }
    }
    Ok(())
}

/// Link and name lead to the volume's own mapping, or nowhere.
fn invariant_03_the_link_never_leads_to_the_raw_device(at: &Sight<'_>) -> Held {
    for v in &at.volumes {
        let name = v.name;
        if let Some(SimLink::Ours(path)) = at.world.links.get(&v.spec.link) {
            match v.leads_to(at.world, path) {
                Some(to) => {
                    holds!(
                        to.mapping.name == v.mapping_name,
                        "3: the link of {name} leads to the mapping {}",
                        to.mapping.name
                    );
                    let key = v.status.and_then(|s| s.key_made.as_ref());
                    holds!(
                        key.is_some() == v.spec.ephemeral,
                        "7: {name} has a link, and the end of its key could not be told"
                    );
                }
                None => holds!(
                    at.lab.vandalised.get(),
                    "3: the link of {name} leads to {path}, which is no mapping"
                ),
            }
        }
        let Some(shadow) = &v.spec.shadow else {
            continue;
        };
        // What somebody did to the name by hand counts from the agent's next look on.
        let free = at.lab.names_free_until_kept.get() && !at.world.names.kept.contains_key(shadow);
        let by_hand = at.world.names.by_hand.contains_key(shadow);
        let foreign = at.ledger.others.names.contains_key(shadow);
        if let Some(path) = at.world.name_leads(shadow)
            && !free
            && !by_hand
            && !foreign
        {
            let to = v.leads_to(at.world, &path);
            holds!(
                to.is_some_and(|m| m.mapping.name == v.mapping_name),
                "3: {shadow} leads to {path}, not to the mapping of its volume"
            );
            holds!(
                v.opened(),
                "2: {shadow} leads to a mapping and no record of its opening"
            );
        }
    }
    Ok(())
}

/// No secret in what others can read, and none in the kernel of a volume that says that it is suspended.
fn invariant_04_the_key_is_never_at_rest(at: &Sight<'_>) -> Held {
    let secret_in = |text: &str| at.ledger.secrets.iter().any(|s| text.contains(s.as_str()));
    for v in &at.volumes {
        let name = v.name;
        if at.ledger.unread {
            let text = serde_json::to_string(&(v.spec, v.status)).unwrap_or_default();
            holds!(!secret_in(&text), "4: a secret in the API, of {name}");
        }
        let said = v.status.is_some_and(|s| {
            s.suspended && s.error.is_none() && s.observed_generation == v.generation
        });
        if said && v.spec.suspended && v.spec.desired == Desired::Attached {
            let table = v.mapping(at.world).and_then(|m| m.mapping.table.as_ref());
            holds!(
                table.is_none_or(|t| !t.key_in_keyring),
                "4: {name} is said to be suspended, and its key is in the kernel"
            );
        }
    }
    for line in at.world.log.iter().skip(at.ledger.read) {
        holds!(!secret_in(line), "4: a secret in the log");
    }
    Ok(())
}

/// Asked for because the spec that the agent acts on wants it, and used in the turn that asked.
fn invariant_05_a_key_only_for_an_attachment_that_is_wanted(at: &Sight<'_>) -> Held {
    let keys = &at.ledger.unwanted_keys;
    holds!(keys.is_empty(), "5: {keys:?}");
    Ok(())
}

/// Sessions, mappings, links, names and key slots of others are as they were.
fn invariant_06_nothing_of_others_is_touched(at: &Sight<'_>) -> Held {
    let (world, others) = (at.world, &at.ledger.others);
    for sid in &others.sessions {
        let there = world.kernel.sessions.iter().any(|s| s.sid == *sid);
        holds!(there, "6: session {sid} of others is gone");
    }
    for uuid in &others.mappings {
        let there = world
            .kernel
            .mappings
            .iter()
            .any(|m| m.mapping.uuid == *uuid);
        holds!(there, "6: the mapping {uuid} of others is gone");
    }
    for link in &others.links {
        let same = matches!(world.links.get(link), Some(SimLink::Foreign(_)));
        holds!(same, "6: the link {link} of others was touched");
    }
    for (name, owner) in &others.names {
        let same = world.names.kept.get(name) == Some(owner);
        holds!(same, "6: the name {name} was taken from {owner}");
    }
    for (disk, slot) in &others.slots {
        let erased = at
            .volumes
            .iter()
            .any(|v| v.truth == *disk && v.spec.desired == Desired::Erased);
        let gone = erased || at.lab.overwritten.borrow().contains(disk);
        let there =
            matches!(&world.disks[*disk].content, Content::Luks(h) if h.slots.contains(slot));
        holds!(
            gone || there,
            "6: a key slot of others on disk {disk} is gone"
        );
    }
    Ok(())
}

/// No data is lost, and what stops a volume says what to do.
fn invariant_07_every_step_may_be_the_last(at: &Sight<'_>) -> Held {
    for v in &at.volumes {
        let (name, disk) = (v.name, &at.world.disks[v.truth]);
        if let Some(error) = v.status.and_then(|s| s.error.as_ref()) {
            let next = Reason::parse(&error.reason).map(Reason::next_step);
            holds!(
                next.is_some_and(|next| error.message.ends_with(next)),
                "7: {name} stops and does not say what to do: {error:?}"
            );
        }
        if !v.has_data(at) {
            continue;
        }
        let there = match &disk.content {
            Content::Luks(_) => true,
            content => {
                let headerless = !v.spec.encryption.has_header_on_disk();
                headerless && *content == Content::Garbage && disk.written == 0
            }
        };
        holds!(there, "7: data of {name} lost: {:?}", disk.content);
    }
    Ok(())
}

impl Volume<'_> {
    /// There is something to lose.
    fn has_data(&self, at: &Sight<'_>) -> bool {
        at.world.disks[self.truth].data.is_some()
            && !self.spec.ephemeral
            && self.spec.desired != Desired::Erased
            && !at.lab.overwritten.borrow().contains(&self.truth)
    }
}

/// A key slot, or the header apart from the disk, and the backup.
fn invariant_08_the_stored_key_always_opens_the_disk(at: &Sight<'_>) -> Held {
    for v in at.volumes.iter().filter(|v| v.has_data(at)) {
        let name = v.name;
        let opens = match &at.world.disks[v.truth].content {
            Content::Luks(h) => h.slots.contains(&v.stored),
            _ => at.lab.record_opens(v.spec),
        };
        holds!(opens, "8: the key on record does not open {name}");
        let sealed = v.status.and_then(|s| s.header_backup.as_ref());
        if let Some(backup) = sealed.filter(|_| !v.spec.encryption.detached_header) {
            let next = at.lab.next.borrow().get(name).map(|n| fingerprint(n));
            holds!(
                backup.sealed == fingerprint(&v.stored) || Some(&backup.sealed) == next.as_ref(),
                "8: no key on record opens the backup of {name}"
            );
        }
    }
    Ok(())
}

/// What is reported as erased has no key slot and no mapping. A volume that was never opened has no data: whatever its disk shows
/// then is as good as erased.
fn invariant_09_deletion_needs_no_key_and_cannot_outrun_it(at: &Sight<'_>) -> Held {
    for v in at.volumes.iter().filter(|v| v.opened()) {
        let receipt = v.status.and_then(|s| s.erased.as_ref());
        if !receipt.is_some_and(|e| e.verified) {
            continue;
        }
        let keyless = match &at.world.disks[v.truth].content {
            Content::Luks(h) => {
                h.slots.is_empty() || Some(&h.facts.luks_uuid) != v.spec.luks_uuid.as_ref()
            }
            _ => true,
        };
        let mapped = v.mapping(at.world);
        let mapped = mapped.is_some_and(|m| m.mapping.uuid.starts_with(names::DM_UUID_PREFIX));
        holds!(
            keyless && !mapped,
            "9: erased is reported and {} is not",
            v.name
        );
    }
    Ok(())
}

/// One call at a time of a volume, and of those that must have a target to themselves one a target; no turn without an end.
fn invariant_10_one_operation_per_volume_and_bounded_work(at: &Sight<'_>) -> Held {
    let ledger = at.ledger;
    for (volume, calls) in &ledger.in_flight {
        holds!(*calls <= 1, "10: {calls} calls of {volume} at once");
    }
    for (target, calls) in at.lab.busy_targets.borrow().iter() {
        holds!(*calls <= 1, "10: {calls} volumes work on {target} at once");
    }
    for (volume, calls) in &ledger.calls {
        holds!(
            *calls <= MOST_CALLS,
            "10: a turn of {volume} takes {calls} calls"
        );
    }
    Ok(())
}

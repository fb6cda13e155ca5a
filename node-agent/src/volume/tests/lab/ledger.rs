//! What was seen on the way and is seen in no state: the invariants are asked of both.

use super::*;

/// Calls of one turn: each of its steps looks, acts, and may make a backup as well.
pub const MOST_CALLS: usize = 3 * 40;

/// What the invariants compare with.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// All secrets that there are.
    pub secrets: Vec<String>,
    /// Something changed that others can read and that was not searched for secrets yet.
    pub unread: bool,
    /// Lines of the world's log that were searched.
    pub read: usize,
    /// Invariant 1: what was written or unlocked without the proof that it is the volume's.
    pub unproven: Vec<String>,
    /// Permits that were recorded as spent, by volume.
    pub permits: BTreeMap<String, BTreeSet<String>>,
    /// How often the volume's disk had been formatted when it was first opened.
    pub formats_at_opening: BTreeMap<String, u32>,
    /// Invariant 5: keys that were asked for, or used, without being wanted or released.
    pub unwanted_keys: Vec<String>,
    /// Calls that are on their way, by volume.
    pub in_flight: BTreeMap<String, usize>,
    /// Calls of the turn, by volume.
    pub calls: BTreeMap<String, usize>,
    /// How often the agent died.
    pub deaths: usize,
    /// What is somebody else's.
    pub others: Others,
}

/// What is somebody else's on this node and on the disks, and stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Others {
    /// Session ids.
    pub sessions: BTreeSet<u32>,
    /// UUIDs of mappings.
    pub mappings: BTreeSet<String>,
    /// Links in our directory.
    pub links: BTreeSet<String>,
    /// Names of udev's, with whom each is kept for.
    pub names: BTreeMap<String, String>,
    /// Key slots, by disk.
    pub slots: BTreeMap<usize, String>,
}

impl Others {
    /// Of all that was in the kernel nothing is left.
    fn power_cut(&mut self) {
        self.sessions.clear();
        self.mappings.clear();
        self.links.clear();
        self.names.clear();
    }
}

impl Ledger {
    pub fn new() -> Self {
        Self {
            secrets: vec![KEY.to_owned(), CHAP.1.to_owned()],
            unread: true,
            ..Self::default()
        }
    }

    /// The agent is dead, and the node's memory may be gone with it.
    pub fn bury(&mut self, fault: Option<Fault>) {
        self.in_flight.clear();
        self.calls.clear();
        self.deaths += usize::from(fault.is_some());
        if fault == Some(Fault::PowerCut) {
            self.others.power_cut();
        }
    }
}

/// What a call can change that no later state tells.
pub(super) struct Before {
    written: Vec<u64>,
    live: bool,
}

impl Before {
    pub(super) fn of(world: &World, mapping: &str) -> Self {
        Self {
            written: world.disks.iter().map(|d| d.written).collect(),
            live: is_live(world, mapping),
        }
    }
}

/// There is a mapping of ours with its key in the kernel.
fn is_live(world: &World, mapping: &str) -> bool {
    let mut all = world.kernel.mappings.iter().map(|m| &m.mapping);
    all.any(|m| {
        m.name == mapping
            && m.uuid.starts_with(names::DM_UUID_PREFIX)
            && !m.suspended
            && m.table.is_some()
    })
}

impl Lab {
    /// Notes what a call of this volume did that it may not do: it wrote on another's disk, or unlocked what was not proven, or with a key
    /// that was not released in this turn.
    pub(super) fn note_call(
        &self,
        what: &str,
        volume: &str,
        mapping: &str,
        before: &Before,
        key: bool,
    ) {
        let (world, truth) = (self.world.borrow(), self.truth.borrow()[volume]);
        let mut ledger = self.ledger.borrow_mut();
        let written = world.disks.iter().zip(&before.written).enumerate();
        for (disk, _) in written.filter(|(i, (now, was))| *i != truth && now.written != **was) {
            let line = format!("{what} of {volume} wrote on disk {disk}");
            ledger.unproven.push(line);
        }
        if before.live || !is_live(&world, mapping) {
            return;
        }
        let spec = &self.volumes.borrow()[volume].spec;
        let disk = &world.disks[truth];
        if spec.wwid.is_some() && spec.wwid != disk.wwid {
            let line = format!("{what} of {volume} unlocked {:?}", disk.wwid);
            ledger.unproven.push(line);
        }
        if let Some(pinned) = spec
            .header
            .as_ref()
            .filter(|_| spec.encryption.has_header_on_disk())
        {
            let mut same = pinned.clone();
            let agrees = matches!(&disk.content, Content::Luks(h) if {
                same.integrity.clone_from(&h.facts.integrity);
                h.facts == same && h.objections.is_empty()
            });
            if !agrees {
                let line = format!("{what} of {volume} unlocked {:?}", disk.content);
                ledger.unproven.push(line);
            }
        }
        if !key && spec.encryption.provider.encrypts() && !spec.ephemeral {
            let line = format!("{what} of {volume} used a key that was not released for it");
            ledger.unwanted_keys.push(line);
        }
    }
}

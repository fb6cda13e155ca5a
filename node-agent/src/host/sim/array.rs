//! The simulated array: targets, LUNs, disks and what lies on them.

use std::collections::BTreeMap;

use cryptvol_crds::v1alpha1::{HeaderFacts, IntegrityFacts, KeySlotRef, Provider};

use crate::host::{Access, FormatOrder, OWN_DERIVATIONS};

/// A target.
#[derive(Clone, Debug, Default)]
pub struct SimTarget {
    /// The portal answers.
    pub up: bool,
    /// CHAP credentials that it wants.
    pub chap: Option<(String, String)>,
    /// CHAP credentials that it proves itself with.
    pub own_chap: Option<(String, String)>,
    /// What it tells of its portals in a discovery, word for word.
    pub tells: Vec<String>,
    /// CHAP credentials that it wants in a discovery.
    pub discovery_chap: Option<(String, String)>,
    /// Portals that do not answer, as `address:port`, while the target is up.
    pub portals_away: Vec<String>,
    /// Portals at which all LUNs are another disk, as indexes into `World::disks`.
    pub other_luns: BTreeMap<String, usize>,
    /// What the array says of its ports, by portal (ALUA); where one is named the others are active/optimized.
    pub access: BTreeMap<String, Access>,
    /// Disks by LUN, as indexes into `World::disks`.
    pub luns: BTreeMap<u32, usize>,
}

/// A disk.
#[derive(Clone, Debug)]
pub struct Disk {
    /// What INQUIRY says.
    pub wwid: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// What its beginning holds.
    pub content: Content,
    /// Reads fail.
    pub unreadable: bool,
    /// Reads give zeros whatever is there.
    pub zeros: bool,
    /// Bytes that the agent wrote.
    pub written: u64,
    /// How often writing a header was begun on it.
    pub formats: u32,
    /// Bytes of authenticated sectors that can be read: those that were written once.
    pub initialised: u64,
    /// Mapping UUID through which a guest wrote last: there is data to lose.
    pub data: Option<String>,
}

/// What the beginning of a disk holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Zeros.
    Blank,
    /// A LUKS2 header.
    Luks(SimHeader),
    /// A signature of something else.
    Foreign(String),
    /// Bytes without meaning, such as a header of which half was written.
    Garbage,
}

/// A LUKS2 header.
#[derive(Clone, Debug, PartialEq)]
pub struct SimHeader {
    /// Its facts.
    pub facts: HeaderFacts,
    /// Passphrases of its key slots.
    pub slots: Vec<String>,
    /// Memory that opening it takes, in KiB.
    pub unlock_memory_kib: u32,
    /// How its keys are derived.
    pub derivations: Vec<String>,
    /// What is wrong with it.
    pub objections: Vec<String>,
}

impl Disk {
    /// A blank disk of 1 GiB.
    pub fn blank(wwid: &str) -> Self {
        Self {
            wwid: Some(wwid.to_owned()),
            size: 1 << 30,
            content: Content::Blank,
            unreadable: false,
            zeros: false,
            written: 0,
            formats: 0,
            initialised: 0,
            data: None,
        }
    }

    /// The same disk with other content.
    pub fn with(mut self, content: Content) -> Self {
        self.content = content;
        self
    }
}

/// What a key slot says whose area was wiped and that the header still names; its fingerprint follows.
pub const WIPED: &str = "wiped ";

/// What a key slot is known by.
pub fn fingerprint(slot: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    match slot.strip_prefix(WIPED) {
        Some(name) => name.to_owned(),
        None => {
            let mut hasher = DefaultHasher::new();
            slot.hash(&mut hasher);
            format!("{:016x}", hasher.finish())
        }
    }
}

impl SimHeader {
    /// Key slots that a passphrase opens.
    pub fn opened_by(&self, passphrase: &str) -> Vec<KeySlotRef> {
        let slots = self.slots.iter().enumerate();
        slots
            .filter(|(_, slot)| *slot == passphrase)
            .map(|(number, slot)| KeySlotRef {
                number: i32::try_from(number).unwrap(),
                fingerprint: fingerprint(slot),
            })
            .collect()
    }

    /// A header as the simulated kernel writes it to this order.
    pub fn to(order: &FormatOrder) -> Self {
        let mut header = Self::new(&order.luks_uuid, &order.passphrase.0);
        let facts = &mut header.facts;
        facts.provider = order.encryption.provider;
        facts.key_size = order.encryption.key_size;
        facts.sector_size = order.encryption.sector_size;
        facts.integrity = order.encryption.integrity.map(|kind| IntegrityFacts {
            kind,
            data_bytes: 900 << 20,
        });
        if facts.provider == Provider::Luks {
            facts.data_offset = 2 << 20;
        }
        header
    }

    /// A header as the default class has it.
    pub fn new(luks_uuid: &str, passphrase: &str) -> Self {
        Self {
            facts: HeaderFacts {
                luks_uuid: luks_uuid.to_owned(),
                cipher: "aes-xts-plain64".to_owned(),
                key_size: 512,
                sector_size: 512,
                data_offset: 16 << 20,
                digest: format!("volume-key-of-{luks_uuid}"),
                ..HeaderFacts::default()
            },
            slots: vec![passphrase.to_owned()],
            unlock_memory_kib: 0,
            derivations: OWN_DERIVATIONS.map(str::to_owned).to_vec(),
            objections: vec![],
        }
    }
}

//! The metadata of a LUKS2 header: what it says, and what of it is not acceptable whatever was pinned.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    marker::PhantomData,
    ops::Range,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use cryptvol_crds::v1alpha1::{HeaderFacts, Integrity, IntegrityFacts, Provider};
use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, Visitor},
};

use super::bounds::{
    self, HASHES, KEY_BYTES, MAX_KEY_BYTES, MAX_PBKDF2_ITERATIONS, MAX_PBKDF2_TOTAL,
    MIN_PBKDF2_ITERATIONS, STRIPES, is_null, protects,
};

/// Most memory for Argon2 that tools take unless told otherwise (cryptsetup: 1 GiB), in KiB. How much of it an agent may take
/// is its own affair.
const MAX_ARGON2_MEMORY: u32 = 1 << 20;
/// More passes of Argon2 than a worker has time for.
const MAX_ARGON2_TIME: u32 = 16;
/// More threads of Argon2 than anybody asks for (also libcryptsetup's limit).
const MAX_ARGON2_CPUS: u32 = 4;
/// Largest area that a key slot needs: 64 bytes in 4000 stripes, rounded up.
const MAX_AREA: u64 = 512 << 10;
/// Largest key slot region of the format.
const MAX_AREAS: u64 = 128 << 20;
/// Most key slots of the format.
const MAX_SLOTS: usize = 32;
/// Most passes times KiB of all key slots together, for the same cause.
const MAX_ARGON2_TOTAL: u64 = (MAX_ARGON2_MEMORY as u64) * (MAX_ARGON2_TIME as u64);
/// Bytes of a key slot's own key: AES-128 to AES-256 in XTS.
const AREA_KEY: Range<u32> = 16..65;

/// A key slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// Number.
    pub id: u32,
    /// Where its key material lies.
    pub area: Range<u64>,
    /// SHA-256 (lower-case hex) over its salt and the place of its area: a slot made anew under the same number has another.
    pub fingerprint: String,
}

/// Place of a key slot.
#[derive(Clone, Debug, Deserialize)]
struct Area {
    #[serde(rename = "type")]
    kind: String,
    #[serde(deserialize_with = "number")]
    offset: u64,
    #[serde(deserialize_with = "number")]
    size: u64,
    #[serde(default)]
    encryption: Option<String>,
    #[serde(default)]
    key_size: Option<u32>,
}

/// What the metadata says.
#[derive(Debug)]
pub struct Read {
    /// Facts, without the UUID, which is not in the metadata.
    pub facts: HeaderFacts,
    /// Key slots of the volume key.
    pub slots: Vec<KeySlot>,
    /// Areas of all key slots.
    pub used: Vec<Range<u64>>,
    /// Most memory that one of its slots takes, in KiB.
    pub unlock_memory_kib: u32,
    /// How its key slots and its digest derive their keys, each once.
    pub derivations: Vec<String>,
    /// End of the key slot region.
    pub areas_end: u64,
    /// What is not acceptable.
    pub objections: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    keyslots: Unique<Slot>,
    #[allow(dead_code)] // only that names are unique
    #[serde(default)]
    tokens: Unique<IgnoredAny>,
    segments: Unique<Segment>,
    digests: Unique<Digest>,
    config: Config,
}

#[derive(Deserialize)]
struct Slot {
    #[serde(rename = "type")]
    kind: String,
    key_size: u32,
    #[serde(default)]
    af: Option<Af>,
    #[serde(default)]
    area: Option<Area>,
    #[serde(default)]
    kdf: Option<Kdf>,
}

#[derive(Deserialize)]
struct Af {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    stripes: u32,
    #[serde(default)]
    hash: String,
}

#[derive(Deserialize)]
struct Kdf {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    hash: String,
    #[serde(default)]
    iterations: u32,
    #[serde(default)]
    time: u32,
    #[serde(default)]
    memory: u32,
    #[serde(default)]
    cpus: u32,
    salt: String,
}

#[derive(Deserialize)]
struct Segment {
    #[serde(rename = "type")]
    kind: String,
    #[serde(deserialize_with = "number")]
    offset: u64,
    size: String,
    #[serde(default)]
    iv_tweak: Option<String>,
    #[serde(default)]
    encryption: String,
    #[serde(default)]
    sector_size: u32,
    #[serde(default)]
    integrity: Option<SegmentIntegrity>,
    #[serde(default)]
    flags: Vec<String>,
}

#[derive(Deserialize)]
struct SegmentIntegrity {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    journal_encryption: String,
    #[serde(default)]
    journal_integrity: String,
    /// Bytes of its key, where that is not what its kind has (cryptsetup since 2.8).
    #[serde(default)]
    key_size: Option<u32>,
}

impl SegmentIntegrity {
    /// How sectors are authenticated, where that is all as this agent makes it.
    fn known(&self) -> Option<Integrity> {
        let kind = Integrity::HmacSha256;
        let own_size = self.key_size.is_none_or(|n| n as usize == kind.key_bytes());
        let journal = [&self.journal_encryption, &self.journal_integrity];
        (self.kind == kind.kernel_name() && own_size && journal.iter().all(|j| *j == "none"))
            .then_some(kind)
    }
}

#[derive(Deserialize)]
struct Digest {
    #[serde(rename = "type")]
    kind: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    #[serde(default)]
    hash: String,
    #[serde(default)]
    iterations: u32,
    salt: String,
    digest: String,
}

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "number")]
    json_size: u64,
    #[serde(deserialize_with = "number")]
    keyslots_size: u64,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    requirements: Option<serde_json::Map<String, serde_json::Value>>,
}

/// Reads the metadata of a header whose copies are `copy_size` bytes long.
///
/// # Errors
/// What is wrong, when it is not metadata of LUKS2 at all.
pub fn read(json: &str, copy_size: usize, device_size: u64) -> Result<Read, String> {
    super::strict::check(json)?;
    let metadata: Metadata = serde_json::from_str(json).map_err(|e| format!("metadata: {e}"))?;
    let mut objections = Vec::new();
    let mut object = |what: String| objections.push(what);
    let areas_start = 2 * copy_size as u64;
    let areas_end = areas_start.saturating_add(metadata.config.keyslots_size);

    config(&metadata.config, copy_size, &mut object);
    let segment = segment(&metadata.segments, areas_end, device_size, &mut object)?;
    let integrity = segment.integrity.as_ref().and_then(SegmentIntegrity::known);
    let tail = integrity.map_or(0, |i| i.key_bytes() as u32);
    let (digest, bound) = digest(&metadata.digests, &metadata.keyslots, &mut object)?;

    let mut slots = Vec::new();
    let mut key_size = 0;
    for (id, slot) in &metadata.keyslots.0 {
        for what in slot_objections(slot, areas_start..areas_end) {
            object(format!("key slot {id} {what}"));
        }
        let (Some(area), true) = (&slot.area, bound.contains(id)) else {
            continue;
        };
        if key_size != 0 && key_size != slot.key_size {
            object("its key slots hold keys of different sizes".into());
        }
        key_size = slot.key_size;
        if !KEY_BYTES.contains(&key_size.saturating_sub(tail)) {
            object(format!("key slot {id} holds a key of {key_size} bytes"));
        }
        slots.push(KeySlot {
            id: *id,
            area: area.offset..area.offset.saturating_add(area.size),
            fingerprint: slot_fingerprint(slot, area),
        });
    }
    if slots.is_empty() {
        object("it has no key slot in use".into());
    }
    total_cost(&metadata, &mut object);
    let unlock_memory_kib = metadata
        .keyslots
        .0
        .values()
        .filter_map(|s| s.kdf.as_ref().map(|k| k.memory))
        .max()
        .unwrap_or_default();
    let derivations = derivations(&metadata);
    let used = metadata.keyslots.0.into_values().filter_map(|s| s.area);
    let used = used.map(|a| a.offset..a.offset.saturating_add(a.size));
    let used = used.collect();
    Ok(Read {
        facts: HeaderFacts {
            provider: Provider::Luks2,
            luks_uuid: String::new(),
            cipher: segment.encryption.clone(),
            key_size: key_size.saturating_sub(tail).saturating_mul(8) as i32,
            sector_size: segment.sector_size as i32,
            data_offset: i64::try_from(segment.offset).unwrap_or(i64::MAX),
            // The room is not said by the metadata, but behind it on the device.
            integrity: integrity.map(|kind| IntegrityFacts {
                kind,
                data_bytes: 0,
            }),
            digest: fingerprint(digest)?,
            ..HeaderFacts::default()
        },
        slots,
        used,
        unlock_memory_kib,
        derivations,
        areas_end,
        objections,
    })
}

fn config(config: &Config, copy_size: usize, object: &mut impl FnMut(String)) {
    if config.json_size != copy_size as u64 - super::BINARY as u64 {
        object(format!("it claims {} bytes of metadata", config.json_size));
    }
    if config.keyslots_size > MAX_AREAS || !config.keyslots_size.is_multiple_of(4096) {
        object(format!(
            "it claims {} bytes of key slots",
            config.keyslots_size
        ));
    }
    if !config.flags.is_empty() {
        object(format!(
            "it stores activation flags ({}); these belong to the EncryptionClass",
            config.flags.join(", ")
        ));
    }
    for (kind, value) in config.requirements.iter().flatten() {
        if value.as_array().is_none_or(|list| !list.is_empty()) {
            object(format!(
                "it has {kind} requirements ({value}), re-encryption for example"
            ));
        }
    }
}

fn segment<'a>(
    segments: &'a Unique<Segment>,
    areas_end: u64,
    device_size: u64,
    object: &mut impl FnMut(String),
) -> Result<&'a Segment, String> {
    let segment = segments.0.get(&0).ok_or("no segment 0")?;
    if segments.0.len() != 1 {
        object(format!("it has {} segments", segments.0.len()));
    }
    if segment.kind != "crypt" {
        object(format!("its segment is of type {:?}", segment.kind));
    }
    if is_null(&segment.encryption) || segment.encryption.contains(char::is_whitespace) {
        object(format!("its data cipher is {:?}", segment.encryption));
    }
    if segment.size != "dynamic" {
        object(format!("its segment ends at {}", segment.size));
    }
    if segment.iv_tweak.as_deref().is_some_and(|t| t != "0") {
        object("its segment has an IV offset".into());
    }
    if let Some(integrity) = &segment.integrity
        && integrity.known().is_none()
    {
        object(format!(
            "its segment has integrity protection by {:?} with a key of {} bytes and a journal of {:?} and {:?}, which is not implemented",
            integrity.kind,
            integrity
                .key_size
                .map_or_else(|| "the usual number of".into(), |n| n.to_string()),
            integrity.journal_encryption,
            integrity.journal_integrity
        ));
    }
    if !segment.flags.is_empty() {
        object(format!(
            "its segment has flags ({})",
            segment.flags.join(", ")
        ));
    }
    if !matches!(segment.sector_size, 512 | 1024 | 2048 | 4096) {
        object(format!("its sector size is {}", segment.sector_size));
    }
    if segment.offset < areas_end
        || !segment.offset.is_multiple_of(4096)
        || segment.offset >= device_size
    {
        object(format!("its data begins at {}", segment.offset));
    }
    Ok(segment)
}

/// The digest of segment 0 and the numbers of its key slots.
fn digest<'a>(
    digests: &'a Unique<Digest>,
    slots: &Unique<Slot>,
    object: &mut impl FnMut(String),
) -> Result<(&'a Digest, Vec<u32>), String> {
    let mut of_segment = digests
        .0
        .values()
        .filter(|d| d.segments.iter().any(|s| s == "0"));
    let digest = of_segment.next().ok_or("no digest of segment 0")?;
    if of_segment.next().is_some() || digest.segments.len() != 1 {
        object("not exactly one digest belongs to its segment".into());
    }
    if digest.kind != "pbkdf2"
        || !HASHES.contains(&digest.hash.as_str())
        || !(1..=MAX_PBKDF2_ITERATIONS).contains(&digest.iterations)
    {
        object(format!(
            "its volume key digest is {} {} with {} iterations",
            digest.kind, digest.hash, digest.iterations
        ));
    }
    // libcryptsetup checks a key against every digest that its slot is bound to.
    let others = digests.0.values().filter(|d| !std::ptr::eq(*d, digest));
    for name in others.flat_map(|d| &d.keyslots) {
        if digest.keyslots.contains(name) {
            object(format!("its key slot {name:?} is bound to two digests"));
        }
    }
    let sizes = [&digest.salt, &digest.digest].map(|part| STANDARD.decode(part).map(|b| b.len()));
    if !matches!(sizes, [Ok(salt), Ok(sum)] if (8..=64).contains(&salt) && (16..=64).contains(&sum))
    {
        object("its volume key digest is too short or too long".into());
    }
    let mut bound = Vec::new();
    for name in &digest.keyslots {
        match slot_number(name).filter(|id| slots.0.contains_key(id)) {
            Some(id) => bound.push(id),
            None => object(format!(
                "its digest names key slot {name:?}, which is not there"
            )),
        }
    }
    Ok((digest, bound))
}

/// What all key slots and digests cost together.
fn total_cost(metadata: &Metadata, object: &mut impl FnMut(String)) {
    let digests = metadata.digests.0.values().map(|d| u64::from(d.iterations));
    let kdfs = || metadata.keyslots.0.values().filter_map(|s| s.kdf.as_ref());
    let pbkdf2: u64 = kdfs()
        .map(|k| u64::from(k.iterations))
        .chain(digests)
        .fold(0, u64::saturating_add);
    let argon2 = kdfs()
        .map(|k| u64::from(k.time).saturating_mul(u64::from(k.memory)))
        .fold(0, u64::saturating_add);
    if pbkdf2 > MAX_PBKDF2_TOTAL || argon2 > MAX_ARGON2_TOTAL {
        object("its key slots together cost more time than is allowed here".into());
    }
}

/// Of those ways alone that are known here: others are objected to.
fn derivations(metadata: &Metadata) -> Vec<String> {
    let slots = metadata.keyslots.0.values().filter_map(|s| s.kdf.as_ref());
    let slots = slots.filter_map(|kdf| match kdf.kind.as_str() {
        "pbkdf2" => bounds::pbkdf2(&kdf.hash, kdf.iterations),
        kind @ ("argon2i" | "argon2id") => Some(format!(
            "{kind} time {} memory {} threads {}",
            kdf.time, kdf.memory, kdf.cpus
        )),
        _ => None,
    });
    let digests = metadata.digests.0.values();
    let digests = digests.filter_map(|d| bounds::pbkdf2(&d.hash, d.iterations));
    let all: BTreeSet<_> = slots
        .chain(digests.map(|d| format!("digest {d}")))
        .collect();
    all.into_iter().collect()
}

fn slot_objections(slot: &Slot, region: Range<u64>) -> Vec<String> {
    let mut objections = Vec::new();
    let mut object = |what: String| objections.push(what);
    if slot.kind != "luks2" {
        object(format!("is of type {:?}", slot.kind));
    }
    if !(*KEY_BYTES.start()..=MAX_KEY_BYTES).contains(&slot.key_size) {
        object(format!("holds a key of {} bytes", slot.key_size));
    }
    match &slot.af {
        Some(af)
            if af.kind == "luks1"
                && af.stripes == STRIPES
                && HASHES.contains(&af.hash.as_str()) => {}
        _ => object("has an unknown anti-forensic splitter".into()),
    }
    match &slot.area {
        None => object("has no area".into()),
        Some(area) => {
            if area.kind != "raw" {
                object(format!("has an area of type {:?}", area.kind));
            }
            let cipher = area.encryption.as_deref().unwrap_or_default();
            let key = area.key_size.unwrap_or_default();
            if is_null(cipher) || !protects(cipher) || !AREA_KEY.contains(&key) {
                object(format!(
                    "is encrypted with {cipher:?} and a key of {key} bytes, which is not known to protect it"
                ));
            }
            let end = area.offset.checked_add(area.size);
            let inside = area.offset >= region.start && end.is_some_and(|e| e <= region.end);
            let needed = u64::from(slot.key_size) * u64::from(STRIPES);
            let fits = (needed..=MAX_AREA).contains(&area.size);
            if !inside
                || !fits
                || !area.offset.is_multiple_of(4096)
                || !area.size.is_multiple_of(4096)
            {
                object(format!("lies at {} with {} bytes", area.offset, area.size));
            }
        }
    }
    match &slot.kdf {
        None => object("has no key derivation".into()),
        Some(kdf) if !(8..=64).contains(&STANDARD.decode(&kdf.salt).map_or(0, |s| s.len())) => {
            object("derives its key with a salt that is too short or too long".into());
        }
        Some(kdf) => match kdf.kind.as_str() {
            "pbkdf2" => {
                if !(MIN_PBKDF2_ITERATIONS..=MAX_PBKDF2_ITERATIONS).contains(&kdf.iterations)
                    || !HASHES.contains(&kdf.hash.as_str())
                {
                    object(format!(
                        "derives its key by PBKDF2 {} with {} iterations",
                        kdf.hash, kdf.iterations
                    ));
                }
            }
            "argon2i" | "argon2id" => {
                if kdf.memory > MAX_ARGON2_MEMORY
                    || kdf.time > MAX_ARGON2_TIME
                    || !(1..=MAX_ARGON2_CPUS).contains(&kdf.cpus)
                {
                    object(format!(
                        "derives its key by {} with {} KiB of memory, time {} and {} threads, more than is allowed here; \
                         convert it (cryptsetup luksConvertKey --pbkdf pbkdf2 --pbkdf-force-iterations 1000)",
                        kdf.kind, kdf.memory, kdf.time, kdf.cpus
                    ));
                }
            }
            other => object(format!("derives its key by {other:?}")),
        },
    }
    objections
}

fn slot_fingerprint(slot: &Slot, area: &Area) -> String {
    let salt = slot.kdf.as_ref().map_or("", |k| &k.salt);
    let place = format!(" {} {}", area.offset, area.size);
    bounds::fingerprint(salt.as_bytes(), place.as_bytes())
}

fn fingerprint(digest: &Digest) -> Result<String, String> {
    let [salt, sum] = [&digest.salt, &digest.digest].map(|part| STANDARD.decode(part));
    let wrong = |e: base64::DecodeError| format!("digest: {e}");
    Ok(bounds::fingerprint(
        &salt.map_err(wrong)?,
        &sum.map_err(wrong)?,
    ))
}

/// Numbers above 2^31 stand as text in LUKS2 metadata.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| digits)
        .ok_or_else(|| de::Error::custom(format!("{text:?} is no number")))
}

fn slot_number(name: &str) -> Option<u32> {
    let number: u32 = name.parse().ok()?;
    (number.to_string() == name && (number as usize) < MAX_SLOTS).then_some(number)
}

/// Objects by number, each number once: readers differ in which of two they take.
struct Unique<T>(BTreeMap<u32, T>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Unique<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("numbered objects")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let id = slot_number(&name).ok_or_else(|| {
                        de::Error::custom(format!("{name:?} is no number below 32"))
                    })?;
                    if all.insert(id, map.next_value()?).is_some() {
                        return Err(de::Error::custom(format!("{id} stands there twice")));
                    }
                }
                Ok(Unique(all))
            }
        }
        from.deserialize_map(Members(PhantomData))
    }
}

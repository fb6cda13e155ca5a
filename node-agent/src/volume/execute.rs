//! Doing what the plan says, one step after the other: observe, plan, step, again.
//!
//! Generic over the node (worker processes, or the simulated kernel in tests) and over the office (API server and key
//! release, or their simulation), so that the tests run this very loop.

use std::time::{Duration, Instant};

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{HeaderBackup, HeaderFacts, KeySlotRef, Stage},
};
use tokio::sync::OwnedMutexGuard;
use tracing::{debug, info, warn};

use super::{
    failpoint::{FailPoint, When},
    locks::TargetLocks,
    memory::{BROKEN, Hand, Memory, Reading, Run},
    plan::{Done, Next, Step, Stop, may_be_torn, needs_backup, only_tidies, plan},
    wanted::Wanted,
};
use crate::host::{
    AddSlotOrder, BackingFile, BackupOrder, Chap, DeviceId, Discovered, DropSlotsOrder, Erased,
    FormatOrder, Header, HeaderFound, Initialised, MapOrder, Mapping, NameOrder, Observed,
    OpenOrder, Passphrase, Portal, Query, RecordOrder, RestoreOrder, StepError, Target,
};

mod detached;
mod discover;

/// `host::Host` as the agent calls it: in a worker process, with a deadline.
#[allow(async_fn_in_trait, missing_docs)] // one thread runs all volumes; the calls are those of `Host`
pub trait Node {
    async fn observe(&self, query: &Query) -> Result<Observed, StepError>;
    async fn login(&self, target: &Target, each: bool, chap: Option<Chap>)
    -> Result<(), StepError>;
    async fn discover(&self, target: &Target, chap: Option<Chap>) -> Result<Discovered, StepError>;
    async fn gather(&self, order: &MapOrder) -> Result<(), StepError>;
    async fn scan(&self, iqn: &str, sid: u32, lun: u32) -> Result<(), StepError>;
    async fn read_header(&self, device: &DeviceId) -> Result<HeaderFound, StepError>;
    async fn format(&self, device: &DeviceId, order: FormatOrder) -> Result<Header, StepError>;
    async fn open(&self, device: &DeviceId, order: OpenOrder) -> Result<Mapping, StepError>;
    async fn initialise(&self, mapping: &Mapping, from: u64) -> Result<Initialised, StepError>;
    async fn link(&self, link: &str, mapping: &Mapping) -> Result<(), StepError>;
    async fn unlink(&self, link: &str) -> Result<(), StepError>;
    async fn name(&self, order: NameOrder) -> Result<(), StepError>;
    async fn close(&self, name: &str, uuid: &str) -> Result<(), StepError>;
    async fn make_file(&self, file: &BackingFile) -> Result<(), StepError>;
    async fn attach_file(&self, file: &BackingFile) -> Result<(), StepError>;
    async fn lengthen_file(&self, device: &DeviceId, file: &BackingFile) -> Result<(), StepError>;
    async fn remove_file(&self, file: &BackingFile) -> Result<(), StepError>;
    async fn delete_device(&self, device: &DeviceId) -> Result<(), StepError>;
    async fn logout(&self, iqn: &str, sid: u32) -> Result<(), StepError>;
    async fn erase(&self, device: &DeviceId, luks_uuid: &str) -> Result<Erased, StepError>;
    async fn clear_header(&self, device: &DeviceId, luks_uuid: &str) -> Result<(), StepError>;
    async fn grow(&self, device: &DeviceId, order: OpenOrder) -> Result<Mapping, StepError>;
    async fn sample(&self, device: &DeviceId, mapping: &Mapping) -> Result<(), StepError>;
    async fn suspend(&self, name: &str, uuid: &str) -> Result<(), StepError>;
    async fn resume(&self, device: &DeviceId, order: OpenOrder) -> Result<Mapping, StepError>;
    async fn add_key_slot(
        &self,
        device: &DeviceId,
        order: AddSlotOrder,
    ) -> Result<Vec<KeySlotRef>, StepError>;
    async fn drop_key_slots(
        &self,
        device: &DeviceId,
        order: DropSlotsOrder,
    ) -> Result<(), StepError>;
    async fn backup_header(
        &self,
        device: &DeviceId,
        order: BackupOrder,
    ) -> Result<HeaderBackup, StepError>;
    async fn header_record(&self, order: RecordOrder) -> Result<HeaderBackup, StepError>;
    async fn restore_header(&self, device: &DeviceId, order: RestoreOrder)
    -> Result<(), StepError>;
}

/// What a run needs from outside the node.
#[allow(async_fn_in_trait)] // one thread runs all volumes
pub trait Office {
    /// Asks for the passphrase of the volume's header.
    async fn passphrase(&self) -> Result<Passphrase, StepError>;
    /// Asks for the passphrase of the key that a rotation brings.
    async fn next_passphrase(&self) -> Result<Passphrase, StepError>;
    /// Asks for the CHAP credentials of the login.
    async fn chap(&self) -> Result<Chap, StepError>;
    /// Asks for the CHAP credentials of a discovery.
    async fn discovery_chap(&self) -> Result<Chap, StepError>;
    /// Writes a receipt into the status and gives back what the status says, once the API server has acknowledged it.
    async fn record(&self, receipt: Receipt) -> Result<Memory, StepError>;
}

/// What must be acknowledged before the next step.
#[allow(clippy::large_enum_variant)] // made twice in the life of a volume
#[derive(Clone, Debug, PartialEq)]
pub enum Receipt {
    /// A format permit is spent.
    PermitSpent {
        /// Id of the permit.
        id: String,
    },
    /// Portals that an array told of are to be used: whoever comes after this process must find their sessions.
    Discovered(Vec<Portal>),
    /// The key slots were wiped.
    Erased {
        /// What was found then.
        erased: Erased,
        /// UUID of the header that they were in.
        luks_uuid: String,
    },
    /// The mapping was made for the first time on this node.
    FirstOpened {
        /// Raw device.
        device: DeviceId,
        /// Facts of its header.
        facts: HeaderFacts,
        /// The mapping.
        mapping: Mapping,
        /// Backup of the header, or why there is none.
        backup: Option<Result<HeaderBackup, StepError>>,
        /// Its key is random, and was made with it.
        ephemeral: bool,
    },
    /// The random key is gone, and the data with it.
    KeyLost,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Well, or not.
    pub end: Result<Done, Stop>,
    /// What was observed last, where anything could be.
    pub observed: Option<Observed>,
    /// Key slots wiped in this run, whatever came after.
    pub erased: Option<Erased>,
    /// How the step of a rotation ended, where one was tried in this run.
    pub rotation: Option<Result<Vec<KeySlotRef>, StepError>>,
    /// Backup of the header, or why there is none, where one was tried in this run.
    pub backup: Option<Result<HeaderBackup, StepError>>,
    /// Whether the kernel read the disk's identity and size anew in this run, on each path in use.
    pub scanned: bool,
    /// Whether mapping and disk were compared in this run and differ.
    pub proven: bool,
    /// What did not succeed on one of several paths.
    pub lost: Vec<StepError>,
    /// How long I/O of a volume in use that has several paths has found none.
    pub cut_off: Option<Duration>,
    /// What the array told of further portals, where it was asked in this run; or why it did not.
    pub discovery: Option<Result<Discovered, StepError>>,
    /// How the header's keys are derived, where it was read in this run.
    pub derivations: Option<Vec<String>>,
}

/// Called after each step with its name, the time it took and its error, for metrics.
pub type OnStep<'a> = &'a dyn Fn(&Step, Duration, Option<&StepError>);

/// All that one run needs.
pub struct Executor<'a, N, O> {
    /// The node.
    pub node: &'a N,
    /// API server and key release.
    pub office: &'a O,
    /// Shared by all volumes of the node.
    pub locks: &'a TargetLocks,
    /// For crash tests.
    pub fail_point: Option<&'a FailPoint>,
    /// For metrics.
    pub on_step: OnStep<'a>,
    /// Becomes true when the agent is to end: no further step is begun.
    pub ending: &'a dyn Fn() -> bool,
}

/// More steps than any way has: the longest is a first attach, 10, after closing a broken mapping and purging a device.
const MOST_STEPS: usize = 40;

impl<N: Node, O: Office> Executor<'_, N, O> {
    /// Takes the volume as far as it goes. Never undoes what is there because of an error.
    pub async fn run(&self, wanted: &Wanted, memory: &mut Memory, hand: &mut Hand) -> Outcome {
        let mut at = Progress {
            run: Run::default(),
            key: None,
            observed: None,
            target: None,
        };
        let end = self.steps(wanted, memory, hand, &mut at).await;
        Outcome {
            derivations: at.run.derivations(),
            scanned: at.run.looked(at.observed.as_ref()),
            end,
            observed: at.observed,
            erased: at.run.erased,
            rotation: at.run.rotation,
            backup: at.run.backup,
            proven: at.run.sample == Some(Ok(())),
            lost: at.run.lost,
            cut_off: hand.cut_off.map(|since| since.elapsed()),
            discovery: at.run.discovery,
        }
    }

    async fn steps(
        &self,
        wanted: &Wanted,
        memory: &mut Memory,
        hand: &mut Hand,
        at: &mut Progress,
    ) -> Result<Done, Stop> {
        let mut stale = true;
        let mut reached = wanted.clone();
        for _ in 0..MOST_STEPS {
            if (self.ending)() {
                return Err(stopped(
                    Stage::Pending,
                    Reason::Waiting,
                    "the agent is ending".to_owned(),
                ));
            }
            reached.reach_through(&memory.discovered);
            let wanted = &reached;
            if stale {
                let observed = self.node.observe(&wanted.query).await;
                let observed = observed.map_err(|e| failed(Stage::Pending, &e))?;
                hand.cut_off = match observed.map_in_use().is_some() && !observed.is_reachable() {
                    true => hand.cut_off.or_else(|| Some(Instant::now())),
                    false => None,
                };
                at.observed = Some(observed);
            }
            let observed = at.observed.clone().unwrap_or_default();
            let step = match plan(wanted, memory, hand, &at.run, &observed) {
                Next::Done(done) => return Ok(done),
                Next::Stop(stop) => return Err(stop),
                Next::Do(step) => step,
            };
            let shared = wanted.query.source.shared();
            match (
                shared.filter(|_| step.concerns_target()),
                at.target.is_some(),
            ) {
                (Some(shared), false) => {
                    at.target = Some(self.locks.lock(shared).await);
                    stale = true; // others may have had the target meanwhile
                    continue;
                }
                (None, true) => at.target = None,
                _ => {}
            }
            FailPoint::hit(self.fail_point, step.name(), When::Before);
            let begun = Instant::now();
            let result = match step.concerns_one_disk() {
                true => {
                    let mut held = at.target.take();
                    let step = self.step(&step, wanted, memory, hand, at);
                    let result = self.locks.hold(&mut held, step).await;
                    at.target = held;
                    result
                }
                false => self.step(&step, wanted, memory, hand, at).await,
            };
            let took = begun.elapsed();
            FailPoint::hit(self.fail_point, step.name(), When::After);
            (self.on_step)(&step, took, result.as_ref().err());
            debug!(step = step.name(), ?took, ok = result.is_ok(), "step");
            match result {
                Err(e) if step.is_rotation() => at.run.rotation = Some(Err(e)),
                Err(e) if matches!(step, Step::BackupHeader { .. }) => {
                    at.run.backup = Some(Err(e));
                }
                Err(e) if step == Step::Discover => at.run.discovery = Some(Err(e)),
                Err(e) if step.is_beside_mapping(wanted, &observed) => at.run.name = Some(e),
                Err(e) if step.concerns_one_path(&observed) => at.run.lost.push(e),
                Err(e) if only_tidies(&step, wanted, memory) => {
                    warn!(step = step.name(), error = %e, "the erased volume's header stays, without key slots");
                    at.run.header_settled = true;
                }
                result => result.map_err(|e| failed(step.stage(), &e))?,
            }
            stale = changes_the_node(&step);
        }
        Err(stopped(
            Stage::Pending,
            Reason::StepFailed,
            format!("{MOST_STEPS} steps did not lead to an end; this is a defect of the agent"),
        ))
    }

    async fn step(
        &self,
        step: &Step,
        wanted: &Wanted,
        memory: &mut Memory,
        hand: &mut Hand,
        at: &mut Progress,
    ) -> Result<(), StepError> {
        let (query, node) = (&wanted.query, self.node);
        match step {
            Step::Login { lun, each } => {
                at.run.logged_in = true;
                // Asked for before each login: they may have been changed on the array.
                let chap = match wanted.chap {
                    true => Some(self.office.chap().await?),
                    false => None,
                };
                node.login(&lun.target, *each, chap).await
            }
            Step::Discover => self.discover(wanted, memory, at).await,
            Step::Scan { lun, sid } => {
                at.run.scanned = true;
                at.run.tried.push(*sid);
                node.scan(&lun.target.iqn, *sid, lun.lun).await?;
                at.run.seen.push(*sid);
                Ok(())
            }
            Step::Gather(order) => {
                at.run.gathered = true;
                at.run.reading = None;
                node.gather(order).await
            }
            Step::ReadHeader(device) => {
                let found = node.read_header(device).await?;
                at.run.reading = Some(Reading {
                    device: device.clone(),
                    found,
                });
                Ok(())
            }
            Step::ReleaseKey => {
                at.key = Some(self.office.passphrase().await?);
                at.run.key = true;
                Ok(())
            }
            Step::SpendPermit { id } => {
                // In hand before the answer: if the write arrives and its answer does not, this process still knows
                // that nothing was written with the permit, and the next run reads the receipt.
                hand.permit = Some(id.clone());
                let receipt = Receipt::PermitSpent { id: id.clone() };
                *memory = self.office.record(receipt).await?;
                info!(permit = id, "format permit recorded as spent");
                Ok(())
            }
            Step::Format { device, luks_uuid } => {
                (hand.permit, hand.initialised) = (None, 0);
                let before = at.run.reading.take();
                at.run.torn = false;
                let order = FormatOrder {
                    luks_uuid: luks_uuid.clone(),
                    encryption: wanted.encryption.clone(),
                    passphrase: at.passphrase()?,
                    mapping_name: query.mapping_name.clone(),
                    mapping_uuid: names::mapping_uuid(luks_uuid, &wanted.volume_uid),
                    over_torn: before.is_some_and(|r| matches!(r.found, HeaderFound::Luks(_))),
                };
                let header = node.format(device, order).await?;
                info!(device = device.path, luks_uuid, "header written");
                at.run.written = Some(header.facts);
                Ok(())
            }
            Step::Open {
                device,
                expected,
                mapping_uuid,
                blank,
            } => {
                let order = at.order(wanted, expected, mapping_uuid, *blank)?;
                if needs_backup(wanted, memory, expected.provider) {
                    // Seals the backup of the header, which comes next.
                    at.key.clone_from(&order.passphrase);
                }
                match node.open(device, order).await {
                    // Not the end: the plan knows whether this is a wrong key or what an interrupted format left.
                    Err(e)
                        if e.reason() == Reason::KeyDoesNotOpen && may_be_torn(wanted, memory) =>
                    {
                        debug!(device = device.path, error = %e, "the header does not open");
                        at.run.torn = true;
                        Ok(())
                    }
                    result => result.map(drop),
                }
            }
            Step::RecordFirstOpened { facts } => {
                let observed = at.observed.clone().unwrap_or_default();
                let device = observed.device().cloned();
                let (Some(device), Some(mapping)) = (device, observed.mapping) else {
                    return Err(StepError::new(Reason::StepFailed, "nothing is open"));
                };
                let receipt = Receipt::FirstOpened {
                    device: device.id,
                    facts: facts.clone(),
                    mapping,
                    backup: at.run.backup.clone(),
                    ephemeral: wanted.ephemeral,
                };
                *memory = self.office.record(receipt).await?;
                Ok(())
            }
            Step::Initialise(mapping) => {
                let initialised = node.initialise(mapping, hand.initialised).await?;
                hand.initialised = initialised.done;
                at.run.initialised = Some(initialised);
                Ok(())
            }
            Step::RecordKeyLost => {
                *memory = self.office.record(Receipt::KeyLost).await?;
                warn!(
                    mapping = query.mapping_name,
                    "its random key is gone, and the data with it"
                );
                Ok(())
            }
            Step::Link(mapping) => node.link(&query.link, mapping).await,
            Step::Unlink => node.unlink(&query.link).await,
            Step::Name { name, to } => {
                node.name(NameOrder {
                    name: name.clone(),
                    mapping_name: query.mapping_name.clone(),
                    to: to.clone(),
                })
                .await
            }
            Step::Close { uuid } => {
                at.run.closed = true;
                at.run.sample = None; // of what is no more
                node.close(&query.mapping_name, uuid).await
            }
            Step::MakeFile(file) => {
                at.run.file_made = true;
                node.make_file(file).await?;
                info!(file = file.path, bytes = file.size_bytes, "file made");
                Ok(())
            }
            Step::AttachFile(file) => {
                at.run.scanned = true;
                node.attach_file(file).await
            }
            Step::LengthenFile { device, file } => {
                at.run.lengthened = true;
                node.lengthen_file(device, file).await?;
                info!(file = file.path, bytes = file.size_bytes, "file lengthened");
                Ok(())
            }
            Step::RecordErased(erased) => {
                let receipt = Receipt::Erased {
                    erased: erased.clone(),
                    luks_uuid: wanted.luks_uuid.clone().unwrap_or_default(),
                };
                *memory = self.office.record(receipt).await?;
                Ok(())
            }
            Step::RemoveFile(file) => {
                at.run.file_removed = true;
                node.remove_file(file).await
            }
            Step::DeleteDevice(device) => {
                at.run.purged.push(device.dev.clone());
                (at.run.scanned, at.run.reading) = (false, None);
                (at.run.tried, at.run.seen) = (vec![], vec![]);
                node.delete_device(device).await
            }
            Step::Logout { iqn, sid } => {
                at.run.logged_out.push(*sid);
                node.logout(iqn, *sid).await
            }
            Step::Erase { device, luks_uuid } => {
                at.run.reading = None;
                let erased = node.erase(device, luks_uuid).await?;
                info!(device = device.path, luks_uuid, ?erased, "key slots wiped");
                if !erased.verified {
                    return Err(StepError::new(
                        Reason::StepFailed,
                        "after wiping the key slots the header area still shows some",
                    ));
                }
                (at.run.wiped, at.run.erased) = (true, Some(erased));
                Ok(())
            }
            Step::ClearHeader { device, luks_uuid } => {
                at.run.reading = None;
                node.clear_header(device, luks_uuid).await?;
                at.run.header_settled = true;
                info!(device = device.path, luks_uuid, "header removed");
                Ok(())
            }
            Step::Grow {
                device,
                expected,
                mapping_uuid,
            } => {
                let order = at.order(wanted, expected, mapping_uuid, false)?;
                let mapping = node.grow(device, order).await?;
                info!(mapping = mapping.name, bytes = mapping.size_bytes, "grown");
                Ok(())
            }
            Step::Sample { device, mapping } => {
                at.run.sample = Some(match node.sample(device, mapping).await {
                    // Not the end: the plan knows what becomes of the mapping then.
                    Err(e) if BROKEN.contains(&e.reason()) => Err(e),
                    Err(e) if e.reason() == Reason::IntegrityStopped => Err(e),
                    result => Ok(result?),
                });
                Ok(())
            }
            Step::Suspend { uuid } => {
                node.suspend(&query.mapping_name, uuid).await?;
                info!(mapping = query.mapping_name, "suspended, its key wiped");
                Ok(())
            }
            Step::Resume {
                device,
                expected,
                mapping_uuid,
            } => {
                let order = at.order(wanted, expected, mapping_uuid, false)?;
                node.resume(device, order).await?;
                info!(mapping = query.mapping_name, "resumed");
                Ok(())
            }
            Step::MakeRecord { .. } | Step::AddKeySlot { .. } | Step::DropKeySlots { .. }
                if wanted.encryption.detached_header =>
            {
                self.header_record(step, wanted, at).await
            }
            Step::MakeRecord { .. } => Err(StepError::new(
                Reason::StepFailed,
                "a header apart from its disk, where none is wanted",
            )),
            Step::AddKeySlot { device, expected } => {
                let derivations = at.run.derivations_or(wanted);
                let order = AddSlotOrder {
                    expected: expected.clone(),
                    derivations: derivations.clone(),
                    passphrase: self.office.passphrase().await?,
                    next: self.office.next_passphrase().await?,
                };
                let next = order.next.clone();
                let former = node.add_key_slot(device, order).await?;
                info!(device = device.path, "the new key opens the header");
                // A backup under the former key is worth nothing once that has no key slot.
                if wanted.encryption.header_backup {
                    let order = BackupOrder {
                        expected: expected.clone(),
                        derivations,
                        unlock_memory_kib: u32::MAX,
                        passphrase: next,
                    };
                    at.run.backup = Some(Ok(node.backup_header(device, order).await?));
                }
                at.run.rotation = Some(Ok(former));
                Ok(())
            }
            Step::DropKeySlots {
                device,
                expected,
                former,
            } => {
                let order = DropSlotsOrder {
                    expected: expected.clone(),
                    derivations: at.run.derivations_or(wanted),
                    passphrase: self.office.passphrase().await?,
                    former: former.clone(),
                };
                node.drop_key_slots(device, order).await?;
                info!(device = device.path, "key slots of the former key wiped");
                at.run.rotation = Some(Ok(vec![]));
                Ok(())
            }
            Step::BackupHeader { device, expected } => {
                let order = BackupOrder {
                    expected: expected.clone(),
                    derivations: at.run.derivations_or(wanted),
                    unlock_memory_kib: at.run.unlock_memory_kib(),
                    passphrase: match at.key.take() {
                        Some(key) => key,
                        None => self.office.passphrase().await?,
                    },
                };
                at.run.backup = Some(Ok(node.backup_header(device, order).await?));
                Ok(())
            }
            Step::RestoreHeader {
                device,
                expected,
                backup,
            } => {
                at.run.reading = None;
                let order = RestoreOrder {
                    expected: expected.clone(),
                    derivations: wanted.derivations.clone(),
                    backup: (**backup).clone(),
                    passphrase: at.passphrase()?,
                };
                node.restore_header(device, order).await?;
                info!(device = device.path, "the header is there");
                at.run.restored = true;
                Ok(())
            }
            Step::NothingToErase { verified } => {
                at.run.erased = Some(Erased {
                    key_slots_wiped: 0,
                    verified: *verified,
                });
                Ok(())
            }
        }
    }
}

/// What a run holds while it runs. The passphrase is wiped when it is dropped.
struct Progress {
    run: Run,
    key: Option<Passphrase>,
    observed: Option<Observed>,
    target: Option<OwnedMutexGuard<()>>,
}

impl Progress {
    /// What mapping to make or to change. The passphrase goes along, and is out of hand then.
    fn order(
        &mut self,
        wanted: &Wanted,
        expected: &HeaderFacts,
        mapping_uuid: &str,
        blank: bool,
    ) -> Result<OpenOrder, StepError> {
        let order = OpenOrder {
            mapping_name: wanted.query.mapping_name.clone(),
            mapping_uuid: mapping_uuid.to_owned(),
            expected: expected.clone(),
            derivations: self.run.derivations_or(wanted),
            blank,
            random: wanted.ephemeral,
            activation: wanted.activation,
            unlock_memory_kib: self.run.unlock_memory_kib(),
            passphrase: match expected.provider.encrypts() && !wanted.ephemeral {
                true => Some(self.passphrase()?),
                false => None,
            },
            record: wanted.record().cloned().map(Box::new),
        };
        self.key = None;
        self.run.key = false;
        Ok(order)
    }

    fn passphrase(&self) -> Result<Passphrase, StepError> {
        self.key
            .clone()
            .ok_or_else(|| StepError::new(Reason::StepFailed, "no passphrase in hand"))
    }
}

/// Whether what was observed before the step may be out of date after it.
fn changes_the_node(step: &Step) -> bool {
    !matches!(
        step,
        Step::ReadHeader(_)
            | Step::ReleaseKey
            | Step::SpendPermit { .. }
            | Step::Format { .. }
            | Step::RecordFirstOpened { .. }
            | Step::Initialise(_)
            | Step::RecordKeyLost
            | Step::Sample { .. }
            | Step::RecordErased(_)
            | Step::AddKeySlot { .. }
            | Step::DropKeySlots { .. }
            | Step::BackupHeader { .. }
            | Step::MakeRecord { .. }
            | Step::RestoreHeader { .. }
            | Step::NothingToErase { .. }
    )
}

fn failed(stage: Stage, error: &StepError) -> Stop {
    stopped(stage, error.reason(), error.message.clone())
}

fn stopped(stage: Stage, reason: Reason, message: String) -> Stop {
    Stop {
        stage,
        reason,
        message,
    }
}

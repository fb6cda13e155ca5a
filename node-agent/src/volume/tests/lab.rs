//! A laboratory: simulated node, array, API server and key release around the real executor. Time does not pass by itself
//! and nothing waits, so a run is over when its future was polled once; a future that stays pending is a dead agent.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cryptvol_crds::{
    NodeVolume,
    conditions::Reason,
    names,
    v1alpha1::{
        Desired, FormatPermit, HeaderBackup, HeaderRestore, Integrity, KeySlotRef, NodeDevice,
        NodeFile, NodeIscsi, NodeRotation, NodeSource, NodeVolumeSpec, NodeVolumeStatus, Provider,
        RotationPhase, Stage, VolumeRef,
    },
};
use futures::FutureExt;
use k8s_openapi::jiff::Timestamp;

use crate::{
    host::{sim::*, *},
    volume::{
        execute::{Executor, Node, Office, Outcome, Receipt},
        locks::TargetLocks,
        memory::{Hand, Memory},
        report,
        wanted::Wanted,
    },
};

mod invariants;
mod ledger;
mod side;

pub use invariants::INVARIANTS;
pub use ledger::*;
use side::Side;

pub const IQN: &str = "iqn.2026-11.com.example:array";
/// Portals of the target.
pub const PORTALS: [&str; 2] = ["192.0.2.1:3260", "[2001:db8::2]:3260"];
pub const KEY: &str = "5ec4e7c0ffee5ec4e7c0ffee5ec4e7c0ffee5ec4e7c0ffee5ec4e7c0ffee5ec4";
pub const CHAP: (&str, &str) = ("node-1", "chap-5ec4e7-5ec4e7");

/// What happens at a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The agent is killed.
    Kill,
    /// The node loses power.
    PowerCut,
    /// The call fails here: before its effect or after it, as the pause lies.
    Fail(Reason),
}

/// Everything around one node's agent.
#[derive(Clone)]
pub struct Lab {
    pub world: RefCell<World>,
    pub volumes: RefCell<BTreeMap<String, NodeVolume>>,
    /// The disk that a volume is really on.
    pub truth: RefCell<BTreeMap<String, usize>>,
    pub hands: RefCell<BTreeMap<String, Hand>>,
    pub faults: RefCell<Vec<(usize, Fault)>>,
    /// As `faults`, at the next pauses of a name.
    pub next_faults: RefCell<Vec<(String, Fault)>>,
    pub pauses: Cell<usize>,
    pub names: RefCell<Vec<String>>,
    pub dead: Cell<Option<Fault>>,
    /// Each pause gives the others a turn.
    pub interleave: Cell<bool>,
    pub api_up: Cell<bool>,
    /// What key release answers: the key on record, unless another one is given here.
    pub operator: RefCell<Result<Option<String>, (Reason, String)>>,
    pub chap: RefCell<(String, String)>,
    /// What the Secret says that the target must prove.
    pub target_chap: RefCell<Option<TargetChap>>,
    /// The credentials for discovery in the Secret.
    pub discovery_chap: RefCell<(String, String)>,
    /// The array is to be asked for further portals in each run.
    pub discover: Cell<bool>,
    pub keys_released: Cell<usize>,
    pub status_writes: Cell<usize>,
    pub clock: Cell<i64>,
    pub locks: TargetLocks,
    pub busy_targets: RefCell<BTreeMap<String, usize>>,
    /// What the operator sees of the volume is pinned at once, as it does after the first opening.
    pub operator_pins: Cell<bool>,
    /// Keys on record of volumes that were rotated; of the others it is [`KEY`]. Whatever happens, it opens the disk.
    pub stored: RefCell<BTreeMap<String, String>>,
    /// The keys that rotations bring.
    pub next: RefCell<BTreeMap<String, String>>,
    /// Memory that the agent takes for key derivation.
    pub unlock_memory_kib: Cell<u32>,
    /// Each run proves.
    pub prove: Cell<bool>,
    /// I/O has waited long enough for a path.
    pub give_up: Cell<bool>,
    /// How long it may wait, as far as the status says it.
    pub no_path_timeout: Cell<Duration>,
    /// Somebody removed mappings by hand: a link may lead nowhere until the agent looks again.
    pub vandalised: Cell<bool>,
    /// Disks whose header somebody overwrote, until it is there again.
    pub overwritten: RefCell<BTreeSet<usize>>,
    /// A raw disk may have a name that no volume has kept yet.
    pub names_free_until_kept: Cell<bool>,
    /// Nothing is checked meanwhile.
    pub unchecked: Cell<bool>,
    /// Somebody scans the target at any time: disks may appear after the agent has looked.
    pub others_scan: Cell<bool>,
    /// Somebody makes the volumes' links anew whenever they are removed.
    pub stubborn_link: Cell<bool>,
    /// What the invariants compare with.
    pub ledger: RefCell<Ledger>,
}

impl Default for Lab {
    fn default() -> Self {
        Self {
            world: RefCell::default(),
            volumes: RefCell::default(),
            truth: RefCell::default(),
            hands: RefCell::default(),
            faults: RefCell::default(),
            next_faults: RefCell::default(),
            pauses: Cell::new(0),
            names: RefCell::default(),
            dead: Cell::new(None),
            interleave: Cell::new(false),
            api_up: Cell::new(true),
            operator: RefCell::new(Ok(None)),
            chap: RefCell::new((CHAP.0.to_owned(), CHAP.1.to_owned())),
            target_chap: RefCell::default(),
            discovery_chap: RefCell::new((CHAP.0.to_owned(), CHAP.1.to_owned())),
            discover: Cell::new(true),
            keys_released: Cell::new(0),
            status_writes: Cell::new(0),
            clock: Cell::new(0),
            locks: TargetLocks::default(),
            busy_targets: RefCell::default(),
            operator_pins: Cell::new(true),
            stored: RefCell::default(),
            next: RefCell::default(),
            unlock_memory_kib: Cell::new(64 << 10),
            prove: Cell::new(false),
            give_up: Cell::new(false),
            no_path_timeout: Cell::new(Duration::MAX),
            vandalised: Cell::new(false),
            overwritten: RefCell::default(),
            names_free_until_kept: Cell::new(false),
            unchecked: Cell::new(false),
            others_scan: Cell::new(false),
            stubborn_link: Cell::new(false),
            ledger: RefCell::new(Ledger::new()),
        }
    }
}

pub fn uid(n: usize) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

pub fn luks_uuid(n: usize) -> String {
    format!("11111111-1111-4111-8111-{n:012}")
}

pub fn wwid(n: usize) -> String {
    format!("naa.6001405{n:025}")
}

pub fn name(n: usize) -> String {
    format!("vol-{n}")
}

pub fn local(n: usize) -> String {
    format!("/dev/local-{n}")
}

pub fn file(n: usize) -> String {
    format!("{}/vol-{n}.img", names::FILE_DIR)
}

impl Lab {
    /// One array with one target and `n` volumes, each with a blank disk at its own LUN (volume 1 at LUN 1), all wanted
    /// attached with a permit.
    pub fn new(n: usize) -> Self {
        let lab = Self::default();
        let mut target = SimTarget {
            up: true,
            ..SimTarget::default()
        };
        for i in 1..=n {
            let disk = lab.add_disk(Disk::blank(&wwid(i)));
            target.luns.insert(u32::try_from(i).unwrap(), disk);
            lab.truth.borrow_mut().insert(name(i), disk);
            let mut volume = NodeVolume::new(
                &name(i),
                NodeVolumeSpec {
                    node_name: "node-1".to_owned(),
                    volume_ref: VolumeRef {
                        name: name(i),
                        uid: uid(i),
                    },
                    desired: Desired::Attached,
                    source: NodeSource {
                        iscsi: Some(NodeIscsi {
                            portals: vec![PORTALS[0].to_owned()],
                            iqn: IQN.to_owned(),
                            lun: i32::try_from(i).unwrap(),
                            chap: false,
                            multipath: false,
                            discovery: false,
                            discovery_chap: false,
                        }),
                        ..NodeSource::default()
                    },
                    luks_uuid: Some(luks_uuid(i)),
                    wwid: Some(wwid(i)),
                    format_permit: Some(FormatPermit {
                        id: format!("permit-{i}"),
                        luks_uuid: luks_uuid(i),
                    }),
                    link: names::link_path("ns", &name(i)),
                    ..NodeVolumeSpec::default()
                },
            );
            volume.metadata.generation = Some(1);
            lab.volumes.borrow_mut().insert(name(i), volume);
        }
        lab.world
            .borrow_mut()
            .targets
            .insert(IQN.to_owned(), target);
        lab
    }

    /// The same with another encryptor.
    pub fn of(provider: Provider, n: usize) -> Self {
        let lab = Self::new(n);
        for i in 1..=n {
            lab.change(i, |s| s.encryption.provider = provider);
        }
        lab
    }

    /// The same with authenticated sectors.
    pub fn authenticated(n: usize) -> Self {
        let lab = Self::new(n);
        for i in 1..=n {
            lab.change(i, |s| s.encryption.integrity = Some(Integrity::HmacSha256));
        }
        lab
    }

    /// The same with disks that are the node's own, at `/dev/local-1` and so on.
    pub fn local(provider: Provider, n: usize) -> Self {
        let lab = Self::of(provider, n);
        for i in 1..=n {
            let disk = lab.truth.borrow()[&name(i)];
            lab.change(i, |s| {
                s.source = NodeSource {
                    device: Some(NodeDevice { path: local(i) }),
                    ..NodeSource::default()
                };
            });
            lab.world.borrow_mut().kernel.devices.push(SimDevice {
                path: local(i),
                dev: format!("252:{i}"),
                sid: 0,
                lun: 0,
                disk,
                wwid: Some(wwid(i)),
                size: 1 << 30,
                state: "running".to_owned(),
                in_use: false,
                opened_by: None,
                file: None,
            });
        }
        lab
    }

    /// The same through both portals at once.
    pub fn paths(provider: Provider, n: usize) -> Self {
        let lab = Self::of(provider, n);
        for i in 1..=n {
            lab.change(i, |s| {
                let iscsi = s.source.iscsi.as_mut().unwrap();
                iscsi.portals = PORTALS.map(str::to_owned).to_vec();
                iscsi.multipath = true;
            });
        }
        lab
    }

    /// The same with one portal named, and an array that tells of both.
    pub fn discovering(provider: Provider, n: usize) -> Self {
        let lab = Self::paths(provider, n);
        for i in 1..=n {
            lab.change(i, |s| {
                let iscsi = s.source.iscsi.as_mut().unwrap();
                iscsi.portals.truncate(1);
                (iscsi.discovery, iscsi.discovery_chap) = (true, true);
            });
        }
        lab.target(|t| {
            t.tells = PORTALS.iter().map(|p| format!("{p},1")).collect();
            t.discovery_chap = Some((CHAP.0.to_owned(), CHAP.1.to_owned()));
        });
        lab
    }

    /// The same with disks that are files, not made yet.
    pub fn file(provider: Provider, n: usize) -> Self {
        let lab = Self::of(provider, n);
        for i in 1..=n {
            let disk = lab.truth.borrow()[&name(i)];
            lab.disk(i, |d| d.wwid = None);
            lab.change(i, |s| {
                s.wwid = None;
                s.source = NodeSource {
                    file: Some(NodeFile {
                        path: file(i),
                        size_bytes: 1 << 30,
                    }),
                    ..NodeSource::default()
                };
            });
            let none = SimFile { disk, size: None };
            lab.world.borrow_mut().files.insert(file(i), none);
        }
        lab
    }

    /// The same with scratch files, not made yet.
    pub fn scratch_file(n: usize) -> Self {
        let lab = Self::file(Provider::Plain, n);
        for i in 1..=n {
            let disk = lab.truth.borrow()[&name(i)];
            let path = names::scratch_file(&uid(i));
            lab.change(i, |s| {
                s.ephemeral = true;
                s.source.file.as_mut().unwrap().path.clone_from(&path);
            });
            let files = &mut lab.world.borrow_mut().files;
            files.clear();
            files.insert(path, SimFile { disk, size: None });
        }
        lab
    }

    /// The same on disks of the node.
    pub fn scratch_device(n: usize) -> Self {
        let lab = Self::local(Provider::Plain, n);
        for i in 1..=n {
            lab.change(i, |s| (s.ephemeral, s.wwid) = (true, None));
        }
        lab
    }

    pub fn volume(&self, n: usize) -> NodeVolume {
        self.volumes.borrow()[&name(n)].clone()
    }

    pub fn status(&self, n: usize) -> NodeVolumeStatus {
        self.status_of(&name(n))
    }

    /// The key on record.
    pub fn stored(&self, name: &str) -> String {
        let stored = self.stored.borrow();
        stored.get(name).cloned().unwrap_or_else(|| KEY.to_owned())
    }

    fn status_of(&self, name: &str) -> NodeVolumeStatus {
        let volume = &self.volumes.borrow()[name];
        volume.status.clone().unwrap_or_default()
    }

    /// Volume 1 stops for this reason with nothing mapped, and not a byte was written. Gives what it says.
    pub fn stops(&self, reason: Reason) -> String {
        self.settle(1);
        assert_eq!(self.reason(1).as_deref(), Some(reason.as_str()));
        let world = self.world.borrow();
        assert!(world.kernel.mappings.is_empty() && world.links.is_empty());
        assert_eq!(world.bytes_written(), 0);
        self.status(1).error.unwrap().message
    }

    /// Reason of the error in the status, if any.
    pub fn reason(&self, n: usize) -> Option<String> {
        self.status(n).error.map(|e| e.reason)
    }

    pub fn change(&self, n: usize, change: impl FnOnce(&mut NodeVolumeSpec)) {
        let mut volumes = self.volumes.borrow_mut();
        let volume = volumes.get_mut(&name(n)).unwrap();
        let old = volume.spec.clone();
        change(&mut volume.spec);
        if volume.spec != old {
            self.ledger.borrow_mut().unread = true;
            *volume.metadata.generation.as_mut().unwrap() += 1;
        }
    }

    pub fn want(&self, n: usize, desired: Desired) {
        self.change(n, |spec| spec.desired = desired);
    }

    pub fn disk<T>(&self, n: usize, read: impl FnOnce(&mut Disk) -> T) -> T {
        let index = self.truth.borrow()[&name(n)];
        read(&mut self.world.borrow_mut().disks[index])
    }

    /// A further disk in the array, at no LUN yet. Its number.
    pub fn add_disk(&self, disk: Disk) -> usize {
        let disks = &mut self.world.borrow_mut().disks;
        disks.push(disk);
        disks.len() - 1
    }

    /// Somebody logs in to the target and scans all of it: at LUN 1 there is this disk.
    pub fn neighbour_scans(&self, disk: usize, wwid: String) {
        let mut world = self.world.borrow_mut();
        world.kernel.sessions.push(SimSession::of_another(77, IQN));
        world.kernel.devices.push(SimDevice {
            path: "/dev/sdz".into(),
            dev: "65:144".into(),
            sid: 77,
            lun: 1,
            disk,
            wwid: Some(wwid),
            size: 1 << 30,
            state: "running".into(),
            in_use: false,
            opened_by: None,
            file: None,
        });
    }

    /// Somebody writes over the header of a volume. Gives what was there.
    pub fn overwrite(&self, n: usize, with: Content) -> Content {
        self.overwritten
            .borrow_mut()
            .insert(self.truth.borrow()[&name(n)]);
        self.disk(n, |d| std::mem::replace(&mut d.content, with))
    }

    /// A person orders that the header is written anew.
    pub fn order_restore(&self, n: usize) {
        let backup = self.status(n).header_backup.unwrap();
        let id = format!("restore-{}", self.volume(n).metadata.generation.unwrap());
        self.change(n, |s| s.header_restore = Some(HeaderRestore { id, backup }));
    }

    pub fn target<T>(&self, change: impl FnOnce(&mut SimTarget) -> T) -> T {
        change(self.world.borrow_mut().targets.get_mut(IQN).unwrap())
    }

    pub fn link(n: usize) -> String {
        names::link_path("ns", &name(n))
    }

    /// What an operator does on seeing the status: the permit goes once spent, facts are pinned once opened or, at an
    /// import, once found.
    pub fn operate(&self, n: usize) {
        let status = self.status(n);
        self.change(n, |spec| {
            self.operate_rotation(spec, &status);
            spec.header_backed_up = status.header_backup.is_some();
            self.keep_record(spec, &status);
            if status.header_restored.is_some() {
                spec.header_restore
                    .take_if(|r| Some(&r.id) == status.header_restored.as_ref());
            }
            if status.permit.is_some() {
                spec.formatted_before = true;
                spec.format_permit = None;
            }
            let import = spec.luks_uuid.is_none() && status.header.is_some();
            if status.first_opened.is_some() || import {
                spec.header = spec.header.take().or(status.header.clone());
                spec.derivations.clone_from(&status.derivations);
                spec.luks_uuid = status.header.as_ref().map(|h| h.luks_uuid.clone());
                if let Some(device) = &status.device {
                    let grown = status.stage == Stage::Attached && status.error.is_none();
                    let size = spec.size_bytes.get_or_insert(device.size_bytes);
                    if grown {
                        *size = device.size_bytes.max(*size);
                    }
                    spec.wwid = spec.wwid.take().or(device.wwid.clone());
                }
                spec.format_permit = None;
            }
        });
    }

    /// A person wants another key.
    pub fn rotate(&self, n: usize, key: &str) {
        self.next.borrow_mut().insert(name(n), key.to_owned());
        self.ledger.borrow_mut().secrets.push(key.to_owned());
        self.change(n, |spec| {
            spec.rotation = Some(NodeRotation {
                phase: RotationPhase::Adding,
                key_id: fingerprint(key),
                former_slots: vec![],
            });
        });
    }

    /// The operator's part of a rotation: the new key is on record before the former one's key slot goes.
    fn operate_rotation(&self, spec: &mut NodeVolumeSpec, status: &NodeVolumeStatus) {
        let (Some(wanted), Some(found)) = (&mut spec.rotation, &status.rotation) else {
            return;
        };
        if !found.done || (found.phase, &found.key_id) != (wanted.phase, &wanted.key_id) {
            return;
        }
        match wanted.phase {
            RotationPhase::Adding => {
                let volume = &spec.volume_ref.name;
                let next = self.next.borrow_mut().remove(volume).unwrap();
                self.stored.borrow_mut().insert(volume.clone(), next);
                if spec.encryption.detached_header {
                    spec.header_record.clone_from(&found.header_backup);
                }
                wanted.phase = RotationPhase::Dropping;
                wanted.former_slots.clone_from(&found.former_slots);
            }
            _ => spec.rotation = None,
        }
    }

    /// One run of the agent for one volume, to its end and the status after it. `None`: the agent died on the way.
    pub async fn turn(&self, n: usize) -> Outcome {
        let volume = self.volume(n);
        let me = Side {
            lab: self,
            volume: name(n),
            mapping: names::mapping_name(&volume.spec.volume_ref.uid),
            wants_key: volume.spec.desired == Desired::Attached && !volume.spec.suspended,
            released: Cell::new(false),
        };
        self.ledger.borrow_mut().calls.remove(&name(n));
        let mut wanted = Wanted::read(&volume).unwrap();
        wanted.unlock_memory_kib = self.unlock_memory_kib.get();
        wanted.prove = self.prove.get();
        wanted.give_up = self.give_up.get();
        wanted.no_path_timeout = self.no_path_timeout.get();
        wanted.discover = wanted.discovery.is_some() && self.discover.get();
        wanted.lun_wanted_by_another = self.volumes.borrow().iter().any(|(other, v)| {
            *other != name(n)
                && v.spec.desired == Desired::Attached
                && v.spec.source == volume.spec.source
        });
        let mut memory = Memory::read(&volume.status.clone().unwrap_or_default());
        let mut hand = self
            .hands
            .borrow()
            .get(&name(n))
            .cloned()
            .unwrap_or_default();
        let executor = Executor {
            node: &me,
            office: &me,
            locks: &self.locks,
            fail_point: None,
            on_step: &|_, _, _| {},
            ending: &|| false,
        };
        let outcome = executor.run(&wanted, &mut memory, &mut hand).await;
        self.hands.borrow_mut().insert(name(n), hand);
        let old = self.status(n);
        let new = report::after(&old, &wanted, &outcome, "node-1", self.now());
        if new != old {
            let _ = me.write(new).await;
        }
        outcome
    }

    /// A turn that must be over when polled once. After the agent's death it is started again by the caller's next turn.
    pub fn run(&self, n: usize) -> Option<Outcome> {
        let outcome = self.turn(n).now_or_never();
        if outcome.is_none() {
            self.bury();
        }
        self.check();
        outcome
    }

    /// A turn while the record of the volume is not what it was: what is checked otherwise does not hold.
    pub fn run_unchecked(&self, n: usize) {
        self.unchecked.set(true);
        assert!(self.turn(n).now_or_never().is_some());
        self.unchecked.set(false);
    }

    /// The dead agent's memory is gone, and the kernel's with it at a power cut.
    pub fn bury(&self) {
        assert!(
            self.dead.get().is_some(),
            "the agent waits for nothing: a deadlock"
        );
        let fault = self.dead.take();
        self.ledger.borrow_mut().bury(fault);
        if fault == Some(Fault::PowerCut) {
            self.world.borrow_mut().power_cut();
        }
        self.hands.borrow_mut().clear();
        self.busy_targets.borrow_mut().clear();
    }

    /// Turns until nothing changes any more.
    pub fn settle(&self, n: usize) {
        for _ in 0..80 {
            let before = (self.volume(n), self.pauses_left());
            let outcome = self.run(n);
            if self.operator_pins.get() {
                self.operate(n);
            }
            let quiet = outcome.is_some() && before == (self.volume(n), 0);
            if quiet {
                return;
            }
        }
        panic!("{} does not come to rest: {:?}", name(n), self.status(n));
    }

    fn pauses_left(&self) -> usize {
        let now = self.pauses.get();
        self.faults
            .borrow()
            .iter()
            .filter(|(at, _)| *at >= now)
            .count()
    }

    pub fn now(&self) -> Timestamp {
        self.clock.set(self.clock.get() + 1);
        Timestamp::from_second(self.clock.get()).unwrap()
    }

    /// A place where the agent may die, a call may fail, or another volume gets its turn.
    async fn pause(&self, what: &str) -> Result<(), StepError> {
        match self.fate(what) {
            Some(Fault::Fail(reason)) => return Err(StepError::new(reason, "injected")),
            Some(fault) => {
                self.dead.set(Some(fault));
                std::future::pending::<()>().await;
            }
            None => {}
        }
        if self.interleave.get() {
            let mut given = false;
            std::future::poll_fn(|cx| {
                if given {
                    return std::task::Poll::Ready(());
                }
                given = true;
                cx.waker().wake_by_ref();
                std::task::Poll::Pending
            })
            .await;
        }
        Ok(())
    }

    fn fate(&self, what: &str) -> Option<Fault> {
        let now = self.pauses.get();
        self.pauses.set(now + 1);
        self.names.borrow_mut().push(what.to_owned());
        let mut by_name = self.next_faults.borrow_mut();
        if let Some(at) = by_name.iter().position(|(name, _)| name == what) {
            return Some(by_name.remove(at).1);
        }
        let faults = self.faults.borrow();
        faults.iter().find(|(at, _)| *at == now).map(|(_, f)| *f)
    }

    /// A step with a middle in which the agent may die.
    async fn tearing(&self, what: &str, step: TornStep) -> Result<(), StepError> {
        for torn in [Torn::Early, Torn::Slot, Torn::Late] {
            if let Some(Fault::Kill | Fault::PowerCut) = self.fate(&format!("{what} {torn:?}")) {
                let fault = self
                    .faults
                    .borrow()
                    .iter()
                    .find(|(at, _)| *at + 1 == self.pauses.get())
                    .map(|f| f.1);
                self.world.borrow_mut().tear(&step, torn);
                self.dead.set(fault);
                std::future::pending::<()>().await;
            }
        }
        Ok(())
    }
}

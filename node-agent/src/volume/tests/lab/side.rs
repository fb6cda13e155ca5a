//! The laboratory as the executor sees it: node and office, each call of which may fail or be the agent's last.

use super::*;

/// One volume's side of the laboratory.
pub struct Side<'a> {
    pub(super) lab: &'a Lab,
    pub(super) volume: String,
    /// Device-mapper name of its mapping.
    pub(super) mapping: String,
    /// The spec that this turn acts on wants the volume open.
    pub(super) wants_key: bool,
    /// A key was released in this turn.
    pub(super) released: Cell<bool>,
}

impl Side<'_> {
    fn note(&self, what: &str) {
        let line = format!("{}: {what}", self.volume);
        self.lab.world.borrow_mut().log.push(line);
    }

    async fn call<T>(
        &self,
        what: &str,
        effect: impl FnOnce(&mut World) -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        let begun = |by: isize| {
            let mut ledger = self.lab.ledger.borrow_mut();
            let n = ledger.in_flight.entry(self.volume.clone()).or_default();
            *n = n.checked_add_signed(by).unwrap_or(0);
            if by > 0 {
                *ledger.calls.entry(self.volume.clone()).or_default() += 1;
            }
        };
        begun(1);
        let result = self.effect(what, effect).await;
        begun(-1);
        result
    }

    async fn effect<T>(
        &self,
        what: &str,
        effect: impl FnOnce(&mut World) -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        self.lab.pause(&format!("before {what}")).await?;
        let before = Before::of(&self.lab.world.borrow(), &self.mapping);
        let result = effect(&mut self.lab.world.borrow_mut());
        self.lab.note_call(
            what,
            &self.volume,
            &self.mapping,
            &before,
            self.released.get(),
        );
        if what != "observe" {
            self.note(&format!(
                "{what} {}",
                if result.is_ok() { "ok" } else { "failed" }
            ));
        }
        self.lab.check();
        self.lab.pause(&format!("after {what}")).await?;
        result
    }

    /// A call that must have the target to itself.
    async fn alone<T>(
        &self,
        what: &str,
        target: &str,
        effect: impl FnOnce(&mut World) -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        let count = |by: isize| {
            let mut busy = self.lab.busy_targets.borrow_mut();
            let n = busy.entry(target.to_owned()).or_default();
            *n = n.checked_add_signed(by).unwrap_or(0);
        };
        count(1);
        let result = self.call(what, effect).await;
        count(-1);
        result
    }

    /// What a status says for good.
    fn note_status(&self, status: &NodeVolumeStatus) {
        let (world, truth) = (self.lab.world.borrow(), &self.lab.truth.borrow());
        let mut ledger = self.lab.ledger.borrow_mut();
        ledger.unread = true;
        if let Some(permit) = &status.permit {
            let permits = ledger.permits.entry(self.volume.clone()).or_default();
            permits.insert(permit.id.clone());
        }
        if status.first_opened.is_some() {
            let formats = world.disks[truth[&self.volume]].formats;
            let opened = &mut ledger.formats_at_opening;
            opened.entry(self.volume.clone()).or_insert(formats);
        }
    }

    /// The agent asks for a key.
    fn asks_for_key(&self) {
        if !self.wants_key {
            let line = format!("a key of {} is asked for and not wanted", self.volume);
            self.lab.ledger.borrow_mut().unwanted_keys.push(line);
        }
    }

    /// Status write: its acknowledgement may be lost.
    pub async fn write(&self, status: NodeVolumeStatus) -> Result<(), StepError> {
        let unavailable = || StepError::new(Reason::StepFailed, "API server unavailable");
        self.lab.pause("before status write").await?;
        if !self.lab.api_up.get() {
            return Err(unavailable());
        }
        self.note_status(&status);
        self.lab
            .volumes
            .borrow_mut()
            .get_mut(&self.volume)
            .unwrap()
            .status = Some(status);
        self.lab.status_writes.set(self.lab.status_writes.get() + 1);
        self.note("status write");
        self.lab.check();
        self.lab.pause("after status write").await
    }
}

impl Office for Side<'_> {
    async fn passphrase(&self) -> Result<Passphrase, StepError> {
        self.asks_for_key();
        self.lab.pause("before key release").await?;
        let desired = self.lab.volumes.borrow()[&self.volume].spec.desired;
        if desired != Desired::Attached || self.lab.volumes.borrow()[&self.volume].spec.suspended {
            return Err(StepError::new(
                Reason::KeyReleaseRefused,
                "not wanted here now",
            ));
        }
        let key = self.lab.operator.borrow().clone();
        let key = key.map_err(|(reason, message)| StepError::new(reason, message))?;
        let key = key.unwrap_or_else(|| self.lab.stored(&self.volume));
        self.released.set(true);
        self.lab.keys_released.set(self.lab.keys_released.get() + 1);
        self.note("key released");
        self.lab.pause("after key release").await?;
        Ok(Passphrase(key))
    }

    async fn next_passphrase(&self) -> Result<Passphrase, StepError> {
        self.asks_for_key();
        self.lab.pause("before key release").await?;
        let rotation = self.lab.volumes.borrow()[&self.volume]
            .spec
            .rotation
            .clone();
        let adding = rotation.is_some_and(|r| r.phase == RotationPhase::Adding);
        let next = self.lab.next.borrow().get(&self.volume).cloned();
        let next = next
            .filter(|_| adding)
            .ok_or_else(|| StepError::new(Reason::KeyReleaseRefused, "no rotation"))?;
        self.lab.pause("after key release").await?;
        Ok(Passphrase(next))
    }

    async fn chap(&self) -> Result<Chap, StepError> {
        self.lab.pause("before chap release").await?;
        let (username, password) = self.lab.chap.borrow().clone();
        let target = self.lab.target_chap.borrow().clone();
        Ok(Chap {
            username,
            password,
            target,
        })
    }

    async fn discovery_chap(&self) -> Result<Chap, StepError> {
        self.lab.pause("before discovery chap release").await?;
        let (username, password) = self.lab.discovery_chap.borrow().clone();
        Ok(Chap {
            username,
            password,
            target: None,
        })
    }

    async fn record(&self, receipt: Receipt) -> Result<Memory, StepError> {
        let old = self.lab.volumes.borrow()[&self.volume]
            .status
            .clone()
            .unwrap_or_default();
        let new = report::with_receipt(&old, &receipt, "node-1", self.lab.now());
        self.write(new.clone()).await?;
        Ok(Memory::read(&new))
    }
}

impl Node for Side<'_> {
    async fn observe(&self, query: &Query) -> Result<Observed, StepError> {
        self.call("observe", |w| w.observe(query)).await
    }

    async fn login(
        &self,
        target: &Target,
        each: bool,
        chap: Option<Chap>,
    ) -> Result<(), StepError> {
        self.alone("login", &target.iqn, |w| {
            w.login(target, each, chap.as_ref())
        })
        .await
    }

    async fn discover(&self, target: &Target, chap: Option<Chap>) -> Result<Discovered, StepError> {
        self.call("discover", |w| w.discover(target, chap.as_ref()))
            .await
    }

    async fn gather(&self, order: &MapOrder) -> Result<(), StepError> {
        let torn = TornStep::Gather(order.clone());
        self.lab.tearing("gather", torn).await?;
        self.call("gather", |w| {
            let result = w.gather(order);
            let truth = self.lab.truth.borrow()[&self.volume];
            for map in w.kernel.maps.iter().filter(|m| m.uuid == order.uuid) {
                let used = w.used_by(map);
                assert!(
                    result.is_err() || used.iter().all(|d| d.disk == truth),
                    "1: a path to another disk"
                );
            }
            result
        })
        .await
    }

    async fn scan(&self, iqn: &str, sid: u32, lun: u32) -> Result<(), StepError> {
        self.alone("scan", iqn, |w| w.scan(iqn, sid, lun)).await
    }

    async fn read_header(&self, device: &DeviceId) -> Result<HeaderFound, StepError> {
        self.call("read-header", |w| w.read_header(device)).await
    }

    async fn format(&self, device: &DeviceId, order: FormatOrder) -> Result<Header, StepError> {
        let volume = self.lab.volumes.borrow()[&self.volume].clone();
        let status = volume.status.unwrap_or_default();
        assert!(status.permit.is_some(), "2: format without a receipt");
        assert!(
            status.first_opened.is_none() && volume.spec.header.is_none(),
            "2: format after opening"
        );
        self.lab
            .tearing("format", TornStep::Format(device.clone(), order.clone()))
            .await?;
        self.call("format", |w| {
            let truth = self.lab.truth.borrow()[&self.volume];
            let before = w.disks[truth].written;
            let all = w.bytes_written();
            let result = w.format(device, &order);
            assert_eq!(
                w.bytes_written() - all,
                w.disks[truth].written - before,
                "1: another disk was written"
            );
            result
        })
        .await
    }

    async fn open(&self, device: &DeviceId, order: OpenOrder) -> Result<Mapping, StepError> {
        self.lab
            .tearing("open", TornStep::Open(device.clone(), order.clone()))
            .await?;
        self.call("open", |w| w.open(device, &order)).await
    }

    async fn initialise(&self, mapping: &Mapping, from: u64) -> Result<Initialised, StepError> {
        self.call("initialise", |w| w.initialise(mapping, from))
            .await
    }

    async fn link(&self, link: &str, mapping: &Mapping) -> Result<(), StepError> {
        self.call("link", |w| w.link(link, mapping)).await
    }

    async fn unlink(&self, link: &str) -> Result<(), StepError> {
        let stubborn = self.lab.stubborn_link.get();
        self.call("unlink", |w| {
            let was = w.links.get(link).cloned();
            w.unlink(link)?;
            w.links
                .extend(was.filter(|_| stubborn).map(|to| (link.to_owned(), to)));
            Ok(())
        })
        .await
    }

    async fn name(&self, order: NameOrder) -> Result<(), StepError> {
        self.call("name", |w| w.name(&order)).await
    }

    async fn close(&self, name: &str, uuid: &str) -> Result<(), StepError> {
        self.call("close", |w| w.close(name, uuid)).await
    }

    async fn make_file(&self, file: &BackingFile) -> Result<(), StepError> {
        self.call("make-file", |w| w.make_file(file)).await
    }

    async fn attach_file(&self, file: &BackingFile) -> Result<(), StepError> {
        self.call("attach-file", |w| w.attach_file(file)).await
    }

    async fn lengthen_file(&self, device: &DeviceId, file: &BackingFile) -> Result<(), StepError> {
        let spec = self.lab.volumes.borrow()[&self.volume].spec.clone();
        let mapping = names::mapping_name(&spec.volume_ref.uid);
        let proven = |w: &World| {
            let mut mappings = w.kernel.mappings.iter().map(|m| &m.mapping);
            mappings.any(|m| m.name == mapping && m.deps.contains(&device.dev))
        };
        assert!(
            proven(&self.lab.world.borrow()),
            "1: a file is changed that is not below the volume's mapping"
        );
        self.lab
            .tearing("lengthen-file", TornStep::Lengthen(file.clone()))
            .await?;
        self.call("lengthen-file", |w| w.lengthen_file(device, file))
            .await
    }

    async fn remove_file(&self, file: &BackingFile) -> Result<(), StepError> {
        let volume = self.lab.volumes.borrow()[&self.volume].clone();
        assert!(
            volume.status.unwrap_or_default().erased.is_some() || volume.spec.ephemeral,
            "9: a file goes without a receipt of its erasure"
        );
        self.call("remove-file", |w| w.remove_file(file)).await
    }

    async fn delete_device(&self, device: &DeviceId) -> Result<(), StepError> {
        self.alone("delete-device", IQN, |w| w.delete_device(device))
            .await
    }

    async fn logout(&self, iqn: &str, sid: u32) -> Result<(), StepError> {
        {
            let kernel = &self.lab.world.borrow().kernel;
            assert!(
                self.lab.others_scan.get() || kernel.devices.iter().all(|d| d.sid != sid),
                "6: asked to log out while disks are left"
            );
        }
        self.alone("logout", iqn, |w| w.logout(iqn, sid)).await
    }

    async fn grow(&self, device: &DeviceId, order: OpenOrder) -> Result<Mapping, StepError> {
        self.call("grow", |w| w.grow(device, &order)).await
    }

    async fn sample(&self, device: &DeviceId, mapping: &Mapping) -> Result<(), StepError> {
        self.call("sample", |w| w.sample(device, mapping)).await
    }

    async fn suspend(&self, name: &str, uuid: &str) -> Result<(), StepError> {
        let step = TornStep::Suspend(name.to_owned(), uuid.to_owned());
        self.lab.tearing("suspend", step).await?;
        self.call("suspend", |w| w.suspend(name, uuid)).await
    }

    async fn resume(&self, device: &DeviceId, order: OpenOrder) -> Result<Mapping, StepError> {
        self.call("resume", |w| w.resume(device, &order)).await
    }

    async fn add_key_slot(
        &self,
        device: &DeviceId,
        order: AddSlotOrder,
    ) -> Result<Vec<KeySlotRef>, StepError> {
        self.call("add-key-slot", |w| w.add_key_slot(device, &order))
            .await
    }

    async fn drop_key_slots(
        &self,
        device: &DeviceId,
        order: DropSlotsOrder,
    ) -> Result<(), StepError> {
        self.lab
            .tearing(
                "drop-key-slots",
                TornStep::DropSlots(device.clone(), order.clone()),
            )
            .await?;
        self.call("drop-key-slots", |w| w.drop_key_slots(device, &order))
            .await
    }

    async fn backup_header(
        &self,
        device: &DeviceId,
        order: BackupOrder,
    ) -> Result<HeaderBackup, StepError> {
        self.call("backup-header", |w| w.backup_header(device, &order))
            .await
    }

    async fn header_record(&self, order: RecordOrder) -> Result<HeaderBackup, StepError> {
        self.call("header-record", |w| w.header_record(&order))
            .await
    }

    async fn restore_header(
        &self,
        device: &DeviceId,
        order: RestoreOrder,
    ) -> Result<(), StepError> {
        self.lab
            .tearing(
                "restore-header",
                TornStep::Restore(device.clone(), order.clone()),
            )
            .await?;
        self.call("restore-header", |w| w.restore_header(device, &order))
            .await
    }

    async fn erase(&self, device: &DeviceId, luks_uuid: &str) -> Result<Erased, StepError> {
        self.lab
            .tearing(
                "erase",
                TornStep::Erase(device.clone(), luks_uuid.to_owned()),
            )
            .await?;
        self.call("erase", |w| w.erase(device, luks_uuid)).await
    }

    async fn clear_header(&self, device: &DeviceId, luks_uuid: &str) -> Result<(), StepError> {
        assert!(
            self.lab.status_of(&self.volume).erased.is_some(),
            "9: a header goes without a receipt of its erasure"
        );
        let step = TornStep::ClearHeader(device.clone(), luks_uuid.to_owned());
        self.lab.tearing("clear-header", step).await?;
        self.call("clear-header", |w| w.clear_header(device, luks_uuid))
            .await
    }
}

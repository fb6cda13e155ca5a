//! What the simulated node does when it is asked.

use super::*;

impl Host for World {
    fn observe(&mut self, query: &Query) -> Result<Observed, StepError> {
        let local = |device: Option<&SimDevice>| {
            let device = device.map(|d| Path::local(self.shown(d)));
            device.into_iter().collect()
        };
        let paths = match &query.source {
            Source::Iscsi(lun) => self.paths(lun),
            Source::Device { path } => local(self.local(path, &query.mapping_name)),
            Source::File(file) => local(self.looped(&file.path, &query.mapping_name)),
        };
        let file = match &query.source {
            Source::File(file) => self.file_state(&file.path),
            _ => FileState::Absent,
        };
        let mapping = self
            .kernel
            .mappings
            .iter()
            .map(|m| &m.mapping)
            .find(|m| m.name == query.mapping_name)
            .cloned();
        let link = match self.links.get(&query.link) {
            None => LinkFound::Absent,
            Some(SimLink::File) => LinkFound::NoLink,
            Some(SimLink::Ours(to) | SimLink::Foreign(to)) => LinkFound::To(to.clone()),
        };
        let mut observed = Observed {
            elsewhere: None,
            file,
            paths,
            mapping,
            link,
            names: self.names_found(query),
            map: query.map.as_ref().and_then(|name| self.map_found(name)),
            multipath: query.map.as_ref().is_some_and(|m| m.wanted),
        };
        observed.elsewhere = self.elsewhere(&observed);
        Ok(observed)
    }

    fn belongings(&mut self, known: &[String]) -> Result<Belongings, StepError> {
        Ok(self.all_of_ours(known))
    }

    fn discover(&mut self, target: &Target, chap: Option<&Chap>) -> Result<Discovered, StepError> {
        let found = self.targets.get(&target.iqn).filter(|t| t.up);
        let answers = |t: &&SimTarget| {
            target
                .portals
                .iter()
                .any(|p| !t.portals_away.contains(&p.to_string()))
        };
        let Some(t) = found.filter(answers) else {
            return error(Reason::DiscoveryFailed, "connection timed out");
        };
        if let Some((user, password)) = &t.discovery_chap
            && chap.is_none_or(|c| c.username != *user || c.password != *password)
        {
            return error(Reason::DiscoveryRejected, "authentication failed");
        }
        Ok(bounds::admit(&target.portals, &t.tells))
    }

    fn gather(&mut self, order: &MapOrder) -> Result<(), StepError> {
        self.gather_paths(order)
    }

    fn login(&mut self, target: &Target, each: bool, chap: Option<&Chap>) -> Result<(), StepError> {
        let portals = match each {
            true => self.portals_without(target),
            false if self.kernel.sessions.iter().any(|s| s.iqn == target.iqn) => vec![],
            false => target.portals.clone(),
        };
        if portals.is_empty() {
            return Ok(());
        }
        if self.targets.values().all(|t| !t.up) {
            return error(Reason::PortalUnreachable, "connection refused");
        }
        let Some(t) = self.targets.get(&target.iqn) else {
            return error(Reason::TargetNotFound, "target not found");
        };
        let answers = |p: &&Portal| !t.portals_away.contains(&p.to_string());
        let mut answering: Vec<_> = portals.iter().filter(answers).filter(|_| t.up).collect();
        if answering.is_empty() {
            return error(Reason::PortalUnreachable, "connection timed out");
        }
        let away = portals.len() - answering.len();
        if !each {
            answering.truncate(1);
        }
        if let Some((user, password)) = &t.chap
            && chap.is_none_or(|c| c.username != *user || c.password != *password)
        {
            return error(Reason::ChapRejected, "authorization failure");
        }
        if let Some(expected) = chap.and_then(|c| c.target.as_ref())
            && t.own_chap.as_ref() != Some(&(expected.username.clone(), expected.password.clone()))
        {
            return error(Reason::TargetNotAuthentic, "the target proves nothing");
        }
        for portal in answering {
            self.kernel.next_sid += 1;
            self.kernel.sessions.push(SimSession {
                sid: self.kernel.next_sid,
                iqn: target.iqn.clone(),
                portal: Some(portal.clone()),
                state: "LOGGED_IN".to_owned(),
                foreign: false,
            });
        }
        match each && away > 0 {
            true => error(Reason::PortalUnreachable, "connection timed out"),
            false => Ok(()),
        }
    }

    fn scan(&mut self, iqn: &str, sid: u32, lun: u32) -> Result<(), StepError> {
        let mut sessions = self.kernel.sessions.iter();
        if !sessions.any(|s| s.sid == sid && s.iqn == iqn) {
            return error(Reason::StepFailed, "no session");
        }
        let portal = self.kernel.sessions.iter().find(|s| s.sid == sid);
        let portal = portal.and_then(|s| s.portal.as_ref());
        let portal = portal.map_or_else(String::new, ToString::to_string);
        let target = self.targets.get(iqn);
        let target = target.filter(|t| t.up && !t.portals_away.contains(&portal));
        let shown = target
            .and_then(|t| t.other_luns.get(&portal).or(t.luns.get(&lun)))
            .copied();
        let known = self
            .kernel
            .devices
            .iter()
            .position(|d| d.sid == sid && d.lun == lun);
        match (known, shown) {
            (None, None) => error(Reason::LunNotFound, "no disk appeared"),
            (Some(i), None) => {
                self.kernel.devices[i].size = 0;
                Ok(())
            }
            (Some(i), Some(disk)) => {
                let d = &self.disks[disk];
                let device = &mut self.kernel.devices[i];
                (device.wwid, device.size, device.disk) = (d.wwid.clone(), d.size, disk);
                let device = device.clone();
                if self.hides(&device) {
                    self.kernel.devices[i].size = 0;
                }
                self.hear_at_scan(&device);
                Ok(())
            }
            (None, Some(disk)) => {
                let letter = ('a'..='z')
                    .find(|c| {
                        let path = format!("/dev/sd{c}");
                        let dev = format!("8:{}", (u32::from(*c) - 97) * 16);
                        self.kernel.devices.iter().all(|d| d.path != path)
                            // a number that a mapping still holds is not given again
                            && self.holders(&dev).is_empty()
                    })
                    .unwrap();
                let d = &self.disks[disk];
                let mut device = SimDevice {
                    path: format!("/dev/sd{letter}"),
                    dev: format!("8:{}", (u32::from(letter) - 97) * 16),
                    sid,
                    lun,
                    disk,
                    wwid: d.wwid.clone(),
                    size: d.size,
                    state: "running".to_owned(),
                    in_use: false,
                    opened_by: None,
                    file: None,
                };
                if self.hides(&device) {
                    device.size = 0;
                }
                self.kernel.devices.push(device.clone());
                self.hear_at_scan(&device);
                Ok(())
            }
        }
    }

    fn read_header(&mut self, device: &DeviceId) -> Result<HeaderFound, StepError> {
        let disk = self.check(device)?;
        self.found(disk)
    }

    fn format(&mut self, device: &DeviceId, order: &FormatOrder) -> Result<Header, StepError> {
        let disk = self.formattable(device, order)?;
        if !self.opens(disk, order) {
            let header = SimHeader::to(order);
            write(&mut self.disks[disk], Content::Luks(header));
            self.disks[disk].formats += 1;
            self.disks[disk].initialised = 0;
        }
        let facts = SimHeader::to(order).facts;
        Ok(Header {
            facts,
            key_slots: 1,
            unlock_memory_kib: 0,
            derivations: crate::host::OWN_DERIVATIONS.map(str::to_owned).to_vec(),
            objections: vec![],
        })
    }

    fn open(&mut self, device: &DeviceId, order: &OpenOrder) -> Result<Mapping, StepError> {
        let disk = self.check(device)?;
        if let Some(m) = self
            .kernel
            .mappings
            .iter()
            .find(|m| m.mapping.name == order.mapping_name)
        {
            if m.mapping.uuid == order.mapping_uuid && m.mapping.deps == [device.dev.clone()] {
                return Ok(m.mapping.clone());
            }
            return error(Reason::NotOurs, "another mapping of that name");
        }
        self.unlocks(disk, order)?;
        let mapping = self.new_mapping(device, order);
        self.kernel.mappings.push(SimMapping {
            mapping: mapping.clone(),
            disk,
        });
        Ok(mapping)
    }

    fn initialise(&mut self, mapping: &Mapping, from: u64) -> Result<Initialised, StepError> {
        let m = self.kernel.mappings.iter().find(|m| m.mapping == *mapping);
        let Some(disk) = m.map(|m| m.disk) else {
            return error(Reason::StepFailed, "the mapping is not what it was");
        };
        let total = mapping.size_bytes;
        let disk = &mut self.disks[disk];
        assert!(
            from <= disk.initialised,
            "more is believed to be written than is"
        );
        if disk.initialised < total {
            assert!(disk.data.is_none(), "2: a used volume is written over");
            // A third in each turn.
            disk.initialised = total.min(disk.initialised + total.div_ceil(3));
            disk.written += 1;
        }
        Ok(Initialised {
            done: disk.initialised,
            total,
        })
    }

    fn link(&mut self, link: &str, mapping: &Mapping) -> Result<(), StepError> {
        match self.links.get(link) {
            Some(SimLink::Foreign(_) | SimLink::File) => {
                error(Reason::NotOurs, "something else is there")
            }
            _ => {
                self.links
                    .insert(link.to_owned(), SimLink::Ours(mapping.path.clone()));
                Ok(())
            }
        }
    }

    fn unlink(&mut self, link: &str) -> Result<(), StepError> {
        match self.links.get(link) {
            None => Ok(()),
            Some(SimLink::Ours(_)) => {
                self.links.remove(link);
                Ok(())
            }
            Some(_) => error(Reason::NotOurs, "something else is there"),
        }
    }

    fn name(&mut self, order: &NameOrder) -> Result<(), StepError> {
        self.set_name(order)
    }

    fn close(&mut self, name: &str, uuid: &str) -> Result<(), StepError> {
        let Some(i) = self
            .kernel
            .mappings
            .iter()
            .position(|m| m.mapping.name == name)
        else {
            return Ok(());
        };
        let m = &self.kernel.mappings[i].mapping;
        if m.uuid != uuid {
            return error(Reason::NotOurs, "another mapping of that name");
        }
        if m.open_count > 0 {
            return error(Reason::DeviceBusy, "open by qemu");
        }
        self.kernel.mappings.remove(i);
        self.bad_sample
            .take_if(|reason| *reason == Reason::IntegrityStopped);
        Ok(())
    }

    fn make_file(&mut self, file: &BackingFile) -> Result<(), StepError> {
        self.make(file)
    }

    fn attach_file(&mut self, file: &BackingFile) -> Result<(), StepError> {
        self.attach(file)
    }

    fn lengthen_file(&mut self, device: &DeviceId, file: &BackingFile) -> Result<(), StepError> {
        self.lengthen(device, file)
    }

    fn remove_file(&mut self, file: &BackingFile) -> Result<(), StepError> {
        self.remove(file)
    }

    fn delete_device(&mut self, device: &DeviceId) -> Result<(), StepError> {
        if let RawKind::Paths { .. } = device.kind {
            return self.remove_map(device);
        }
        let Some(i) = self
            .kernel
            .devices
            .iter()
            .position(|d| self.id(d) == *device)
        else {
            return Ok(());
        };
        if self.kernel.devices[i].in_use || !self.holders(&device.dev).is_empty() {
            return error(Reason::DeviceBusy, "device is in use");
        }
        if let Some(who) = &self.kernel.devices[i].opened_by {
            return error(
                Reason::DeviceBusy,
                &format!("{} is open by {who}", device.path),
            );
        }
        self.kernel.devices.remove(i);
        Ok(())
    }

    fn logout(&mut self, iqn: &str, sid: u32) -> Result<(), StepError> {
        let Some(i) = self
            .kernel
            .sessions
            .iter()
            .position(|s| s.sid == sid && s.iqn == iqn)
        else {
            return Ok(());
        };
        let session = &self.kernel.sessions[i];
        if session.foreign || self.kernel.devices.iter().any(|d| d.sid == session.sid) {
            return Ok(());
        }
        self.kernel.sessions.remove(i);
        Ok(())
    }

    fn grow(&mut self, device: &DeviceId, order: &OpenOrder) -> Result<Mapping, StepError> {
        assert!(!order.random, "nobody has the key");
        let disk = self.check(device)?;
        self.unlocks(disk, order)?;
        let room = device.size_bytes - u64::try_from(order.expected.data_offset).unwrap();
        let m = self.mapping_of(&order.mapping_name, &order.mapping_uuid)?;
        if m.suspended {
            return error(Reason::StepFailed, "it is suspended");
        }
        if m.size_bytes > room {
            return error(Reason::SizeMismatch, "the disk is shorter");
        }
        m.size_bytes = room;
        Ok(m.clone())
    }

    fn sample(&mut self, device: &DeviceId, mapping: &Mapping) -> Result<(), StepError> {
        let disk = self.check(device)?;
        if self.disks[disk].unreadable {
            return error(Reason::DeviceUnreadable, "input/output error");
        }
        if self.mapping_of(&mapping.name, &mapping.uuid)?.suspended {
            return error(Reason::DeadlineExceeded, "the read waits");
        }
        match self.bad_sample {
            Some(reason) => error(reason, "4096 bytes are not as they should be"),
            None => Ok(()),
        }
    }

    fn suspend(&mut self, name: &str, uuid: &str) -> Result<(), StepError> {
        let m = self.mapping_of(name, uuid)?;
        m.suspended = true;
        if let Some(table) = &mut m.table {
            table.key_in_keyring = false;
        }
        Ok(())
    }

    fn resume(&mut self, device: &DeviceId, order: &OpenOrder) -> Result<Mapping, StepError> {
        assert!(!order.random, "nobody has the key");
        let disk = self.check(device)?;
        self.unlocks(disk, order)?;
        let m = self.mapping_of(&order.mapping_name, &order.mapping_uuid)?;
        m.suspended = false;
        if let Some(table) = &mut m.table {
            table.key_in_keyring = true;
        }
        Ok(m.clone())
    }

    fn add_key_slot(
        &mut self,
        device: &DeviceId,
        order: &AddSlotOrder,
    ) -> Result<Vec<KeySlotRef>, StepError> {
        let header = self.pinned(device, &order.expected)?;
        let former = header.opened_by(&order.passphrase.0);
        if former.is_empty() {
            return error(Reason::KeyDoesNotOpen, "the present key opens nothing");
        }
        if header.opened_by(&order.next.0).is_empty() {
            header.slots.push(order.next.0.clone());
        }
        Ok(former)
    }

    fn drop_key_slots(
        &mut self,
        device: &DeviceId,
        order: &DropSlotsOrder,
    ) -> Result<(), StepError> {
        let header = self.pinned(device, &order.expected)?;
        let goes = |slot: &String| {
            order
                .former
                .iter()
                .any(|f| f.fingerprint == fingerprint(slot))
        };
        if !header
            .slots
            .iter()
            .any(|s| *s == order.passphrase.0 && !goes(s))
        {
            return error(Reason::KeyDoesNotOpen, "nothing would open");
        }
        header.slots.retain(|slot| !goes(slot));
        Ok(())
    }

    fn backup_header(
        &mut self,
        device: &DeviceId,
        order: &BackupOrder,
    ) -> Result<HeaderBackup, StepError> {
        let header = self.pinned(device, &order.expected)?;
        if header.opened_by(&order.passphrase.0).is_empty() {
            return error(Reason::KeyDoesNotOpen, "no key slot opens");
        }
        Ok(HeaderBackup {
            header: header.facts.clone(),
            sealed: fingerprint(&order.passphrase.0),
            ..HeaderBackup::default()
        })
    }

    fn header_record(&mut self, order: &RecordOrder) -> Result<HeaderBackup, StepError> {
        self.record(order)
    }

    fn restore_header(&mut self, device: &DeviceId, order: &RestoreOrder) -> Result<(), StepError> {
        if let Some(disk) = self.restorable(device, order)? {
            write(
                &mut self.disks[disk],
                Content::Luks(restored(order, &order.passphrase.0)),
            );
        }
        Ok(())
    }

    fn erase(&mut self, device: &DeviceId, luks_uuid: &str) -> Result<Erased, StepError> {
        let disk = self.check(device)?;
        match self.found(disk)? {
            HeaderFound::Luks(h) if h.facts.luks_uuid == luks_uuid => {}
            _ => return error(Reason::HeaderMismatch, "another header"),
        }
        let Content::Luks(h) = &self.disks[disk].content else {
            return error(Reason::HeaderMismatch, "no header");
        };
        let mut header = h.clone();
        let wiped = u32::try_from(header.slots.len()).unwrap();
        header.slots.clear();
        write(&mut self.disks[disk], Content::Luks(header));
        Ok(Erased {
            key_slots_wiped: wiped,
            verified: true,
        })
    }

    fn clear_header(&mut self, device: &DeviceId, luks_uuid: &str) -> Result<(), StepError> {
        let disk = self.check(device)?;
        match self.found(disk)? {
            HeaderFound::Luks(h) if h.facts.luks_uuid == luks_uuid && h.key_slots == 0 => {}
            HeaderFound::Luks(_) => return error(Reason::HeaderMismatch, "another header"),
            _ => return Ok(()),
        }
        // What a guest wrote begins behind the header, and is noise.
        let left = match self.disks[disk].data {
            Some(_) => Content::Garbage,
            None => Content::Blank,
        };
        write(&mut self.disks[disk], left);
        Ok(())
    }
}

//! Files of the node that stand for disks, and their loop devices.

use cryptvol_crds::{conditions::Reason, names::DM_UUID_PREFIX};

use super::{Content, SimDevice, World};
use crate::{
    host::{BackingFile, DeviceId, FileState, StepError},
    volume::wanted::is_scratch_name,
};

/// A file.
#[derive(Clone, Debug)]
pub struct SimFile {
    /// What is in it, as an index into `World::disks`.
    pub disk: usize,
    /// Its length; absent where it is not made.
    pub size: Option<u64>,
}

impl World {
    pub(super) fn file_state(&self, path: &str) -> FileState {
        match self.files.get(path).and_then(|f| f.size) {
            Some(size_bytes) => FileState::Regular { size_bytes },
            None => FileState::Absent,
        }
    }

    /// The loop device below a mapping of this name, else the one that has the file.
    pub(super) fn looped(&self, path: &str, mapping: &str) -> Option<&SimDevice> {
        let mut mappings = self.kernel.mappings.iter().map(|m| &m.mapping);
        let below = mappings
            .find(|m| m.name == mapping && m.uuid.starts_with(DM_UUID_PREFIX))
            .and_then(|m| m.deps.first());
        let mut loops = self.kernel.devices.iter().filter(|d| d.file.is_some());
        below
            .and_then(|dev| loops.clone().find(|d| d.dev == *dev))
            .or_else(|| loops.find(|d| d.file.as_deref() == Some(path)))
    }

    pub(super) fn make(&mut self, file: &BackingFile) -> Result<(), StepError> {
        let Some(found) = self.files.get_mut(&file.path) else {
            return Err(StepError::new(Reason::FileNotUsable, "no such directory"));
        };
        if found.size.is_none() && is_scratch(file) {
            let disk = &mut self.disks[found.disk];
            (disk.content, disk.data) = (Content::Blank, None);
        }
        let size = *found.size.get_or_insert(file.size_bytes);
        match size {
            0 => found.size = Some(file.size_bytes),
            size if size < file.size_bytes => {
                return Err(StepError::new(
                    Reason::FileNotUsable,
                    "it is there and short",
                ));
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn attach(&mut self, file: &BackingFile) -> Result<(), StepError> {
        let all = &self.kernel.devices;
        if all.iter().any(|d| d.file.as_ref() == Some(&file.path)) {
            return Ok(());
        }
        let Some((disk, size)) = self
            .files
            .get(&file.path)
            .and_then(|f| Some((f.disk, f.size?)))
        else {
            return Err(StepError::new(Reason::StepFailed, "no such file"));
        };
        let taken = |n: &u32| all.iter().any(|d| d.dev == format!("7:{n}"));
        let number = (0..).find(|n| !taken(n)).unwrap();
        self.kernel.devices.push(SimDevice {
            path: format!("/dev/loop{number}"),
            dev: format!("7:{number}"),
            sid: 0,
            lun: 0,
            disk,
            wwid: None,
            size,
            state: "running".to_owned(),
            in_use: false,
            opened_by: None,
            file: Some(file.path.clone()),
        });
        Ok(())
    }

    pub(super) fn lengthen(
        &mut self,
        device: &DeviceId,
        file: &BackingFile,
    ) -> Result<(), StepError> {
        let mut all = self.kernel.devices.iter_mut();
        let looped = all.find(|d| d.dev == device.dev && d.file.as_ref() == Some(&file.path));
        let found = self.files.get_mut(&file.path);
        let (
            Some(looped),
            Some(SimFile {
                disk,
                size: Some(size),
            }),
        ) = (looped, found)
        else {
            return Err(StepError::new(Reason::FileNotUsable, "not the file below"));
        };
        let more = file.size_bytes.saturating_sub(*size);
        if self.file_room.is_some_and(|room| room < more) {
            return Err(StepError::new(Reason::FileSystemFull, "no room"));
        }
        *size += more;
        self.disks[*disk].size = *size;
        looped.size = *size;
        Ok(())
    }

    pub(super) fn remove(&mut self, file: &BackingFile) -> Result<(), StepError> {
        let Some(found) = self.files.get_mut(&file.path) else {
            return Ok(());
        };
        let keep = match &self.disks[found.disk].content {
            _ if is_scratch(file) => false,
            Content::Luks(h) => !h.slots.is_empty(),
            Content::Foreign(_) => true,
            Content::Blank | Content::Garbage => false,
        };
        if !keep {
            found.size = None;
        }
        Ok(())
    }
}

fn is_scratch(file: &BackingFile) -> bool {
    let name = file.path.rsplit('/').next();
    name.is_some_and(is_scratch_name)
}

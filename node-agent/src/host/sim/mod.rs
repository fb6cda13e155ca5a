//! A simulated node and array for tests: errno behaviour of the real ones, faults on order, and every byte written on a disk
//! counted.
//!
//! `World` is what survives a crash of the agent; `World::power_cut` takes the kernel's part away. `impl Host` in `kernel` is
//! synchronous like the real one.

mod alua;
mod array;
mod belongings;
mod detached;
mod files;
mod kernel;
mod names;
mod paths;

pub use alua::Handler;
pub use array::*;
pub use files::*;
pub use kernel::*;
pub use names::*;
pub use paths::*;

use std::collections::BTreeMap;

use cryptvol_crds::conditions::Reason;

/// Node, array and everything on them.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Targets by name.
    pub targets: BTreeMap<String, SimTarget>,
    /// All disks of the array.
    pub disks: Vec<Disk>,
    /// The node's kernel.
    pub kernel: Kernel,
    /// Files of the node that stand for disks, by path; they outlive a power cut.
    pub files: BTreeMap<String, SimFile>,
    /// Bytes that their file system has free; absent where there is always room.
    pub file_room: Option<u64>,
    /// Links by path.
    pub links: BTreeMap<String, SimLink>,
    /// What udev is told of names.
    pub names: SimNames,
    /// How the kernel gets to hear of paths that an array tells apart.
    pub handler: Handler,
    /// What a comparison of mapping and disk shows that is not as it should be.
    pub bad_sample: Option<Reason>,
    /// What was done, in order, for assertions and for reading a failed test.
    pub log: Vec<String>,
}

/// What lies at a path in the link directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SimLink {
    /// A symbolic link of ours.
    Ours(String),
    /// A symbolic link of somebody else.
    Foreign(String),
    /// A file.
    File,
}

impl World {
    /// The node loses power: nothing of the kernel's state is left, and `/dev` is empty. Disks keep what they have.
    pub fn power_cut(&mut self) {
        self.log.push("power cut".to_owned());
        let next_sid = self.kernel.next_sid;
        let mut devices = std::mem::take(&mut self.kernel.devices);
        devices.retain(|d| d.sid == 0 && d.file.is_none()); // the node's own are there again at boot
        self.kernel = Kernel {
            next_sid,
            devices,
            ..Kernel::default()
        };
        self.links.clear();
        self.names = SimNames::default();
    }

    /// A guest opens the device by its link and writes. Gives back the disk that got the bytes, or nothing when the link
    /// leads nowhere.
    ///
    /// # Panics
    /// When the link leads to a raw device: plaintext would reach the array.
    pub fn guest_writes(&mut self, link: &str) -> Option<usize> {
        let path = match self.links.get(link)? {
            SimLink::Ours(path) | SimLink::Foreign(path) => path.clone(),
            SimLink::File => return None,
        };
        assert!(
            !self.kernel.devices.iter().any(|d| d.path == path),
            "the link {link} leads to the raw device {path}"
        );
        let mapping = self
            .kernel
            .mappings
            .iter_mut()
            .find(|m| m.mapping.path == path)?;
        mapping.mapping.open_count += 1;
        let integrity = mapping.mapping.table.as_ref().and_then(|t| t.integrity);
        let size = mapping.mapping.size_bytes;
        let (disk, uuid) = (mapping.disk, mapping.mapping.uuid.clone());
        // Only where the mapping still lies over a living device do the bytes get anywhere.
        let dev = mapping.mapping.deps.first().cloned();
        let dev = dev.unwrap_or_default();
        let below: Vec<_> = match self.kernel.maps.iter().any(|m| m.dev == dev) {
            true => self.io(&dev),
            false => {
                let devices = self.kernel.devices.iter();
                devices.filter(|d| d.dev == dev).cloned().collect()
            }
        };
        assert!(
            integrity.is_none() || self.disks[disk].initialised == size,
            "the guest cannot read {link}"
        );
        let alive = below.iter().any(|d| d.disk == disk && d.state == "running");
        if !alive {
            return None;
        }
        let raw = &mut self.disks[disk];
        raw.data = Some(uuid);
        // Without a header before it, ciphertext begins where the disk does.
        if raw.content == Content::Blank {
            raw.content = Content::Garbage;
        }
        Some(disk)
    }

    /// All guests close a mapping.
    pub fn guests_leave(&mut self, name: &str) {
        for m in &mut self.kernel.mappings {
            if m.mapping.name == name {
                m.mapping.open_count = 0;
            }
        }
    }

    /// Bytes written on all disks by the agent.
    pub fn bytes_written(&self) -> u64 {
        self.disks.iter().map(|d| d.written).sum()
    }
}

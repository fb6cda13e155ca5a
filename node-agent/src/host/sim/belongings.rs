//! What of ours is on the simulated node.

use cryptvol_crds::names;

use super::{SimLink, World};
use crate::host::{Belongings, Below, LoopDevice, Mapping, OtherSession};

impl World {
    pub(super) fn all_of_ours(&self, known: &[String]) -> Belongings {
        let kernel = &self.kernel;
        let mut found = Belongings {
            mappings: kernel.mappings.iter().map(|m| m.mapping.clone()).collect(),
            ..Belongings::default()
        };
        found.mappings.extend(kernel.maps.iter().map(|m| Mapping {
            name: m.name.clone(),
            uuid: m.uuid.clone(),
            path: m.path.clone(),
            dev: m.dev.clone(),
            deps: m.members.iter().map(|p| p.dev.clone()).collect(),
            table: None,
            suspended: m.suspended,
            open_count: 0,
            size_bytes: m.size,
        }));
        let ours = |m: &Mapping| m.uuid.starts_with(names::DM_UUID_PREFIX);
        let on = |dev: &str| {
            let all = found.mappings.iter();
            let above = all.filter(|m| m.deps.iter().any(|d| d == dev));
            above
                .map(|m| m.path.trim_start_matches("/dev/").to_owned())
                .collect::<Vec<_>>()
        };
        for session in &kernel.sessions {
            if known.contains(&session.iqn) {
                continue;
            }
            let disks = kernel.devices.iter().filter(|d| d.sid == session.sid);
            let users = disks.flat_map(|d| {
                let mount = d.in_use.then(|| "a mount at /mnt".to_owned());
                on(&d.dev).into_iter().chain(mount)
            });
            found.sessions.push(OtherSession {
                iqn: session.iqn.clone(),
                session: self.described(session),
                recorded: session.foreign,
                users: users.collect(),
            });
        }
        for device in &kernel.devices {
            let session = kernel.sessions.iter().find(|s| s.sid == device.sid);
            let below = Below {
                path: device.path.clone(),
                session: session.map(|s| (s.iqn.clone(), self.described(s))),
            };
            found.below.insert(device.dev.clone(), below);
        }
        for device in &kernel.devices {
            found.loops.extend(device.file.as_ref().map(|file| {
                let mount = device.in_use.then(|| "a mount at /mnt".to_owned());
                LoopDevice {
                    path: device.path.clone(),
                    dev: device.dev.clone(),
                    file: file.clone(),
                    users: on(&device.dev).into_iter().chain(mount).collect(),
                }
            }));
        }
        found.mappings.retain(ours);
        for (link, to) in &self.links {
            if let SimLink::Ours(to) | SimLink::Foreign(to) = to {
                found.links.insert(link.clone(), to.clone());
            }
        }
        found
    }
}

//! What is wanted for one volume, read out of a NodeVolume's spec and checked before any of it reaches a path or a tool.

use std::{net::IpAddr, time::Duration};

use cryptvol_crds::{
    NodeVolume, names,
    v1alpha1::{
        Activation, Desired, Encryption, FormatPermit, HeaderBackup, HeaderFacts, HeaderRestore,
        NodeFile, NodeIscsi, NodeRotation, NodeSource, NodeVolumeSpec, Provider,
    },
};

use super::shadow;
use crate::host::{BackingFile, Lun, MAX_PORTALS, MapName, Portal, Query, Source, Target};

/// Room for a header and something behind it.
pub const LEAST_FILE: u64 = 32 << 20;
/// Longest file that a Linux file offset can name, in whole blocks.
const MOST_FILE: u64 = (1 << 63) - 4096;
/// Memory for key derivation unless the agent is told otherwise, in MiB: one header as cryptsetup and os-brick write it by
/// default. What cryptvol writes needs none.
pub const UNLOCK_MEMORY_MIB: u32 = 1024;

/// What is wanted for one volume on this node.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// State to reach.
    pub desired: Desired,
    /// Where to look for it in the kernel.
    pub query: Query,
    /// Portals that the volume names; the query has those that were discovered as well.
    pub named: Vec<Portal>,
    /// Whether the array is asked for further portals, and how.
    pub discovery: Option<Discovery>,
    /// It is to be asked now.
    pub discover: bool,
    /// Whether the login needs CHAP credentials.
    pub chap: bool,
    /// The key is random and made where the mapping is.
    pub ephemeral: bool,
    /// How sectors are encrypted.
    pub encryption: Encryption,
    /// How the mapping is made, when it is made next.
    pub activation: Activation,
    /// UUID that the header must have; absent at an import that is not pinned yet.
    pub luks_uuid: Option<String>,
    /// UID of the EncryptedVolume.
    pub volume_uid: String,
    /// Least size of the raw device in bytes.
    pub size_bytes: Option<u64>,
    /// WWID of the raw device.
    pub wwid: Option<String>,
    /// Facts that the header must agree with.
    pub pinned: Option<HeaderFacts>,
    /// The right to write a header.
    pub permit: Option<FormatPermit>,
    /// Whether a permit of this volume was spent before, by whatever node.
    pub formatted_before: bool,
    /// A backup of the header is on record.
    pub header_backed_up: bool,
    /// How the header's keys may be derived beside the agent's own way; any within bounds where nothing stands here.
    pub derivations: Vec<String>,
    /// The header, where it lies apart from the disk; absent until its copies are kept.
    pub header_record: Option<HeaderBackup>,
    /// The header is to be written anew where it is missing or damaged.
    pub header_restore: Option<HeaderRestore>,
    /// A part of a rotation of the passphrase.
    pub rotation: Option<NodeRotation>,
    /// The key is to be out of the kernel.
    pub suspended: bool,
    /// Whether a mapping of which the proof does not hold is suspended.
    pub fail_closed: bool,
    /// The proof is due.
    pub prove: bool,
    /// Name of a look at the disk's size that somebody asked for.
    pub rescan: Option<String>,
    /// I/O that waits for a path has waited long enough.
    pub give_up: bool,
    /// How long it may wait.
    pub no_path_timeout: Duration,
    /// Generation of the spec.
    pub generation: i64,
    /// Memory that the agent takes for key derivation at most, in KiB.
    pub unlock_memory_kib: u32,
    /// Another volume of this node wants the same LUN of the same target: the raw device is not ours alone to remove.
    pub lun_wanted_by_another: bool,
}

/// How an array is asked for further portals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Whether that needs CHAP credentials, other ones than the login.
    pub chap: bool,
}

/// A spec that cannot be acted upon. The operator's rules exclude it; the agent runs as root and does not rely on them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} of this NodeVolume cannot be used: {why}")]
pub struct InvalidSpec {
    /// Field of the spec.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl Wanted {
    /// Reads the spec. An object that is being deleted is wanted `Detached` at most.
    ///
    /// # Errors
    /// When a field could lead out of the places that the agent works in, or is not implemented.
    pub fn read(volume: &NodeVolume) -> Result<Self, InvalidSpec> {
        let spec = &volume.spec;
        let source = source(&spec.source, scratch(spec))?;
        if !names::is_uuid(&spec.volume_ref.uid) {
            return Err(bad("volumeRef.uid", "not a UUID"));
        }
        if spec
            .luks_uuid
            .as_deref()
            .is_some_and(|u| !names::is_uuid(u))
        {
            return Err(bad("luksUuid", "not a UUID"));
        }
        if !is_link(&spec.link) {
            return Err(bad("link", "not /dev/cryptvol/NAMESPACE/NAME"));
        }
        if let Some(name) = &spec.shadow {
            shadow::check(name, &source, spec.wwid.as_deref()).map_err(|why| bad("shadow", why))?;
        }
        let map = match &spec.source.iscsi {
            Some(iscsi) => Some(map_name(iscsi, &spec.volume_ref.uid)?),
            None => None,
        };
        if spec.shadow.is_some() && map.as_ref().is_some_and(|m| m.wanted) {
            return Err(bad("shadow", "not implemented together with several paths"));
        }
        let iscsi = spec.source.iscsi.as_ref();
        let discovery = iscsi.filter(|i| i.discovery).map(|i| Discovery {
            chap: i.discovery_chap,
        });
        if discovery.is_some() && !map.as_ref().is_some_and(|m| m.wanted) {
            return Err(bad(
                "source.iscsi.discovery",
                "it is for several paths, and multipath is not wanted",
            ));
        }
        let named = match &source {
            Source::Iscsi(lun) => lun.target.portals.clone(),
            Source::Device { .. } | Source::File(_) => vec![],
        };
        if spec.ephemeral {
            keyless(spec)?;
        }
        detached(spec)?;
        let desired = match (spec.desired, &volume.metadata.deletion_timestamp) {
            (Desired::Attached, Some(_)) => Desired::Detached,
            (desired, _) => desired,
        };
        Ok(Self {
            desired,
            query: Query {
                source,
                mapping_name: names::mapping_name(&spec.volume_ref.uid),
                link: spec.link.clone(),
                shadow: spec.shadow.clone(),
                map,
            },
            named,
            discovery,
            discover: false,
            chap: iscsi.is_some_and(|i| i.chap),
            ephemeral: spec.ephemeral,
            encryption: spec.encryption.clone(),
            activation: spec.activation,
            luks_uuid: spec.luks_uuid.clone(),
            volume_uid: spec.volume_ref.uid.clone(),
            size_bytes: spec.size_bytes.and_then(|n| u64::try_from(n).ok()),
            wwid: spec.wwid.clone(),
            pinned: spec.header.clone(),
            derivations: spec.derivations.clone(),
            permit: spec.format_permit.clone(),
            formatted_before: spec.formatted_before,
            header_backed_up: spec.header_backed_up,
            header_record: spec.header_record.clone(),
            header_restore: spec.header_restore.clone(),
            rotation: spec.rotation.clone(),
            suspended: spec.suspended,
            fail_closed: spec.fail_closed,
            prove: false,
            give_up: false,
            no_path_timeout: Duration::MAX,
            rescan: spec.rescan.clone(),
            generation: volume.metadata.generation.unwrap_or_default(),
            unlock_memory_kib: UNLOCK_MEMORY_MIB << 10,
            lun_wanted_by_another: false,
        })
    }

    /// Portals that count: those that the volume names, and those that an array told of. They are logged in to, their paths belong to the
    /// map, and at a detach they are let go of. None where the source is no target.
    pub fn portals(&self, discovered: &[Portal]) -> Vec<Portal> {
        let mut portals = self.named.clone();
        for portal in discovered {
            if portals.len() < MAX_PORTALS && !portals.iter().any(|p| p.is(portal)) {
                portals.push(portal.clone());
            }
        }
        portals
    }

    /// Looks for the volume behind all of them.
    pub fn reach_through(&mut self, discovered: &[Portal]) {
        let portals = self.portals(discovered);
        if let Source::Iscsi(lun) = &mut self.query.source {
            lun.target.portals = portals;
        }
    }

    /// How many portals there may be beside those that the volume names.
    pub fn room(&self) -> usize {
        MAX_PORTALS.saturating_sub(self.named.len())
    }

    /// The header, where it lies apart from the disk and is on record.
    pub fn record(&self) -> Option<&HeaderBackup> {
        let record = self.header_record.as_ref();
        record.filter(|_| self.encryption.detached_header)
    }

    /// Whether a mapping of this volume's name carries our mark and this volume's UID, whatever header it was made from.
    pub fn made_for_this_volume(&self, mapping_uuid: &str) -> bool {
        mapping_uuid.starts_with(names::DM_UUID_PREFIX)
            && mapping_uuid.ends_with(&format!("-{}", self.volume_uid))
    }
}

fn bad(field: &'static str, why: &str) -> InvalidSpec {
    InvalidSpec {
        field,
        why: why.to_owned(),
    }
}

/// The one file that an ephemeral volume may have.
fn scratch(spec: &NodeVolumeSpec) -> Option<String> {
    spec.ephemeral
        .then(|| names::scratch_file(&spec.volume_ref.uid))
}

/// What a volume whose key nobody else has cannot be.
fn keyless(spec: &NodeVolumeSpec) -> Result<(), InvalidSpec> {
    let wrong = |field| {
        Err(bad(
            field,
            "not for an ephemeral volume, whose key is nowhere but in the kernel",
        ))
    };
    match spec {
        s if s.source.iscsi.is_some() => wrong("source.iscsi"),
        s if s.encryption.provider != Provider::Plain => wrong("encryption.provider"),
        s if s.suspended => wrong("suspended"),
        s if s.fail_closed => wrong("failClosed"),
        s if s.rotation.is_some() => wrong("rotation"),
        s if s.desired == Desired::Erased => wrong("desired"),
        _ => Ok(()),
    }
}

/// What a volume whose header lies apart from its disk cannot be.
fn detached(spec: &NodeVolumeSpec) -> Result<(), InvalidSpec> {
    let encryption = &spec.encryption;
    let only = encryption.provider == Provider::Luks2 && encryption.integrity.is_none();
    match encryption.detached_header && !only {
        true => Err(bad(
            "encryption.detachedHeader",
            "only for provider luks2 without integrity",
        )),
        false => Ok(()),
    }
}

fn source(spec: &NodeSource, scratch: Option<String>) -> Result<Source, InvalidSpec> {
    match (&spec.iscsi, &spec.device, &spec.file) {
        (Some(iscsi), None, None) => lun(iscsi).map(Source::Iscsi),
        (None, Some(device), None) if is_device(&device.path) => Ok(Source::Device {
            path: device.path.clone(),
        }),
        (None, Some(_), None) => Err(bad("source.device.path", "not a path below /dev")),
        (None, None, Some(file)) => backing_file(file, scratch).map(Source::File),
        _ => Err(bad("source", "not one of iscsi, device and file")),
    }
}

/// Directly in the one directory for files, so that nobody gets at other files of the node by a volume.
fn backing_file(spec: &NodeFile, scratch: Option<String>) -> Result<BackingFile, InvalidSpec> {
    let name = spec.path.strip_prefix(names::FILE_DIR);
    let usable = match scratch {
        Some(own) => spec.path == own,
        None => name
            .and_then(|rest| rest.strip_prefix('/'))
            .is_some_and(is_file_name),
    };
    if !usable {
        return Err(bad(
            "source.file.path",
            "not a file directly in /var/lib/cryptvol/volumes",
        ));
    }
    let size = u64::try_from(spec.size_bytes).ok();
    let size_bytes = size
        .filter(|n| (LEAST_FILE..=MOST_FILE).contains(n) && n % 4096 == 0)
        .ok_or_else(|| {
            bad(
                "source.file.sizeBytes",
                "not a multiple of 4096 from 32 MiB on",
            )
        })?;
    Ok(BackingFile {
        path: spec.path.clone(),
        size_bytes,
    })
}

/// Whether a name is that of an ephemeral volume's scratch file.
pub fn is_scratch_name(name: &str) -> bool {
    names::scratch_owner(name).is_some_and(names::is_uuid)
}

/// Whether a name stays in its directory.
pub fn is_file_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 255
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// A path below `/dev` that stays there, as far as its words go; where its links lead is looked at each time.
fn is_device(path: &str) -> bool {
    path.len() <= 255
        && path.strip_prefix("/dev/").is_some_and(|rest| {
            rest.split('/').all(|part| {
                part.starts_with(|c: char| c.is_ascii_alphanumeric())
                    && part
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"._:+@-".contains(&b))
            })
        })
}

fn lun(spec: &NodeIscsi) -> Result<Lun, InvalidSpec> {
    if spec.portals.is_empty() || spec.portals.len() > MAX_PORTALS {
        return Err(bad("source.iscsi.portals", "not 1 to 16 portals"));
    }
    let portals = spec.portals.iter().map(|portal| {
        let (address, port) = portal_parts(portal)
            .ok_or_else(|| bad("source.iscsi.portals", "not of the form address:port"))?;
        Ok(Portal { address, port })
    });
    let portals = portals.collect::<Result<_, _>>()?;
    if !is_iscsi_name(&spec.iqn) {
        return Err(bad("source.iscsi.iqn", "not an iSCSI name"));
    }
    let lun = u32::try_from(spec.lun)
        .ok()
        .filter(|lun| *lun <= 16383)
        .ok_or_else(|| bad("source.iscsi.lun", "not between 0 and 16383"))?;
    Ok(Lun {
        target: Target {
            portals,
            iqn: spec.iqn.clone(),
        },
        lun,
    })
}

/// The volume's map, and whether there shall be one. Names of portals could lead to the same place.
fn map_name(spec: &NodeIscsi, volume_uid: &str) -> Result<MapName, InvalidSpec> {
    if spec.multipath {
        let mut seen: Vec<Portal> = Vec::new();
        for portal in spec.portals.iter().filter_map(|p| portal_parts(p)) {
            let (address, port) = portal;
            let portal = Portal { address, port };
            if portal.address.parse::<IpAddr>().is_err() {
                return Err(bad(
                    "source.iscsi.portals",
                    "with several paths a portal is an IP address",
                ));
            }
            if seen.iter().any(|p| p.is(&portal)) {
                return Err(bad(
                    "source.iscsi.portals",
                    "with several paths each portal stands there once",
                ));
            }
            seen.push(portal);
        }
    }
    Ok(MapName {
        name: names::paths_name(volume_uid),
        uuid: names::paths_uuid(volume_uid),
        wanted: spec.multipath,
    })
}

/// A portal as it is written in a spec or a status.
pub fn portal(text: &str) -> Option<Portal> {
    portal_parts(text).map(|(address, port)| Portal { address, port })
}

/// Address without brackets, and port.
fn portal_parts(portal: &str) -> Option<(String, u16)> {
    let (address, port) = portal.rsplit_once(':')?;
    let port = port.parse().ok().filter(|p| *p != 0)?;
    let address = match address.strip_prefix('[') {
        Some(inner) => inner
            .strip_suffix(']')
            .filter(|a| a.parse::<std::net::Ipv6Addr>().is_ok())?,
        None => Some(address).filter(|a| {
            !a.is_empty()
                && !a.starts_with('-')
                && a.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
        })?,
    };
    Some((address.to_owned(), port))
}

/// Loose on the form (the API's rule is strict), strict on what could leave a directory or look like an option.
fn is_iscsi_name(name: &str) -> bool {
    (name.starts_with("iqn.") || name.starts_with("eui.") || name.starts_with("naa."))
        && name.len() <= 223
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
}

fn is_link(link: &str) -> bool {
    link.strip_prefix(names::LINK_DIR)
        .and_then(|rest| rest.strip_prefix('/'))
        .is_some_and(|rest| {
            let parts: Vec<_> = rest.split('/').collect();
            parts.len() == 2
                && parts.iter().all(|p| {
                    p.starts_with(|c: char| c.is_ascii_alphanumeric())
                        && p.bytes()
                            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
                })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portals() {
        assert_eq!(
            portal_parts("192.0.2.1:3260"),
            Some(("192.0.2.1".into(), 3260))
        );
        assert_eq!(
            portal_parts("[2001:db8::1]:3261"),
            Some(("2001:db8::1".into(), 3261))
        );
        for bad in [
            "192.0.2.1",
            "a:0",
            ":3260",
            "[x]:1",
            "2001:db8::1:3260",
            "-a:1",
            "a/b:1",
        ] {
            assert_eq!(portal_parts(bad), None, "{bad}");
        }
    }

    #[test]
    fn links_stay_in_our_directory() {
        assert!(is_link("/dev/cryptvol/ns/name"));
        for bad in [
            "/dev/cryptvol/../sda",
            "/dev/cryptvol/ns",
            "/dev/cryptvol/ns/..",
            "/dev/cryptvol/ns/a/b",
            "/dev/cryptvolume/a/b",
            "/etc/passwd",
        ] {
            assert!(!is_link(bad), "{bad}");
        }
    }

    #[test]
    fn devices_are_below_dev() {
        for good in [
            "/dev/vg0/data",
            "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4",
            "/dev/sda1",
        ] {
            assert!(is_device(good), "{good}");
        }
        for bad in [
            "/dev",
            "/dev/",
            "/etc/passwd",
            "/dev/../etc/passwd",
            "/dev/a//b",
            "dev/a",
            "/dev/a b",
        ] {
            assert!(!is_device(bad), "{bad}");
        }
    }

    #[test]
    fn names_cannot_leave_a_directory() {
        assert!(is_iscsi_name("iqn.2026-11.com.example:disk"));
        assert!(!is_iscsi_name("iqn.2026-11.com.example:../../x"));
        assert!(!is_iscsi_name("--login"));
    }
}

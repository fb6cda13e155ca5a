//! Names of udev's that a volume may shadow: only those that udev gives to the volume's own disk. Any other name could be that of
//! another's disk, whose users would then find this volume.

use std::net::IpAddr;

use crate::host::{Lun, Source};

const BY_PATH: &str = "/dev/disk/by-path/";
const BY_ID: &str = "/dev/disk/by-id/";

/// Whether `name` is one that udev gives to the disk of this source.
///
/// # Errors
/// What is wrong with it, for a message.
pub fn check(name: &str, source: &Source, wwid: Option<&str>) -> Result<(), &'static str> {
    let Source::Iscsi(lun) = source else {
        return Err("only names of an iSCSI disk can be shadowed");
    };
    let last = name
        .strip_prefix(BY_PATH)
        .or_else(|| name.strip_prefix(BY_ID))
        .ok_or("not below /dev/disk/by-path or /dev/disk/by-id")?;
    // What udev leaves as it is in a name.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"#+-.:=@_".contains(&b);
    if last.is_empty() || last.starts_with('.') || last.len() > 255 || !last.bytes().all(plain) {
        return Err("not a name as udev makes them");
    }
    if is_by_path(name) {
        return match is_path_to(last, lun) {
            true => Ok(()),
            false => Err("not a by-path name of this LUN (ip-ADDRESS:PORT-iscsi-IQN-lun-LUN)"),
        };
    }
    let naa = wwid
        .and_then(|w| w.strip_prefix("naa."))
        .ok_or("a by-id name needs a pinned WWID of the form naa.")?;
    let of_disk = [("wwn-0x", naa), ("scsi-3", naa)]
        .iter()
        .any(|(prefix, id)| last.strip_prefix(prefix) == Some(id));
    match of_disk {
        true => Ok(()),
        false => Err("not a by-id name of the disk with this WWID (wwn-0xNAA or scsi-3NAA)"),
    }
}

/// Whether the name says by which way the disk is reached, and so is this LUN's whatever disk is there.
pub fn is_by_path(name: &str) -> bool {
    name.starts_with(BY_PATH)
}

/// As systemd's path_id builds it, through whatever portal.
fn is_path_to(name: &str, lun: &Lun) -> bool {
    let number = match lun.lun {
        n @ 0..=255 => n.to_string(),
        n => format!("0x{:04x}{:04x}00000000", n & 0xffff, n >> 16),
    };
    name.strip_prefix("ip-")
        .and_then(|n| n.strip_suffix(&format!("-iscsi-{}-lun-{number}", lun.target.iqn)))
        .and_then(|portal| portal.rsplit_once(':'))
        .is_some_and(|(address, port)| {
            address.parse::<IpAddr>().is_ok() && port.parse::<u16>().is_ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Target;

    fn source(lun: u32) -> Source {
        Source::Iscsi(Lun {
            target: Target {
                portals: vec![],
                iqn: "iqn.2026-11.com.example:db".into(),
            },
            lun,
        })
    }

    #[test]
    fn only_names_of_the_volumes_own_disk() {
        let wwid = Some("naa.60014051");
        let path = |rest: &str| format!("/dev/disk/by-path/{rest}");
        for (name, lun) in [
            (
                path("ip-192.0.2.1:3260-iscsi-iqn.2026-11.com.example:db-lun-1"),
                1,
            ),
            (
                path("ip-fd00::1:3260-iscsi-iqn.2026-11.com.example:db-lun-255"),
                255,
            ),
            (
                path("ip-192.0.2.1:1-iscsi-iqn.2026-11.com.example:db-lun-0x0100000000000000"),
                256,
            ),
            ("/dev/disk/by-id/wwn-0x60014051".into(), 1),
            ("/dev/disk/by-id/scsi-360014051".into(), 1),
        ] {
            assert_eq!(check(&name, &source(lun), wwid), Ok(()), "{name}");
        }
        for name in [
            path("ip-192.0.2.1:3260-iscsi-iqn.2026-11.com.example:db-lun-2"),
            path("ip-192.0.2.1:3260-iscsi-iqn.2026-11.com.example:other-lun-1"),
            path("ip-a host:3260-iscsi-iqn.2026-11.com.example:db-lun-1"),
            path("../by-id/wwn-0x60014051"),
            path(""),
            "/dev/disk/by-id/wwn-0x60014052".into(),
            "/dev/disk/by-id/ata-disk".into(),
            "/dev/disk/by-uuid/60014051".into(),
            "/dev/sda".into(),
            "/dev/disk/by-id/wwn-0x6001*".into(),
        ] {
            assert!(check(&name, &source(1), wwid).is_err(), "{name}");
        }
        let by_id = "/dev/disk/by-id/wwn-0x60014051";
        assert!(check(by_id, &source(1), None).is_err());
        assert!(check(by_id, &source(1), Some("t10.60014051")).is_err());
        let device = Source::Device {
            path: "/dev/sda".into(),
        };
        assert!(check(by_id, &device, wwid).is_err());
    }
}

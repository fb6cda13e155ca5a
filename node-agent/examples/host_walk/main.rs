//! Walks one volume up and down on this node and prints what each step took, in milliseconds: the real host without a cluster.
//! From the second round on, each is followed by one that does the least that can be done (lines `floor_…`, see `floor`), and, where
//! a neighbour is named, by one beside a session that its LUN keeps (lines `shared_…`), with a suspend and a resume in it.
//! Needs root, device-mapper, iscsid and a target with a blank LUN that may be overwritten; the neighbour's is not touched.
//!
//! `host_walk ADDRESS PORT IQN LUN [ROUNDS [NEIGHBOUR]]`; CHAP as `USER` and `SECRET` on two lines of standard input, where wanted.
#![allow(clippy::print_stdout)]

mod floor;

use std::{
    io::{Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use cryptvol_crds::{names, v1alpha1::Encryption};
use cryptvol_node_agent::host::{
    Chap, Device, FormatOrder, HeaderFound, Host, LinkFound, Lun, OpenOrder, Passphrase, Portal,
    Query, Source, Target, probe, real::RealHost,
};

const LUKS_UUID: &str = "6c0f3c5e-8f0e-4d6b-9f0a-3a5f6d1c2b10";
const VOLUME_UID: &str = "9c1fbb0a-1f43-4be5-a5f7-6c8e4b6f7a01";
const LINK: &str = "/dev/cryptvol/demo/walk";
const TEXT: &[u8; 32] = b"written by the guest, plain text";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, port, iqn, lun, rest @ ..] = &args[..] else {
        anyhow::bail!("host_walk ADDRESS PORT IQN LUN [ROUNDS [NEIGHBOUR]]");
    };
    let rounds: u32 = rest.first().map_or(Ok(1), |r| r.parse())?;
    let neighbour: Option<u32> = rest.get(1).map(|n| n.parse()).transpose()?;
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let mut lines = text.lines();
    let chap = match (lines.next(), lines.next()) {
        (Some(user), Some(secret)) => Some(Chap {
            username: user.into(),
            password: secret.into(),
            target: None,
        }),
        _ => None,
    };
    for check in probe::node() {
        println!("{check:?}");
    }
    let lun = Lun {
        target: Target {
            portals: vec![Portal {
                address: address.clone(),
                port: port.parse()?,
            }],
            iqn: iqn.clone(),
        },
        lun: lun.parse()?,
    };
    let mut walk = Walk {
        host: RealHost::new(),
        lun: lun.clone(),
        query: Query {
            source: Source::Iscsi(lun),
            mapping_name: names::mapping_name(VOLUME_UID),
            map: None,
            link: LINK.into(),
            shadow: None,
        },
        chap,
        passphrase: Passphrase("5d".repeat(32)),
    };
    for round in 0..rounds {
        walk.attach("", round == 0)?;
        walk.detach("")?;
        if round == 0 {
            continue;
        }
        floor::round(&walk.lun, &walk.query, walk.chap.as_ref())?;
        if let Some(neighbour) = neighbour {
            walk.beside(neighbour)?;
        }
    }
    walk.erase()
}

struct Walk {
    host: RealHost,
    lun: Lun,
    query: Query,
    chap: Option<Chap>,
    passphrase: Passphrase,
}

/// Runs a step and prints its time.
fn timed<T>(step: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    done(step, start);
    result
}

fn done(step: &str, since: Instant) {
    println!("STEP {step} {:.3}", since.elapsed().as_secs_f64() * 1000.0);
}

/// Waits until udev has nothing left to do, so that each side begins on a node that is as quiet. Not counted.
fn quiet() -> Result<()> {
    let udevadm = Command::new("udevadm")
        .args(["settle", "-t", "60"])
        .status();
    ensure!(
        udevadm.context("udevadm")?.success(),
        "udev does not come to rest"
    );
    Ok(())
}

fn disk(host: &mut RealHost, query: &Query) -> Result<Device> {
    let seen = host.observe(query)?;
    seen.device().cloned().context("no device")
}

/// Id of the one session to the target.
fn sid(host: &mut RealHost, query: &Query) -> Result<u32> {
    let seen = host.observe(query)?;
    Ok(seen.session().context("no session")?.sid)
}

fn scan(host: &mut RealHost, query: &Query, lun: &Lun) -> Result<()> {
    let sid = sid(host, query)?;
    Ok(host.scan(&lun.target.iqn, sid, lun.lun)?)
}

fn logout(host: &mut RealHost, query: &Query, lun: &Lun) -> Result<()> {
    let sid = sid(host, query)?;
    Ok(host.logout(&lun.target.iqn, sid)?)
}

impl Walk {
    /// All steps of an attachment, each timed under its name after `prefix`.
    fn attach(&mut self, prefix: &str, first: bool) -> Result<OpenOrder> {
        quiet()?;
        // As in an agent that had nothing to do for a while: its workers have ended.
        self.host = RealHost::new();
        let step = |name: &str| format!("{prefix}{name}");
        let start = Instant::now();
        let (host, query, lun) = (&mut self.host, &self.query, &self.lun);
        let seen = timed(&step("observe"), || host.observe(query))?;
        ensure!(seen.mapping.is_none() && seen.link == LinkFound::Absent);
        timed(&step("login"), || {
            host.login(&lun.target, false, self.chap.as_ref())
        })?;
        timed(&step("scan"), || scan(host, query, lun))?;
        let device = timed(&step("identify"), || disk(host, query))?;
        let found = timed(&step("read_header"), || host.read_header(&device.id))?;
        let header = match found {
            HeaderFound::Luks(header) => *header,
            HeaderFound::Blank => {
                let order = FormatOrder {
                    mapping_name: query.mapping_name.clone(),
                    mapping_uuid: names::mapping_uuid(LUKS_UUID, VOLUME_UID),
                    luks_uuid: LUKS_UUID.into(),
                    encryption: Encryption::default(),
                    passphrase: self.passphrase.clone(),
                    over_torn: false,
                };
                println!("FORMAT {device:?}");
                timed("format", || host.format(&device.id, &order))?
            }
            other => anyhow::bail!("found {other:?}"),
        };
        let order = OpenOrder {
            derivations: vec![],
            mapping_name: query.mapping_name.clone(),
            mapping_uuid: names::mapping_uuid(LUKS_UUID, VOLUME_UID),
            blank: false,
            random: false,
            activation: Default::default(),
            unlock_memory_kib: 0,
            expected: header.facts,
            passphrase: Some(self.passphrase.clone()),
            record: None,
        };
        let mapping = timed(&step("open"), || host.open(&device.id, &order))?;
        timed(&step("link"), || host.link(LINK, &mapping))?;
        done(&step("attach"), start);
        if first {
            println!("MAPPING {mapping:?}");
            ensure!(host.open(&device.id, &order)? == mapping, "not idempotent");
            host.link(LINK, &mapping)?;
            std::fs::File::options()
                .write(true)
                .open(LINK)?
                .write_all(TEXT)?;
            let busy = std::fs::File::open(LINK)?;
            let error = host.close(&mapping.name, &mapping.uuid).err();
            println!("BUSY {error:?}");
            ensure!(error.is_some(), "closed while open");
            drop(busy);
            println!("RAW BUSY {:?}", host.delete_device(&device.id).err());
            println!("OURS {}", host.belongings(&[])?.mappings.len());
        }
        let mut read = [0; 32];
        std::fs::File::open(LINK)?.read_exact(&mut read)?;
        ensure!(&read == TEXT, "the guest reads something else");
        let raw = std::fs::File::options()
            .read(true)
            .custom_flags(nix::libc::O_DIRECT)
            .open(&device.id.path)?;
        let mut block = vec![0_u8; 3 * 4096];
        let at = block.as_ptr().align_offset(4096);
        raw.read_exact_at(&mut block[at..at + 4096], 16 << 20)?;
        ensure!(
            !block.windows(8).any(|w| w == &TEXT[..8]),
            "plain text on the disk"
        );
        Ok(order)
    }

    /// All steps of a detach; the session stays where another disk is in it.
    fn detach(&mut self, prefix: &str) -> Result<()> {
        quiet()?;
        self.host = RealHost::new();
        let step = |name: &str| format!("{prefix}{name}");
        let start = Instant::now();
        let (host, query, lun) = (&mut self.host, &self.query, &self.lun);
        let seen = host.observe(query)?;
        let device = seen.device().cloned().context("no device")?;
        let mapping = seen.mapping.context("no mapping")?;
        timed(&step("unlink"), || host.unlink(LINK))?;
        timed(&step("close"), || host.close(&mapping.name, &mapping.uuid))?;
        timed(&step("delete"), || host.delete_device(&device.id))?;
        timed(&step("logout"), || logout(host, query, lun))?;
        done(&step("detach"), start);
        let left = host.observe(query)?;
        let session = !prefix.is_empty();
        ensure!(
            left.session().is_some() == session
                && left.device().is_none()
                && left.mapping.is_none()
                && left.link == LinkFound::Absent,
            "left: {left:?}"
        );
        Ok(())
    }

    /// Up and down again in a session that another LUN keeps, and suspended and resumed in between.
    fn beside(&mut self, neighbour: u32) -> Result<()> {
        let target = self.lun.target.clone();
        self.host.login(&target, false, self.chap.as_ref())?;
        let other = Query {
            source: Source::Iscsi(Lun {
                target: target.clone(),
                lun: neighbour,
            }),
            ..self.query.clone()
        };
        scan(
            &mut self.host,
            &other,
            &Lun {
                target: target.clone(),
                lun: neighbour,
            },
        )?;
        let order = self.attach("shared_", false)?;
        let query = self.query.clone();
        let device = disk(&mut self.host, &query)?;
        let host = &mut self.host;
        timed("suspend", || {
            host.suspend(&order.mapping_name, &order.mapping_uuid)
        })?;
        timed("resume", || host.resume(&device.id, &order))?;
        self.detach("shared_")?;
        let other_disk = disk(&mut self.host, &other)?;
        self.host.delete_device(&other_disk.id)?;
        logout(
            &mut self.host,
            &other,
            &Lun {
                target,
                lun: neighbour,
            },
        )?;
        Ok(())
    }

    fn erase(&mut self) -> Result<()> {
        let (host, query, lun) = (&mut self.host, &self.query, &self.lun);
        host.login(&lun.target, false, self.chap.as_ref())?;
        scan(host, query, lun)?;
        scan(host, query, lun)?;
        let device = disk(host, query)?;
        let erased = timed("erase", || host.erase(&device.id, LUKS_UUID))?;
        timed("clear-header", || host.clear_header(&device.id, LUKS_UUID))?;
        println!("ERASED {erased:?} {:?}", host.read_header(&device.id)?);
        ensure!(erased.verified && erased.key_slots_wiped == 1);
        host.delete_device(&device.id)?;
        logout(host, query, lun)?;
        Ok(())
    }
}

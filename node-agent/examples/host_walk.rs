//! Walks one volume up and down on this node and prints what each step took, in milliseconds: the real host without a cluster.
//! From the second round on, each is followed by one that does the least that can be done (lines `floor_…`): a login
//! request, a scan, a crypt table with a random key, a link; no check, no header. Needs root, device-mapper, iscsid and a target with a blank LUN that may be overwritten.
//!
//! `host_walk ADDRESS PORT IQN LUN [ROUNDS]`; CHAP as `USER` and `SECRET` on two lines of standard input, where wanted.
#![allow(clippy::print_stdout)]

use std::{
    io::{Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use cryptvol_crds::{
    names,
    v1alpha1::{Encryption, HeaderFacts},
};
use cryptvol_node_agent::host::{
    Chap, FormatOrder, HeaderFound, Host, LinkFound, Lun, OpenOrder, Passphrase, Portal, Query,
    Source, Target, probe,
    real::{
        RealHost, dm,
        iscsi::{self, iscsid::Iscsid, request},
        links::Links,
        luks::VolumeKey,
        sysfs::Sysfs,
    },
};

const LUKS_UUID: &str = "6c0f3c5e-8f0e-4d6b-9f0a-3a5f6d1c2b10";
const VOLUME_UID: &str = "9c1fbb0a-1f43-4be5-a5f7-6c8e4b6f7a01";
const LINK: &str = "/dev/cryptvol/demo/walk";
const TEXT: &[u8; 32] = b"written by the guest, plain text";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, port, iqn, lun, rest @ ..] = &args[..] else {
        anyhow::bail!("host_walk ADDRESS PORT IQN LUN [ROUNDS]");
    };
    let rounds: u32 = rest.first().map_or(Ok(1), |r| r.parse())?;
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
            link: LINK.into(),
            shadow: None,
        },
        chap,
        passphrase: Passphrase("5d".repeat(32)),
    };
    for round in 0..rounds {
        walk.attach(round)?;
        walk.detach(round)?;
        if round > 0 {
            walk.floor()?;
            walk.detach(round)?;
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
    println!("STEP {step} {:.3}", start.elapsed().as_secs_f64() * 1000.0);
    result
}

impl Walk {
    fn attach(&mut self, round: u32) -> Result<()> {
        // As in the agent, where a worker is new for each attachment.
        self.host = RealHost::new();
        let start = Instant::now();
        let (host, query, lun) = (&mut self.host, &self.query, &self.lun);
        let seen = timed("observe", || host.observe(query))?;
        ensure!(seen.mapping.is_none() && seen.link == LinkFound::Absent);
        timed("login", || host.login(&lun.target, self.chap.as_ref()))?;
        timed("scan", || host.scan(&lun.target, lun.lun))?;
        let device = host.observe(query)?.device.context("no device")?;
        let found = timed("read_header", || host.read_header(&device.id))?;
        let header = match found {
            HeaderFound::Luks(header) => *header,
            HeaderFound::Blank => {
                let order = FormatOrder {
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
            mapping_name: query.mapping_name.clone(),
            mapping_uuid: names::mapping_uuid(LUKS_UUID, VOLUME_UID),
            blank: false,
            activation: Default::default(),
            unlock_memory_kib: 0,
            expected: header.facts,
            passphrase: Some(self.passphrase.clone()),
        };
        let mapping = timed("open", || host.open(&device.id, &order))?;
        timed("link", || host.link(LINK, &mapping))?;
        println!("STEP attach {:.3}", start.elapsed().as_secs_f64() * 1000.0);
        if round == 0 {
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
            println!("OURS {}", host.mappings()?.len());
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
        Ok(())
    }

    fn floor(&mut self) -> Result<()> {
        let (query, lun) = (&self.query, &self.lun);
        let sysfs = Sysfs::default();
        let iscsid = timed("floor_find", Iscsid::find)?;
        let layout = iscsid.layout.context("unknown open-iscsi")?;
        let key = VolumeKey::random(64)?;
        let facts = HeaderFacts {
            luks_uuid: LUKS_UUID.into(),
            cipher: "aes-xts-plain64".into(),
            key_size: 512,
            sector_size: 512,
            data_offset: 16 << 20,
            digest: String::new(),
            ..HeaderFacts::default()
        };
        let start = Instant::now();
        timed("floor_login", || -> Result<()> {
            let request = request::login(
                layout,
                &lun.target.iqn,
                &lun.target.portals[0],
                self.chap.as_ref(),
            )?;
            let code = iscsid.ask(layout, &request, Duration::from_secs(15))?;
            ensure!(code == request::Code::SUCCESS);
            Ok(())
        })?;
        timed("floor_scan", || iscsi::scan(&sysfs, &lun.target, lun.lun))?;
        let session = sysfs.session(&lun.target)?.context("no session")?;
        let device = sysfs.disk(&session, lun.lun)?.context("no disk")?;
        let plan = dm::Plan {
            name: &query.mapping_name,
            uuid: &names::mapping_uuid(LUKS_UUID, VOLUME_UID),
            dev: &device.id.dev,
            size_bytes: device.id.size_bytes,
            facts: &facts,
            activation: Default::default(),
        };
        let mapping = timed("floor_open", || dm::create(&plan, Some(&key)))?;
        timed("floor_link", || Links::default().set(LINK, &mapping.path))?;
        println!(
            "STEP floor_attach {:.3}",
            start.elapsed().as_secs_f64() * 1000.0
        );
        Ok(())
    }

    fn detach(&mut self, round: u32) -> Result<()> {
        self.host = RealHost::new();
        let start = Instant::now();
        let (host, query, lun) = (&mut self.host, &self.query, &self.lun);
        let seen = host.observe(query)?;
        let mapping = seen.mapping.context("no mapping")?;
        let device = seen.device.context("no device")?;
        timed("unlink", || host.unlink(LINK))?;
        timed("close", || host.close(&mapping.name, &mapping.uuid))?;
        timed("delete", || host.delete_device(&device.id))?;
        timed("logout", || host.logout(&lun.target))?;
        println!("STEP detach {:.3}", start.elapsed().as_secs_f64() * 1000.0);
        let left = host.observe(query)?;
        ensure!(
            left.session.is_none() && left.mapping.is_none() && left.link == LinkFound::Absent,
            "left in round {round}: {left:?}"
        );
        Ok(())
    }

    fn erase(&mut self) -> Result<()> {
        let (host, query, lun) = (&mut self.host, &self.query, &self.lun);
        host.login(&lun.target, self.chap.as_ref())?;
        host.scan(&lun.target, lun.lun)?;
        host.scan(&lun.target, lun.lun)?;
        let device = host.observe(query)?.device.context("no device")?;
        let erased = timed("erase", || host.erase(&device.id, LUKS_UUID))?;
        println!("ERASED {erased:?} {:?}", host.read_header(&device.id)?);
        ensure!(erased.verified && erased.key_slots_wiped == 1);
        host.delete_device(&device.id)?;
        host.logout(&lun.target)?;
        Ok(())
    }
}

//! An iSCSI array in user space (`tgtd`) in a network namespace of its own, behind a virtual cable that can be captured and cut;
//! or, for nodes that are containers on the machine itself, on the machine's loopback.
//!
//! Its disks are plain files that outlive nodes and the array's own restarts; a test reads them to see what the array holds.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::process::{Daemon, run, tail, wait_for};
use crate::sandbox::{self, ip_batch, plain_path};

/// What tgtd says of a disk with a command on its way.
const STILL_ACTIVE: &str = "still active";
/// By then every command has ended.
const COMMANDS_END: Duration = Duration::from_secs(10);
/// The port of iSCSI.
pub const PORT: u16 = 3260;

/// A running array.
#[derive(Debug)]
pub struct Array {
    dir: PathBuf,
    state: State,
    daemon: Option<Daemon>,
    owned: bool,
}

/// Everything that tgtd forgets when it ends; it is told again at each start.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    place: Place,
    targets: Vec<Target>,
    next_file: u32,
}

/// Where tgtd listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    /// In the network namespace of this number.
    Namespace(u8),
    /// At this port of the loopback.
    Loopback(u16),
}

impl Place {
    /// tgtd's number among those of the machine, at most 32767: its control socket has it in its name.
    fn control(self) -> String {
        match self {
            Self::Namespace(index) => index.to_string(),
            Self::Loopback(port) => (port / 2).to_string(),
        }
    }

    /// Part of the disks' names, so that those of two arrays differ.
    fn number(self) -> u16 {
        match self {
            Self::Namespace(index) => index.into(),
            Self::Loopback(port) => port,
        }
    }

    fn namespace(self) -> Result<u8> {
        match self {
            Self::Namespace(index) => Ok(index),
            Self::Loopback(_) => bail!("an array on the loopback has no cable"),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Target {
    id: u32,
    iqn: String,
    chap: Option<Chap>,
    own_chap: Option<Chap>,
    luns: Vec<Lun>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Chap {
    user: String,
    password: String,
}

/// One disk of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lun {
    /// The target's name.
    pub target: String,
    /// tgtd's first disk is LUN 1; its LUN 0 is a controller.
    pub number: u16,
    /// The file that holds the disk.
    pub file: PathBuf,
    /// The disk's own part of its world-wide name, 16 hex digits; see [`Lun::wwid`].
    pub name: String,
    /// Unit serial number (vital product data page 0x80).
    pub serial: String,
}

impl Lun {
    /// The world-wide name as sysfs shows it (`/sys/block/sdX/device/wwid`). tgtd makes its NAA designator (page 0x83) of a
    /// fixed first half and of the 16 hex digits in its parameter `scsi_id`.
    pub fn wwid(&self) -> String {
        format!("naa.6000000000000000{}", self.name)
    }

    /// `length` bytes from `offset` on, as they lie on the array.
    pub fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut file = File::open(&self.file)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes).with_context(|| {
            format!("read {length} bytes at {offset} of {}", self.file.display())
        })?;
        Ok(bytes)
    }

    /// Writes behind everybody's back.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut file = fs::OpenOptions::new().write(true).open(&self.file)?;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)?;
        Ok(())
    }

    /// SHA-256 of the whole disk, hex: "nothing was written" is the same value before and after.
    pub fn sha256(&self) -> Result<String> {
        let mut file = File::open(&self.file)?;
        let mut hash = Sha256::new();
        std::io::copy(&mut file, &mut hash)?;
        Ok(hex::encode(hash.finalize()))
    }

    /// True if the bytes occur anywhere on the disk.
    pub fn contains(&self, needle: &[u8]) -> Result<bool> {
        contains(File::open(&self.file)?, needle)
    }

    /// Size in bytes.
    pub fn size(&self) -> Result<u64> {
        Ok(fs::metadata(&self.file)?.len())
    }
}

/// The target of that name.
pub fn iqn(name: &str) -> String {
    format!("iqn.2026-11.dev.cryptvol:{name}")
}

impl Array {
    /// Starts an array without targets, its files in `dir`. Several can run beside each other.
    pub async fn start(dir: &Path) -> Result<Self> {
        sandbox::require()?;
        fs::create_dir_all(dir)?;
        plain_path(dir)?;
        let index = (1..=9)
            .find(|i| !sandbox::has_link(&cable(*i)))
            .context("more than nine arrays in one sandbox")?;
        let (ns, cable) = (namespace(index), cable(index));
        run("ip", &["netns", "add", &ns])?;
        // The second address is for multipath and for portals that answer under several names.
        ip_batch(&format!(
            "link add {cable} type veth peer name port0 netns {ns}\naddr add 10.77.{index}.254/24 dev {cable}\nlink set {cable} up\n"
        ))?;
        run("ip", &["-n", &ns, "link", "set", "lo", "up"])?;
        run("ip", &["-n", &ns, "link", "set", "port0", "up"])?;
        for last in [1, 2] {
            run(
                "ip",
                &[
                    "-n",
                    &ns,
                    "addr",
                    "add",
                    &format!("10.77.{index}.{last}/24"),
                    "dev",
                    "port0",
                ],
            )?;
        }
        run(
            "ip",
            &[
                "-n",
                &ns,
                "route",
                "add",
                "default",
                "via",
                &format!("10.77.{index}.254"),
            ],
        )?;
        Self::first_start(dir, Place::Namespace(index)).await
    }

    /// Starts an array on a free port of the machine's loopback, for an initiator that the machine itself is.
    pub async fn start_on_loopback(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        plain_path(dir)?;
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        Self::first_start(dir, Place::Loopback(free.port())).await
    }

    async fn first_start(dir: &Path, place: Place) -> Result<Self> {
        let state = State {
            place,
            targets: Vec::new(),
            next_file: 1,
        };
        let mut array = Self {
            dir: dir.into(),
            state,
            daemon: None,
            owned: true,
        };
        array.power_on().await?;
        Ok(array)
    }

    /// Takes over an array that another process of this sandbox started; dropping this value does not stop it.
    pub fn attach(dir: &Path) -> Result<Self> {
        let text = fs::read(dir.join("array.json"))
            .with_context(|| format!("no array in {}", dir.display()))?;
        Ok(Self {
            dir: dir.into(),
            state: serde_json::from_slice(&text)?,
            daemon: Daemon::open(dir, "tgtd").ok(),
            owned: false,
        })
    }

    /// The address of its first portal.
    pub fn ip(&self) -> Ipv4Addr {
        match self.state.place {
            Place::Namespace(index) => Ipv4Addr::new(10, 77, index, 1),
            Place::Loopback(_) => Ipv4Addr::LOCALHOST,
        }
    }

    /// `10.77.1.1:3260`.
    pub fn portal(&self) -> String {
        let port = match self.state.place {
            Place::Namespace(_) => PORT,
            Place::Loopback(port) => port,
        };
        format!("{}:{port}", self.ip())
    }

    /// Both portals; they lead to the same disks. On the loopback there is only one.
    pub fn portals(&self) -> [String; 2] {
        match self.state.place {
            Place::Namespace(index) => [1, 2].map(|last| format!("10.77.{index}.{last}:{PORT}")),
            Place::Loopback(_) => [self.portal(), self.portal()],
        }
    }

    /// Gives the array an IPv6 address, `[fd77:A::1]:3260`, that a node reaches once it has one beside
    /// [`Array::ipv6_gateway`]; the machine's kernel must have IPv6.
    pub fn add_ipv6(&self) -> Result<String> {
        let index = self.state.place.namespace()?;
        let (ns, gateway) = (namespace(index), self.ipv6_gateway()?);
        ip_batch(&format!(
            "addr add {gateway}/64 dev {} nodad\naddr replace fd77::1/64 dev br0 nodad\n",
            cable(index)
        ))?;
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        let address = format!("fd77:{index}::1");
        for args in [
            &[
                "addr",
                "add",
                &format!("{address}/64"),
                "dev",
                "port0",
                "nodad",
            ][..],
            &["route", "add", "default", "via", &gateway],
        ] {
            run("ip", &[&["-6", "-n", &ns], args].concat())?;
        }
        Ok(format!("[{address}]:{PORT}"))
    }

    fn ipv6_gateway(&self) -> Result<String> {
        Ok(format!("fd77:{}::254", self.state.place.namespace()?))
    }

    /// Drops everything that comes to one portal (`true`), as a broken path does; the others go on.
    pub fn cut_portal(&self, portal: &str, cut: bool) -> Result<()> {
        let ns = namespace(self.state.place.namespace()?);
        let (address, _) = portal.rsplit_once(':').context("portal")?;
        let how = if cut { "add" } else { "del" };
        // Answers go nowhere: packets vanish in silence, as with a pulled cable.
        let from = ["rule", how, "from", address, "blackhole"];
        run("ip", &[&["-n", &ns][..], &from].concat()).map(|_| ())
    }

    /// The interface, outside the array, that all its traffic passes.
    pub fn interface(&self) -> String {
        match self.state.place {
            Place::Namespace(index) => cable(index),
            Place::Loopback(_) => "lo".to_owned(),
        }
    }

    /// The array's own messages.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("tgtd.log")
    }

    /// Adds a target without disks, open to every initiator.
    pub fn create_target(&mut self, iqn: &str) -> Result<()> {
        ensure!(
            self.state.targets.iter().all(|t| t.iqn != iqn),
            "there is a target {iqn} already"
        );
        let id = self.state.targets.iter().map(|t| t.id).max().unwrap_or(0) + 1;
        let target = Target {
            id,
            iqn: iqn.into(),
            chap: None,
            own_chap: None,
            luns: Vec::new(),
        };
        self.tell_target(&target)?;
        self.state.targets.push(target);
        self.save()
    }

    /// Adds an empty disk of `size` bytes (a sparse file) at this number, 1 or more.
    pub fn create_lun(&mut self, iqn: &str, number: u16, size: u64) -> Result<Lun> {
        let lun = Lun {
            target: iqn.into(),
            number,
            ..self.spare(size)?
        };
        self.add_lun(lun)
    }

    /// Adds a disk that was made with [`Array::spare`], or that was there before, at the place that it names.
    pub fn add_lun(&mut self, lun: Lun) -> Result<Lun> {
        ensure!(lun.number > 0, "LUN 0 is tgtd's controller");
        self.tell_lun(self.target(&lun.target)?.id, &lun)?;
        let iqn = lun.target.clone();
        self.target_mut(&iqn)?.luns.push(lun.clone());
        self.save()?;
        Ok(lun)
    }

    /// A disk without a place on the array yet, with names of its own.
    pub fn spare(&mut self, size: u64) -> Result<Lun> {
        let file = self.dir.join(format!("disk-{}.img", self.state.next_file));
        File::create(&file)?.set_len(size)?;
        let name = format!(
            "{:04x}{:012x}",
            self.state.place.number(),
            self.state.next_file
        );
        let serial = format!(
            "cryptvol-{}-{}",
            self.state.place.number(),
            self.state.next_file
        );
        self.state.next_file += 1;
        self.save()?;
        Ok(Lun {
            target: String::new(),
            number: 0,
            file,
            name,
            serial,
        })
    }

    /// The disk that is there now.
    pub fn lun(&self, iqn: &str, number: u16) -> Result<&Lun> {
        self.target(iqn)?
            .luns
            .iter()
            .find(|l| l.number == number)
            .with_context(|| format!("{iqn} has no LUN {number}"))
    }

    /// From now on logins need this name and password (one-way CHAP, 12 to 16 characters by RFC 7143); a former one is void.
    /// Sessions that exist stay.
    pub fn set_chap(&mut self, iqn: &str, user: &str, password: &str) -> Result<()> {
        self.clear_chap(iqn)?;
        let chap = Chap {
            user: user.into(),
            password: password.into(),
        };
        self.tell_chap(self.target(iqn)?.id, &chap)?;
        self.target_mut(iqn)?.chap = Some(chap);
        self.save()
    }

    /// From now on the target proves itself with this name and password to whoever asks (mutual CHAP); needs a call of
    /// [`Array::set_chap`] before.
    pub fn set_own_chap(&mut self, iqn: &str, user: &str, password: &str) -> Result<()> {
        self.clear_own_chap(iqn)?;
        let chap = Chap {
            user: user.into(),
            password: password.into(),
        };
        self.tell_own_chap(self.target(iqn)?.id, &chap)?;
        self.target_mut(iqn)?.own_chap = Some(chap);
        self.save()
    }

    /// From now on the target cannot prove itself.
    pub fn clear_own_chap(&mut self, iqn: &str) -> Result<()> {
        if let Some(chap) = self.target(iqn)?.own_chap.clone() {
            // With the account its binding goes too.
            self.admin(&["--mode", "account", "--op", "delete", "--user", &chap.user])?;
            self.target_mut(iqn)?.own_chap = None;
            self.save()?;
        }
        Ok(())
    }

    /// From now on everybody may log in.
    pub fn clear_chap(&mut self, iqn: &str) -> Result<()> {
        let target = self.target(iqn)?.clone();
        if let Some(chap) = target.chap {
            let id = target.id.to_string();
            self.admin(&[
                "--mode", "account", "--op", "unbind", "--tid", &id, "--user", &chap.user,
            ])?;
            self.admin(&["--mode", "account", "--op", "delete", "--user", &chap.user])?;
            self.target_mut(iqn)?.chap = None;
            self.save()?;
        }
        Ok(())
    }

    /// Takes a disk away; its file stays.
    pub fn remove_lun(&mut self, iqn: &str, number: u16) -> Result<()> {
        let (target, lun) = (self.target(iqn)?.id.to_string(), number.to_string());
        let place = ["--tid", &target, "--lun", &lun];
        let deadline = Instant::now() + COMMANDS_END;
        loop {
            let delete = ["--mode", "logicalunit", "--op", "delete"];
            match self.admin(&[&delete[..], &place].concat()) {
                // A command is on its way in the disk: tgtd takes it away only between two.
                Err(e) if format!("{e:#}").contains(STILL_ACTIVE) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                done => {
                    done?;
                    break;
                }
            }
        }
        self.target_mut(iqn)?.luns.retain(|l| l.number != number);
        self.save()
    }

    /// Takes a target away with all its sessions and disks; the files stay.
    pub fn remove_target(&mut self, iqn: &str) -> Result<()> {
        let id = self.target(iqn)?.id.to_string();
        self.admin(&[
            "--mode", "target", "--op", "delete", "--force", "--tid", &id,
        ])?;
        self.state.targets.retain(|t| t.iqn != iqn);
        self.save()
    }

    /// Puts another disk at the same number, with its own names and size. An initiator that is logged in goes on and reads the
    /// other disk; its kernel still shows the names that it read first.
    pub fn swap_lun(&mut self, iqn: &str, number: u16, replacement: &Lun) -> Result<()> {
        self.remove_lun(iqn, number)?;
        self.add_lun(Lun {
            target: iqn.into(),
            number,
            ..replacement.clone()
        })
        .map(|_| ())
    }

    /// The disk goes on under the same names and reads as zeros, like a thin volume that lost its blocks. Returns the disk that
    /// was there, for [`Array::swap_lun`] to put back.
    pub fn read_as_zeros(&mut self, iqn: &str, number: u16) -> Result<Lun> {
        let before = self.lun(iqn, number)?.clone();
        let file = self.spare(before.size()?)?.file;
        self.swap_lun(
            iqn,
            number,
            &Lun {
                file,
                ..before.clone()
            },
        )?;
        Ok(before)
    }

    /// The disk goes on under the same names and size, and every read fails with a medium error (`ENODATA` for the reader): its
    /// file is cut to nothing while tgtd has it open. Returns the disk that was there, for [`Array::swap_lun`] to put back.
    pub fn fail_reads(&mut self, iqn: &str, number: u16) -> Result<Lun> {
        let before = self.read_as_zeros(iqn, number)?;
        File::options()
            .write(true)
            .open(&self.lun(iqn, number)?.file)?
            .set_len(0)?;
        Ok(before)
    }

    /// Ends the array at once, like a controller that crashed; portals answer no more. The disks stay.
    pub fn power_off(&mut self) -> Result<()> {
        match self.daemon.take() {
            Some(mut daemon) => daemon.kill(),
            None => Ok(()),
        }
    }

    /// Starts it again with the same targets, disks and passwords.
    pub async fn power_on(&mut self) -> Result<()> {
        ensure!(
            self.daemon.as_ref().is_none_or(|d| !d.is_running()),
            "the array is running"
        );
        let control = self.state.place.control();
        let tgtd = ["tgtd", "-f", "-C", &control];
        let mut command;
        match self.state.place {
            // It listens on every address of its namespace; tgtd takes one `portal=` only.
            Place::Namespace(index) => {
                command = Command::new("ip");
                command
                    .args(["netns", "exec", &namespace(index)])
                    .args(tgtd);
            }
            Place::Loopback(_) => {
                command = Command::new(tgtd[0]);
                command
                    .args(&tgtd[1..])
                    .arg("--iscsi")
                    .arg(format!("portal={}", self.portal()));
            }
        }
        let mut daemon =
            Daemon::spawn(&self.dir, "tgtd", command).context("start tgtd (Debian package tgt)")?;
        if !self.owned {
            daemon.keep();
        }
        let log = daemon.log_path();
        wait_for(
            "tgtd to answer",
            Duration::from_secs(30),
            || async {
                daemon.check()?;
                Ok(self.admin(&["--mode", "target", "--op", "show"]).ok())
            },
            || tail(&log, 20),
        )
        .await?;
        self.daemon = Some(daemon);
        for target in self.state.targets.clone() {
            self.tell_target(&target)?;
            if let Some(chap) = &target.chap {
                self.tell_chap(target.id, chap)?;
            }
            if let Some(chap) = &target.own_chap {
                self.tell_own_chap(target.id, chap)?;
            }
            for lun in &target.luns {
                self.tell_lun(target.id, lun)?;
            }
        }
        self.save()
    }

    /// Stops answering without closing connections, like a controller that hangs; `false` lets it go on.
    pub fn hang(&self, hang: bool) -> Result<()> {
        let daemon = self.daemon.as_ref().context("the array is switched off")?;
        daemon.signal_group(if hang {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        })
    }

    /// Pulls the cable (`true`), or puts it back: packets vanish, connections stay.
    pub fn unplug(&self, unplugged: bool) -> Result<()> {
        let index = self.state.place.namespace()?;
        run(
            "ip",
            &[
                "-n",
                &namespace(index),
                "link",
                "set",
                "port0",
                if unplugged { "down" } else { "up" },
            ],
        )?;
        if !unplugged {
            // Routes over an interface go with it.
            let gateway = format!("10.77.{index}.254");
            run(
                "ip",
                &[
                    "-n",
                    &namespace(index),
                    "route",
                    "replace",
                    "default",
                    "via",
                    &gateway,
                ],
            )?;
        }
        Ok(())
    }

    /// The initiators that are logged in to a target now.
    pub fn initiators(&self, iqn: &str) -> Result<Vec<String>> {
        let text = self.admin(&["--mode", "target", "--op", "show"])?;
        let mut ours = false;
        let mut found = Vec::new();
        for line in text.lines() {
            if line.starts_with("Target ") {
                ours = line.ends_with(&format!(": {iqn}"));
            } else if let Some(rest) = line.trim().strip_prefix("Initiator: ")
                && ours
            {
                found.push(
                    rest.split_whitespace()
                        .next()
                        .unwrap_or_default()
                        .to_owned(),
                );
            }
        }
        Ok(found)
    }

    fn target(&self, iqn: &str) -> Result<&Target> {
        self.state
            .targets
            .iter()
            .find(|t| t.iqn == iqn)
            .with_context(|| format!("the array has no target {iqn}"))
    }

    fn target_mut(&mut self, iqn: &str) -> Result<&mut Target> {
        self.state
            .targets
            .iter_mut()
            .find(|t| t.iqn == iqn)
            .with_context(|| format!("the array has no target {iqn}"))
    }

    fn tell_target(&self, target: &Target) -> Result<()> {
        let id = target.id.to_string();
        self.admin(&[
            "--mode",
            "target",
            "--op",
            "new",
            "--tid",
            &id,
            "--targetname",
            &target.iqn,
        ])?;
        self.admin(&[
            "--mode",
            "target",
            "--op",
            "bind",
            "--tid",
            &id,
            "--initiator-address",
            "ALL",
        ])
        .map(|_| ())
    }

    fn tell_chap(&self, id: u32, chap: &Chap) -> Result<()> {
        self.tell_account(id, chap, &[])
    }

    fn tell_own_chap(&self, id: u32, chap: &Chap) -> Result<()> {
        self.tell_account(id, chap, &["--outgoing"])
    }

    fn tell_account(&self, id: u32, chap: &Chap, direction: &[&str]) -> Result<()> {
        let id = id.to_string();
        self.admin(&[
            "--mode",
            "account",
            "--op",
            "new",
            "--user",
            &chap.user,
            "--password",
            &chap.password,
        ])?;
        let bind = [
            "--mode", "account", "--op", "bind", "--tid", &id, "--user", &chap.user,
        ];
        self.admin(&[&bind[..], direction].concat()).map(|_| ())
    }

    fn tell_lun(&self, id: u32, lun: &Lun) -> Result<()> {
        let (id, number, file) = (
            id.to_string(),
            lun.number.to_string(),
            plain_path(&lun.file)?,
        );
        let place = ["--mode", "logicalunit", "--tid", &id, "--lun", &number];
        self.admin(&[&place[..], &["--op", "new", "--backing-store", file]].concat())?;
        for (name, value) in [("scsi_id", &lun.name), ("scsi_sn", &lun.serial)] {
            self.admin(
                &[
                    &place[..],
                    &["--op", "update", "--params", &format!("{name}={value}")],
                ]
                .concat(),
            )?;
        }
        Ok(())
    }

    fn admin(&self, args: &[&str]) -> Result<String> {
        let control = self.state.place.control();
        run(
            "tgtadm",
            &[&["-C", &control, "--lld", "iscsi"], args].concat(),
        )
    }

    fn save(&self) -> Result<()> {
        fs::write(
            self.dir.join("array.json"),
            serde_json::to_vec_pretty(&self.state)?,
        )?;
        Ok(())
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        if self.owned {
            self.daemon = None;
            if let Place::Namespace(index) = self.state.place {
                sandbox::remove_link(&cable(index));
                let _ = run("ip", &["netns", "del", &namespace(index)]);
            }
        }
    }
}

fn namespace(index: u8) -> String {
    format!("array-{index}")
}

fn cable(index: u8) -> String {
    format!("array{index}")
}

/// Searches a stream piece by piece.
pub(crate) fn contains(mut from: impl Read, needle: &[u8]) -> Result<bool> {
    if needle.is_empty() {
        bail!("nothing to search for");
    }
    let mut window = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(false);
        }
        window.extend_from_slice(&buffer[..read]);
        if find(&window, needle) {
            return Ok(true);
        }
        window.drain(..window.len().saturating_sub(needle.len() - 1));
    }
}

/// True if `needle` is in `hay`.
pub(crate) fn find(hay: &[u8], needle: &[u8]) -> bool {
    let first = needle[0];
    let mut rest = hay;
    while let Some(at) = rest.iter().position(|b| *b == first) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needle_across_pieces_is_found() {
        let mut hay = vec![b'x'; (1 << 20) - 3];
        hay.extend_from_slice(b"needle and more");
        assert!(contains(hay.as_slice(), b"needle").unwrap());
        assert!(!contains(hay.as_slice(), b"needles").unwrap());
        assert!(contains(hay.as_slice(), b"more").unwrap());
    }
}

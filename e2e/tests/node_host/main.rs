//! The agent's worker, as it ships, step by step against a real kernel, a real array and udev: what the kernel holds afterwards, and
//! which reason each failure has.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cryptvol_crds::{conditions::Reason, names};
use cryptvol_e2e::array::Array;
use cryptvol_e2e::identity_service::product_binary;
use cryptvol_e2e::node::{Node, NodeSpec};
use cryptvol_e2e::workdir::WorkDir;
use serde_json::{Value, json};

mod encryptors;
mod guest_lvm;
mod iscsi;
mod local;
mod shadow;

const IQN: &str = "iqn.2026-11.dev.cryptvol:db-0";
const MIB: u64 = 1 << 20;
const LUKS_UUID: &str = "6c0f3c5e-8f0e-4d6b-9f0a-3a5f6d1c2b10";
const VOLUME_UID: &str = "9c1fbb0a-1f43-4be5-a5f7-6c8e4b6f7a01";
const LINK: &str = "/dev/cryptvol/shop/db-0";
const PASSPHRASE: &str = "5d1f7a5d1f7a5d1f7a5d1f7a5d1f7a5d1f7a5d1f7a5d1f7a5d1f7a5d1f7a5d1f";

/// A node, an array with one disk, and a worker for each step.
struct Ground {
    work: WorkDir,
    array: Array,
    node: Node,
}

/// What a step answered: its value, or reason and message.
type Answer = std::result::Result<Value, (Reason, String)>;

/// What was observed, with session and disk of the first path under names of their own.
fn first_path(mut value: Value) -> Value {
    if let Some(path) = value["paths"].get(0).cloned() {
        value["session"] = path["session"].clone();
        value["device"] = path["disk"].clone();
    }
    value
}

impl Ground {
    async fn new(name: &str) -> Result<Self> {
        let work = WorkDir::new(name)?;
        let mut array = Array::start(&work.dir("array")?).await?;
        array.create_target(IQN)?;
        array.create_lun(IQN, 1, 64 * MIB)?;
        let node = Node::boot(&work.dir("node")?, NodeSpec::bare("node-1")).await?;
        Ok(Self { work, array, node })
    }

    /// One step in a worker of its own.
    async fn step(&self, call: Value) -> Result<Answer> {
        let binary = product_binary("cryptvol-node-agent")?;
        let content = call.to_string();
        let mut frame = u32::try_from(content.len())?.to_le_bytes().to_vec();
        frame.extend_from_slice(content.as_bytes());
        let output = self
            .node
            .exec_with(
                &[
                    "bash",
                    "-c",
                    "\"$0\" worker --parent $$; exit $?",
                    binary.to_str().context("path of the agent")?,
                ],
                &[],
                &frame,
                Duration::from_secs(60),
            )
            .await?;
        let answer: Value = match output.stdout_bytes.get(4..) {
            Some(content) => serde_json::from_slice(content)?,
            None => bail!("the worker says nothing: {output:?}"),
        };
        match (answer.get("Ok"), answer.get("Err")) {
            (Some(Value::Object(value)), None) => {
                Ok(Ok(value.values().next().cloned().unwrap_or_default()))
            }
            (Some(_), None) => Ok(Ok(Value::Null)),
            (None, Some(error)) => {
                let word = error["reason"].as_str().unwrap_or_default();
                let reason = Reason::parse(word).with_context(|| format!("reason {word:?}"))?;
                Ok(Err((
                    reason,
                    error["message"].as_str().unwrap_or_default().to_owned(),
                )))
            }
            _ => bail!("an answer of another kind: {answer}"),
        }
    }

    async fn done(&self, call: Value) -> Result<Value> {
        let shown = call.to_string();
        match self.step(call).await? {
            Ok(value) => Ok(first_path(value)),
            Err((reason, message)) => bail!("{shown}: {reason}: {message}"),
        }
    }

    async fn refused(&self, reason: Reason, call: Value) -> Result<String> {
        let shown = call.to_string();
        match self.step(call).await? {
            Ok(value) => bail!("{shown} did what it should not: {value}"),
            Err((found, message)) => {
                ensure!(found == reason, "{shown}: {found}: {message}");
                Ok(message)
            }
        }
    }

    fn target(&self) -> Result<Value> {
        self.target_at(&self.array.portal(), IQN)
    }

    fn target_at(&self, portal: &str, iqn: &str) -> Result<Value> {
        let (address, port) = portal.rsplit_once(':').context("portal")?;
        let port: u16 = port.parse()?;
        let address = address.trim_matches(['[', ']']);
        Ok(json!({"portals": [{"address": address, "port": port}], "iqn": iqn}))
    }

    async fn observe(&self) -> Result<Value> {
        self.done(json!({"Observe": {
            "source": {"Iscsi": {"target": self.target()?, "lun": 1}}, "mapping_name": names::mapping_name(VOLUME_UID), "link": LINK,
        }}))
        .await
    }

    /// Id of the session to the target, if any.
    async fn sid(&self) -> Result<u64> {
        let observed = self.observe().await?;
        Ok(observed["session"]["sid"].as_u64().unwrap_or_default())
    }

    async fn scan(&self, lun: u16) -> Result<Value> {
        Ok(json!({"Scan": [IQN, self.sid().await?, lun]}))
    }

    async fn logout(&self) -> Result<Value> {
        Ok(json!({"Logout": [IQN, self.sid().await?]}))
    }

    /// Logs in and scans; the device.
    async fn device(&self) -> Result<Value> {
        self.done(json!({"Login": [self.target()?, false, null]}))
            .await?;
        self.done(self.scan(1).await?).await?;
        let device = self.observe().await?["device"]["id"].clone();
        ensure!(device.is_object(), "no device: {device}");
        Ok(device)
    }

    fn format_with(device: &Value, encryption: &Value) -> Value {
        json!({"Format": [device, {
            "luks_uuid": LUKS_UUID, "passphrase": PASSPHRASE, "over_torn": false, "encryption": encryption,
            "mapping_name": names::mapping_name(VOLUME_UID),
            "mapping_uuid": names::mapping_uuid(LUKS_UUID, VOLUME_UID),
        }]})
    }

    fn format_call(device: &Value, sector_size: i32) -> Value {
        Self::format_with(
            device,
            &json!({"provider": "luks2", "sectorSize": sector_size}),
        )
    }

    async fn format(&self, device: &Value, sector_size: i32) -> Result<Value> {
        self.done(Self::format_call(device, sector_size)).await
    }

    fn open_call(&self, device: &Value, header: &Value) -> Value {
        json!({"Open": [device, {
            "mapping_name": names::mapping_name(VOLUME_UID),
            "mapping_uuid": names::mapping_uuid(LUKS_UUID, VOLUME_UID),
            "expected": header["facts"], "passphrase": PASSPHRASE,
        }]})
    }

    fn close_call() -> Value {
        json!({"Close": [names::mapping_name(VOLUME_UID), names::mapping_uuid(LUKS_UUID, VOLUME_UID)]})
    }

    async fn sh(&self, script: &str) -> Result<String> {
        self.node.sh(script).await?.ok()
    }

    /// Link, mapping, device and session away, and nothing left.
    async fn detach(&self, device: &Value) -> Result<()> {
        self.done(json!({"Unlink": LINK})).await?;
        self.done(Self::close_call()).await?;
        self.done(json!({"DeleteDevice": device})).await?;
        self.done(self.logout().await?).await?;
        let left = self
            .sh("dmsetup ls | grep -v '^No devices'; find /dev/cryptvol -mindepth 1; ls /sys/class/iscsi_session; ls /sys/block | grep sd; true")
            .await?;
        ensure!(left.is_empty(), "left on the node: {left}");
        Ok(())
    }
}

/// The one table line of a mapping.
async fn table(ground: &Ground, name: &str) -> Result<String> {
    ground
        .sh(&format!("dmsetup table --showkeys {name}"))
        .await
        .map(|t| t.trim().to_owned())
}

#[tokio::test]
async fn a_mapping_is_what_cryptsetup_makes_of_the_same_header() -> Result<()> {
    let ground = Ground::new("host-mapping").await?;
    let name = names::mapping_name(VOLUME_UID);
    for sector_size in [512, 4096] {
        let device = ground.device().await?;
        let path = device["path"].as_str().context("path")?;
        let header = ground.format(&device, sector_size).await?;
        ensure!(header["objections"] == json!([]), "{header}");
        let mapping = ground.done(ground.open_call(&device, &header)).await?;
        // Done already is success.
        let again = ground.done(ground.open_call(&device, &header)).await?;
        ensure!(again == mapping, "{again}");
        for _ in 0..2 {
            ground.done(json!({"Link": [LINK, mapping]})).await?;
        }
        ensure!(ground.sh(&format!("readlink {LINK}")).await?.trim() == mapping["path"]);
        let ours = table(&ground, &name).await?;
        ground
            .sh(&format!(
                "printf 'seen by both' | dd of={LINK} conv=fsync status=none"
            ))
            .await?;
        ground.done(json!({"Unlink": LINK})).await?;
        ground.done(Ground::close_call()).await?;

        ground
            .sh(&format!(
                "printf {PASSPHRASE} | cryptsetup open --key-file - {path} theirs"
            ))
            .await?;
        let theirs = table(&ground, "theirs").await?;
        let read = ground.sh("head -c 12 /dev/mapper/theirs").await?;
        ground.sh("cryptsetup close theirs").await?;
        ensure!(read == "seen by both", "{read:?}");
        // But for the name under which the kernel knew the key.
        let rename = |t: &str, key: &str| t.replace(key, "KEY");
        ensure!(
            rename(&ours, &format!("cryptvol:{LUKS_UUID}"))
                == rename(&theirs, &format!("cryptsetup:{LUKS_UUID}-d0")),
            "{ours}\n{theirs}"
        );
        ensure!(ours.contains(":64:logon:cryptvol:"), "{ours}");

        let erased = ground.done(json!({"Erase": [device, LUKS_UUID]})).await?;
        ensure!(
            erased == json!({"key_slots_wiped": 1, "verified": true}),
            "{erased}"
        );
        ground
            .done(json!({"ClearHeader": [device, LUKS_UUID]}))
            .await?;
        ground.detach(&device).await?;
        let head = ground.array.lun(IQN, 1)?.read_at(0, 16 << 20)?;
        ensure!(head.iter().all(|b| *b == 0), "the header is not gone");
    }
    ground.work.passed()
}

#[tokio::test]
async fn udev_does_not_look_into_the_guests_data() -> Result<()> {
    let ground = Ground::new("host-udev").await?;
    let device = ground.device().await?;
    let header = ground.format(&device, 512).await?;
    let mapping = ground.done(ground.open_call(&device, &header)).await?;
    ground.done(json!({"Link": [LINK, mapping]})).await?;
    let node = mapping["path"].as_str().context("path")?;
    // A guest's file system that could pass for one of the node's.
    ground
        .sh(&format!(
            "mkfs.ext4 -q -L node-root -U 11111111-2222-4333-8444-555555555555 {LINK}; \
             udevadm trigger --action=change {node}; udevadm trigger --action=add {node}; udevadm settle -t 20"
        ))
        .await?;
    let links = ground
        .sh("find /dev/disk -lname '*dm-*'; find /dev/disk -name '*11111111*' -o -name '*node-root*'")
        .await?;
    ensure!(links.is_empty(), "udev made {links}");
    let properties = ground
        .sh(&format!("udevadm info -q property {node}"))
        .await?;
    for flag in ["SUBSYSTEM", "DISK", "OTHER"] {
        let flag = format!("DM_UDEV_DISABLE_{flag}_RULES_FLAG=1");
        ensure!(properties.contains(&flag), "{flag} not in {properties}");
    }
    ensure!(!properties.contains("ID_FS_"), "{properties}");
    ensure!(ground.sh("ipcs -s | grep -c 0x0d4d; true").await?.trim() == "0");

    // The key is nowhere where root could read it.
    let keys = ground.sh("grep cryptvol /proc/keys; true").await?;
    ensure!(keys.is_empty(), "{keys}");

    // Who holds the device is named.
    ground
        .sh(&format!("sleep 1000 <{LINK} & disown; sleep 0.2"))
        .await?;
    let message = ground
        .refused(Reason::DeviceBusy, Ground::close_call())
        .await?;
    ensure!(message.contains("sleep ("), "{message}");
    let message = ground
        .refused(Reason::DeviceBusy, json!({"DeleteDevice": device}))
        .await?;
    ensure!(message.contains("dm-"), "{message}");
    // Logging out while disks are there is left to their users.
    ground.done(ground.logout().await?).await?;
    ensure!(ground.observe().await?["session"]["state"] == "LOGGED_IN");
    ground
        .sh("kill %1 2>/dev/null; kill $(pidof sleep); true")
        .await?;
    ground.detach(&device).await?;
    ground.work.passed()
}

#[tokio::test]
async fn peer_failure_19_every_failed_login_and_scan_has_its_reason() -> Result<()> {
    let mut ground = Ground::new("host-login").await?;
    let login = |target: Value, chap: Value| json!({"Login": [target, false, chap]});
    let portal = ground.array.portal();
    let address = portal.rsplit_once(':').context("portal")?.0.to_owned();

    let start = Instant::now();
    let nobody = ground.target_at(&format!("{address}:3999"), IQN)?;
    ground
        .refused(Reason::PortalUnreachable, login(nobody, Value::Null))
        .await?;
    ensure!(
        start.elapsed() < Duration::from_secs(60),
        "{:?}",
        start.elapsed()
    );
    let other = ground.target_at(&portal, "iqn.2026-11.dev.cryptvol:absent")?;
    let message = ground
        .refused(Reason::TargetNotFound, login(other, Value::Null))
        .await?;
    ensure!(message.contains(&ground.node.initiator()), "{message}");

    ground.array.set_chap(IQN, "node", "correct horse 12")?;
    let chap = |password: &str| json!({"username": "node", "password": password});
    for wrong in [Value::Null, chap("another horse 34")] {
        let message = ground
            .refused(Reason::ChapRejected, login(ground.target()?, wrong))
            .await?;
        ensure!(!message.contains("horse"), "{message}");
    }
    for _ in 0..2 {
        ground
            .done(login(ground.target()?, chap("correct horse 12")))
            .await?;
    }
    let traces = ground
        .sh("find /etc/iscsi /var/lib/iscsi /run -xdev -type f -exec grep -la 'correct horse' {} + ; true")
        .await?;
    ensure!(traces.is_empty(), "the secret lies in {traces}");

    for absent in [0, 2, 300] {
        ground
            .refused(Reason::LunNotFound, ground.scan(absent).await?)
            .await?;
    }
    ensure!(ground.observe().await?["session"]["in_use"] == false);
    ground.done(ground.scan(1).await?).await?;
    let observed = ground.observe().await?;
    ensure!(observed["session"]["in_use"] == true, "{observed}");
    let lun = ground.array.lun(IQN, 1)?;
    ensure!(observed["device"]["id"]["wwid"] == lun.wwid(), "{observed}");
    ensure!(
        observed["device"]["id"]["size_bytes"] == lun.size()?,
        "{observed}"
    );
    let device = observed["device"]["id"].clone();
    ground.detach(&device).await?;
    ground.work.passed()
}

#[tokio::test]
async fn peer_failure_02_what_changed_below_is_noticed_and_what_is_not_ours_stays() -> Result<()> {
    let mut ground = Ground::new("host-changed").await?;
    let device = ground.device().await?;
    let header = ground.format(&device, 512).await?;
    let open = ground.open_call(&device, &header);
    let lun = ground.array.lun(IQN, 1)?.clone();
    let sum = lun.sha256()?;

    // Another disk under the same number.
    let other = ground.array.spare(64 * MIB)?;
    ground.array.swap_lun(IQN, 1, &other)?;
    ground.done(ground.scan(1).await?).await?;
    for call in [
        json!({"ReadHeader": device}),
        open.clone(),
        json!({"Erase": [device, LUKS_UUID]}),
    ] {
        ground.refused(Reason::WwidMismatch, call).await?;
    }
    let now = ground.observe().await?["device"]["id"].clone();
    ensure!(now["wwid"] == other.wwid(), "{now}");
    ground.array.swap_lun(IQN, 1, &lun)?;
    ground.done(ground.scan(1).await?).await?;
    ensure!(ground.observe().await?["device"]["id"] == device);

    // A disk that gives errors.
    let good = ground.array.fail_reads(IQN, 1)?;
    for call in [
        json!({"ReadHeader": device}),
        open.clone(),
        Ground::format_call(&device, 512),
    ] {
        ground.refused(Reason::DeviceUnreadable, call).await?;
    }
    ground.array.swap_lun(IQN, 1, &good)?;

    // The wrong key, and a header that is not the one that was pinned.
    let mut wrong = open.clone();
    wrong["Open"][1]["passphrase"] = json!("0".repeat(64));
    ground.refused(Reason::KeyDoesNotOpen, wrong).await?;
    let mut wrong = open.clone();
    wrong["Open"][1]["expected"]["digest"] = json!("0".repeat(64));
    let message = ground.refused(Reason::HeaderMismatch, wrong).await?;
    ensure!(message.contains("digest"), "{message}");
    ensure!(lun.sha256()? == sum, "something was written");

    // A mapping of another under our name.
    let name = names::mapping_name(VOLUME_UID);
    ground
        .sh(&format!("dmsetup create {name} -u THEIRS --table '0 8 zero' || modprobe dm_zero; dmsetup info {name} >/dev/null 2>&1 || dmsetup create {name} -u THEIRS --table '0 8 error'"))
        .await?;
    ground.refused(Reason::NotOurs, open.clone()).await?;
    ground
        .refused(Reason::NotOurs, Ground::close_call())
        .await?;
    ground.sh(&format!("dmsetup remove {name}")).await?;
    // What is left of a worker that was killed between making and filling the mapping.
    ground
        .sh(&format!(
            "dmsetup create {name} -u {} --notable",
            names::mapping_uuid(LUKS_UUID, VOLUME_UID)
        ))
        .await?;
    ground.done(open.clone()).await?;

    // The session taken away from under the mapping by somebody else: the mapping is a zombie, and goes.
    ground.sh("for s in /sys/class/iscsi_session/session*; do iscsiadm -m session -r ${s##*session} --logout; done").await?;
    let observed = ground.observe().await?;
    ensure!(observed["device"].is_null(), "{observed}");
    ensure!(
        observed["mapping"]["deps"] == json!([device["dev"]]),
        "{observed}"
    );
    ground.done(Ground::close_call()).await?;
    ground.done(json!({"DeleteDevice": device})).await?;
    ground
        .refused(Reason::DeviceUnreadable, json!({"ReadHeader": device}))
        .await?;

    // A link of another.
    ground
        .sh("mkdir -p /dev/cryptvol/shop && ln -s /dev/null /dev/cryptvol/shop/db-0")
        .await?;
    ground
        .refused(Reason::NotOurs, json!({"Unlink": LINK}))
        .await?;
    let device = ground.device().await?;
    let mapping = ground.done(open).await?;
    ground
        .refused(Reason::NotOurs, json!({"Link": [LINK, mapping]}))
        .await?;
    ground.sh(&format!("rm {LINK}")).await?;
    ground.detach(&device).await?;
    ground.work.passed()
}

#[tokio::test]
async fn an_iscsid_of_unknown_version_is_driven_by_its_own_iscsiadm() -> Result<()> {
    let ground = Ground::new("host-unknown").await?;
    // SIGKILL: at its end iscsid sends SIGTERM to its whole process group, and that is the harness's.
    ground
        .sh("set -e; kill -KILL $(pidof iscsid); while pidof iscsid; do sleep 0.1; done
             sed 's/# BEGIN RECORD 2.1/# BEGIN RECORD 9.1/' /usr/sbin/iscsid >/run/iscsid; chmod 755 /run/iscsid; /run/iscsid </dev/null >/dev/null 2>&1; sleep 0.5")
        .await?;
    let probed = ground.done(json!("Probe")).await?;
    let iscsid = probed
        .as_array()
        .and_then(|all| all.iter().find(|c| c["name"] == "iscsid"))
        .context("no check of iscsid")?
        .clone();
    ensure!(
        iscsid["detail"]
            .as_str()
            .is_some_and(|d| d.starts_with("9.1") && d.contains("without CHAP")),
        "{iscsid}"
    );
    let chap = json!({"username": "node", "password": "correct horse 12"});
    let message = ground
        .refused(
            Reason::StepFailed,
            json!({"Login": [ground.target()?, false, chap]}),
        )
        .await?;
    ensure!(message.contains("is not known"), "{message}");
    let other = ground.target_at(&ground.array.portal(), "iqn.2026-11.dev.cryptvol:absent")?;
    ground
        .refused(
            Reason::TargetNotFound,
            json!({"Login": [other, false, null]}),
        )
        .await?;

    let device = ground.device().await?;
    ground.detach(&device).await?;
    let left = ground
        .sh(&format!(
            "ls /etc/iscsi/nodes /var/lib/iscsi/nodes 2>/dev/null | grep {IQN}; true"
        ))
        .await?;
    ensure!(left.is_empty(), "a record is left: {left}");
    ground.work.passed()
}

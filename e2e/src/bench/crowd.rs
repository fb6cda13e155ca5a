//! Many volumes on one node, the agent as it ships, key release and API server included: 50 in one session beside the kernel's own
//! probing of 50 disks; all of them back after a power cut; the memory that the agent and its workers take meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cryptvol_crds::{EncryptedVolume, conditions};
use serde_json::json;

use super::row::{Row, Rule, Stage};
use crate::agent_metrics;
use crate::array;
use crate::process::wait_for;
use crate::site::{AGENT_LOG, Site, SiteSpec};
use crate::volumes::Volume;
use crate::workdir::WorkDir;

const NAMESPACE: &str = "bench";
/// In one session.
const FEW: u16 = 50;
/// Disks of one target; the rest are in further ones.
const IN_ONE_TARGET: u16 = 64;
const SIZE: u64 = 24 << 20;
/// The agent's own: `--parallel-steps`.
const PARALLEL: f64 = 8.0;
/// Making the volumes is not measured.
const MAKING: Duration = Duration::from_secs(3600);
const BACK: Duration = Duration::from_secs(900);
const WATCH: &str = include_str!("../../assets/watch-agent.sh");
/// Idle workers have gone home by then.
const STEADY: Duration = Duration::from_secs(40);

/// What the watch on the node looks at. Memory takes some of the node's one CPU each second, so that times are taken without.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Looks {
    Links,
    Memory,
}

/// What the watch on the node saw.
struct Watched {
    seconds: f64,
    pss_mib: f64,
    hwm_mib: f64,
    cpu: Cpu,
    stages: Vec<Stage>,
}

/// Time on the node's CPU, in seconds.
struct Cpu {
    agent: f64,
    workers: f64,
    udev: f64,
    node: f64,
}

impl Cpu {
    /// Per volume, in milliseconds; what is left of the node's is the kernel's own threads, iscsid and the watch.
    fn row(&self, count: u16) -> Row {
        let each = |seconds: f64| seconds * 1000.0 / f64::from(count);
        let part = |name: &str, seconds: f64| Stage {
            name: format!("{name}, ms a volume"),
            ours: each(seconds),
            peer: None,
        };
        let rest = self.node - self.agent - self.workers - self.udev;
        let name = format!("  CPU of the node, each of {count} volumes, ms");
        Row::new(&name, each(self.node), 0.0, None).of(vec![
            part("agent", self.agent),
            part("its workers", self.workers),
            part("udev", self.udev),
            part("the rest", rest),
        ])
    }
}

/// The rows of `volumes` volumes. `shared_attach` is what one attachment in a shared session takes without the key service, in
/// milliseconds.
pub(super) async fn rows(volumes: u16, shared_attach: f64) -> Result<Vec<Row>> {
    ensure!(volumes > FEW, "more than {FEW} volumes are wanted");
    let work = WorkDir::new("bench-crowd")?;
    let mut spec = SiteSpec::new(1);
    spec.nodes[0].memory_mib = 1024;
    let mut site = Site::start(&work, spec).await?;
    site.tenant(NAMESPACE).await?;
    site.array.create_target(&iqn(1))?;

    make(&mut site, 1..=FEW).await?;
    site.power_cycle_without_agent(0).await?;
    let kernel = kernels_own(&site).await?;
    let few = come_back(&mut site, FEW, Looks::Links).await?;
    site.power_cycle_without_agent(0).await?;
    let few_memory = come_back(&mut site, FEW, Looks::Memory).await?;

    make(&mut site, FEW + 1..=volumes).await?;
    tokio::time::sleep(STEADY).await;
    let steady = watch(&site, volumes, Duration::ZERO, Looks::Memory).await?;
    site.power_cycle_without_agent(0).await?;
    let all = come_back(&mut site, volumes, Looks::Links).await?;
    site.power_cycle_without_agent(0).await?;
    let all_memory = come_back(&mut site, volumes, Looks::Memory).await?;
    work.passed()?;

    let memory = Some((Rule::AtMost, 64.0));
    let bound = f64::from(volumes) * shared_attach / PARALLEL / 1000.0;
    let each = |seconds: f64, count: u16| seconds * 1000.0 / f64::from(count);
    Ok(vec![
        Row::new(
            &format!("{FEW} volumes in one session, against {FEW} disks that can be used, s"),
            few.seconds,
            kernel.usable,
            Some((Rule::RatioAtMost, 2.0)),
        )
        .of(few.stages),
        few.cpu.row(FEW),
        Row::new(
            "  the same, against disks that the kernel knows and udev does not, s",
            few.seconds,
            kernel.seen,
            None,
        ),
        Row::new(
            &format!("memory, {FEW} unlocks at once, MiB"),
            few_memory.pss_mib,
            0.0,
            memory,
        ),
        Row::new(
            "  the same, each process at its highest, MiB",
            few_memory.hwm_mib,
            0.0,
            None,
        ),
        Row::new(
            &format!("memory, {volumes} volumes steady, MiB"),
            steady.pss_mib,
            0.0,
            memory,
        ),
        Row::new(
            &format!("memory, {volumes} volumes coming back, MiB"),
            all_memory.pss_mib,
            0.0,
            memory,
        ),
        Row::new(
            &format!("{volumes} volumes back after a power cut, s"),
            all.seconds,
            bound,
            Some((Rule::RatioAtMost, 1.0)),
        )
        .of(all.stages),
        all.cpu.row(volumes),
        Row::new(
            &format!("one of {volumes} volumes, against one of {FEW}, ms"),
            each(all.seconds, volumes),
            each(few.seconds, FEW),
            Some((Rule::RatioAtMost, 1.25)),
        ),
    ])
}

/// The target of a volume.
fn iqn(number: u16) -> String {
    array::iqn(&format!("bench-{}", (number - 1) / IN_ONE_TARGET))
}

/// Disks and volumes of these numbers, and waits until all are ready.
async fn make(site: &mut Site, numbers: std::ops::RangeInclusive<u16>) -> Result<()> {
    let portal = site.array.portal();
    let count = *numbers.end();
    let mut items = Vec::new();
    for number in numbers {
        let (iqn, lun) = (iqn(number), (number - 1) % IN_ONE_TARGET + 1);
        if lun == 1 && number > 1 {
            site.array.create_target(&iqn)?;
        }
        site.array.create_lun(&iqn, lun, SIZE)?;
        let name = format!("vol-{number}");
        let volume = Volume::iscsi(NAMESPACE, &name, &portal, &iqn, lun, NAMESPACE).on("node-1");
        items.push(volume.manifest);
    }
    eprintln!("making volumes until there are {count}");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    site.plane.apply(&list.to_string()).await?;
    all_ready(site, count).await
}

async fn all_ready(site: &Site, count: u16) -> Result<()> {
    let api: kube::Api<EncryptedVolume> = kube::Api::namespaced(site.plane.client()?, NAMESPACE);
    wait_for(
        &format!("{count} volumes to be ready"),
        MAKING,
        || async {
            let all = api.list(&kube::api::ListParams::default()).await?;
            let ready = all.iter().filter(|volume| {
                let status = volume.status.as_ref();
                status.is_some_and(|s| conditions::is_true(&s.conditions, conditions::READY))
            });
            if ready.count() == usize::from(count) {
                return Ok(Some(()));
            }
            // The node has one CPU, and so has whoever looks.
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(None)
        },
        || crate::process::tail(&site.node(0).log_path(AGENT_LOG), 25),
    )
    .await
}

/// What the kernel takes for the disks of the first target on a node without an agent, in seconds from before the login.
struct KernelsOwn {
    /// Until it knows all of them; nobody could use them yet.
    seen: f64,
    /// Until udev, which has to run on a node, has given each its name.
    usable: f64,
}

async fn kernels_own(site: &Site) -> Result<KernelsOwn> {
    let (iqn, portal) = (iqn(1), site.array.portal());
    let script = format!(
        "set -e; shopt -s nullglob; mkfifo /run/kernels; exec 9<>/run/kernels
         iscsiadm -m node -T {iqn} -p {portal} -o new >&2
         seen() {{ DISKS=(/sys/class/iscsi_session/session*/device/target*/*/block/sd*); [ ${{#DISKS[@]}} -ge {FEW} ]; }}
         usable() {{ DISKS=(/dev/disk/by-path/*-iscsi-{iqn}-lun-*); [ ${{#DISKS[@]}} -ge {FEW} ]; }}
         took() {{ until $1; do read -rt 0.02 <&9 || :; done; echo $(( (${{EPOCHREALTIME/./}} - start) / 1000 )); }}
         start=${{EPOCHREALTIME/./}}
         iscsiadm -m node -T {iqn} -p {portal} --login >&2
         for h in /sys/class/iscsi_host/host*; do echo '- - -' >/sys/class/scsi_host/${{h##*/}}/scan; done
         took seen; took usable
         udevadm settle -t 120; iscsiadm -m node -T {iqn} -p {portal} --logout >&2; udevadm settle -t 120"
    );
    let output = site
        .node(0)
        .exec_with(&["bash", "-c", &script], &[], b"", BACK)
        .await?
        .ok()
        .context("the kernel's own probing")?;
    let milliseconds: Vec<f64> = output
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    match milliseconds[..] {
        [seen, usable] => Ok(KernelsOwn {
            seen: seen / 1000.0,
            usable: usable / 1000.0,
        }),
        _ => bail!("the kernel's own probing printed {output}"),
    }
}

/// Starts the agent on a node that was just switched on, and waits for its volumes.
async fn come_back(site: &mut Site, count: u16, looks: Looks) -> Result<Watched> {
    eprintln!("{count} volumes come back");
    site.launch_agent(0, &[]).await?;
    let mut watched = watch(site, count, BACK, looks).await?;
    all_ready(site, count).await?;
    watched.stages = stages(site).await?;
    Ok(watched)
}

async fn watch(site: &Site, count: u16, limit: Duration, looks: Looks) -> Result<Watched> {
    let agent = site.agent_pid(0)?.to_string();
    let (count, seconds) = (count.to_string(), limit.as_secs().to_string());
    let dir = format!("/dev/cryptvol/{NAMESPACE}");
    let env = [
        ("AGENT", agent.as_str()),
        ("DIR", &dir),
        ("COUNT", &count),
        ("SECONDS_AT_MOST", &seconds),
        ("MEMORY", if looks == Looks::Memory { "1" } else { "0" }),
    ];
    let output = site
        .node(0)
        .exec_with(&["bash", "-c", WATCH], &env, b"", limit + MAKING)
        .await?
        .ok()?;
    let line = |name: &str| {
        let line = output.lines().find_map(|l| l.strip_prefix(name));
        line.with_context(|| format!("the watch printed no {name}: {output}"))
    };
    let value = |name: &str| -> Result<f64> { Ok(line(name)?.trim().parse()?) };
    let cpu = line("CPU ")?.split_whitespace().map(str::parse::<f64>);
    let cpu: Vec<f64> = cpu.collect::<Result<_, _>>()?;
    let [agent, workers, udev, node] = cpu[..] else {
        bail!("the watch printed of the CPU {cpu:?}");
    };
    Ok(Watched {
        cpu: Cpu {
            agent: agent / 1000.0,
            workers: workers / 1000.0,
            udev: udev / 1000.0,
            node: node / 1000.0,
        },
        seconds: value("TOOK ")?,
        pss_mib: value("PSS ")? / 1024.0,
        hwm_mib: value("HWM ")? / 1024.0,
        stages: Vec::new(),
    })
}

/// Where the time went, from the histogram that the agent exports: seconds of all volumes together, waiting included.
async fn stages(site: &Site) -> Result<Vec<Stage>> {
    Ok(sums(&agent_metrics::text(site.node(0)).await?))
}

fn sums(metrics: &str) -> Vec<Stage> {
    let value = |what: &str, step: &str| {
        let name = format!("cryptvol_node_step_seconds_{what}{{step=\"{step}\"}} ");
        let line = metrics.lines().find_map(|l| l.strip_prefix(&name));
        line.and_then(|v| v.trim().parse::<f64>().ok())
    };
    let steps = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix("cryptvol_node_step_seconds_sum{step=\"")?;
        rest.split_once('"').map(|(step, _)| step)
    });
    let mut stages: Vec<Stage> = steps
        .filter_map(|step| {
            Some(Stage {
                name: format!("{step}, s in all, {} times", value("count", step)?),
                ours: value("sum", step)?,
                peer: None,
            })
        })
        .collect();
    stages.sort_by(|a, b| b.ours.total_cmp(&a.ours));
    stages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_stage_comes_first() {
        let text = "# TYPE cryptvol_node_step_seconds histogram\n\
                    cryptvol_node_step_seconds_sum{step=\"link\"} 0.5\n\
                    cryptvol_node_step_seconds_count{step=\"link\"} 2\n\
                    cryptvol_node_step_seconds_sum{step=\"open\"} 1.5\n\
                    cryptvol_node_step_seconds_count{step=\"open\"} 3\n";
        let found: Vec<_> = sums(text).into_iter().map(|s| (s.name, s.ours)).collect();
        let expected = [
            ("open, s in all, 3 times", 1.5),
            ("link, s in all, 2 times", 0.5),
        ];
        assert_eq!(found, expected.map(|(n, v)| (n.to_owned(), v)));
    }

    #[test]
    fn targets_are_filled_one_after_the_other() {
        assert_eq!(iqn(1), iqn(64));
        assert_ne!(iqn(64), iqn(65));
    }
}

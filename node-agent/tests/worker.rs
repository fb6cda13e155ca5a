//! Real worker processes of the real binary: pipes, deadlines, death with the agent, and no secret where others can read.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests

use std::{path::Path, rc::Rc, time::Duration};

use cryptvol_crds::{conditions::Reason, v1alpha1::HeaderFacts};
use cryptvol_node_agent::{
    host::{DeviceId, OpenOrder, Passphrase},
    worker::{
        places::Limits,
        pool::{Pool, Program},
        protocol::{Answer, Call},
    },
};
use tokio::task::LocalSet;

fn program() -> Program {
    Program {
        path: env!("CARGO_BIN_EXE_cryptvol-node-agent").into(),
        args: vec!["worker".into()],
        env: vec![("CRYPTVOL_LOG".into(), "error".into())],
    }
}

fn on_one_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

/// Processes whose parent is this test, with the agent's binary.
fn workers() -> Vec<i32> {
    let me = std::process::id().to_string();
    let mut found = vec![];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let words: Vec<_> = line.split('\0').collect();
        if words.get(1) == Some(&"worker") && words.get(3) == Some(&me.as_str()) {
            found.push(pid);
        }
    }
    found
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// A call that every machine can answer: nothing of ours at a path that is not there.
fn harmless() -> Call {
    Call::Unlink("/dev/cryptvol/no-such-namespace/no-such-volume".into())
}

// One test, because it counts the processes that this process started.
#[test]
fn workers_serve_die_at_deadlines_and_go_home() {
    on_one_thread(async {
        let pool = Pool::new(program(), Limits::of(2), 64);
        assert!(workers().is_empty());

        // Warm: one process for many calls.
        for _ in 0..20 {
            let answer = pool.call("ns/a", harmless()).await;
            assert!(matches!(answer, Ok(Answer::Unit)), "{answer:?}");
        }
        let first = workers();
        assert_eq!((first.len(), pool.workers().idle), (1, 1));
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", first[0])).unwrap();
        let core = limits
            .lines()
            .find(|l| l.starts_with("Max core file size"))
            .unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");

        // An idle one that died is replaced, and the call does not notice.
        signal(first[0], rustix::process::Signal::KILL);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(matches!(
            pool.call("ns/a", harmless()).await,
            Ok(Answer::Unit)
        ));
        let second = workers();
        assert_eq!(second.len(), 1);
        assert_ne!(first, second);

        // One that does not answer is killed at the deadline, reaped, and its volume goes on with another.
        signal(second[0], rustix::process::Signal::STOP);
        let late = pool
            .call_within("ns/a", None, &harmless(), Duration::from_millis(300))
            .await
            .unwrap_err();
        assert_eq!(late.reason(), Reason::DeadlineExceeded);
        assert!(
            late.message.contains("could not unlink within"),
            "{}",
            late.message
        );
        assert_eq!((pool.workers().stuck, workers().len()), (0, 0));
        assert!(!Path::new(&format!("/proc/{}", second[0])).exists());
        assert!(matches!(
            pool.call("ns/a", harmless()).await,
            Ok(Answer::Unit)
        ));

        // Never more than the limit, and what hangs delays only who waits for a slot.
        let stop = |pid| signal(pid, rustix::process::Signal::STOP);
        let hang = |volume: &'static str| {
            let pool = Rc::clone(&pool);
            tokio::task::spawn_local(async move {
                let deadline = Duration::from_millis(800);
                pool.call_within(volume, None, &harmless(), deadline).await
            })
        };
        let one = workers()[0];
        stop(one);
        let a = hang("ns/a");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(matches!(
            pool.call("ns/b", harmless()).await,
            Ok(Answer::Unit)
        ));
        let both = workers();
        assert_eq!(both.len(), 2);
        stop(if both[0] == one { both[1] } else { both[0] });
        let c = hang("ns/c");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let d = hang("ns/d");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(workers(), both, "a third one for two slots");
        for hung in [a, c] {
            assert_eq!(
                hung.await.unwrap().unwrap_err().reason(),
                Reason::DeadlineExceeded
            );
        }
        assert!(matches!(d.await.unwrap(), Ok(Answer::Unit)));
        settled(1).await;
        let stopped = workers()[0];
        stop(stopped);
        let e = hang("ns/e");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(matches!(
            pool.call("ns/f", harmless()).await,
            Ok(Answer::Unit)
        ));
        signal(stopped, rustix::process::Signal::CONT);
        assert!(
            matches!(e.await.unwrap(), Ok(Answer::Unit)),
            "slow is not late"
        );

        // Idle ones go home: first those beyond the last, then the last.
        assert_eq!(pool.workers().idle, 2);
        pool.send_home(Duration::ZERO, Duration::from_secs(60));
        settled(1).await;
        pool.send_home(Duration::ZERO, Duration::ZERO);
        settled(0).await;

        // What hangs holds its volume and nothing else: two places, four calls that hang, and a neighbour on the same target goes on.
        // Nothing ends them before an hour is over.
        let pool = Pool::new(
            program(),
            Limits {
                parallel: 2,
                slow: 8,
                patience: Duration::from_millis(50),
            },
            64,
        );
        let mut hung = vec![];
        for volume in ["ns/a", "ns/b", "ns/c", "ns/d"] {
            let served = neighbour(&pool).await;
            assert!(
                matches!(served, Ok(Answer::Unit)),
                "before {volume}: {served:?}"
            );
            let idle: Vec<_> = workers()
                .into_iter()
                .filter(|p| !hung.contains(p))
                .collect();
            assert_eq!(idle.len(), 1);
            stop(idle[0]);
            hung.push(idle[0]);
            let watched = Rc::clone(&pool);
            let pool = Rc::clone(&pool);
            tokio::task::spawn_local(async move {
                pool.call_within(volume, Some("iqn"), &harmless(), HOUR)
                    .await
            });
            // It takes the stopped worker, which no longer is idle then.
            while pool_has_idle(&watched) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let served = neighbour(&pool).await;
        assert!(matches!(served, Ok(Answer::Unit)), "{served:?}");
        for pid in hung {
            signal(pid, rustix::process::Signal::KILL);
        }
        settled(1).await;
        pool.send_home(Duration::ZERO, Duration::ZERO);
        settled(0).await;

        // A secret in a call is in nobody's command line or environment.
        let device = DeviceId {
            path: "/dev/no-such-device".into(),
            dev: "0:0".into(),
            kind: cryptvol_node_agent::host::RawKind::Lun {
                hctl: "9999:0:0:0".into(),
            },
            wwid: None,
            size_bytes: 1,
        };
        let order = OpenOrder {
            derivations: vec![],
            mapping_name: "cryptvol-none".into(),
            mapping_uuid: "CRYPTVOL-none".into(),
            blank: false,
            random: false,
            activation: Default::default(),
            unlock_memory_kib: 0,
            expected: HeaderFacts::default(),
            passphrase: Some(Passphrase("zq-5ec4e7-zq".into())),
            record: None,
        };
        let call = Call::Open(device, order);
        let asked = pool.call_within("ns/b", None, &call, Duration::from_secs(5));
        let looked = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            for pid in workers() {
                for file in ["cmdline", "environ"] {
                    let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                    assert!(!String::from_utf8_lossy(&text).contains("5ec4e7"), "{file}");
                }
            }
        };
        let (answer, ()) = futures::join!(asked, looked);
        let error = answer.unwrap_err();
        assert!(!error.message.contains("5ec4e7"), "{}", error.message);
    });
}

/// Longer than any test lasts.
const HOUR: Duration = Duration::from_secs(3600);

/// A call for another volume of the target, which has to come to its end.
async fn neighbour(pool: &Rc<Pool>) -> Result<Answer, cryptvol_node_agent::host::StepError> {
    let call = harmless();
    let served = pool.call_within("ns/n", Some("iqn"), &call, HOUR);
    tokio::time::timeout(Duration::from_secs(120), served)
        .await
        .unwrap()
}

fn pool_has_idle(pool: &Pool) -> bool {
    pool.workers().idle > 0
}

async fn settled(count: usize) {
    for _ in 0..50 {
        if workers().len() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{:?} instead of {count}", workers());
}

#[test]
fn a_worker_without_its_agent_ends() {
    // Asked to follow a process that is not its parent.
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_cryptvol-node-agent"))
        .args(["worker", "--parent", "1"])
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success());
}

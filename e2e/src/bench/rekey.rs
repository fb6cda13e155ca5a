//! Rotation of the key-encryption key of a large site while it is used: what `rekey` takes and what readers and writers notice of it,
//! also when it is killed again and again on its way.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::identity::options;
use super::large::{mib, seed};
use super::load::{Load, Measured, drive};
use super::side::{Ask, Side};
use super::{Row, Rule};
use crate::http1::JSON;
use crate::identity_service::{IdentityService, Options, product_binary};
use crate::postgres::Postgres;
use crate::process::peak_kib;
use crate::workdir::WorkDir;

/// Projects, each with a key of its own: what is sealed anew.
const PROJECTS: usize = 20_000;
const USERS: usize = 1000;
/// What a pod may have (the chart's limit), in MiB: in a cluster `rekey` runs beside the service in its container.
const POD: f64 = 128.0;
/// Rotations that are killed, each after another part of the time of a whole one.
const KILLS: u32 = 7;
/// Readers at once; few, so that what they wait for is not each other.
const READERS: usize = 4;
/// One look at the readers.
const WINDOW: Duration = Duration::from_secs(2);
/// A writer comes so often.
const BETWEEN_WRITES: Duration = Duration::from_millis(100);
/// How soon a replica on PostgreSQL says that it has a new key, and then some.
const REPLICA_TELLS: Duration = Duration::from_secs(90);

/// What readers saw.
#[derive(Debug, Default)]
struct Read {
    /// Of the windows: the middle median, the worst of the 99 of 100, in ms.
    medians: Vec<f64>,
    p99: f64,
    refused: usize,
}

impl Read {
    fn add(&mut self, window: &Measured) {
        self.medians.push(window.median_ms);
        self.p99 = self.p99.max(window.p99_ms);
        self.refused += window.others.values().sum::<usize>();
    }

    fn median(&mut self) -> f64 {
        super::side::median(&mut self.medians)
    }
}

/// What a writer saw: answered, refused, the longest time in ms.
#[derive(Debug, Default)]
struct Written {
    answered: usize,
    refused: usize,
    longest: f64,
}

/// One rotation.
#[derive(Debug, Default)]
struct Run {
    seconds: f64,
    /// MiB at its most.
    memory: f64,
    /// MiB of the data directory at its most; 0 where there is none.
    room: f64,
    /// What it printed; nothing where it was killed.
    said: String,
}

/// All rows, for so many secrets; with the records in the data directory or in a PostgreSQL server.
pub(super) fn run(secrets: usize, postgres: bool) -> Result<Vec<Row>> {
    let work = WorkDir::new("bench-rekey")?;
    let server = if postgres {
        Some(Postgres::start(&work.dir("postgres")?)?)
    } else {
        None
    };
    let options = Options {
        database: server.as_ref().map(Postgres::url_file).transpose()?,
        ..options()
    };
    let database = options.database.clone();
    let mut service = IdentityService::start(&work.dir("ours")?, options)?;
    let side = Side::of(&service)?;
    service.stop()?;
    seed(&service, [USERS, PROJECTS, secrets])?;
    service.launch()?;
    let folder = database.is_none().then(|| service.data_dir());
    let size = folder.as_deref().map_or(0.0, size_of);

    let mut before = Read::default();
    for _ in 0..3 {
        before.add(&readers(side.payload())?);
    }
    if postgres {
        new_key(&service)?;
        std::thread::sleep(REPLICA_TELLS);
    }
    let rotation = Rotation {
        service: &service,
        database: database.as_deref(),
        folder: folder.as_deref(),
    };
    let (whole, mut during, written) = used(&side, || rotation.run(None))?;
    let sealed = number(&whole.said)?;
    ensure!(sealed >= PROJECTS, "{}", whole.said);
    let service_memory = mib(peak_kib(service.pid()?)?);

    // The same once more, killed again and again on its way.
    if postgres {
        new_key(&service)?;
        std::thread::sleep(REPLICA_TELLS);
    }
    let ((killed, last), during_kills, _) = used(&side, || {
        let mut killed = 0;
        for part in 1..=KILLS {
            let after = whole.seconds * f64::from(part) / f64::from(KILLS + 1);
            let run = rotation.run(Some(Duration::from_secs_f64(after)))?;
            killed += u32::from(run.said.is_empty());
        }
        Ok((killed, rotation.run(None)?))
    })?;
    ensure!(number(&last.said)? <= sealed, "{}", last.said);
    side.login(super::side::PASSWORD, 201)
        .context("after the rotations")?;
    service.stop()?;
    service.launch().context("with the keys of now")?;
    readers(side.payload()).context("with the keys of now")?;
    service.stop()?;
    if let Some(server) = server {
        server.stop()?;
    }
    work.passed()?;
    let row = |metric: &str, ours: f64, peer: f64| Row::new(metric, ours, peer, None);
    let none =
        |metric: &str, ours: usize| Row::new(metric, ours as f64, 0.0, Some((Rule::AtMost, 0.0)));
    Ok(vec![
        row("keys sealed anew", sealed as f64, 0.0),
        row("rekey, s", whole.seconds, 0.0),
        row("memory of rekey at its most, MiB", whole.memory, 0.0),
        Row::new(
            "memory of rekey and the service beside it at their most, MiB",
            whole.memory + service_memory,
            service_memory,
            Some((Rule::AtMost, POD)),
        ),
        row(
            "data directory at its most and before, MiB",
            whole.room,
            size,
        ),
        row(
            "secret payload during and before, median ms",
            during.median(),
            before.median(),
        ),
        row(
            "secret payload during and before, worst p99 ms",
            during.p99,
            before.p99,
        ),
        none("reads refused", during.refused + during_kills.refused),
        row("writes answered during it", written.answered as f64, 0.0),
        none("writes refused during it", written.refused),
        row("longest write during it, ms", written.longest, 0.0),
        row("rotations killed on their way", f64::from(killed), 0.0),
        row(
            "worst p99 of reads beside them, ms",
            during_kills.p99,
            before.p99,
        ),
        row("the one that ended it, s", last.seconds, 0.0),
    ])
}

fn readers((address, requests, wanted): Ask) -> Result<Measured> {
    let load = Load {
        connections: READERS,
        warm_up: Duration::ZERO,
        run: WINDOW,
    };
    drive(address.socket(), requests, wanted, load)
}

/// Reads and writes while something is done.
fn used<T>(side: &Side, work: impl FnOnce() -> Result<T>) -> Result<(T, Read, Written)> {
    let ends = Arc::new(AtomicBool::new(false));
    let (ask, until) = (side.payload(), Arc::clone(&ends));
    let reading = std::thread::spawn(move || {
        let mut read = Read::default();
        while !until.load(Ordering::Relaxed) {
            read.add(&readers(ask.clone())?);
        }
        Ok::<_, anyhow::Error>(read)
    });
    let (path, body, client, until) = (
        "/orders",
        side.order_body(),
        side.tenant()?,
        Arc::clone(&ends),
    );
    let writing = std::thread::spawn(move || {
        let mut written = Written::default();
        while !until.load(Ordering::Relaxed) {
            let start = Instant::now();
            let answer = client.send("POST", path, &[JSON], body.as_bytes())?;
            let took = start.elapsed();
            written.longest = written.longest.max(took.as_secs_f64() * 1000.0);
            match answer.status {
                202 => written.answered += 1,
                _ => written.refused += 1,
            }
            std::thread::sleep(BETWEEN_WRITES.saturating_sub(took));
        }
        Ok::<_, anyhow::Error>(written)
    });
    let done = work();
    ends.store(true, Ordering::Relaxed);
    let broke = |_| anyhow::anyhow!("a reader or writer broke off");
    let read = reading.join().map_err(broke)??;
    let written = writing.join().map_err(broke)??;
    Ok((done?, read, written))
}

/// How rotations of a service are started.
struct Rotation<'a> {
    service: &'a IdentityService,
    database: Option<&'a Path>,
    folder: Option<&'a Path>,
}

impl Rotation<'_> {
    /// Runs one to its end, or kills it after so long.
    fn run(&self, kill: Option<Duration>) -> Result<Run> {
        let mut command = Command::new(product_binary("cryptvol-identity")?);
        command
            .arg("rekey")
            .arg("--kek-file")
            .arg(self.service.secrets_dir().join("kek"))
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        match (self.database, self.folder) {
            (Some(file), _) => command.arg("--database-url-file").arg(file),
            (None, folder) => command.arg("--data-dir").arg(folder.context("no folder")?),
        };
        let start = Instant::now();
        let mut child = command.spawn().context("start rekey")?;
        let mut run = Run::default();
        let ended = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if kill.is_some_and(|after| start.elapsed() >= after) {
                child.kill()?;
                child.wait()?;
                break None;
            }
            // It may just have ended.
            if let Ok(peak) = peak_kib(i32::try_from(child.id())?) {
                run.memory = run.memory.max(mib(peak));
            }
            run.room = run.room.max(self.folder.map_or(0.0, size_of));
            std::thread::sleep(Duration::from_millis(5));
        };
        run.seconds = start.elapsed().as_secs_f64();
        if let Some(status) = ended {
            run.said = said(child)?;
            ensure!(status.success(), "rekey: {status}");
        }
        Ok(run)
    }
}

fn said(child: Child) -> Result<String> {
    Ok(String::from_utf8(child.wait_with_output()?.stdout)?)
}

/// The keys that were sealed anew, from what it printed.
fn number(said: &str) -> Result<usize> {
    let first = said.split(' ').next().unwrap_or_default();
    first
        .parse()
        .with_context(|| format!("rekey said {said:?}"))
}

/// Puts a new key above the others, as an operator does where there may be replicas.
fn new_key(service: &IdentityService) -> Result<()> {
    let file = service.secrets_dir().join("kek");
    let fresh: PathBuf = service.secrets_dir().join("fresh");
    service.command(&["kek", "generate", "--out", &fresh.to_string_lossy()])?;
    let both = format!(
        "{}\n{}",
        fs::read_to_string(&fresh)?.trim_end(),
        fs::read_to_string(&file)?
    );
    fs::remove_file(&fresh)?;
    Ok(fs::write(file, both)?)
}

/// MiB of the files in a folder; those that have just gone do not count.
fn size_of(folder: &Path) -> f64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes: u64 = files
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum();
    mib(bytes / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_says_has_the_number_first() {
        assert_eq!(number("20004 keys sealed anew; 2 keys\n").unwrap(), 20_004);
        assert!(number("").is_err());
    }
}

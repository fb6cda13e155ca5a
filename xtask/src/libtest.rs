//! Runs test programs, shows and keeps what they say, and counts their results by libtest's own lines.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// What a tier came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Tests and checks that passed.
    pub passed: u32,
    /// Those that failed.
    pub failed: u32,
    /// Tests marked `#[ignore]`.
    pub ignored: u32,
    /// Names of what failed.
    pub names: Vec<String>,
    /// The first lines of what each failed test said, under its name: a long log may be cut where it is shown.
    pub said: BTreeMap<String, Vec<String>>,
    /// Whose output is being read.
    speaker: Option<String>,
}

/// Lines kept of what a failed test said.
const SAID: usize = 12;

impl Count {
    /// Something passed and nothing failed.
    pub fn good(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    /// Takes another count in.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.names.extend(other.names);
        self.said.extend(other.said);
    }

    /// Counts a failure that has no line of its own.
    pub fn fail(&mut self, name: impl Into<String>) {
        self.failed += 1;
        self.names.push(name.into());
    }

    /// Counts one line of libtest's output.
    fn line(&mut self, line: &str) {
        if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.names.push(name.to_owned());
        }
        self.listen(line);
        let Some(numbers) = line.strip_prefix("test result: ") else {
            return;
        };
        for part in numbers.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(word)) = (
                words.next().and_then(|n| n.parse::<u32>().ok()),
                words.next(),
            ) else {
                continue;
            };
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

impl Count {
    /// Keeps the beginning of what failed tests said, from libtest's list of failures.
    fn listen(&mut self, line: &str) {
        if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.speaker = Some(name.to_owned());
            return;
        }
        if line == "failures:" || line.starts_with("test result: ") {
            self.speaker = None;
        }
        let Some(name) = &self.speaker else { return };
        let said = self.said.entry(name.clone()).or_default();
        if said.len() < SAID && !line.trim().is_empty() {
            said.push(line.to_owned());
        }
    }
}

/// How what is run is called, and where what it says is kept.
#[derive(Clone, Copy, Debug)]
pub struct Log<'a> {
    /// Its name, and that of the file.
    pub name: &'a str,
    /// Where the file is.
    pub folder: &'a Path,
    /// Others speak at the same time: each line on the terminal begins with the name.
    pub beside_others: bool,
}

/// Runs a program or several, shows and keeps what they say, and counts.
pub fn run(
    log: Log<'_>,
    command: &mut Command,
    deadline: Instant,
    count: &mut Count,
) -> Result<()> {
    crate::run::say(&crate::run::words(command));
    let name = log.name;
    let path: PathBuf = log.folder.join(format!("{name}.log"));
    let speaker = if log.beside_others {
        format!("{name}: ")
    } else {
        String::new()
    };
    let log = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    let errors = log.try_clone()?;
    let mut child = command
        // An error says what it is about; forty frames of a runtime below it hide the next one.
        .env("RUST_LIB_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let counted = Arc::new(Mutex::new(Count::default()));
    let out = std::thread::spawn({
        let (counted, speaker) = (Arc::clone(&counted), speaker.clone());
        move || {
            tee(&speaker, stdout, log, |line| {
                counted
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .line(line)
            })
        }
    });
    let err = std::thread::spawn(move || tee(&speaker, stderr, errors, |_| {}));
    let status = wait(&mut child, deadline)?;
    // Whatever still holds the pipes (a daemon that a test left behind) must not hold us.
    let patience = Instant::now() + Duration::from_secs(10);
    while !(out.is_finished() && err.is_finished()) && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(20));
    }
    let found = counted
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let quiet_failure = found.failed == 0;
    count.add(found);
    match status {
        None => count.fail(format!(
            "{name}: not done in its time and ended, see {}",
            path.display()
        )),
        // It did not compile, or a test program died without a result.
        Some(false) if quiet_failure => count.fail(format!("{name}: see {}", path.display())),
        Some(_) => {}
    }
    Ok(())
}

/// The exit status as success or not; `None` when it had to be ended.
fn wait(child: &mut Child, deadline: Instant) -> Result<Option<bool>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() > deadline {
            end_tree(child.id());
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Ends a process and all below it: first asks, so that clusters are taken down, then does not ask.
fn end_tree(root: u32) {
    let tree = descendants(root);
    for (signal, patience) in [("-TERM", 15), ("-KILL", 5)] {
        let left: Vec<_> = tree
            .iter()
            .filter(|pid| alive(**pid))
            .map(u32::to_string)
            .collect();
        if left.is_empty() {
            return;
        }
        let _ = Command::new("kill")
            .arg(signal)
            .args(left)
            .stderr(Stdio::null())
            .status();
        let end = Instant::now() + Duration::from_secs(patience);
        while Instant::now() < end && tree.iter().any(|pid| alive(*pid)) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

struct Stat {
    state: char,
    parent: u32,
    threads: u32,
}

impl Stat {
    /// What follows the command's name in `/proc/PID/stat`, which stands in parentheses and may hold anything: state is field 3, parent 4,
    /// number of threads 20; see proc(5).
    fn read(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            threads: fields.get(17)?.parse().ok()?,
        })
    }

    /// A process whose first thread is a zombie holds its files and ports as long as another thread of it is on its way out.
    fn has_ended(&self) -> bool {
        self.state == 'Z' && self.threads <= 1
    }
}

fn stat(pid: u32) -> Option<Stat> {
    Stat::read(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|s| !s.has_ended())
}

fn descendants(root: u32) -> Vec<u32> {
    let mut parents = BTreeMap::<u32, Vec<u32>>::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if let Some(stat) = stat(pid) {
            parents.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(children) = tree
        .get(next)
        .map(|pid| parents.remove(pid).unwrap_or_default())
    {
        tree.extend(children);
        next += 1;
    }
    tree
}

/// Copies lines to the log and, with `speaker` before each, to the terminal.
pub fn tee(
    speaker: &str,
    from: Option<impl Read>,
    mut log: File,
    mut see: impl FnMut(&str),
) -> Result<()> {
    let Some(from) = from else { return Ok(()) };
    for line in BufReader::new(from).split(b'\n') {
        let line = line?;
        let text = String::from_utf8_lossy(&line);
        see(&text);
        log.write_all(&line)?;
        log.write_all(b"\n")?;
        eprintln!("{speaker}{text}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log<'a>(name: &'a str, folder: &'a Path) -> Log<'a> {
        Log {
            name,
            folder,
            beside_others: false,
        }
    }

    #[test]
    fn libtest_lines_are_counted() {
        let mut count = Count::default();
        for line in [
            "test a::b ... ok",
            "test a::c ... FAILED",
            "failures:",
            "---- a::c stdout ----",
            "Error: the disk is gone",
            "",
            "failures:",
            "    a::c",
            "test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.00s",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result in a message: 9 passed",
        ] {
            count.line(line);
        }
        let said = BTreeMap::from([("a::c".into(), vec!["Error: the disk is gone".into()])]);
        assert_eq!(
            count,
            Count {
                passed: 4,
                failed: 1,
                ignored: 2,
                names: vec!["a::c".into()],
                said,
                speaker: None,
            }
        );
        assert!(!count.good());
        assert!(!Count::default().good(), "no test at all is a failure");
    }

    #[test]
    fn a_process_has_ended_with_its_last_thread() {
        let read = |state: char, threads: u32| {
            let rest = format!("{state} 3 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 99 0 0");
            Stat::read(&format!("7 (a) Z 1 (b) {rest}")).unwrap()
        };
        assert_eq!(read('Z', 2).parent, 3);
        assert!(read('Z', 1).has_ended() && read('Z', 0).has_ended());
        assert!(!read('Z', 2).has_ended() && !read('S', 1).has_ended());
        assert!(alive(std::process::id()));
    }

    #[test]
    fn a_program_that_dies_without_a_result_counts_as_failed() {
        let later = Instant::now() + Duration::from_secs(60);
        let mut count = Count::default();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo 'test result: ok. 2 passed; 0 failed;'; exit 7"]);
        run(
            log("unit-dies", &std::env::temp_dir()),
            &mut command,
            later,
            &mut count,
        )
        .unwrap();
        assert_eq!((count.passed, count.failed), (2, 1));
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_its_children() {
        let mut count = Count::default();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 1000 & wait"]);
        run(
            log("unit-hangs", &std::env::temp_dir()),
            &mut command,
            Instant::now() + Duration::from_secs(1),
            &mut count,
        )
        .unwrap();
        assert_eq!((count.passed, count.failed), (0, 1));
    }
}

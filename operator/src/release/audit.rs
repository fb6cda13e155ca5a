//! The audit log of key release: one JSON line a request, each with the hash of the one before.
//!
//! A line is `{"target":"audit",…,"hash":"…"}`; the hash is SHA-256 over the line without its hash member. Each process
//! writes a chain of its own; where it continues a file, its first record carries the hash of the file's last. What a
//! chain cannot show is that its end was cut off: compare the last hash with the other place where the lines went (the
//! file with the container's log).

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Mutex, PoisonError},
};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What comes before the first record.
const NOTHING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What is recorded of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Node of the caller, empty where the caller is unknown.
    pub node: String,
    /// Pod of the caller.
    pub pod: String,
    /// UID of the caller's pod.
    pub pod_uid: String,
    /// Address of the caller.
    pub peer: String,
    /// Namespace of the volume.
    pub namespace: String,
    /// EncryptedVolume, or the NodeVolume asked for where it is not known which.
    pub volume: String,
    /// UID of the NodeVolume.
    pub uid: String,
    /// What for.
    pub purpose: String,
    /// Id of the key that was given.
    pub key_id: String,
    /// Id of the request.
    pub request_id: String,
    /// `Released` or `Refused`.
    pub result: String,
    /// Why, in one word.
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    target: String,
    chain: String,
    seq: u64,
    time: Timestamp,
    #[serde(flatten)]
    entry: Entry,
    prev_hash: String,
}

/// Writes records. One at a time: the chain is a line.
pub struct Audit {
    state: Mutex<State>,
}

struct State {
    chain: String,
    seq: u64,
    prev_hash: String,
    file: Option<File>,
    out: Box<dyn Write + Send>,
}

impl Audit {
    /// Begins a chain, on standard output and, where given, at the end of a file that only we can read.
    ///
    /// # Errors
    /// When the file cannot be opened or its last line read.
    pub fn open(path: Option<&Path>) -> std::io::Result<Self> {
        Self::with_output(path, Box::new(std::io::stdout()))
    }

    fn with_output(path: Option<&Path>, out: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let mut prev_hash = NOTHING.to_owned();
        let file = match path {
            None => None,
            Some(path) => {
                if path.exists() {
                    for line in BufReader::new(File::open(path)?).lines() {
                        if let Some((_, hash)) = split(&line?) {
                            prev_hash = hash;
                        }
                    }
                }
                let mut options = OpenOptions::new();
                Some(options.append(true).create(true).mode(0o600).open(path)?)
            }
        };
        Ok(Self {
            state: Mutex::new(State {
                chain: uuid::Uuid::new_v4().to_string(),
                seq: 0,
                prev_hash,
                file,
                out,
            }),
        })
    }

    /// Records one request. What cannot be recorded must not happen: the caller gives nothing when this fails.
    ///
    /// # Errors
    /// When a line cannot be written.
    pub fn record(&self, entry: Entry) -> std::io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let record = Record {
            target: "audit".to_owned(),
            chain: state.chain.clone(),
            seq: state.seq,
            time: Timestamp::now(),
            entry,
            prev_hash: state.prev_hash.clone(),
        };
        let body = serde_json::to_string(&record)?;
        let hash = hex::encode(Sha256::digest(body.as_bytes()));
        let line = format!("{},\"hash\":\"{hash}\"}}\n", body.trim_end_matches('}'));
        if let Some(file) = &mut state.file {
            file.write_all(line.as_bytes())?;
            file.sync_data()?;
        }
        state.out.write_all(line.as_bytes())?;
        state.out.flush()?;
        state.seq += 1;
        state.prev_hash = hash;
        Ok(())
    }
}

/// A line without its hash, and the hash.
fn split(line: &str) -> Option<(String, String)> {
    let (body, hash) = line.trim_end().rsplit_once(",\"hash\":\"")?;
    let hash = hash.strip_suffix("\"}")?;
    (hash.len() == 64 && body.starts_with("{\"target\":\"audit\""))
        .then(|| (format!("{body}}}"), hash.to_owned()))
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Audit records.
    pub records: u64,
    /// Lines that are not audit records, for example other log lines.
    pub other_lines: u64,
    /// Chains, with the number and hash of their last record.
    pub chains: Vec<(String, u64, String)>,
}

/// Why a chain is not whole.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// A record was changed.
    #[error("line {0}: the record was changed (its hash does not fit)")]
    Changed(u64),
    /// A record is missing, doubled or moved.
    #[error(
        "line {line}: record {found} of chain {chain} where {expected} was expected: records are missing, doubled or moved"
    )]
    Sequence {
        /// Line.
        line: u64,
        /// Chain.
        chain: String,
        /// Number found.
        found: u64,
        /// Number expected.
        expected: u64,
    },
    /// A record does not follow the one before.
    #[error("line {0}: the record does not follow the one before it")]
    Link(u64),
    /// Nothing there.
    #[error("no audit record found")]
    Empty,
}

/// Checks the chains in a file, or in the log of a container (other lines are skipped and counted).
///
/// # Errors
/// [`VerifyError`] at the first record that does not fit.
pub fn verify(input: impl BufRead) -> Result<Report, VerifyError> {
    let mut report = Report::default();
    for (line, number) in input.lines().zip(1..) {
        let line = line?;
        let is_ours = line.starts_with("{\"target\":\"audit\"");
        let Some((body, hash)) = split(&line) else {
            if is_ours {
                return Err(VerifyError::Changed(number));
            }
            report.other_lines += 1;
            continue;
        };
        if hex::encode(Sha256::digest(body.as_bytes())) != hash {
            return Err(VerifyError::Changed(number));
        }
        let record: Record =
            serde_json::from_str(&body).map_err(|_| VerifyError::Changed(number))?;
        let last = report.chains.last().map(|(_, _, hash)| hash.clone());
        let known = report
            .chains
            .iter_mut()
            .find(|(c, _, _)| *c == record.chain);
        match known {
            Some((chain, seq, prev)) => {
                if record.seq != *seq + 1 {
                    return Err(VerifyError::Sequence {
                        line: number,
                        chain: chain.clone(),
                        found: record.seq,
                        expected: *seq + 1,
                    });
                }
                if record.prev_hash != *prev {
                    return Err(VerifyError::Link(number));
                }
                *seq = record.seq;
                *prev = hash;
            }
            None => {
                if record.seq != 0 {
                    return Err(VerifyError::Sequence {
                        line: number,
                        chain: record.chain,
                        found: record.seq,
                        expected: 0,
                    });
                }
                // In one file a chain follows the one before; in a log that was collected anew it starts from nothing.
                let follows =
                    record.prev_hash == NOTHING || last.as_ref() == Some(&record.prev_hash);
                if !follows && report.records > 0 {
                    return Err(VerifyError::Link(number));
                }
                report.chains.push((record.chain, 0, hash));
            }
        }
        report.records += 1;
    }
    if report.records == 0 {
        return Err(VerifyError::Empty);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(volume: &str) -> Entry {
        Entry {
            node: "node-1".into(),
            volume: volume.into(),
            result: "Released".into(),
            ..Entry::default()
        }
    }

    /// Two processes, one after the other, on one file.
    fn lines() -> (tempfile::TempDir, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        for volumes in [["a", "b", "c"], ["d", "e", "f"]] {
            let audit = Audit::with_output(Some(&path), Box::new(std::io::sink())).unwrap();
            for v in volumes {
                audit.record(entry(v)).unwrap();
            }
        }
        let text = std::fs::read_to_string(&path).unwrap();
        (dir, text.lines().map(str::to_owned).collect())
    }

    fn check(lines: &[String]) -> Result<Report, VerifyError> {
        verify(lines.join("\n").as_bytes())
    }

    #[test]
    fn a_whole_chain_verifies_across_restarts_and_between_other_lines() {
        let (_dir, mut all) = lines();
        let report = check(&all).unwrap();
        assert_eq!(
            (report.records, report.chains.len(), report.other_lines),
            (6, 2, 0)
        );
        all.insert(
            2,
            "2026-11-22T22:00:00Z INFO cryptvol_operator: hello".into(),
        );
        assert_eq!(check(&all).unwrap().other_lines, 1);
        assert!(matches!(check(&[]), Err(VerifyError::Empty)));
    }

    #[test]
    fn any_tampering_is_found() {
        let (_dir, all) = lines();
        let with = |change: &dyn Fn(&mut Vec<String>)| {
            let mut lines = all.clone();
            change(&mut lines);
            assert_ne!(lines, all);
            check(&lines).is_err()
        };
        assert!(
            with(&|l| l[1] = l[1].replace("node-1", "node-2")),
            "a changed field"
        );
        assert!(
            with(&|l| l[1] = l[1].replacen(
                "{\"target\":\"audit\",",
                "{\"target\":\"audit\",\"x\":1,",
                1
            )),
            "an added field"
        );
        assert!(
            !with(&|l| l[1].push(' ')),
            "white space at the end is no content"
        );
        assert!(
            with(&|l| {
                l.remove(1);
            }),
            "a removed record"
        );
        assert!(
            with(&|l| {
                l.remove(0);
            }),
            "a removed first record"
        );
        assert!(with(&|l| l.swap(1, 2)), "swapped records");
        assert!(
            with(&|l| {
                let x = l[1].clone();
                l.insert(1, x);
            }),
            "a doubled record"
        );
        assert!(
            !with(&|l| {
                l.drain(0..3);
            }),
            "a file may begin with a later chain (rotation)"
        );
        assert!(
            with(&|l| {
                l.remove(2);
            }),
            "the end of an earlier chain"
        );
        assert!(
            with(&|l| l[1] = l[1].rsplit_once(",\"hash\"").unwrap().0.to_owned() + "}"),
            "a removed hash"
        );
        // Changed and hashed anew: the next record does not follow.
        assert!(with(&|l| {
            let (body, _) = split(&l[1]).unwrap();
            let body = body.replace("node-1", "node-2");
            let hash = hex::encode(Sha256::digest(body.as_bytes()));
            l[1] = format!("{},\"hash\":\"{hash}\"}}", body.trim_end_matches('}'));
        }));
    }

    #[test]
    fn the_file_is_ours_alone() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, _) = lines();
        let mode = std::fs::metadata(dir.path().join("audit.log"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

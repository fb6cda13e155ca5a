//! Commands in a node's own context: a small server that runs on the node (a hidden subcommand of `cryptvol-e2e`, which the
//! node sees on the machine's file system), and its client. One request and one answer a connection, both one line of JSON.
//!
//! It exists only inside the sandbox's private network and trusts whoever reaches it.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The port on the node's address.
pub const PORT: u16 = 7077;

/// What the server can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Run to the end, or kill after `timeout_ms`.
    Run {
        argv: Vec<String>,
        env: Vec<(String, String)>,
        stdin: String,
        timeout_ms: u64,
    },
    /// Start in the background with its output in a file.
    Spawn {
        argv: Vec<String>,
        env: Vec<(String, String)>,
        log: String,
    },
    /// Ask after something started by `Spawn`.
    Status { pid: u32 },
    /// Send a signal to the process group of something started by `Spawn`.
    Signal { pid: u32, signal: String },
    /// Write a file.
    Put {
        path: String,
        mode: u32,
        content: String,
    },
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Response {
    pub(crate) error: Option<String>,
    pub(crate) code: Option<i32>,
    pub(crate) timed_out: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) pid: u32,
    pub(crate) running: bool,
}

/// What a command printed and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 128 + N after signal N.
    pub code: i32,
    /// Standard output as it was.
    pub stdout_bytes: Vec<u8>,
    /// Standard output as text.
    pub stdout: String,
    /// Standard error as text.
    pub stderr: String,
    command: String,
}

impl Output {
    /// The standard output of a command that ended well; otherwise an error with what it printed.
    pub fn ok(self) -> Result<String> {
        if self.code == 0 {
            return Ok(self.stdout);
        }
        bail!(
            "`{}` ended with {}\n{}{}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        )
    }
}

/// Sends one request and waits for the answer, at most `limit`.
pub(crate) async fn ask(
    address: SocketAddr,
    request: &Request,
    limit: Duration,
) -> Result<Response> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let conversation = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(limit, conversation)
        .await
        .map_err(|_| anyhow!("the node's exec server at {address} did not answer in {limit:?}"))?
        .with_context(|| format!("talk to the node's exec server at {address}"))?;
    let response: Response = serde_json::from_slice(&answer)
        .with_context(|| format!("half an answer from {address}: the node went away"))?;
    match response.error {
        Some(error) => bail!("{error}"),
        None => Ok(response),
    }
}

pub(crate) async fn run(
    address: SocketAddr,
    argv: &[&str],
    env: &[(&str, &str)],
    stdin: &[u8],
    limit: Duration,
) -> Result<Output> {
    let command = argv.join(" ");
    let request = Request::Run {
        argv: owned(argv),
        env: owned_pairs(env),
        stdin: STANDARD.encode(stdin),
        timeout_ms: u64::try_from(limit.as_millis())?,
    };
    let response = ask(address, &request, limit + Duration::from_secs(10))
        .await
        .with_context(|| format!("run `{command}`"))?;
    let stdout_bytes = STANDARD.decode(response.stdout)?;
    let stdout = String::from_utf8_lossy(&stdout_bytes).into_owned();
    let stderr = String::from_utf8_lossy(&STANDARD.decode(response.stderr)?).into_owned();
    if response.timed_out {
        bail!("`{command}` did not end in {limit:?} and was killed\n{stdout}{stderr}");
    }
    Ok(Output {
        code: response.code.unwrap_or(-1),
        stdout_bytes,
        stdout,
        stderr,
        command,
    })
}

pub(crate) fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

pub(crate) fn owned_pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect()
}

type Children = Arc<Mutex<HashMap<u32, Child>>>;

/// Serves for ever.
pub fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    let children = Children::default();
    thread::spawn(keep_shared_folder_written);
    for stream in listener.incoming() {
        let children = children.clone();
        thread::spawn(move || {
            if let Err(error) = stream
                .map_err(Into::into)
                .and_then(|stream| talk(&stream, &children))
            {
                eprintln!("exec server: {error:#}");
            }
        });
    }
    Ok(())
}

/// What the node writes into the shared folder stays in its page cache for up to 30 s; the harness reads logs there, and a power
/// cut would lose them.
fn keep_shared_folder_written() {
    while let Ok(folder) = fs::File::open("/cv") {
        let _ = nix::unistd::syncfs(folder);
        thread::sleep(Duration::from_millis(500));
    }
}

fn talk(stream: &TcpStream, children: &Children) -> Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let response = serde_json::from_str(&line)
        .map_err(anyhow::Error::from)
        .and_then(|request| answer(request, children))
        .unwrap_or_else(|error| Response {
            error: Some(format!("{error:#}")),
            ..Response::default()
        });
    let mut stream = stream;
    stream.write_all(&serde_json::to_vec(&response)?)?;
    Ok(())
}

fn answer(request: Request, children: &Children) -> Result<Response> {
    let mut children = children.lock().unwrap_or_else(PoisonError::into_inner);
    match request {
        Request::Run {
            argv,
            env,
            stdin,
            timeout_ms,
        } => {
            drop(children);
            run_here(
                &argv,
                env,
                &STANDARD.decode(stdin)?,
                Duration::from_millis(timeout_ms),
            )
        }
        Request::Spawn { argv, env, log } => {
            let log = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&log)
                .with_context(|| log.clone())?;
            let child = command(&argv, env)?
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .with_context(|| format!("start {}", argv[0]))?;
            let pid = child.id();
            children.insert(pid, child);
            Ok(Response {
                pid,
                ..Response::default()
            })
        }
        Request::Status { pid } => {
            let child = children
                .get_mut(&pid)
                .with_context(|| format!("{pid} was not started here"))?;
            let status = child.try_wait()?;
            Ok(Response {
                running: status.is_none(),
                code: status.map(code),
                ..Response::default()
            })
        }
        Request::Signal { pid, signal } => {
            children
                .get(&pid)
                .with_context(|| format!("{pid} was not started here"))?;
            killpg(
                Pid::from_raw(i32::try_from(pid)?),
                signal.parse::<Signal>()?,
            )?;
            Ok(Response::default())
        }
        Request::Put {
            path,
            mode,
            content,
        } => {
            if let Some(parent) = std::path::Path::new(&path).parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, STANDARD.decode(content)?).with_context(|| format!("write {path}"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            Ok(Response::default())
        }
    }
}

fn command(argv: &[String], env: Vec<(String, String)>) -> Result<Command> {
    let (program, args) = argv.split_first().context("an empty command")?;
    let mut command = Command::new(program);
    command.args(args).envs(env).process_group(0);
    Ok(command)
}

fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn run_here(
    argv: &[String],
    env: Vec<(String, String)>,
    stdin: &[u8],
    limit: Duration,
) -> Result<Response> {
    let mut child = command(argv, env)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", argv[0]))?;
    let (stdout, out_done) = collect(child.stdout.take());
    let (stderr, err_done) = collect(child.stderr.take());
    let input = stdin.to_vec();
    let pipe = child.stdin.take();
    thread::spawn(move || pipe.map(|mut pipe| pipe.write_all(&input)));
    let start = Instant::now();
    let (status, timed_out) = loop {
        if let Some(status) = child.try_wait()? {
            break (status, false);
        }
        if start.elapsed() > limit {
            let _ = killpg(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL);
            break (child.wait()?, true);
        }
        thread::sleep(Duration::from_millis(
            if start.elapsed().as_millis() < 200 {
                2
            } else {
                20
            },
        ));
    };
    // A daemon that the command left behind may keep the pipes open; it is not waited for.
    let grace = Instant::now() + Duration::from_millis(500);
    while !(out_done.is_finished() && err_done.is_finished()) && Instant::now() < grace {
        thread::sleep(Duration::from_millis(1));
    }
    let text = |bytes: Arc<Mutex<Vec<u8>>>| {
        STANDARD.encode(&*bytes.lock().unwrap_or_else(PoisonError::into_inner))
    };
    Ok(Response {
        code: Some(code(status)),
        timed_out,
        stdout: text(stdout),
        stderr: text(stderr),
        ..Response::default()
    })
}

fn collect(
    pipe: Option<impl Read + Send + 'static>,
) -> (Arc<Mutex<Vec<u8>>>, thread::JoinHandle<()>) {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let sink = bytes.clone();
    let done = thread::spawn(move || {
        let Some(mut pipe) = pipe else { return };
        let mut buffer = [0; 16 * 1024];
        while let Ok(read @ 1..) = pipe.read(&mut buffer) {
            sink.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(&buffer[..read]);
        }
    });
    (bytes, done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_code_and_deadline() {
        let words = |line: &str| owned(&["sh", "-c", line]);
        let ended = run_here(
            &words("cat; echo b >&2; exit 3"),
            vec![],
            b"a",
            Duration::from_secs(10),
        )
        .unwrap();
        assert_eq!(
            (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
            (Some(3), "YQ==", "Ygo=")
        );
        let killed = run_here(&words("sleep 100"), vec![], b"", Duration::from_millis(50)).unwrap();
        assert!(killed.timed_out);
        let start = Instant::now();
        let left = run_here(
            &words("sleep 60 & echo x"),
            vec![],
            b"",
            Duration::from_secs(30),
        )
        .unwrap();
        assert_eq!(left.code, Some(0));
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}

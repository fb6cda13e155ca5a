//! The agent's side of the workers: started when needed, kept warm for a while, killed at a deadline.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    process::Stdio,
    rc::Rc,
    time::{Duration, Instant},
};

use cryptvol_crds::conditions::Reason;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, warn};
use zeroize::Zeroizing;

use super::{
    places::{Limits, Places},
    protocol::{Answer, Call, decode, encode, frame_length},
};
use crate::host::StepError;

/// Idle workers beyond the last one end after this time.
const IDLE: Duration = Duration::from_secs(30);
/// The last idle worker stays longer than the time between two looks at a volume, so that it is not started for each.
const LAST_IDLE: Duration = Duration::from_secs(90);
/// A worker that is killed and not gone after this time hangs in the kernel.
const REAP: Duration = Duration::from_secs(2);

/// How to start a worker.
#[derive(Clone, Debug)]
pub struct Program {
    /// The binary.
    pub path: PathBuf,
    /// Its arguments before `--parent PID`.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
}

impl Program {
    /// This very binary, whatever became of its path since.
    pub fn this(env: Vec<(String, String)>) -> Self {
        Self {
            path: PathBuf::from("/proc/self/exe"),
            args: vec!["worker".to_owned()],
            env,
        }
    }
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workers {
    /// Processes that wait for work.
    pub idle: usize,
    /// Processes that were killed and hang in the kernel.
    pub stuck: usize,
}

/// The workers of one agent. Lives on one thread.
pub struct Pool {
    program: Program,
    places: Places,
    /// One permit for each MiB that key derivation may take, all workers together.
    memory: Semaphore,
    unlock_memory_mib: u32,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Newest last.
    idle: VecDeque<Worker>,
    /// Volumes of which a worker hangs in the kernel, with the name of its call and its process id.
    stuck: BTreeMap<String, (&'static str, u32)>,
}

struct Worker {
    child: Child,
    to: ChildStdin,
    from: ChildStdout,
    since: Instant,
}

/// What became of an exchange.
enum Exchange {
    /// The worker answered.
    Answer(Box<Result<Answer, StepError>>),
    /// The worker was dead before it got the call.
    NotTaken,
    /// The worker died or broke the protocol while it had the call.
    Broken(std::io::Error),
}

impl Pool {
    /// A pool within these limits, whose calls together take at most `unlock_memory_mib` for key derivation. Must be made within
    /// a `LocalSet`.
    pub fn new(program: Program, limits: Limits, unlock_memory_mib: u32) -> Rc<Self> {
        let pool = Rc::new(Self {
            program,
            places: Places::new(limits),
            memory: Semaphore::new(unlock_memory_mib as usize),
            unlock_memory_mib,
            state: RefCell::default(),
        });
        let weak = Rc::downgrade(&pool);
        tokio::task::spawn_local(async move {
            loop {
                sleep(Duration::from_secs(10)).await;
                let Some(pool) = weak.upgrade() else { return };
                pool.send_home(IDLE, LAST_IDLE);
            }
        });
        pool
    }

    /// Memory that key derivation may take, in MiB.
    pub fn unlock_memory_mib(&self) -> u32 {
        self.unlock_memory_mib
    }

    /// Runs one call for `volume`, within its deadline.
    ///
    /// # Errors
    /// Those of the call; `DeadlineExceeded` when the worker had to be killed, or an earlier one of the same volume still
    /// hangs in the kernel; `StepFailed` when a worker cannot be started or dies.
    pub async fn call(self: &Rc<Self>, volume: &str, call: Call) -> Result<Answer, StepError> {
        self.call_within(volume, None, &call, call.deadline()).await
    }

    /// As [`Self::call`], for a volume on a target that it shares with others, and with a deadline of its own.
    ///
    /// # Errors
    /// See [`Self::call`].
    pub async fn call_within(
        self: &Rc<Self>,
        volume: &str,
        target: Option<&str>,
        call: &Call,
        deadline: Duration,
    ) -> Result<Answer, StepError> {
        if let Some((step, pid)) = self.state.borrow().stuck.get(volume) {
            return Err(StepError::new(
                Reason::DeadlineExceeded,
                format!(
                    "an earlier step on this volume ({step}) hangs in the kernel (process {pid})"
                ),
            ));
        }
        let failed = |what: &str, e: &std::io::Error| {
            StepError::new(
                Reason::StepFailed,
                format!("could not {}: {what}: {e}", call.name()),
            )
        };
        // Before a place is taken: who waits for memory keeps nobody else from work. More than there is was refused before.
        let _memory = self
            .memory
            .acquire_many(call.memory_mib().min(self.unlock_memory_mib))
            .await
            .map_err(|e| failed("no memory", &std::io::Error::other(e)))?;
        let mut place = self
            .places
            .take(call.stage(), target)
            .await
            .map_err(|e| failed("no worker", &std::io::Error::other(e)))?;
        let frame = encode(call).map_err(|e| failed("message", &e))?;
        // A second time only with a worker that was idle and found dead before it took the call.
        loop {
            let idle = self.state.borrow_mut().idle.pop_back();
            let fresh = idle.is_none();
            let mut worker = match idle {
                Some(worker) => worker,
                None => self
                    .start()
                    .map_err(|e| failed("cannot start a worker", &e))?,
            };
            let exchanged = {
                let exchange = timeout(deadline, worker.exchange(&frame));
                tokio::pin!(exchange);
                match timeout(self.places.patience(), &mut exchange).await {
                    Ok(in_time) => in_time,
                    Err(_) => {
                        place.give_up();
                        exchange.await
                    }
                }
            };
            match exchanged {
                Ok(Exchange::Answer(result)) => {
                    worker.since = Instant::now();
                    self.state.borrow_mut().idle.push_back(worker);
                    return *result;
                }
                Ok(Exchange::NotTaken) if !fresh => {
                    debug!("an idle worker was dead");
                }
                Ok(Exchange::NotTaken) => {
                    let e = std::io::Error::other("it ended at once");
                    self.bury(volume, call, worker).await;
                    return Err(failed("the worker died", &e));
                }
                Ok(Exchange::Broken(e)) => {
                    self.bury(volume, call, worker).await;
                    return Err(failed("the worker died", &e));
                }
                Err(_) => {
                    let stuck = self.bury(volume, call, worker).await;
                    warn!(volume, call = call.name(), stuck, "deadline exceeded");
                    return Err(StepError::new(
                        Reason::DeadlineExceeded,
                        format!(
                            "could not {} within {} s{}",
                            call.name(),
                            deadline.as_secs(),
                            if stuck {
                                "; it hangs in the kernel"
                            } else {
                                ""
                            }
                        ),
                    ));
                }
            }
        }
    }

    /// Numbers for metrics.
    pub fn workers(&self) -> Workers {
        let state = self.state.borrow();
        Workers {
            idle: state.idle.len(),
            stuck: state.stuck.len(),
        }
    }

    /// Ends idle workers that waited too long.
    pub fn send_home(&self, idle: Duration, last: Duration) {
        let mut state = self.state.borrow_mut();
        let newest = state.idle.len().saturating_sub(1);
        let mut index = 0;
        state.idle.retain(|worker| {
            let limit = if index == newest { last } else { idle };
            index += 1;
            // Its pipe closes, so it ends by itself; whoever does not is killed on drop.
            worker.since.elapsed() < limit
        });
    }

    fn start(&self) -> std::io::Result<Worker> {
        let mut child = Command::new(&self.program.path)
            .args(&self.program.args)
            .arg("--parent")
            .arg(std::process::id().to_string())
            .env_clear()
            .envs(self.program.env.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(std::io::Error::other("no pipes"));
        };
        debug!(pid = child.id(), "worker started");
        Ok(Worker {
            child,
            to,
            from,
            since: Instant::now(),
        })
    }

    /// Kills a worker and says whether it hangs in the kernel. Such a one is waited for in the background, and its volume
    /// gets no other until it is gone: what it does when it comes back must not meet another step.
    async fn bury(self: &Rc<Self>, volume: &str, call: &Call, mut worker: Worker) -> bool {
        let _ = worker.child.start_kill();
        if timeout(REAP, worker.child.wait()).await.is_ok() {
            return false;
        }
        let pid = worker.child.id().unwrap_or_default();
        let stuck = (call.name(), pid);
        self.state
            .borrow_mut()
            .stuck
            .insert(volume.to_owned(), stuck);
        let (pool, volume) = (Rc::clone(self), volume.to_owned());
        tokio::task::spawn_local(async move {
            let _ = worker.child.wait().await;
            pool.state.borrow_mut().stuck.remove(&volume);
            warn!(volume, pid, "a worker that hung in the kernel is gone");
        });
        true
    }
}

impl Worker {
    async fn exchange(&mut self, frame: &[u8]) -> Exchange {
        if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
            return Exchange::NotTaken;
        }
        match self.answer(frame).await {
            Ok(result) => Exchange::Answer(Box::new(result)),
            Err(e) => Exchange::Broken(e),
        }
    }

    async fn answer(&mut self, frame: &[u8]) -> std::io::Result<Result<Answer, StepError>> {
        self.to.write_all(frame).await?;
        let mut head = [0; 4];
        self.from.read_exact(&mut head).await?;
        let mut content = Zeroizing::new(vec![0; frame_length(head)?]);
        self.from.read_exact(&mut content).await?;
        decode(&content)
    }
}

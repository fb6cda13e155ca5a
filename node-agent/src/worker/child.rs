//! The worker's side: one call after the other from the pipe, until the agent closes it or dies.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags},
    io::{FdFlags, fcntl_getfd, fcntl_setfd},
    mm::{MlockAllFlags, mlockall},
    process::{
        DumpableBehavior, Resource, Rlimit, Signal, getppid, set_dumpable_behavior,
        set_parent_process_death_signal, setrlimit,
    },
};

use super::protocol::{self, Answer, Call};
use crate::host::{Host, StepError};

/// No core dump, nobody may attach, and memory that holds secrets is not swapped out where the limit allows it.
///
/// # Errors
/// When the kernel refuses the first two.
pub fn keep_secrets_in() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // Only pages that are in use, so that the process does not grow by being locked.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = mlockall(flags) {
        tracing::debug!(%error, "memory is not locked");
    }
    Ok(())
}

/// Makes this process a worker of `parent`: it dies with it.
///
/// # Errors
/// When the kernel refuses, or the parent is dead already.
pub fn follow(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let found = getppid().map(|p| p.as_raw_nonzero().get());
    if found != i32::try_from(parent).ok() {
        return Err(io::Error::other("the agent is gone"));
    }
    Ok(())
}

/// The pipes of the agent, taken away from standard input and output: a library or tool that prints must not print into
/// them, and none that is started must inherit them. What is printed goes to standard error.
///
/// # Errors
/// When a descriptor cannot be copied.
pub fn take_pipes() -> io::Result<(File, File)> {
    let private = |fd: std::os::fd::BorrowedFd<'_>| -> io::Result<OwnedFd> {
        let copy = fd.try_clone_to_owned()?;
        fcntl_setfd(&copy, fcntl_getfd(&copy)? | FdFlags::CLOEXEC)?;
        Ok(copy)
    };
    let from = private(io::stdin().as_fd())?;
    let to = private(io::stdout().as_fd())?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok((File::from(from), File::from(to)))
}

/// Serves calls until the pipe ends.
///
/// # Errors
/// When the pipe breaks or a message is not of the protocol.
pub fn serve(host: &mut impl Host, from: &mut File, to: &mut File) -> io::Result<()> {
    while let Some(call) = protocol::read::<Call>(from)? {
        let result: Result<Answer, StepError> = call.run(host);
        // The call holds the secrets; they are wiped before the agent goes on.
        drop(call);
        protocol::write(to, &result)?;
    }
    Ok(())
}

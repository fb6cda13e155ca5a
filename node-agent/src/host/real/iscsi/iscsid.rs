//! The host's iscsid: which process and version it is, and talking to it.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixStream},
    },
    time::Duration,
};

use cryptvol_crds::conditions::Reason;
use memchr::memmem;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::{
    layout::{self, Layout},
    request::{self, Code, Request},
};
use crate::host::{
    StepError,
    real::{error::because, sysfs},
};

/// Name of iscsid's socket in the abstract namespace, which belongs to the network namespace.
const SOCKET: &[u8] = b"ISCSIADM_ABSTRACT_NAMESPACE";
/// Where the layout is shown to be right, before a secret is sent.
const SHORT: Duration = Duration::from_secs(3);
/// Text in the program that its version follows: it heads each record that open-iscsi writes.
const MARK: &[u8] = b"# BEGIN RECORD ";
/// Longest program that is searched for its version.
const MAX_PROGRAM: u64 = 16 << 20;

/// A running iscsid.
#[derive(Clone, Debug)]
pub struct Iscsid {
    /// Process id as seen here; absent where it is in another PID namespace.
    pub pid: Option<u32>,
    /// Version of the program that runs, which may be older than what is installed.
    pub version: Option<String>,
    /// Name of this initiator, empty where it is not known.
    pub initiator: String,
    /// How to speak to it; absent for a version that is not known.
    pub layout: Option<&'static Layout>,
}

impl Iscsid {
    /// Finds iscsid, and shows that it takes requests of the size that its version should.
    ///
    /// # Errors
    /// `StepFailed` when there is none, `DeadlineExceeded` when it does not answer.
    pub fn find() -> Result<Self, StepError> {
        let socket = connect().map_err(not_running)?;
        let pid = peer(&socket).or_else(by_pid_file).or_else(by_name);
        drop(socket);
        let version = pid.and_then(|p| version_of(p).ok().flatten());
        let layout = version.as_deref().and_then(layout::of_version);
        let mut found = Self {
            pid,
            version,
            initiator: String::new(),
            layout,
        };
        if let Some(layout) = layout {
            match found.send(layout, &request::initiator_name(layout), SHORT) {
                Ok((Code::SUCCESS, answer)) => found.initiator = request::answer_text(&answer),
                // It hangs, and would hang for iscsiadm too.
                Err(e) if timed_out(&e) => return Err(silent(SHORT)),
                // Patched, it seems: another way is found then.
                Ok(_) | Err(_) => found.layout = None,
            }
        }
        Ok(found)
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// `DeadlineExceeded`, `StepFailed`.
    pub fn ask(
        &self,
        layout: &Layout,
        request: &Request,
        timeout: Duration,
    ) -> Result<Code, StepError> {
        self.send(layout, request, timeout)
            .map(|(code, _)| code)
            .map_err(|e| match e.kind() {
                _ if timed_out(&e) => silent(timeout),
                io::ErrorKind::ConnectionRefused => not_running(e),
                _ => because(Reason::StepFailed, format!("talking to iscsid: {e}")),
            })
    }

    fn send(
        &self,
        layout: &Layout,
        request: &Request,
        timeout: Duration,
    ) -> io::Result<(Code, Vec<u8>)> {
        let mut socket = connect()?;
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(SHORT))?;
        socket.write_all(request.bytes())?;
        let mut answer = vec![0; layout.answer_size];
        socket.read_exact(&mut answer)?;
        let code = request::answer(&answer, request.command())
            .ok_or_else(|| io::Error::other("an answer to something else"))?;
        Ok((code, answer))
    }
}

/// Whether something listens at iscsid's socket.
///
/// # Errors
/// That of connecting.
pub fn connect() -> io::Result<UnixStream> {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(SOCKET)?)
}

fn timed_out(error: &io::Error) -> bool {
    use io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut)
}

fn silent(timeout: Duration) -> StepError {
    because(
        Reason::DeadlineExceeded,
        format!("iscsid did not answer within {} s", timeout.as_secs()),
    )
}

fn not_running(error: io::Error) -> StepError {
    because(
        Reason::StepFailed,
        format!("iscsid does not answer ({error}): start it on the node (systemctl start iscsid)"),
    )
}

/// The process that made the socket; with socket activation that is not iscsid but systemd.
fn peer(socket: &UnixStream) -> Option<u32> {
    let pid = getsockopt(socket, PeerCredentials).ok()?.pid();
    u32::try_from(pid).ok().filter(|p| is_iscsid(*p))
}

fn by_pid_file() -> Option<u32> {
    let text = sysfs::attribute("/proc/1/root/run/iscsid.pid".as_ref()).ok()??;
    text.parse().ok().filter(|p| is_iscsid(*p))
}

fn by_name() -> Option<u32> {
    sysfs::names("/proc".as_ref())
        .ok()?
        .filter_map(|n| n.parse().ok())
        .find(|p| is_iscsid(*p))
}

fn is_iscsid(pid: u32) -> bool {
    let comm = sysfs::attribute(format!("/proc/{pid}/comm").as_ref());
    matches!(comm, Ok(Some(name)) if name == "iscsid")
}

/// Version of the program that a process runs, out of the program itself: no process is started for it, and it is the
/// one that answers even where a newer one was installed meanwhile.
fn version_of(pid: u32) -> io::Result<Option<String>> {
    let mut program = Vec::new();
    File::open(format!("/proc/{pid}/exe"))?
        .take(MAX_PROGRAM)
        .read_to_end(&mut program)?;
    Ok(version_in(&program))
}

pub(crate) fn version_in(program: &[u8]) -> Option<String> {
    let at = memmem::find(program, MARK)? + MARK.len();
    let version: String = program[at..]
        .iter()
        .take(32)
        .take_while(|b| b.is_ascii_graphic())
        .map(|b| *b as char)
        .collect();
    (!version.is_empty()).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_in_the_program() {
        let program = b"\0\0x# BEGIN RECORD 2.1.8\n\0# END RECORD";
        assert_eq!(version_in(program).as_deref(), Some("2.1.8"));
        assert_eq!(version_in(b"nothing"), None);
        assert_eq!(version_in(b"# BEGIN RECORD \n"), None);
    }
}

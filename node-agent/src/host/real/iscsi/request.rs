//! Requests to iscsid and what its answers mean.

use cryptvol_crds::conditions::Reason;
use zeroize::Zeroizing;

use super::layout::Layout;
use crate::host::{Chap, Portal, StepError, real::error::because};

/// Seconds for one login. A dead portal must not hold a worker for the two minutes that are open-iscsi's default.
pub const LOGIN_TIMEOUT: i32 = 10;
/// How often iscsid tries, each time as long as `LOGIN_TIMEOUT`: whoever asks tries again by itself.
pub const LOGIN_TRIES: i32 = 1;

/// How long I/O waits for a session that is down before it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// There is no other way: as long as is usual.
    Only,
    /// Another path takes over, or the map above waits.
    OneOfSeveral,
}

impl Patience {
    /// In seconds, of which 120 is open-iscsi's default and 5 what its README advises below multipath.
    pub fn seconds(self) -> i32 {
        match self {
            Self::Only => 120,
            Self::OneOfSeveral => 5,
        }
    }
}

/// Commands of iscsid (`iscsiadm_cmd_e`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Makes a session.
    Login = 1,
    /// Ends a session.
    Logout = 2,
    /// Tells the initiator's name; harmless, so it also shows whether the layout is right.
    InitiatorName = 8,
}

/// A request, wiped when dropped: it may hold a CHAP secret.
pub struct Request {
    bytes: Zeroizing<Vec<u8>>,
    command: Command,
}

impl Request {
    fn new(layout: &Layout, command: Command) -> Self {
        let mut request = Self {
            bytes: Zeroizing::new(vec![0; layout.request_size]),
            command,
        };
        request.number(0, command as i32);
        request
    }

    /// The bytes to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What is asked.
    pub fn command(&self) -> Command {
        self.command
    }

    fn number(&mut self, at: usize, value: i32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    /// Text in a field of `len` bytes that ends with NUL.
    fn text(&mut self, at: usize, len: usize, value: &str) -> Result<(), StepError> {
        if value.len() >= len || value.contains('\0') {
            return Err(because(
                Reason::StepFailed,
                format!("a text for iscsid does not fit into {len} bytes"),
            ));
        }
        self.bytes[at..at + value.len()].copy_from_slice(value.as_bytes());
        Ok(())
    }
}

/// Asks for the initiator's name.
pub fn initiator_name(layout: &Layout) -> Request {
    Request::new(layout, Command::InitiatorName)
}

/// Asks for the end of a session.
pub fn logout(layout: &Layout, sid: u32) -> Request {
    let mut request = Request::new(layout, Command::Logout);
    request.number(layout.sid, sid as i32);
    request
}

/// Asks for a session, with open-iscsi's defaults but for timers and for scanning, which is left to us.
///
/// # Errors
/// `StepFailed` when a name is too long, `ChapRejected` when the CHAP credentials are.
pub fn login(
    layout: &Layout,
    iqn: &str,
    portal: &Portal,
    patience: Patience,
    chap: Option<&Chap>,
) -> Result<Request, StepError> {
    let l = layout;
    let mut r = Request::new(l, Command::Login);
    r.text(l.name, 255, iqn)?;
    r.text(l.address, 1025, &portal.address)?;
    r.text(l.iface_name, 65, "default")?;
    r.text(l.transport_name, 16, "tcp")?;
    for (at, value) in [
        (l.tpgt, -1),
        (l.disc_type, 4), // static
        (l.xmit_thread_priority, -20),
        (l.cmds_max, 128),
        (l.queue_depth, 32),
        (l.initial_login_retry_max, LOGIN_TRIES),
        (l.nr_sessions, 1),
        (l.scan, 0), // by us, one LUN at a time
        (l.replacement_timeout, patience.seconds()),
        (l.abort_timeout, 15),
        (l.host_reset_timeout, 60),
        (l.lu_reset_timeout, 30),
        (l.tgt_reset_timeout, 30),
        (l.immediate_data, 1),
        (l.first_burst_length, 262_144),
        (l.max_burst_length, 16_776_192),
        (l.default_time2wait, 2),
        (l.max_connections, 1),
        (l.max_outstanding_r2t, 1),
        (l.fast_abort, 1),
        (l.port, i32::from(portal.port)),
        (l.window_size, 524_288),
        (l.login_timeout, LOGIN_TIMEOUT),
        (l.logout_timeout, 15),
        (l.auth_timeout, 45),
        (l.noop_out_interval, 5),
        (l.noop_out_timeout, 5),
        (l.max_recv_data_segment_length, 262_144),
        (l.chap_algs, 5), // MD5, the only one that every target has
        (l.chap_algs + 4, -1),
        (l.chap_algs + 8, -1),
        (l.chap_algs + 12, -1),
        (l.chap_algs + 16, -1),
    ] {
        r.number(at, value);
    }
    if let Some(chap) = chap {
        let too_long = |_| because(Reason::ChapRejected, "the CHAP credentials are too long");
        r.number(l.authmethod, 1);
        r.text(l.username, 256, &chap.username).map_err(too_long)?;
        r.text(l.password, 256, &chap.password).map_err(too_long)?;
        r.number(l.password_length, chap.password.len() as i32);
        if let Some(target) = &chap.target {
            r.text(l.username_in, 256, &target.username)
                .map_err(too_long)?;
            r.text(l.password_in, 256, &target.password)
                .map_err(too_long)?;
            r.number(l.password_in_length, target.password.len() as i32);
        }
    }
    Ok(r)
}

/// What iscsid said (`iscsi_err.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub i32);

impl Code {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// No such session.
    pub const SESSION_NOT_FOUND: Self = Self(2);
    /// There is such a session.
    pub const SESSION_EXISTS: Self = Self(15);
    /// Refused, and trying again would not help: no such target there, or a target that does not prove itself.
    pub const FATAL_LOGIN: Self = Self(19);
    /// The target refuses the credentials.
    pub const AUTHENTICATION_FAILED: Self = Self(24);

    /// What it means for a login.
    pub fn of_login(self, iqn: &str, portal: &Portal, initiator: &str) -> StepError {
        let (reason, what) = match self.0 {
            4 | 8 | 11 | 33 => (
                Reason::PortalUnreachable,
                format!("{portal} does not answer the iSCSI login"),
            ),
            24 => (
                Reason::ChapRejected,
                format!("{iqn} refuses the login of {initiator}: authentication failed"),
            ),
            // Of the initiator's errors iscsid tells authentication from all others, and "target not found" is the
            // other one that occurs.
            19 => (
                Reason::TargetNotFound,
                format!("{portal} refuses the login of {initiator} to {iqn}"),
            ),
            5 => (
                Reason::StepFailed,
                format!("{iqn} answers the login with an error of its own"),
            ),
            12 => (
                Reason::StepFailed,
                "the kernel has no iSCSI over TCP: load the module iscsi_tcp".into(),
            ),
            other => (
                Reason::StepFailed,
                format!("iscsid could not log in to {iqn}: {}", Self(other)),
            ),
        };
        because(reason, format!("{what} (open-iscsi error {})", self.0))
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            2 => "no such session",
            3 => "no memory",
            7 => "invalid argument",
            9 => "internal error",
            10 => "logout failed",
            13 => "permission denied",
            16 => "request not understood",
            23 => "no such SCSI host",
            28 => "in use",
            29 => "try again",
            32 => "session not connected",
            _ => "unknown cause",
        })
    }
}

/// Reads an answer: its command must be the one that was asked.
pub fn answer(bytes: &[u8], asked: Command) -> Option<Code> {
    let number = |at: usize| Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let code = Code(number(4)?);
    // An error can come without the command.
    (code != Code::SUCCESS || number(0)? == asked as i32).then_some(code)
}

/// Text of an answer.
pub fn answer_text(bytes: &[u8]) -> String {
    let text = bytes.get(8..).unwrap_or_default();
    let end = text.iter().position(|b| *b == 0).unwrap_or(0);
    String::from_utf8_lossy(&text[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{super::layout, *};
    use crate::host::TargetChap;

    const IQN: &str = "iqn.2026-11.dev.example:db-0";

    fn portal() -> Portal {
        Portal {
            address: "fd00::1".into(),
            port: 3261,
        }
    }

    #[test]
    fn only_measured_versions_are_spoken_to() {
        assert!(layout::of_version("2.1.8").is_some());
        for other in ["2.1.4", "2.1.10", "2.1.11", "2.1.8-rc1", ""] {
            assert!(layout::of_version(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_login_carries_target_and_secret() {
        let layout = layout::of_version("2.1.8").unwrap();
        let chap = Chap {
            username: "node-1".into(),
            password: "a secret of chap".into(),
            target: Some(TargetChap {
                username: "array".into(),
                password: "its proof of chap".into(),
            }),
        };
        let request = login(layout, IQN, &portal(), Patience::OneOfSeveral, Some(&chap)).unwrap();
        let bytes = request.bytes();
        assert_eq!(bytes.len(), 16104);
        assert_eq!(bytes[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[32..61], b"iqn.2026-11.dev.example:db-0\0");
        assert_eq!(&bytes[2252..2260], b"fd00::1\0");
        assert_eq!(bytes[3280..3284], 3261_i32.to_ne_bytes());
        assert_eq!(&bytes[596..613], b"a secret of chap\0");
        assert_eq!(bytes[852..856], 16_i32.to_ne_bytes());
        assert_eq!(&bytes[856..862], b"array\0");
        assert_eq!(&bytes[1112..1130], b"its proof of chap\0");
        assert_eq!(bytes[1368..1372], 17_i32.to_ne_bytes());
        assert_eq!(bytes[332..336], [0; 4]);
        assert_eq!(bytes[1392..1396], 5_i32.to_ne_bytes());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let layout = layout::of_version("2.1.8").unwrap();
        assert!(login(layout, &"i".repeat(255), &portal(), Patience::Only, None).is_err());
        let chap = Chap {
            username: "n".into(),
            password: "p".repeat(256),
            target: None,
        };
        let error = login(layout, IQN, &portal(), Patience::Only, Some(&chap))
            .err()
            .unwrap();
        assert_eq!(error.reason(), Reason::ChapRejected);
        assert!(!error.message.contains("ppp"));
    }

    #[test]
    fn codes_become_reasons() {
        for (code, reason) in [
            (4, Reason::PortalUnreachable),
            (8, Reason::PortalUnreachable),
            (19, Reason::TargetNotFound),
            (24, Reason::ChapRejected),
            (5, Reason::StepFailed),
            (1, Reason::StepFailed),
        ] {
            assert_eq!(
                Code(code).of_login(IQN, &portal(), "iqn.x:y").reason(),
                reason
            );
        }
    }

    #[test]
    fn an_answer_to_something_else_is_none() {
        let mut bytes = vec![0; 2464];
        bytes[0] = 1;
        assert_eq!(answer(&bytes, Command::Login), Some(Code::SUCCESS));
        assert_eq!(answer(&bytes, Command::Logout), None);
        bytes[4] = 24;
        assert_eq!(answer(&bytes, Command::Logout), Some(Code(24)));
        assert_eq!(answer(&bytes[..6], Command::Login), None);
    }
}

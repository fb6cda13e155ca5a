//! Asks an array for the portals of one target (SendTargets in a discovery session, RFC 7143). open-iscsi does this in `iscsiadm`, with
//! secrets in its database on the node's disk; here they stay in memory.
//!
//! `pdu`, `text`, `chap` and `session` know the protocol and do no I/O; `bounds` says which portals count; this file has the connection.
//! What comes from the array is bounded in bytes, in PDUs and in time.

pub mod bounds;
mod chap;
mod pdu;
mod session;
mod text;

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use cryptvol_crds::conditions::Reason;

use super::portals::Race;
use crate::host::{Chap, Discovered, Portal, StepError, Target, real::error::because};
use chap::Challenge;
use pdu::{HEADER, Header};
use session::{Next, Question, Session};

#[cfg(test)]
pub mod tests;

/// How long one portal may take, from its connection to its last word.
const ONE: Duration = Duration::from_secs(8);
/// After this no further portal is asked.
const ALL: Duration = Duration::from_secs(15);

/// Why a portal tells nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// What came is not of the protocol, or not of this session.
    #[error("its answer is no iSCSI discovery: {0}")]
    Malformed(&'static str),
    /// More than anybody wants to know.
    #[error("its answer is too long")]
    TooMuch,
    /// It does not let this initiator ask.
    #[error("it refuses the discovery: {0}")]
    Refused(String),
    /// It does not prove that it knows the secret that it must know.
    #[error("it does not prove that it knows its CHAP secret for discovery")]
    NotAuthentic,
    /// It cannot, or does not want to.
    #[error("{0}")]
    Failed(String),
    /// The connection broke, or took too long.
    #[error("{0}")]
    Connection(String),
}

impl Problem {
    fn reason(&self) -> Reason {
        match self {
            Self::Refused(_) | Self::NotAuthentic => Reason::DiscoveryRejected,
            _ => Reason::DiscoveryFailed,
        }
    }

    /// What another portal may do better. Refused credentials are shown nowhere else: arrays lock accounts.
    fn leaves_it_to_the_next(&self) -> bool {
        self.reason() == Reason::DiscoveryFailed
    }
}

/// Asks the portals of a target, the first that answers in their order, for further ones.
///
/// # Errors
/// `DiscoveryRejected`, `DiscoveryFailed`.
pub fn discover(
    initiator: &str,
    target: &Target,
    chap: Option<&Chap>,
) -> Result<Discovered, StepError> {
    let begun = Instant::now();
    let mut said = Vec::new();
    let mut race = Race::begin(&target.portals);
    while let Some(portal) = race.next() {
        let question = Question {
            initiator,
            iqn: &target.iqn,
            chap,
            isid: isid(),
            challenge: Challenge {
                id: rand::random(),
                bytes: rand::random(),
            },
        };
        let problem = match ask(&portal, question) {
            Ok(told) if told.is_empty() => {
                Problem::Failed(format!("it tells of no portal of {}", target.iqn))
            }
            Ok(told) => return Ok(bounds::admit(&target.portals, told)),
            Err(problem) => problem,
        };
        let sentence = format!("portal {portal} was asked for others: {problem}");
        if !problem.leaves_it_to_the_next() {
            return Err(because(problem.reason(), sentence));
        }
        said.push(sentence);
        if begun.elapsed() > ALL {
            break;
        }
    }
    said.extend(race.away());
    Err(because(Reason::DiscoveryFailed, said.join("; ")))
}

/// An initiator session id of chance (RFC 7143 section 11.12.5, type 10b).
fn isid() -> [u8; 6] {
    let [a, b, c]: [u8; 3] = rand::random();
    [0x80, a, b, c, 0, 0]
}

fn ask(portal: &Portal, question: Question) -> Result<Vec<String>, Problem> {
    let address: IpAddr = portal
        .address
        .parse()
        .map_err(|_| Problem::Connection("it has no address".to_owned()))?;
    let until = Instant::now() + ONE;
    let stream = TcpStream::connect_timeout(&SocketAddr::new(address, portal.port), ONE);
    let mut line = Line {
        stream: stream.map_err(|e| Problem::Connection(format!("no TCP connection: {e}")))?,
        until,
    };
    let (mut session, first) = Session::begin(question);
    line.send(&first)?;
    loop {
        let (header, data) = line.receive()?;
        match session.take(&header, &data)? {
            Next::Send(pdu) => line.send(&pdu)?,
            Next::Wait => {}
            Next::Found(told) => {
                // All is known; whether the target hears the end of it matters to nobody.
                let _ = line.send(&session.logout());
                return Ok(told);
            }
        }
    }
}

/// A connection that ends at a time, however slowly the other side speaks.
struct Line {
    stream: TcpStream,
    until: Instant,
}

impl Line {
    fn left(&self) -> Result<Duration, Problem> {
        let left = self.until.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(broken(&io::ErrorKind::TimedOut.into())),
            false => Ok(left),
        }
    }

    fn send(&mut self, pdu: &[u8]) -> Result<(), Problem> {
        let left = self.left()?;
        let stream = &mut self.stream;
        let set = stream.set_write_timeout(Some(left));
        set.and_then(|()| stream.write_all(pdu))
            .map_err(|e| broken(&e))
    }

    fn receive(&mut self) -> Result<(Header, Vec<u8>), Problem> {
        let mut head = [0; HEADER];
        self.fill(&mut head)?;
        let header = Header::read(head)?;
        let mut data = vec![0; header.padded_length()];
        self.fill(&mut data)?;
        data.truncate(header.data_length());
        Ok((header, data))
    }

    fn fill(&mut self, mut into: &mut [u8]) -> Result<(), Problem> {
        while !into.is_empty() {
            let left = self.left()?;
            let set = self.stream.set_read_timeout(Some(left));
            match set.and_then(|()| self.stream.read(into)) {
                Ok(0) => return Err(broken(&io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => into = &mut into[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(broken(&e)),
            }
        }
        Ok(())
    }
}

fn broken(error: &io::Error) -> Problem {
    use io::ErrorKind::{TimedOut, UnexpectedEof, WouldBlock};
    Problem::Connection(match error.kind() {
        TimedOut | WouldBlock => format!("no answer within {} s", ONE.as_secs()),
        UnexpectedEof => "it closed the connection".to_owned(),
        _ => format!("the connection broke: {error}"),
    })
}

//! A discovery session (RFC 7143 sections 6 and 11, SendTargets in appendix C) without any I/O: what to send next, by what came. Bounded in
//! PDUs and bytes, whatever the target does.

use super::{
    Problem,
    chap::{self, Challenge},
    pdu::{self, Header, Kind, MAX_DATA, NO_TAG, Numbers, Phase},
    text,
};
use crate::host::Chap;

/// Most PDUs that are taken from a target.
const MAX_PDUS: usize = 256;
/// Longest text that is put together of several PDUs, in bytes: some ten thousand portals.
const MAX_TEXT: usize = 1 << 20;
/// Most addresses that are looked at.
const MAX_ADDRESSES: usize = 256;

/// What to find out, and who asks.
#[derive(Debug)]
pub struct Question<'a> {
    /// Name of this initiator.
    pub initiator: &'a str,
    /// Name of the target whose portals are asked for.
    pub iqn: &'a str,
    /// Credentials of the discovery.
    pub chap: Option<&'a Chap>,
    /// Initiator session id: random.
    pub isid: [u8; 6],
    /// What the target has to answer to: random.
    pub challenge: Challenge,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this and wait for the next PDU.
    Send(Vec<u8>),
    /// Wait for the next PDU.
    Wait,
    /// The target told all: addresses of its portals as it wrote them.
    Found(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Ways to authenticate were offered.
    Offered,
    /// The algorithm of CHAP was named.
    ChapBegun,
    /// The target's challenge was answered.
    ChapAnswered,
    /// All is said of security, and the target agrees or says more.
    SecurityEnds,
    /// Login keys were offered.
    Operational,
    /// Targets were asked for: the one, or all.
    Asked { all: bool },
}

/// A session that goes on.
#[derive(Debug)]
pub struct Session<'a> {
    question: Question<'a>,
    at: At,
    numbers: Numbers,
    /// Text of PDUs before the last.
    text: Vec<u8>,
    pdus: usize,
    bytes: usize,
}

impl<'a> Session<'a> {
    /// Begins, with the first PDU to send.
    pub fn begin(question: Question<'a>) -> (Self, Vec<u8>) {
        let numbers = Numbers {
            isid: question.isid,
            itt: 1,
            cmd_sn: 1,
            exp_stat_sn: 0,
        };
        // One who must prove itself cannot say that nobody has to.
        let (ways, to) = match question.chap {
            None => ("None", Some(Phase::Operational)),
            Some(chap) if chap.target.is_some() => ("CHAP", None),
            Some(_) => ("CHAP,None", None),
        };
        let first = pdu::login(
            numbers,
            Phase::Security,
            to,
            &text::write(&[
                ("InitiatorName", question.initiator),
                ("SessionType", "Discovery"),
                ("AuthMethod", ways),
            ]),
        );
        let session = Self {
            question,
            at: At::Offered,
            numbers,
            text: Vec::new(),
            pdus: 0,
            bytes: 0,
        };
        (session, first)
    }

    /// Takes a PDU of the target.
    ///
    /// # Errors
    /// The session is of no further use then.
    pub fn take(&mut self, header: &Header, data: &[u8]) -> Result<Next, Problem> {
        self.pdus += 1;
        self.bytes += data.len();
        if self.pdus > MAX_PDUS || self.bytes > MAX_TEXT {
            return Err(Problem::TooMuch);
        }
        match (header.kind(), self.at) {
            (Kind::Other, _) => Ok(Next::Wait),
            (Kind::Login, at) if !matches!(at, At::Asked { .. }) => self.of_login(header, data),
            (Kind::Text, At::Asked { all }) => self.of_text(header, data, all),
            // Some know nothing but all their targets.
            (Kind::Reject, At::Asked { all: false }) => {
                self.numbers.exp_stat_sn = header.stat_sn().wrapping_add(1);
                Ok(self.ask(true))
            }
            (Kind::Reject, _) => Err(Problem::Failed("it rejects the request".to_owned())),
            (Kind::Login | Kind::Text, _) => Err(Problem::Malformed("an answer out of turn")),
        }
    }

    /// What ends the session.
    pub fn logout(&mut self) -> Vec<u8> {
        self.numbers.itt += 1;
        pdu::logout(self.numbers)
    }

    fn of_login(&mut self, header: &Header, data: &[u8]) -> Result<Next, Problem> {
        status(header)?;
        if header.itt() != self.numbers.itt || header.version() != 0 {
            return Err(Problem::Malformed("an answer to another login"));
        }
        self.numbers.exp_stat_sn = header.stat_sn().wrapping_add(1);
        let phase = match self.at {
            At::Operational => Phase::Operational,
            _ => Phase::Security,
        };
        if header.current() != phase as u8 || (header.continues() && header.is_last()) {
            return Err(Problem::Malformed("an answer in another stage"));
        }
        self.text.extend_from_slice(data);
        if header.continues() {
            return Ok(Next::Send(pdu::login(self.numbers, phase, None, &[])));
        }
        let text = std::mem::take(&mut self.text);
        match self.at {
            At::Offered => self.offered(header, &text),
            At::ChapBegun => {
                if header.is_last() {
                    return Err(Problem::Malformed("a login that ends before its time"));
                }
                let chap = self.question.chap.ok_or(Problem::Malformed("CHAP"))?;
                let answer = chap::answer(&text, chap, self.question.challenge)?;
                Ok(self.security(At::ChapAnswered, &answer, true))
            }
            At::ChapAnswered => {
                if let Some(target) = self.question.chap.and_then(|c| c.target.as_ref()) {
                    chap::check(&text, target, self.question.challenge)?;
                }
                self.security_ends(header)
            }
            At::SecurityEnds => self.security_ends(header),
            At::Operational => self.operational(header, &text),
            At::Asked { .. } => Err(Problem::Malformed("an answer out of turn")),
        }
    }

    fn offered(&mut self, header: &Header, text: &[u8]) -> Result<Next, Problem> {
        let way = text::value(text, "AuthMethod")?;
        match (way, self.question.chap) {
            (Some("CHAP"), Some(_)) if !header.is_last() => {
                let algorithm = text::write(&[("CHAP_A", chap::MD5)]);
                Ok(self.security(At::ChapBegun, &algorithm, false))
            }
            (None | Some("None"), None) => self.security_ends(header),
            // It lets everybody in; whoever must prove itself has to be asked to.
            (Some("None"), Some(chap)) if chap.target.is_none() => {
                if header.is_last() {
                    return Err(Problem::Malformed("a login that ends before its time"));
                }
                Ok(self.security(At::SecurityEnds, &[], true))
            }
            (Some("None"), Some(_)) => Err(Problem::NotAuthentic),
            (Some("CHAP"), None) => Err(Problem::Refused("it wants CHAP".to_owned())),
            _ => Err(Problem::Refused(
                "it wants to be shown who asks in a way that is not known here".to_owned(),
            )),
        }
    }

    fn security(&mut self, at: At, text: &[u8], last: bool) -> Next {
        self.at = at;
        let to = last.then_some(Phase::Operational);
        Next::Send(pdu::login(self.numbers, Phase::Security, to, text))
    }

    fn security_ends(&mut self, header: &Header) -> Result<Next, Problem> {
        match (header.is_last(), header.next()) {
            (false, _) => Ok(self.security(At::SecurityEnds, &[], true)),
            (true, next) if next == Phase::Operational as u8 => {
                self.at = At::Operational;
                let longest = MAX_DATA.to_string();
                Ok(self.operation(&text::write(&[
                    ("HeaderDigest", "None"),
                    ("DataDigest", "None"),
                    ("MaxRecvDataSegmentLength", &longest),
                    ("DefaultTime2Wait", "2"),
                    ("DefaultTime2Retain", "0"),
                ])))
            }
            (true, _) => Err(Problem::Malformed("a stage that was not asked for")),
        }
    }

    fn operation(&self, text: &[u8]) -> Next {
        let to = Some(Phase::Full);
        Next::Send(pdu::login(self.numbers, Phase::Operational, to, text))
    }

    fn operational(&mut self, header: &Header, text: &[u8]) -> Result<Next, Problem> {
        for key in ["HeaderDigest", "DataDigest"] {
            if text::value(text, key)?.is_some_and(|v| v != "None") {
                return Err(Problem::Malformed("digests that nobody asked for"));
            }
        }
        match (header.is_last(), header.next()) {
            (false, _) => Ok(self.operation(&[])),
            (true, next) if next == Phase::Full as u8 => Ok(self.ask(false)),
            (true, _) => Err(Problem::Malformed("a stage that was not asked for")),
        }
    }

    fn ask(&mut self, all: bool) -> Next {
        self.at = At::Asked { all };
        self.numbers.itt += 1;
        let whose = if all { "All" } else { self.question.iqn };
        self.send_text(NO_TAG, &text::write(&[("SendTargets", whose)]))
    }

    fn send_text(&mut self, ttt: u32, text: &[u8]) -> Next {
        let pdu = pdu::text(self.numbers, ttt, text);
        self.numbers.cmd_sn += 1;
        Next::Send(pdu)
    }

    fn of_text(&mut self, header: &Header, data: &[u8], all: bool) -> Result<Next, Problem> {
        if header.itt() != self.numbers.itt {
            return Err(Problem::Malformed("an answer to another request"));
        }
        self.numbers.exp_stat_sn = header.stat_sn().wrapping_add(1);
        self.text.extend_from_slice(data);
        let more = header.continues() || !header.is_last();
        if more {
            return match header.ttt() {
                NO_TAG => Err(Problem::Malformed("an answer without an end")),
                _ if header.is_last() => Err(Problem::Malformed("an answer without an end")),
                ttt => Ok(self.send_text(ttt, &[])),
            };
        }
        let text = std::mem::take(&mut self.text);
        let found = addresses(&text, self.question.iqn)?;
        match found.is_empty() && !all {
            true => Ok(self.ask(true)),
            false => Ok(Next::Found(found)),
        }
    }
}

/// The addresses that belong to a target; those of others are nobody's business here.
fn addresses(text: &[u8], iqn: &str) -> Result<Vec<String>, Problem> {
    let mut ours = false;
    let mut found = Vec::new();
    for pair in text::pairs(text) {
        match pair? {
            ("TargetName", name) => ours = name == iqn,
            ("TargetAddress", address) if ours => match found.len() {
                MAX_ADDRESSES => return Err(Problem::TooMuch),
                _ => found.push(address.to_owned()),
            },
            _ => {}
        }
    }
    Ok(found)
}

/// What the status of a login says (RFC 7143 section 11.13.5).
fn status(header: &Header) -> Result<(), Problem> {
    match header.status() {
        (0, _) => Ok(()),
        (1, _) => Err(Problem::Failed(
            "it sends the discovery to another place, which is not followed: name that portal"
                .to_owned(),
        )),
        (2, 1) => Err(Problem::Refused("authentication failed".to_owned())),
        (2, 2) => Err(Problem::Refused("this initiator is not allowed".to_owned())),
        (class, detail) => Err(Problem::Failed(format!(
            "it refuses the discovery with status {class:#04x}{detail:02x}"
        ))),
    }
}

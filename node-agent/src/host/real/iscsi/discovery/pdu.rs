//! PDUs of iSCSI as far as a discovery session needs them (RFC 7143 section 11): written for the target, read from it. No digests, no
//! additional header segments: neither is ever asked for, and what comes all the same is refused.

use super::Problem;

/// Length of a basic header segment in bytes.
pub const HEADER: usize = 48;
/// Longest data segment that is taken, in bytes; the target is told so.
pub const MAX_DATA: usize = 64 << 10;
/// No target transfer tag.
pub const NO_TAG: u32 = u32::MAX;

const LOGIN: u8 = 0x03;
const TEXT: u8 = 0x04;
const LOGOUT: u8 = 0x06;
const IMMEDIATE: u8 = 0x40;
/// Transit, of a login; final, of a text.
const LAST: u8 = 0x80;
const CONTINUES: u8 = 0x40;

/// What a PDU of the target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Answer to a login.
    Login,
    /// Answer to a text.
    Text,
    /// A request was not understood.
    Reject,
    /// Something that a discovery does not need: a ping, an event, the end of a session.
    Other,
}

/// Stages of a login (RFC 7143 section 11.12.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Security negotiation.
    Security = 0,
    /// Operational negotiation.
    Operational = 1,
    /// Full feature phase.
    Full = 3,
}

/// Numbers that each request carries.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// Initiator session id.
    pub isid: [u8; 6],
    /// Initiator task tag.
    pub itt: u32,
    /// Command sequence number.
    pub cmd_sn: u32,
    /// Status sequence number that is expected next.
    pub exp_stat_sn: u32,
}

/// The header of a PDU from the target.
#[derive(Clone, Copy, Debug)]
pub struct Header([u8; HEADER]);

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// `Malformed` where it announces what is never taken.
    pub fn read(bytes: [u8; HEADER]) -> Result<Self, Problem> {
        let header = Self(bytes);
        if header.0[4] != 0 {
            return Err(Problem::Malformed(
                "an additional header that nobody asked for",
            ));
        }
        if header.data_length() > MAX_DATA {
            return Err(Problem::Malformed("a data segment longer than was agreed"));
        }
        Ok(header)
    }

    /// Length of the data in bytes.
    pub fn data_length(&self) -> usize {
        let [a, b, c] = [self.0[5], self.0[6], self.0[7]].map(usize::from);
        a << 16 | b << 8 | c
    }

    /// Length of the data with what fills it up to a multiple of four.
    pub fn padded_length(&self) -> usize {
        self.data_length().next_multiple_of(4)
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        match self.0[0] & 0x3f {
            0x23 => Kind::Login,
            0x24 => Kind::Text,
            0x3f => Kind::Reject,
            _ => Kind::Other,
        }
    }

    /// Transit of a login, final of a text.
    pub fn is_last(&self) -> bool {
        self.0[1] & LAST != 0
    }

    /// The text goes on in the next PDU.
    pub fn continues(&self) -> bool {
        self.0[1] & CONTINUES != 0
    }

    /// Of a login: the stage that it is in.
    pub fn current(&self) -> u8 {
        self.0[1] >> 2 & 3
    }

    /// Of a login that is last in its stage: the next stage.
    pub fn next(&self) -> u8 {
        self.0[1] & 3
    }

    /// Of a login: class and detail of its status.
    pub fn status(&self) -> (u8, u8) {
        (self.0[36], self.0[37])
    }

    /// Of a login: the version that the target speaks.
    pub fn version(&self) -> u8 {
        self.0[3]
    }

    /// Initiator task tag.
    pub fn itt(&self) -> u32 {
        self.number(16)
    }

    /// Of a text: tag to go on with.
    pub fn ttt(&self) -> u32 {
        self.number(20)
    }

    /// Status sequence number.
    pub fn stat_sn(&self) -> u32 {
        self.number(24)
    }

    fn number(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[at..at + 4]);
        u32::from_be_bytes(bytes)
    }
}

/// A login request. With `to` it says that all is said in this stage.
pub fn login(numbers: Numbers, from: Phase, to: Option<Phase>, text: &[u8]) -> Vec<u8> {
    let flags = (from as u8) << 2 | to.map_or(0, |to| LAST | to as u8);
    let mut pdu = request(LOGIN | IMMEDIATE, flags, numbers, text);
    pdu[8..14].copy_from_slice(&numbers.isid);
    pdu
}

/// A text request; with a tag the rest of an answer is asked for.
pub fn text(numbers: Numbers, ttt: u32, text: &[u8]) -> Vec<u8> {
    let mut pdu = request(TEXT, LAST, numbers, text);
    pdu[20..24].copy_from_slice(&ttt.to_be_bytes());
    pdu
}

/// Ends the session.
pub fn logout(numbers: Numbers) -> Vec<u8> {
    request(LOGOUT | IMMEDIATE, LAST, numbers, &[])
}

fn request(opcode: u8, flags: u8, numbers: Numbers, data: &[u8]) -> Vec<u8> {
    let mut pdu = vec![0; HEADER];
    pdu[0] = opcode;
    pdu[1] = flags;
    // What is said here is short; three bytes are enough.
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    pdu[5..8].copy_from_slice(&length.to_be_bytes()[1..]);
    pdu[16..20].copy_from_slice(&numbers.itt.to_be_bytes());
    pdu[24..28].copy_from_slice(&numbers.cmd_sn.to_be_bytes());
    pdu[28..32].copy_from_slice(&numbers.exp_stat_sn.to_be_bytes());
    pdu.extend_from_slice(data);
    pdu.resize(pdu.len().next_multiple_of(4), 0);
    pdu
}

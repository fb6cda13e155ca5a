//! The session against a target that is written out here, PDU by PDU. What a good one says was taken from tgtd (Debian 12).

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
};

use super::{
    chap::Challenge,
    discover,
    pdu::{HEADER, Header},
    session::{Next, Question, Session},
    *,
};
use crate::host::TargetChap;

const IQN: &str = "iqn.2026-11.dev.example:array";
const INITIATOR: &str = "iqn.2026-11.dev.example:node-1";
/// A challenge of tgtd's, and the proof that it took for the secret below.
const CHALLENGE: &str = "CHAP_A=5\0CHAP_I=1\0CHAP_C=0x8a3aeea9206150227abea1cf6163e952085df5915fc2ada6b46a46d5d27d66d489d9253e55fceda911b7846fd0ec66e3b616\0";
const PROOF: &str = "CHAP_N=u\0CHAP_R=0x2ce845fcc0a275d8bc2c36900d33bdf6\0";
/// What tgtd proved itself with, for this agent's challenge below.
const OWN_PROOF: &str = "CHAP_N=t\0CHAP_R=0x106686cc8ad16446cf2bf63bc2a7dc33\0";
const KEYS: &str = "HeaderDigest=None\0DataDigest=None\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0";

const LOGIN: u8 = 0x23;
const TEXT: u8 = 0x24;
const NO_TAG: u32 = u32::MAX;

fn chap(mutual: bool) -> Chap {
    Chap {
        username: "u".into(),
        password: "ppppppppppppp".into(),
        target: mutual.then(|| TargetChap {
            username: "t".into(),
            password: "qqqqqqqqqqqqq".into(),
        }),
    }
}

fn question(chap: Option<&Chap>) -> Question<'_> {
    Question {
        initiator: INITIATOR,
        iqn: IQN,
        chap,
        isid: [0x80, 1, 2, 3, 0, 0],
        challenge: Challenge {
            id: 7,
            bytes: [0xab; 16],
        },
    }
}

/// A PDU of a target.
#[derive(Clone)]
struct Says {
    head: [u8; HEADER],
    data: Vec<u8>,
}

impl Says {
    fn new(opcode: u8, flags: u8, data: &str) -> Self {
        let mut head = [0; HEADER];
        (head[0], head[1]) = (opcode, flags);
        let length = u32::try_from(data.len()).unwrap().to_be_bytes();
        head[5..8].copy_from_slice(&length[1..]);
        head[19] = if opcode == LOGIN { 1 } else { 2 };
        head[20..24].copy_from_slice(&NO_TAG.to_be_bytes());
        Self {
            head,
            data: data.as_bytes().to_vec(),
        }
    }

    fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.head[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [&self.head[..], &self.data].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}

fn tells(addresses: &[&str]) -> String {
    let mut text =
        "TargetName=iqn.2026-11.dev.example:another\0TargetAddress=192.0.2.9:3260,1\0".to_owned();
    text += &format!("TargetName={IQN}\0");
    for address in addresses {
        text += &format!("TargetAddress={address}\0");
    }
    text + "TargetName=iqn.2026-11.dev.example:array2\0TargetAddress=192.0.2.8:3260,1\0"
}

fn offers(way: &str, flags: u8) -> Says {
    let text = format!("TargetPortalGroupTag=1\0AuthMethod={way}\0");
    Says::new(LOGIN, flags, &text)
}

/// What a target says to one who wants no CHAP, to one who shows a secret, and to one who wants to see another.
fn good(way: Option<bool>) -> Vec<Says> {
    let ends = [
        Says::new(LOGIN, 0x87, KEYS),
        Says::new(
            TEXT,
            0x80,
            &tells(&["192.0.2.1:3260,1", "[2001:db8::2]:3260,1"]),
        ),
    ];
    let begins = match way {
        None => vec![offers("None", 0x81)],
        Some(mutual) => vec![
            offers("CHAP", 0),
            Says::new(LOGIN, 0, CHALLENGE),
            Says::new(LOGIN, 0x81, if mutual { OWN_PROOF } else { "" }),
        ],
    };
    begins.into_iter().chain(ends).collect()
}

/// Plays a session: what was sent, and how it ended.
fn play(chap: Option<&Chap>, target: &[Says]) -> (Vec<Vec<u8>>, Result<Vec<String>, Problem>) {
    let (mut session, first) = Session::begin(question(chap));
    let mut sent = vec![first];
    for says in target {
        let next = Header::read(says.head).and_then(|h| session.take(&h, &says.data));
        match next {
            Ok(Next::Send(pdu)) => sent.push(pdu),
            Ok(Next::Wait) => {}
            Ok(Next::Found(found)) => {
                sent.push(session.logout());
                return (sent, Ok(found));
            }
            Err(e) => return (sent, Err(e)),
        }
    }
    panic!("the target has said all, and the session goes on");
}

fn ends(chap: Option<&Chap>, target: &[Says]) -> Problem {
    play(chap, target).1.unwrap_err()
}

fn text_of(pdu: &[u8]) -> String {
    String::from_utf8(pdu[HEADER..].to_vec())
        .unwrap()
        .trim_end_matches('\0')
        .replace('\0', " ")
}

#[test]
fn a_session_without_chap_byte_by_byte() {
    let (sent, found) = play(None, &good(None));
    assert_eq!(found.unwrap(), ["192.0.2.1:3260,1", "[2001:db8::2]:3260,1"]);
    let head = |n: usize| sent[n][..HEADER].to_vec();
    let mut login = vec![0; HEADER];
    // Immediate login, from security to operational negotiation, 83 bytes of text; ISID, task tag 1, command 1.
    login[..8].copy_from_slice(&[0x43, 0x81, 0, 0, 0, 0, 0, 83]);
    login[8..20].copy_from_slice(&[0x80, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 1]);
    login[27] = 1;
    assert_eq!(head(0), login);
    assert_eq!(
        sent[0][HEADER..],
        *b"InitiatorName=iqn.2026-11.dev.example:node-1\0SessionType=Discovery\0AuthMethod=None\0\0"
    );
    // From operational negotiation to the full feature phase; the first status was number 0.
    (login[1], login[7], login[31]) = (0x87, 105, 1);
    assert_eq!(head(1), login);
    assert_eq!(
        text_of(&sent[1]),
        "HeaderDigest=None DataDigest=None MaxRecvDataSegmentLength=65536 DefaultTime2Wait=2 DefaultTime2Retain=0"
    );
    // A text: final, no target transfer tag.
    let mut text = vec![0; HEADER];
    (text[0], text[1], text[7]) = (0x04, 0x80, 42);
    (text[19], text[27], text[31]) = (2, 1, 1);
    text[20..24].copy_from_slice(&[0xff; 4]);
    assert_eq!(head(2), text);
    assert_eq!(text_of(&sent[2]), format!("SendTargets={IQN}"));
    let mut logout = vec![0; HEADER];
    (logout[0], logout[1]) = (0x46, 0x80);
    (logout[19], logout[27], logout[31]) = (3, 2, 1);
    assert_eq!(sent[3], logout);
    assert_eq!(sent.len(), 4);
}

#[test]
fn both_sides_prove_themselves_as_tgtd_wants_it_and_does_it() {
    for mutual in [false, true] {
        let chap = chap(mutual);
        let (sent, found) = play(Some(&chap), &good(Some(mutual)));
        assert_eq!(found.unwrap().len(), 2);
        let ways = if mutual { "CHAP" } else { "CHAP,None" };
        assert!(text_of(&sent[0]).ends_with(&format!("AuthMethod={ways}")));
        // Neither says that all is said before it is.
        let flags: Vec<_> = sent[..4].iter().map(|p| p[1]).collect();
        assert_eq!(flags, [0, 0, 0x81, 0x87]);
        assert_eq!(text_of(&sent[1]), "CHAP_A=5");
        let proof = PROOF.trim_end_matches('\0').replace('\0', " ");
        let ours = format!(" CHAP_I=7 CHAP_C=0x{}", "ab".repeat(16));
        let ours = if mutual { ours } else { String::new() };
        assert_eq!(text_of(&sent[2]), proof + &ours);
        // No secret is sent, or shown.
        let all = String::from_utf8_lossy(&sent.concat()).into_owned();
        let shown = format!("{:?}", Session::begin(question(Some(&chap))).0);
        for secret in ["pppp", "qqqq"] {
            assert!(!all.contains(secret) && !shown.contains(secret));
        }
    }
}

#[test]
fn one_way_a_target_may_let_everybody_in_and_both_ways_it_may_not() {
    let mut open = vec![offers("None", 0), Says::new(LOGIN, 0x81, "")];
    open.extend(good(None).split_off(1));
    assert_eq!(play(Some(&chap(false)), &open).1.unwrap().len(), 2);
    assert_eq!(ends(Some(&chap(true)), &open), Problem::NotAuthentic);
}

#[test]
fn what_does_not_prove_itself_is_not_believed() {
    let chap = chap(true);
    let changed = |proof: &str| {
        let mut target = good(Some(true));
        target[2] = Says::new(LOGIN, 0x81, proof);
        ends(Some(&chap), &target)
    };
    for proof in [
        "",
        "CHAP_N=t\0",
        "CHAP_N=t\0CHAP_R=0x00\0",
        "CHAP_N=x\0CHAP_R=0x106686cc8ad16446cf2bf63bc2a7dc33\0",
        "CHAP_N=t\0CHAP_R=0x106686cc8ad16446cf2bf63bc2a7dc34\0",
        "CHAP_N=t\0CHAP_R=0x106686cc8ad16446cf2bf63bc2a7dc3300\0",
    ] {
        assert_eq!(changed(proof), Problem::NotAuthentic, "{proof}");
    }
    // In base64 it is the same number.
    let mut target = good(Some(true));
    target[2] = Says::new(LOGIN, 0x81, "CHAP_N=t\0CHAP_R=0bEGaGzIrRZEbPK/Y7wqfcMw==\0");
    assert_eq!(play(Some(&chap), &target).1.unwrap().len(), 2);
    // Whoever sends our own challenge back wants to be told the answer.
    let mut target = good(Some(true));
    let back = format!("CHAP_A=5\0CHAP_I=7\0CHAP_C=0x{}\0", "ab".repeat(16));
    target[1] = Says::new(LOGIN, 0, &back);
    assert!(matches!(ends(Some(&chap), &target), Problem::Malformed(_)));
}

#[test]
fn a_refusal_is_a_refusal_and_anything_else_is_not() {
    let status = |class, detail| Says::new(LOGIN, 0, "").with(36, &[class, detail]);
    for (says, reason) in [
        (status(2, 1), Reason::DiscoveryRejected),
        (status(2, 2), Reason::DiscoveryRejected),
        (offers("Reject", 0), Reason::DiscoveryRejected),
        (offers("KRB5", 0), Reason::DiscoveryRejected),
        (status(1, 1), Reason::DiscoveryFailed),
        (status(3, 1), Reason::DiscoveryFailed),
        (Says::new(0x3f, 0x80, ""), Reason::DiscoveryFailed),
    ] {
        assert_eq!(ends(None, std::slice::from_ref(&says)).reason(), reason);
    }
    assert_eq!(
        ends(None, &[offers("CHAP", 0)]).reason(),
        Reason::DiscoveryRejected
    );
    let chap = chap(false);
    let other = Says::new(LOGIN, 0, "CHAP_A=7\0CHAP_I=1\0CHAP_C=0x00\0");
    let refused = ends(Some(&chap), &[offers("CHAP", 0), other]);
    assert_eq!(refused.reason(), Reason::DiscoveryRejected);
    let late = [
        offers("CHAP", 0),
        Says::new(LOGIN, 0, CHALLENGE),
        status(2, 1),
    ];
    assert_eq!(ends(Some(&chap), &late).reason(), Reason::DiscoveryRejected);
}

#[test]
fn an_answer_comes_in_pieces_and_some_know_only_all() {
    let whole = tells(&["192.0.2.1:3260,1", "192.0.2.2:3260,1"]);
    let (one, other) = whole.split_at(whole.len() / 2);
    let mut target = good(None);
    target.pop();
    target.extend([
        Says::new(TEXT, 0x40, one).with(20, &[0, 0, 0, 9]),
        // A ping meanwhile.
        Says::new(0x20, 0x80, ""),
        Says::new(TEXT, 0x80, other),
    ]);
    let (sent, found) = play(None, &target);
    assert_eq!(found.unwrap(), ["192.0.2.1:3260,1", "192.0.2.2:3260,1"]);
    // The rest is asked for with the target's tag, and with the next command number.
    let more = &sent[3];
    assert_eq!(
        (&more[20..24], more[27], more[7]),
        (&[0, 0, 0, 9][..], 2, 0)
    );

    for no in [
        Says::new(TEXT, 0x80, ""),
        Says::new(TEXT, 0x80, "SendTargets=Reject\0"),
        Says::new(0x3f, 0x80, ""),
    ] {
        let mut target = good(None);
        let mut all = target.pop().unwrap();
        all.head[19] = 3;
        target.extend([no.clone(), all]);
        let (sent, found) = play(None, &target);
        assert_eq!(found.unwrap().len(), 2);
        assert_eq!(text_of(&sent[3]), "SendTargets=All");
        // Asked for all it tells of others alone: nothing was found, and nobody asks for ever.
        target.pop();
        let mut none = Says::new(TEXT, 0x80, "TargetName=iqn.x:y\0TargetAddress=192.0.2.9\0");
        none.head[19] = 3;
        target.push(none);
        assert_eq!(play(None, &target).1.unwrap(), Vec::<String>::new());
    }
}

#[test]
fn what_is_no_answer_ends_the_session() {
    let malformed = |target: &[Says]| {
        let problem = ends(None, target);
        assert!(matches!(problem, Problem::Malformed(_)), "{problem:?}");
    };
    for first in [
        Says::new(TEXT, 0x80, ""),
        offers("None", 0x81).with(16, &[0, 0, 0, 9]),
        offers("None", 0x81).with(3, &[1]),
        offers("None", 0x83),
        offers("None", 0x87),
        offers("None", 0xc1),
        offers("None\0AuthMethod=None", 0x81),
        offers("None", 0x81).with(4, &[1]),
        offers("None", 0x81).with(5, &[1, 0, 1]),
        Says::new(LOGIN, 0x81, "nonsense"),
        Says::new(LOGIN, 0x81, "=x\0"),
        Says {
            data: vec![0xff, b'=', b'x'],
            ..offers("None", 0x81)
        },
    ] {
        malformed(&[first]);
    }
    let chap = chap(false);
    for second in [
        "CHAP_A=5\0CHAP_I=256\0CHAP_C=0x00\0",
        "CHAP_A=5\0CHAP_I=1\0",
        "CHAP_A=5\0CHAP_I=1\0CHAP_C=0x\0",
        "CHAP_A=5\0CHAP_I=1\0CHAP_C=0x0\0",
        "CHAP_A=5\0CHAP_I=1\0CHAP_C=ab\0",
    ] {
        let target = [offers("CHAP", 0), Says::new(LOGIN, 0, second)];
        assert!(
            matches!(ends(Some(&chap), &target), Problem::Malformed(_)),
            "{second}"
        );
    }
    let long = format!("CHAP_A=5\0CHAP_I=1\0CHAP_C=0x{}\0", "00".repeat(1025));
    let target = [offers("CHAP", 0), Says::new(LOGIN, 0, &long)];
    assert!(matches!(ends(Some(&chap), &target), Problem::Malformed(_)));
    malformed(&[
        offers("None", 0x81),
        Says::new(LOGIN, 0x87, "DataDigest=CRC32C\0"),
    ]);
    let until_text = |last: Says| {
        let mut target = good(None);
        target.pop();
        target.push(last);
        malformed(&target);
    };
    until_text(Says::new(TEXT, 0, ""));
    until_text(Says::new(TEXT, 0xc0, "").with(20, &[0; 4]));
    until_text(Says::new(TEXT, 0x80, "").with(16, &[0, 0, 0, 9]));
    until_text(Says::new(LOGIN, 0x87, ""));
}

#[test]
fn nobody_talks_for_ever() {
    let endless = |says: Says, chap: Option<&Chap>, before: usize| {
        let mut target = good(None);
        target.truncate(before);
        target.extend(vec![says; 300]);
        assert_eq!(ends(chap, &target), Problem::TooMuch);
    };
    endless(Says::new(0x20, 0x80, ""), None, 0);
    endless(Says::new(0x32, 0x80, "x"), None, 2);
    endless(Says::new(LOGIN, 0x40, "a"), None, 0);
    endless(Says::new(LOGIN, 4, ""), None, 1);
    let piece = Says::new(TEXT, 0x40, &"a".repeat(60_000)).with(20, &[0, 0, 0, 9]);
    endless(piece, None, 2);
    let many: Vec<_> = (0..300)
        .map(|n| format!("192.0.2.1:{}", 3000 + n))
        .collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let mut target = good(None);
    *target.last_mut().unwrap() = Says::new(TEXT, 0x80, &tells(&many));
    assert_eq!(ends(None, &target), Problem::TooMuch);
}

/// Streams of good targets, for the mutations of `fuzz`.
pub fn streams() -> Vec<Vec<u8>> {
    [None, Some(false), Some(true)]
        .into_iter()
        .map(|way| good(way).iter().flat_map(Says::bytes).collect())
        .collect()
}

/// Takes a stream as a connection does. Gives what was found.
pub fn take(stream: &[u8], way: Option<bool>) -> Result<Vec<String>, Problem> {
    let chap = way.map(chap);
    let (mut session, _) = Session::begin(question(chap.as_ref()));
    let mut rest = stream;
    while let Some((head, more)) = rest.split_first_chunk::<HEADER>() {
        let header = Header::read(*head)?;
        let Some(data) = more.get(..header.data_length()) else {
            break;
        };
        rest = more.get(header.padded_length()..).unwrap_or_default();
        if let Next::Found(found) = session.take(&header, data)? {
            return Ok(found);
        }
    }
    Err(Problem::Connection("closed".to_owned()))
}

/// A target on the loopback that says these PDUs, one an answer, and counts who asks.
fn target(says: Vec<Says>) -> (Portal, thread::JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let handle = thread::spawn(move || {
        let mut asked = 0;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; HEADER];
            // One who only looks whether anybody is there says nothing; one who says nothing at all twice ends this.
            if stream.read_exact(&mut head).is_err() {
                if asked > 0 {
                    break;
                }
                continue;
            }
            asked += 1;
            for says in &says {
                let length = usize::from(head[6]) << 8 | usize::from(head[7]);
                let mut data = vec![0; length.next_multiple_of(4)];
                stream.read_exact(&mut data).unwrap();
                stream.write_all(&says.bytes()).unwrap();
                if stream.read_exact(&mut head).is_err() {
                    break;
                }
            }
        }
        asked
    });
    let portal = Portal {
        address: "127.0.0.1".into(),
        port,
    };
    (portal, handle)
}

/// Ends a target of the loopback, unless it has ended.
fn say_nothing(to: &Portal) {
    drop(TcpStream::connect((to.address.as_str(), to.port)));
}

#[test]
fn over_a_connection_the_first_portal_that_tells_is_believed() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let away = Portal {
        address: "127.0.0.1".into(),
        port: closed.local_addr().unwrap().port(),
    };
    drop(closed);
    let mut says = good(Some(false));
    *says.last_mut().unwrap() = Says::new(
        TEXT,
        0x80,
        &tells(&["192.0.2.7:3260,1", "0.0.0.0:3260,1", "127.0.0.1:3260,1"]),
    );
    // The challenge of this target is fixed, so is the proof; ours is not looked at.
    let (good_portal, good_one) = target(says);
    let (rejects, _) = target(vec![Says::new(0x3f, 0x80, "")]);
    let asked = Target {
        portals: vec![away, rejects, good_portal.clone()],
        iqn: IQN.into(),
    };
    let found = discover(INITIATOR, &asked, Some(&chap(false))).unwrap();
    let portals: Vec<_> = found.portals.iter().map(ToString::to_string).collect();
    assert_eq!(portals, ["192.0.2.7:3260", "127.0.0.1:3260"]);
    assert!(found.ignored.len() == 1 && found.ignored[0].contains("0.0.0.0"));
    say_nothing(&good_portal);
    assert_eq!(good_one.join().unwrap(), 1);
}

#[test]
fn a_refused_secret_is_shown_to_no_other_portal() {
    let (refuses, first) = target(vec![
        offers("CHAP", 0),
        Says::new(LOGIN, 0, CHALLENGE),
        Says::new(LOGIN, 0, "").with(36, &[2, 1]),
    ]);
    let (other, second) = target(good(Some(false)));
    let asked = Target {
        portals: vec![refuses.clone(), other.clone()],
        iqn: IQN.into(),
    };
    let error = discover(INITIATOR, &asked, Some(&chap(false))).unwrap_err();
    assert_eq!(error.reason(), Reason::DiscoveryRejected);
    assert!(
        error.message.contains(&refuses.to_string()) && !error.message.contains("ppp"),
        "{}",
        error.message
    );
    // The others were asked whether they are there, and nothing else.
    say_nothing(&refuses);
    assert_eq!(first.join().unwrap(), 1);
    let found = discover(
        INITIATOR,
        &Target {
            portals: vec![other.clone()],
            iqn: IQN.into(),
        },
        Some(&chap(false)),
    );
    assert!(found.is_ok());
    say_nothing(&other);
    assert_eq!(second.join().unwrap(), 1);
}

//! Which of a target's portals is logged in to: the first in the volume's order that takes a TCP connection. All are asked at
//! once, and one that does not answer holds up those after it for a quarter of a second only (the connection attempt delay
//! of RFC 8305 section 8), so that nothing has to be remembered of a portal that is away.

use std::{
    io,
    net::{IpAddr, TcpStream, ToSocketAddrs},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use crate::host::Portal;

/// How long a portal's name and its TCP connection may take together.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the others may take once there is a session: they are tried again later.
const MORE: Duration = Duration::from_secs(1);
/// How long a portal may keep those after it waiting.
const HEAD_START: Duration = Duration::from_millis(250);

/// What is known of a portal.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// Nothing yet.
    Asked,
    /// It took a connection, at this address.
    Answers(IpAddr),
    /// It was given out.
    Taken,
    /// It does not answer, and why.
    Away(String),
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
enum Pick {
    /// Log in through this one.
    Take(usize, IpAddr),
    /// Wait for those that were asked.
    Wait,
    /// All were taken or are away.
    Over,
}

/// The first in order that answers; those before it are waited for while `patient`.
fn pick(seen: &[Seen], patient: bool) -> Pick {
    let mut asked = false;
    for (at, portal) in seen.iter().enumerate() {
        match portal {
            Seen::Answers(address) if !(asked && patient) => return Pick::Take(at, *address),
            Seen::Asked => asked = true,
            Seen::Answers(_) | Seen::Taken | Seen::Away(_) => {}
        }
    }
    if asked { Pick::Wait } else { Pick::Over }
}

/// Portals that were all asked at once.
pub struct Race<'a> {
    portals: &'a [Portal],
    seen: Vec<Seen>,
    answers: Receiver<(usize, io::Result<IpAddr>)>,
    begun: Instant,
    limit: Duration,
}

impl<'a> Race<'a> {
    /// Asks all.
    pub fn begin(portals: &'a [Portal]) -> Self {
        let (tell, answers) = mpsc::channel();
        for (at, portal) in portals.iter().cloned().enumerate() {
            let tell = tell.clone();
            // Not waited for: a name server may take longer than anybody wants to wait. Whoever is gone is not told.
            thread::spawn(move || drop(tell.send((at, connect(&portal)))));
        }
        Self {
            portals,
            seen: vec![Seen::Asked; portals.len()],
            answers,
            begun: Instant::now(),
            limit: CONNECT,
        }
    }

    /// From now on the rest gets a moment only.
    pub fn hurry(&mut self) {
        self.limit = self.limit.min(self.begun.elapsed() + MORE);
    }

    /// The next portal to log in through, with the address that answered in place of a name: iscsid would look names up
    /// in the one thread that serves everybody.
    pub fn next(&mut self) -> Option<Portal> {
        loop {
            let elapsed = self.begun.elapsed();
            if elapsed >= self.limit {
                for portal in self.seen.iter_mut().filter(|s| **s == Seen::Asked) {
                    *portal = Seen::Away("no answer in time".to_owned());
                }
            }
            let patient = elapsed < HEAD_START;
            match pick(&self.seen, patient) {
                Pick::Take(at, address) => {
                    self.seen[at] = Seen::Taken;
                    return Some(Portal {
                        address: address.to_string(),
                        port: self.portals[at].port,
                    });
                }
                Pick::Over => return None,
                Pick::Wait => {}
            }
            let until = if patient { HEAD_START } else { self.limit };
            match self.answers.recv_timeout(until.saturating_sub(elapsed)) {
                Ok((at, Ok(address))) => self.seen[at] = Seen::Answers(address),
                Ok((at, Err(e))) => self.seen[at] = Seen::Away(e.to_string()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    for portal in self.seen.iter_mut().filter(|s| **s == Seen::Asked) {
                        *portal = Seen::Away("it could not be asked".to_owned());
                    }
                }
            }
        }
    }

    /// Those that do not answer, in a sentence each.
    pub fn away(&self) -> impl Iterator<Item = String> + '_ {
        self.portals
            .iter()
            .zip(&self.seen)
            .filter_map(|(portal, seen)| match seen {
                Seen::Away(why) => Some(format!("no TCP connection to portal {portal}: {why}")),
                _ => None,
            })
    }
}

/// The first address of the portal that takes a connection.
fn connect(portal: &Portal) -> io::Result<IpAddr> {
    let mut last = io::Error::other("the name has no address");
    for address in (portal.address.as_str(), portal.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(_) => return Ok(address.ip()),
            Err(e) => last = e,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn the_order_counts_and_a_portal_that_is_away_holds_nobody_up_for_long() {
        use Seen::{Answers, Asked, Away, Taken};
        let away = Away(String::new());
        for (seen, patient, then) in [
            (vec![Answers(ONE), Answers(TWO)], true, Pick::Take(0, ONE)),
            (vec![Asked, Answers(TWO)], true, Pick::Wait),
            (vec![Asked, Answers(TWO)], false, Pick::Take(1, TWO)),
            (vec![away.clone(), Answers(TWO)], true, Pick::Take(1, TWO)),
            (vec![Taken, Answers(TWO)], true, Pick::Take(1, TWO)),
            // One that answers late is still taken, after the one that was quick has failed.
            (vec![Answers(ONE), Taken], false, Pick::Take(0, ONE)),
            (vec![Asked, Taken], false, Pick::Wait),
            (vec![away, Taken], false, Pick::Over),
            (vec![], true, Pick::Over),
        ] {
            assert_eq!(pick(&seen, patient), then, "{seen:?} {patient}");
        }
    }

    #[test]
    fn a_name_becomes_the_address_that_answered() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let portal = |address: &str, port| Portal {
            address: address.into(),
            port,
        };
        let portals = [
            portal("127.0.0.1", closed.local_addr().unwrap().port()),
            portal("localhost", port),
        ];
        drop(closed);
        let mut race = Race::begin(&portals);
        assert_eq!(race.next(), Some(portal("127.0.0.1", port)));
        assert_eq!(race.next(), None);
        let away: Vec<_> = race.away().collect();
        assert!(away.len() == 1 && away[0].contains("refused"), "{away:?}");
    }
}

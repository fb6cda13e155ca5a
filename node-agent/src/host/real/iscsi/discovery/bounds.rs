//! Which of the portals that an array tells of are used. Its answer decides where a node connects to, so it can only add portals, a few of them,
//! and none of a kind that leads to the node itself or to its neighbours on the wire.

use std::net::{IpAddr, Ipv4Addr};

use crate::host::{Discovered, MAX_PORTALS, Portal, shown::shown};

/// Most portals that are not used and told of one by one.
const TOLD: usize = 8;
/// Longest address that is told, in characters.
const SHOWN: usize = 64;
/// Port of iSCSI.
const PORT: u16 = 3260;

/// Sorts what an array told: portals beside the named ones, and what is not used and why.
pub fn admit<S: AsRef<str>>(named: &[Portal], told: impl IntoIterator<Item = S>) -> Discovered {
    let mut portals: Vec<Portal> = Vec::new();
    let mut ignored = Vec::new();
    let mut untold = 0;
    let mut ignore = |address: &str, why: &str| match ignored.len() {
        TOLD => untold += 1,
        _ => ignored.push(format!("{} ({why})", shown(address, SHOWN))),
    };
    for address in told {
        let address = address.as_ref();
        let Some(portal) = portal(address) else {
            ignore(address, "no IP address and port");
            continue;
        };
        if named.iter().chain(&portals).any(|p| p.is(&portal)) {
            continue;
        }
        match objection(named, &portal) {
            Some(why) => ignore(address, why),
            None if named.len() + portals.len() >= MAX_PORTALS => {
                ignore(address, "a volume has 16 portals at most");
            }
            None => portals.push(portal),
        }
    }
    if untold > 0 {
        ignored.push(format!("{untold} more"));
    }
    Discovered { portals, ignored }
}

/// `ADDRESS[:PORT][,PORTAL GROUP]`, an IPv6 address in brackets (RFC 7143 section 13.8).
fn portal(told: &str) -> Option<Portal> {
    let place = match told.rsplit_once(',') {
        Some((place, group)) => {
            group.parse::<u16>().ok()?;
            place
        }
        None => told,
    };
    let (address, port): (IpAddr, _) = match place.strip_prefix('[') {
        Some(rest) => {
            let (inner, port) = rest.split_once(']')?;
            let port = match port {
                "" => None,
                port => Some(port.strip_prefix(':')?),
            };
            (IpAddr::V6(inner.parse().ok()?), port)
        }
        None => match place.split_once(':') {
            Some((address, port)) => (IpAddr::V4(address.parse().ok()?), Some(port)),
            None => (IpAddr::V4(place.parse().ok()?), None),
        },
    };
    let port = port.map_or(Some(PORT), |p| p.parse().ok().filter(|p| *p != 0))?;
    Some(Portal {
        // One way to write an address: `::ffff:127.0.0.1` is 127.0.0.1.
        address: address.to_canonical().to_string(),
        port,
    })
}

/// Kinds of addresses that nobody is sent to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Loopback,
    LinkLocal,
    Nowhere,
    Ordinary,
}

fn kind(portal: &Portal) -> Kind {
    let Ok(address) = portal.address.parse::<IpAddr>() else {
        return Kind::Ordinary;
    };
    match address.to_canonical() {
        a if a.is_unspecified() || a.is_multicast() => Kind::Nowhere,
        a if a.is_loopback() => Kind::Loopback,
        IpAddr::V4(a) if a == Ipv4Addr::BROADCAST || a.octets()[0] == 0 => Kind::Nowhere,
        IpAddr::V4(a) if a.is_link_local() => Kind::LinkLocal,
        IpAddr::V6(a) if a.is_unicast_link_local() => Kind::LinkLocal,
        _ => Kind::Ordinary,
    }
}

/// Why a portal is not used. Where a named one is of the same kind, the array is there.
fn objection(named: &[Portal], portal: &Portal) -> Option<&'static str> {
    let kind = kind(portal);
    let named_so = named.iter().any(|p| self::kind(p) == kind);
    match kind {
        Kind::Ordinary => None,
        Kind::Nowhere => Some("not an address of one machine"),
        Kind::Loopback | Kind::LinkLocal if named_so => None,
        Kind::Loopback => Some("an address of the node itself"),
        Kind::LinkLocal => Some("a link-local address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(portals: &[(&str, u16)]) -> Vec<Portal> {
        let portal = |(address, port): &(&str, u16)| Portal {
            address: (*address).to_owned(),
            port: *port,
        };
        portals.iter().map(portal).collect()
    }

    fn texts(found: &Discovered) -> Vec<String> {
        found.portals.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn other_portals_are_added_in_every_spelling_and_once() {
        let named = named(&[("192.0.2.1", 3260)]);
        let told = [
            "192.0.2.1:3260,1",
            "192.0.2.2:3260,1",
            "192.0.2.2,2",
            "[2001:db8::2]:3261,2",
            "[2001:DB8:0::2]:3261,2",
            "[2001:db8::3]",
            "[::ffff:192.0.2.4]:3260,1",
            "192.0.2.1:3261",
        ];
        let found = admit(&named, told);
        let portals = [
            "192.0.2.2:3260",
            "[2001:db8::2]:3261",
            "[2001:db8::3]:3260",
            "192.0.2.4:3260",
            "192.0.2.1:3261",
        ];
        assert_eq!(texts(&found), portals);
        assert!(found.ignored.is_empty(), "{found:?}");
    }

    #[test]
    fn what_leads_nowhere_or_home_is_ignored_and_told() {
        let hostile = [
            "127.0.0.1:10250,1",
            "[::1]:3260,1",
            "[::ffff:127.0.0.1]:3260,1",
            "0.0.0.0:3260,1",
            "0.1.2.3:3260,1",
            "[::]:3260,1",
            "224.0.0.1:3260,1",
            "[ff02::1]:3260,1",
            "255.255.255.255:3260,1",
            "169.254.169.254:80,1",
            "[fe80::1]:3260,1",
        ];
        let ordinary = named(&[("192.0.2.1", 3260)]);
        for told in hostile {
            let found = admit(&ordinary, [told]);
            assert!(found.portals.is_empty(), "{told}");
            assert!(found.ignored[0].starts_with(told), "{found:?}");
        }
        for told in [
            "array.example:3260,1",
            "192.0.2.2:0,1",
            "192.0.2.2:65536,1",
            "192.0.2.2:3260,x",
            "192.0.2.2:",
            "2001:db8::2:3260,1",
            "[2001:db8::2]3260",
            "[fe80::1%eth0]:3260",
            "[192.0.2.2]:3260",
            "",
        ] {
            let found = admit(&ordinary, [told]);
            assert!(found.portals.is_empty(), "{told}");
            assert!(found.ignored[0].contains("no IP address"), "{found:?}");
        }
        // Where the array is named so, its others are of the same kind.
        for (name, others, not) in [
            ("fe80::9", "[fe80::1]:3260,1", "127.0.0.1:3260,1"),
            ("127.0.0.2", "127.0.0.1:3260,1", "169.254.1.1:3260,1"),
        ] {
            let found = admit(&named(&[(name, 3260)]), [others, not, "0.0.0.0:1,1"]);
            assert_eq!((found.portals.len(), found.ignored.len()), (1, 2));
        }
    }

    #[test]
    fn there_are_sixteen_at_most_and_what_is_told_is_short() {
        let named = named(&[("192.0.2.1", 3260), ("192.0.2.2", 3260)]);
        let told = (0..100).map(|n| format!("198.51.100.{n}:3260,1"));
        let found = admit(&named, told);
        assert_eq!(found.portals.len(), 14);
        assert_eq!(found.ignored.len(), 9);
        assert_eq!(found.ignored[8], "78 more");
        let found = admit(&named, ["\u{1b}[31m".repeat(99)]);
        assert!(found.ignored[0].chars().count() < 100);
        assert!(!found.ignored[0].contains(char::is_control));
    }
}

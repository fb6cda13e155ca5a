//! Where a target is reached.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Most portals of a volume, named and discovered. All are asked at once, each by a thread.
pub const MAX_PORTALS: usize = 16;

/// A portal of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Portal {
    /// Address without brackets, or a host name.
    pub address: String,
    /// TCP port.
    pub port: u16,
}

impl Portal {
    /// Whether both are the same. An IPv6 address has many spellings; names are compared as text, for looking one up could take
    /// long.
    pub fn is(&self, other: &Self) -> bool {
        let same_address = match (
            self.address.parse::<IpAddr>(),
            other.address.parse::<IpAddr>(),
        ) {
            (Ok(one), Ok(other)) => one == other,
            _ => self.address == other.address,
        };
        same_address && self.port == other.port
    }
}

impl std::fmt::Display for Portal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.address.contains(':') {
            write!(f, "[{}]:{}", self.address, self.port)
        } else {
            write!(f, "{}:{}", self.address, self.port)
        }
    }
}

/// What an array tells of further portals of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovered {
    /// Portals beside those that were named, that may be used.
    pub portals: Vec<Portal>,
    /// What it told and is not used, each with the reason.
    pub ignored: Vec<String>,
}

//! Where the array is reached, and how that breaks.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Array, PORT, Place};
use crate::process::run;
use crate::sandbox::ip_batch;

/// Longer than tgtd takes for what it has in hand; a disk is a file in memory or on a fast disk.
const IN_HAND: Duration = Duration::from_millis(300);

impl Array {
    /// The address of its first portal.
    pub fn ip(&self) -> Ipv4Addr {
        match self.state.place {
            Place::Namespace(index) => Ipv4Addr::new(10, 77, index, 1),
            Place::Loopback(_) => Ipv4Addr::LOCALHOST,
        }
    }

    /// `10.77.1.1:3260`.
    pub fn portal(&self) -> String {
        let port = match self.state.place {
            Place::Namespace(_) => PORT,
            Place::Loopback(port) => port,
        };
        format!("{}:{port}", self.ip())
    }

    /// Both portals; they lead to the same disks. On the loopback there is only one.
    pub fn portals(&self) -> [String; 2] {
        match self.state.place {
            Place::Namespace(index) => [1, 2].map(|last| format!("10.77.{index}.{last}:{PORT}")),
            Place::Loopback(_) => [self.portal(), self.portal()],
        }
    }

    /// Gives the array an IPv6 address, `[fd77:A::1]:3260`, that a node reaches once it has one beside
    /// [`Array::ipv6_gateway`]; the machine's kernel must have IPv6.
    pub fn add_ipv6(&self) -> Result<String> {
        let index = self.state.place.namespace()?;
        let (ns, gateway) = (namespace(index), self.ipv6_gateway()?);
        ip_batch(&format!(
            "addr add {gateway}/64 dev {} nodad\naddr replace fd77::1/64 dev br0 nodad\n",
            cable(index)
        ))?;
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        let address = format!("fd77:{index}::1");
        for args in [
            &[
                "addr",
                "add",
                &format!("{address}/64"),
                "dev",
                "port0",
                "nodad",
            ][..],
            &["route", "add", "default", "via", &gateway],
        ] {
            run("ip", &[&["-6", "-n", &ns], args].concat())?;
        }
        Ok(format!("[{address}]:{PORT}"))
    }

    fn ipv6_gateway(&self) -> Result<String> {
        Ok(format!("fd77:{}::254", self.state.place.namespace()?))
    }

    /// Drops everything that comes to one portal (`true`), as a broken path does; the others go on.
    pub fn cut_portal(&self, portal: &str, cut: bool) -> Result<()> {
        let ns = namespace(self.state.place.namespace()?);
        let (address, _) = portal.rsplit_once(':').context("portal")?;
        let how = if cut { "add" } else { "del" };
        // Answers go nowhere: packets vanish in silence, as with a pulled cable.
        let family = if address.starts_with('[') { "-6" } else { "-4" };
        let address = address.trim_matches(['[', ']']);
        let from = ["rule", how, "from", address, "blackhole"];
        run("ip", &[&[family, "-n", &ns][..], &from].concat()).map(|_| ())
    }

    /// Does something while no request of an initiator arrives: they are lost on the way, and its kernel sends them again afterwards. What
    /// tgtd has in hand is answered before.
    pub(super) fn held_back<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let Place::Namespace(index) = self.state.place else {
            return f(self);
        };
        let hold = |how| -> Result<()> {
            let to = format!("10.77.{index}.0/24");
            run("ip", &["rule", how, "to", &to, "blackhole"])?;
            if fs::exists("/proc/sys/net/ipv6")? {
                let to = format!("fd77:{index}::/64");
                run("ip", &["-6", "rule", how, "to", &to, "blackhole"])?;
            }
            Ok(())
        };
        hold("add")?;
        std::thread::sleep(IN_HAND);
        let done = f(self);
        hold("del")?;
        done
    }

    /// The interface, outside the array, that all its traffic passes.
    pub fn interface(&self) -> String {
        match self.state.place {
            Place::Namespace(index) => cable(index),
            Place::Loopback(_) => "lo".to_owned(),
        }
    }

    /// Pulls the cable (`true`), or puts it back: packets vanish, connections stay.
    pub fn unplug(&self, unplugged: bool) -> Result<()> {
        let index = self.state.place.namespace()?;
        run(
            "ip",
            &[
                "-n",
                &namespace(index),
                "link",
                "set",
                "port0",
                if unplugged { "down" } else { "up" },
            ],
        )?;
        if !unplugged {
            // Routes over an interface go with it.
            let gateway = format!("10.77.{index}.254");
            run(
                "ip",
                &[
                    "-n",
                    &namespace(index),
                    "route",
                    "replace",
                    "default",
                    "via",
                    &gateway,
                ],
            )?;
        }
        Ok(())
    }
}

/// Name of the array's network namespace.
pub(super) fn namespace(index: u8) -> String {
    format!("array-{index}")
}

/// Name of the cable's end outside of it.
pub(super) fn cable(index: u8) -> String {
    format!("array{index}")
}

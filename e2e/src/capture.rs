//! Records what passes an interface and searches it, packet by packet and across packets.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::BufReader;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::sys::signal::Signal;
use pcap_file::pcap::PcapReader;

use crate::array::find;
use crate::process::{Daemon, wait_for};

/// A running or ended recording.
#[derive(Debug)]
pub struct Capture {
    file: PathBuf,
    daemon: Option<Daemon>,
}

/// What a search saw. `bytes` of zero means that nothing was recorded, which proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    /// The needle was there.
    pub found: bool,
    /// TCP payload that was searched.
    pub bytes: u64,
    /// Packets that were searched.
    pub packets: u64,
    /// Places where the recording misses a piece of a connection.
    pub gaps: u64,
}

impl Capture {
    /// Records `interface` into `DIR/NAME.pcap` from the return of this call on.
    pub async fn start(dir: &Path, name: &str, interface: &str) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let file = dir.join(format!("{name}.pcap"));
        let mut command = Command::new("tcpdump");
        command
            .args([
                "-i",
                interface,
                "-n",
                "-s",
                "0",
                "-U",
                "-B",
                "65536",
                "--immediate-mode",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file);
        let daemon =
            Daemon::spawn(dir, name, command).context("start tcpdump (Debian package tcpdump)")?;
        wait_for(
            "tcpdump to listen",
            Duration::from_secs(30),
            || async {
                daemon.check()?;
                Ok(daemon.log_tail(5).contains("listening on").then_some(()))
            },
            || daemon.log_tail(5),
        )
        .await?;
        Ok(Self {
            file,
            daemon: Some(daemon),
        })
    }

    /// The file, for other tools.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// Ends the recording; it can be searched before and after.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(daemon) = self.daemon.take() else {
            return Ok(());
        };
        daemon.signal(Signal::SIGTERM)?;
        wait_for(
            "tcpdump to end",
            Duration::from_secs(30),
            || async { Ok((!daemon.is_running()).then_some(())) },
            || daemon.log_tail(5),
        )
        .await
    }

    /// Looks for `needle` in every packet, and in every TCP connection put together again in each direction.
    pub fn search(&self, needle: &[u8]) -> Result<Search> {
        search_pcap(&self.file, needle)
    }
}

/// (source, its port, destination, its port).
type Flow = (IpAddr, u16, IpAddr, u16);

/// As [`Capture::search`], of any pcap file of Ethernet frames.
pub fn search_pcap(file: &Path, needle: &[u8]) -> Result<Search> {
    if needle.is_empty() {
        bail!("nothing to search for");
    }
    let reader =
        BufReader::new(File::open(file).with_context(|| format!("open {}", file.display()))?);
    let mut reader = PcapReader::new(reader)
        .with_context(|| format!("{} is not a pcap file", file.display()))?;
    let mut result = Search {
        found: false,
        bytes: 0,
        packets: 0,
        gaps: 0,
    };
    let mut flows: HashMap<Flow, BTreeMap<i64, Vec<u8>>> = HashMap::new();
    let mut bases: HashMap<Flow, u32> = HashMap::new();
    // The last packet of a recording that goes on may be there by half.
    while let Some(Ok(packet)) = reader.next_packet() {
        result.packets += 1;
        result.found |= find(&packet.data, needle);
        let Ok(sliced) = SlicedPacket::from_ethernet(&packet.data) else {
            continue;
        };
        let (source, destination) = match &sliced.net {
            Some(NetSlice::Ipv4(ip)) => (
                IpAddr::from(ip.header().source_addr()),
                IpAddr::from(ip.header().destination_addr()),
            ),
            Some(NetSlice::Ipv6(ip)) => (
                IpAddr::from(ip.header().source_addr()),
                IpAddr::from(ip.header().destination_addr()),
            ),
            _ => continue,
        };
        let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else {
            continue;
        };
        if tcp.payload().is_empty() {
            continue;
        }
        let flow = (
            source,
            tcp.source_port(),
            destination,
            tcp.destination_port(),
        );
        let base = *bases.entry(flow).or_insert(tcp.sequence_number());
        // Sequence numbers wrap; the distance to the first one tells the order up to 2 GiB.
        let place = i64::from(tcp.sequence_number().wrapping_sub(base).cast_signed());
        let pieces = flows.entry(flow).or_default();
        if pieces
            .get(&place)
            .is_none_or(|old| old.len() < tcp.payload().len())
        {
            pieces.insert(place, tcp.payload().to_vec());
        }
    }
    for pieces in flows.into_values() {
        let mut stream: Vec<u8> = Vec::new();
        let mut next = None;
        for (place, piece) in pieces {
            let end = place + i64::try_from(piece.len())?;
            let fresh = match next {
                Some(next) if place > next => {
                    result.gaps += 1;
                    result.found |= find(&stream, needle);
                    stream.clear();
                    piece.as_slice()
                }
                Some(next) if end <= next => continue,
                Some(next) => &piece[usize::try_from(next - place)?..],
                None => piece.as_slice(),
            };
            result.bytes += fresh.len() as u64;
            stream.extend_from_slice(fresh);
            next = Some(end);
        }
        result.found |= find(&stream, needle);
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use pcap_file::pcap::{PcapPacket, PcapWriter};

    fn write(file: &Path, segments: &[(u32, &[u8])]) {
        let mut writer = PcapWriter::new(File::create(file).unwrap()).unwrap();
        for (sequence, payload) in segments {
            let builder = PacketBuilder::ethernet2([1; 6], [2; 6])
                .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
                .tcp(1000, 3260, *sequence, 1000);
            let mut bytes = Vec::new();
            builder.write(&mut bytes, payload).unwrap();
            let length = u32::try_from(bytes.len()).unwrap();
            writer
                .write_packet(&PcapPacket::new(Duration::ZERO, length, &bytes))
                .unwrap();
        }
    }

    #[test]
    fn a_needle_in_two_segments_out_of_order_and_repeated_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.pcap");
        // Sequence numbers wrap between the two; the second comes first; a part is sent again.
        let first = u32::MAX - 1;
        write(
            &file,
            &[
                (first, b"abc"),
                (first.wrapping_add(8), b"let in two"),
                (first.wrapping_add(2), b"c scar"),
            ],
        );
        let search = search_pcap(&file, b"scarlet").unwrap();
        assert_eq!(
            search,
            Search {
                found: true,
                bytes: 18,
                packets: 3,
                gaps: 0
            }
        );
        assert!(!search_pcap(&file, b"scarf").unwrap().found);
    }

    #[test]
    fn a_missing_piece_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.pcap");
        write(&file, &[(10, b"abc"), (20, b"def")]);
        assert_eq!(
            search_pcap(&file, b"cd").unwrap(),
            Search {
                found: false,
                bytes: 6,
                packets: 2,
                gaps: 1
            }
        );
    }
}

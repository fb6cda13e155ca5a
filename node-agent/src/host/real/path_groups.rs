//! Table and status of dm-multipath as text, as the kernel's `drivers/md/dm-mpath.c` reads and writes them.

use std::str::SplitWhitespace;

use super::alua::HANDLER;
use crate::host::Member;

/// The feature that lets I/O wait while there is no path.
pub const QUEUE: &str = "queue_if_no_path";

/// Parameters of a table: in each group the path with the least on its way is taken next. `alua`: the kernel's handler looks after the paths.
pub fn params(groups: &[Vec<String>], alua: bool, queues: bool) -> String {
    let counted = |words: &[&str]| {
        let mut text = vec![words.len().to_string()];
        text.extend(words.iter().map(|w| (*w).to_owned()));
        text.join(" ")
    };
    let features = counted(if queues { &[QUEUE] } else { &[] });
    // Its argument: an array that moves its disks by itself is not told to, as long as the path works (`optimize_stpg`). To turn to a group
    // would have its controller take over otherwise.
    let handler = counted(if alua { &[HANDLER, "1"] } else { &[] });
    let first = u8::from(!groups.is_empty());
    let mut params = format!("{features} {handler} {} {first}", groups.len());
    for group in groups {
        params.push_str(&format!(" service-time 0 {} 1", group.len()));
        for dev in group {
            params.push_str(&format!(" {dev} 1"));
        }
    }
    params
}

/// What a status says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The group that I/O goes to, counted from 1.
    pub current: u32,
    /// The paths, with their groups.
    pub members: Vec<Member>,
}

/// Reads a status: `<features> <handler> <groups> <current>`, then for each group `A|E|D <selector> <paths> <words a path>` and its paths, each
/// `<major>:<minor> A|F <failures>` with the selector's words. Whatever is counted stands behind its count. Nothing where it is not so.
pub fn status(text: &str) -> Option<Status> {
    let mut words = text.split_whitespace();
    skip_counted(&mut words)?;
    skip_counted(&mut words)?;
    let groups = number(&mut words)?;
    let mut status = Status {
        current: number(&mut words)?,
        members: Vec::new(),
    };
    for group in 1..=groups {
        words.next()?;
        skip_counted(&mut words)?;
        let paths = number(&mut words)?;
        let extra = number(&mut words)?;
        for _ in 0..paths {
            let dev = words.next().filter(|w| is_device_number(w))?.to_owned();
            let active = match words.next()? {
                "A" => true,
                "F" => false,
                _ => return None,
            };
            number(&mut words)?;
            skip(&mut words, extra)?;
            status.members.push(Member { dev, active, group });
        }
    }
    words.next().is_none().then_some(status)
}

fn number(words: &mut SplitWhitespace<'_>) -> Option<u32> {
    words.next()?.parse().ok()
}

fn skip(words: &mut SplitWhitespace<'_>, count: u32) -> Option<()> {
    (0..count).try_for_each(|_| words.next().map(drop))
}

fn skip_counted(words: &mut SplitWhitespace<'_>) -> Option<()> {
    let count = number(words)?;
    skip(words, count)
}

fn is_device_number(word: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    word.split_once(':')
        .is_some_and(|(major, minor)| digits(major) && digits(minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(groups: &[&[&str]]) -> Vec<Vec<String>> {
        let owned = |g: &&[&str]| g.iter().map(|d| (*d).to_owned()).collect();
        groups.iter().map(owned).collect()
    }

    #[test]
    fn a_table_names_all_paths_by_group() {
        let one = groups(&[&["8:0", "8:16"]]);
        assert_eq!(
            params(&one, false, true),
            "1 queue_if_no_path 0 1 1 service-time 0 2 1 8:0 1 8:16 1"
        );
        assert_eq!(
            params(&groups(&[&["8:0"]]), false, false),
            "0 0 1 1 service-time 0 1 1 8:0 1"
        );
        assert_eq!(
            params(&groups(&[&["8:0", "8:16"], &["8:32"]]), true, true),
            "1 queue_if_no_path 2 alua 1 2 1 service-time 0 2 1 8:0 1 8:16 1 service-time 0 1 1 8:32 1"
        );
        assert_eq!(params(&[], false, true), "1 queue_if_no_path 0 0 0");
    }

    /// As Linux 6.1 prints them, with what service-time and round-robin add.
    #[test]
    fn a_status_says_which_paths_are_used_and_which_group() {
        let of = |text| {
            let status = status(text).unwrap();
            let members = status.members.into_iter();
            let members: Vec<_> = members.map(|m| (m.dev, m.active, m.group)).collect();
            (status.current, members)
        };
        let path = |dev: &str, active, group| (dev.to_owned(), active, group);
        assert_eq!(
            of("2 0 0 0 1 1 A 0 2 2 8:0 A 0 0 1 8:16 F 1 0 1 "),
            (1, vec![path("8:0", true, 1), path("8:16", false, 1)])
        );
        assert_eq!(
            of("2 0 0 0 1 1 E 0 1 0 65:32 A 0 "),
            (1, vec![path("65:32", true, 1)])
        );
        assert_eq!(
            of("2 0 1 0 2 2 E 0 1 2 8:0 F 3 0 1 A 0 1 2 8:16 A 0 0 1 "),
            (2, vec![path("8:0", false, 1), path("8:16", true, 2)])
        );
        assert_eq!(of("2 0 0 0 0 0 "), (0, vec![]));
        for nothing in [
            "",
            "A",
            "8:0",
            "2 0 0 0 1 1 A 0 2 2 8:0 A 0 0 1",
            "2 0 0 0 1 1 A 0 1 2 8:0 X 0 0 1",
            "2 0 0 0 1 1 A 0 1 2 8 A 0 0 1",
            "2 0 0 0 1 1 A 0 1 2 8:0 A 0 0 1 more",
        ] {
            assert_eq!(status(nothing), None, "{nothing}");
        }
    }
}

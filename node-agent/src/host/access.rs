//! What an array says of its ports (ALUA): which of the paths to a disk it wants used. States as in SPC-4, 5.15.2 (*asymmetric access
//! states*), words as the kernel's sysfs has them (`sdev_access_states` in `drivers/scsi/scsi_sysfs.c`).

use serde::{Deserialize, Serialize};

/// Access state of a path to a disk whose array tells paths apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Access {
    /// To be used.
    Optimized,
    /// Works, by a longer way inside the array.
    NonOptimized,
    /// One or the other, by block.
    LbaDependent,
    /// Takes no I/O; could take over.
    Standby,
    /// Takes no I/O, as a part of the array is away.
    Unavailable,
    /// Takes no commands.
    Offline,
    /// Becomes another state just now.
    Transitioning,
    /// The array tells paths apart, and the kernel does not ask it: its handler is not attached yet.
    Unknown,
}

impl Access {
    const WORDS: [(Self, &'static str); 7] = [
        (Self::Optimized, "active/optimized"),
        (Self::NonOptimized, "active/non-optimized"),
        (Self::LbaDependent, "lba-dependent"),
        (Self::Standby, "standby"),
        (Self::Unavailable, "unavailable"),
        (Self::Offline, "offline"),
        (Self::Transitioning, "transitioning"),
    ];

    /// Of sysfs' word.
    pub fn parse(word: &str) -> Self {
        let mut words = Self::WORDS.iter();
        words
            .find(|(_, text)| *text == word)
            .map_or(Self::Unknown, |(state, _)| *state)
    }

    /// sysfs' word.
    pub fn as_str(self) -> &'static str {
        let mut words = Self::WORDS.iter();
        words
            .find(|(state, _)| *state == self)
            .map_or("unknown", |(_, text)| text)
    }

    /// Whether the path takes I/O. Of one that nobody asked about yet that is supposed: the kernel asks before it sends any.
    pub fn takes_io(self) -> bool {
        self.rank() < LAST
    }

    /// Which group of paths it belongs to: that of the least rank is used first.
    pub fn rank(self) -> u8 {
        match self {
            Self::Optimized | Self::Unknown => 0,
            Self::NonOptimized | Self::LbaDependent => 1,
            Self::Standby | Self::Unavailable | Self::Offline | Self::Transitioning => LAST,
        }
    }
}

/// Rank of paths that take no I/O.
const LAST: u8 = 2;

/// How the paths of a map are to be grouped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Paths (major:minor) by group, the group that is used first at the beginning.
    pub groups: Vec<Vec<String>>,
    /// Those that take no I/O by the array's word. They are in the map, so that the kernel finds them when all others are gone, and a
    /// failed one is not put in again as long as the array says so.
    pub idle: Vec<String>,
    /// Whether the array tells paths apart: the kernel's ALUA handler looks after them.
    pub alua: bool,
}

impl Layout {
    /// Of paths with their states; where there is none, the array makes no difference.
    pub fn of<'a>(paths: impl IntoIterator<Item = (&'a str, Option<Access>)>) -> Self {
        let mut ranks: [Vec<String>; LAST as usize + 1] = Default::default();
        let mut layout = Self::default();
        for (dev, access) in paths {
            let rank = access.map_or(0, Access::rank);
            ranks[usize::from(rank)].push(dev.to_owned());
            layout.alua |= access.is_some();
            if access.is_some_and(|a| !a.takes_io()) {
                layout.idle.push(dev.to_owned());
            }
        }
        layout.groups = ranks.into_iter().filter(|g| !g.is_empty()).collect();
        layout
    }

    /// The groups of exactly these paths. One that was not planned for comes last.
    pub fn groups_of(&self, devs: &[&str]) -> Vec<Vec<String>> {
        let planned = self.groups.iter().map(|group| {
            let here = group.iter().filter(|dev| devs.contains(&dev.as_str()));
            here.cloned().collect::<Vec<_>>()
        });
        let mut groups: Vec<_> = planned.filter(|g| !g.is_empty()).collect();
        let others = devs.iter().filter(|dev| !self.plans(dev));
        let others: Vec<_> = others.map(|dev| (*dev).to_owned()).collect();
        match groups.last_mut() {
            Some(last) => last.extend(others),
            None if others.is_empty() => {}
            None => groups.push(others),
        }
        groups
    }

    /// Whether a path takes no I/O.
    pub fn is_idle(&self, dev: &str) -> bool {
        self.idle.iter().any(|d| d == dev)
    }

    fn plans(&self, dev: &str) -> bool {
        self.groups.iter().flatten().any(|d| d == dev)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_kernel_are_read_back_and_a_new_one_is_unknown() {
        for (state, word) in Access::WORDS {
            assert_eq!((Access::parse(word), state.as_str()), (state, word));
        }
        for other in ["", "unknown", "active", "active/optimised"] {
            assert_eq!(Access::parse(other), Access::Unknown);
        }
    }

    #[test]
    fn what_is_to_be_used_comes_first_and_what_takes_no_io_last() {
        use Access::*;
        let layout = Layout::of([
            ("8:0", Some(Standby)),
            ("8:16", Some(NonOptimized)),
            ("8:32", Some(Optimized)),
            ("8:48", Some(LbaDependent)),
            ("8:64", Some(Transitioning)),
            ("8:80", Some(Unknown)),
        ]);
        assert_eq!(
            layout.groups,
            [
                vec!["8:32", "8:80"],
                vec!["8:16", "8:48"],
                vec!["8:0", "8:64"]
            ]
        );
        assert_eq!(layout.idle, ["8:0", "8:64"]);
        assert!(layout.alua);
        assert_eq!(
            layout.groups_of(&["8:0", "8:16", "65:0"]),
            [vec!["8:16"], vec!["8:0", "65:0"]]
        );
    }

    #[test]
    fn an_array_that_makes_no_difference_has_one_group() {
        let layout = Layout::of([("8:0", None), ("8:16", None)]);
        assert_eq!(layout.groups, [vec!["8:0", "8:16"]]);
        assert!(layout.idle.is_empty() && !layout.alua);
        assert_eq!(Layout::of([]), Layout::default());
        assert_eq!(
            Layout::default().groups_of(&["8:0", "8:16"]),
            [vec!["8:0", "8:16"]]
        );
        assert!(Layout::default().groups_of(&[]).is_empty());
    }
}

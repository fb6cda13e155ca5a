//! How the paths to a disk do, where a volume has several: one judgement for conditions, Events, metrics and the command line.

use crate::{conditions::Reason, v1alpha1::PathStatus};

/// What the paths of one volume are together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathsHealth {
    /// I/O goes through every portal.
    Healthy,
    /// I/O goes on, through fewer portals than are named.
    Degraded,
    /// No path works, and I/O waits for one.
    Lost,
    /// No path works, and I/O fails: it has waited long enough.
    Failing,
}

impl PathsHealth {
    /// All of them, best first.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Degraded, Self::Lost, Self::Failing];

    /// Of these paths; nothing where there are none, as a volume with one path has no list of them. `io_fails`: I/O that finds no path fails
    /// instead of waiting.
    pub fn of(paths: &[PathStatus], io_fails: bool) -> Option<Self> {
        let down = paths.iter().filter(|p| !p.up).count();
        match (paths.len(), down) {
            (0, _) => None,
            (_, 0) => Some(Self::Healthy),
            (all, down) if down < all => Some(Self::Degraded),
            _ if io_fails => Some(Self::Failing),
            _ => Some(Self::Lost),
        }
    }

    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Lost => "lost",
            Self::Failing => "failing",
        }
    }

    /// The reason in conditions and Events.
    pub fn reason(self) -> Reason {
        match self {
            Self::Healthy => Reason::AsDesired,
            Self::Degraded => Reason::PathsDegraded,
            Self::Lost => Reason::PathsLost,
            Self::Failing => Reason::PathsFailing,
        }
    }
}

/// How many paths are down, and which; empty where none is.
pub fn down(paths: &[PathStatus]) -> String {
    let down: Vec<_> = paths
        .iter()
        .filter(|p| !p.up)
        .map(|p| match &p.why {
            Some(why) => format!("{} ({why})", p.portal),
            None => p.portal.clone(),
        })
        .collect();
    match down.len() {
        0 => String::new(),
        1 => format!("1 of {} paths is down: {}", paths.len(), down[0]),
        n => format!("{n} of {} paths are down: {}", paths.len(), down.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(up: &[bool]) -> Vec<PathStatus> {
        let path = |(n, up): (usize, &bool)| PathStatus {
            portal: format!("192.0.2.{n}:3260"),
            up: *up,
            why: (!up && n == 0).then(|| "no session".to_owned()),
            ..PathStatus::default()
        };
        up.iter().enumerate().map(path).collect()
    }

    #[test]
    fn one_path_that_is_down_is_told_and_all_that_are_down_are_more_than_that() {
        for (up, health, text) in [
            (&[][..], None, ""),
            (&[true, true], Some(PathsHealth::Healthy), ""),
            (
                &[false, true],
                Some(PathsHealth::Degraded),
                "1 of 2 paths is down: 192.0.2.0:3260 (no session)",
            ),
            (
                &[false, false, true],
                Some(PathsHealth::Degraded),
                "2 of 3 paths are down: 192.0.2.0:3260 (no session), 192.0.2.1:3260",
            ),
            (
                &[false],
                Some(PathsHealth::Lost),
                "1 of 1 paths is down: 192.0.2.0:3260 (no session)",
            ),
        ] {
            let paths = paths(up);
            assert_eq!(PathsHealth::of(&paths, false), health, "{up:?}");
            // Whether I/O fails says something only where there is no path.
            let failing = health.map(|h| match h {
                PathsHealth::Lost => PathsHealth::Failing,
                h => h,
            });
            assert_eq!(PathsHealth::of(&paths, true), failing, "{up:?}");
            assert_eq!(down(&paths), text);
        }
    }
}

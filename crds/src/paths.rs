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
        let up = paths.iter().filter(|p| p.up).count();
        let down = paths.iter().filter(|p| is_down(p)).count();
        match (paths.len(), up, down) {
            (0, ..) => None,
            (_, 0, _) if io_fails => Some(Self::Failing),
            (_, 0, _) => Some(Self::Lost),
            (.., 0) => Some(Self::Healthy),
            _ => Some(Self::Degraded),
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

/// It takes no I/O and nothing is wrong with it: the array keeps it for a take-over.
pub fn is_standby(path: &PathStatus) -> bool {
    !path.up && path.why.is_none() && path.access.as_deref() == Some("standby")
}

/// Something is wrong with it.
pub fn is_down(path: &PathStatus) -> bool {
    !path.up && !is_standby(path)
}

/// How many paths are down, and which; empty where none is. Where none is up, those that stand by count too: they did not take over.
pub fn down(paths: &[PathStatus]) -> String {
    let lost = paths.iter().all(|p| !p.up);
    let down: Vec<_> = paths
        .iter()
        .filter(|p| is_down(p) || lost)
        .map(|p| match p.why.as_ref().or(p.access.as_ref()) {
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

    /// What stands by is there to take over: only where it did not is it told.
    #[test]
    fn a_path_that_stands_by_is_not_down() {
        let with_standby = |up: &[bool]| {
            let mut paths = paths(up);
            paths.push(PathStatus {
                portal: "192.0.2.9:3260".into(),
                access: Some("standby".into()),
                ..PathStatus::default()
            });
            (PathsHealth::of(&paths, false), down(&paths))
        };
        let told = |text: &str| text.to_owned();
        assert_eq!(
            with_standby(&[true]),
            (Some(PathsHealth::Healthy), told(""))
        );
        assert_eq!(
            with_standby(&[false, true]),
            (
                Some(PathsHealth::Degraded),
                told("1 of 3 paths is down: 192.0.2.0:3260 (no session)")
            )
        );
        assert_eq!(
            with_standby(&[false]),
            (
                Some(PathsHealth::Lost),
                told(
                    "2 of 2 paths are down: 192.0.2.0:3260 (no session), 192.0.2.9:3260 (standby)"
                )
            )
        );
    }
}

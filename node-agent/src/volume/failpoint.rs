//! Fail points for crash tests on a real kernel: what happens to the agent, or to its workers, at a named step.
//!
//! Taken from `CRYPTVOL_FAILPOINT` in debug builds, or from the hidden flag `--failpoint`: `STEP:before:BLOW` and
//! `STEP:after:BLOW`, where `BLOW` is `exit` (the agent ends), `kill` (by SIGKILL) or `hang` (it does nothing any more, until the
//! test cuts the power); or `STEP:during:MS`, by which the workers get SIGKILL that many milliseconds after the step was begun,
//! once, and the agent lives on.

use std::{
    fs,
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::plan::Step;

/// Exit status of an agent that ended at a fail point.
pub const EXIT_STATUS: i32 = 86;

/// On which side of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Planned, and no effect yet.
    Before,
    /// Effect there, and nothing noted of it.
    After,
}

/// What happens to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    Exit,
    Kill,
    Hang,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Agent(When, Blow),
    /// Workers, this long after the step was begun.
    Workers(Duration),
}

/// One armed fail point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailPoint {
    step: String,
    place: Place,
}

impl FailPoint {
    /// Strikes if this is the place.
    pub fn hit(point: Option<&Self>, step: &str, when: When) {
        let Some(point) = point.filter(|p| p.step == step) else {
            return;
        };
        match point.place {
            Place::Agent(at, blow) if at == when => {
                tracing::error!(step, ?when, ?blow, "fail point");
                match blow {
                    Blow::Exit => std::process::exit(EXIT_STATUS),
                    Blow::Kill => {
                        let _ = kill(Pid::this(), Signal::SIGKILL);
                    }
                    Blow::Hang => {}
                }
                // Until the signal is there, or the power is not.
                loop {
                    thread::park();
                }
            }
            Place::Workers(after) if when == When::Before => {
                static STRUCK: AtomicBool = AtomicBool::new(false);
                if !STRUCK.swap(true, Ordering::Relaxed) {
                    tracing::error!(step, ?after, "fail point");
                    thread::spawn(move || {
                        thread::sleep(after);
                        for pid in children() {
                            let _ = kill(pid, Signal::SIGKILL);
                        }
                    });
                }
            }
            _ => {}
        }
    }
}

/// Processes that this one has started.
fn children() -> Vec<Pid> {
    let this = Pid::this().to_string();
    let is_child = |pid: &i32| {
        // `PID (NAME) STATE PARENT …`; a name may have anything in it.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(')').map(|(_, rest)| rest);
        rest.and_then(|r| r.split_whitespace().nth(1)) == Some(this.as_str())
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(is_child)
        .map(Pid::from_raw)
        .collect()
}

impl FromStr for FailPoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = || "write STEP:before:BLOW or STEP:after:BLOW with exit, kill or hang, or STEP:during:MS";
        let (step, place) = match text.split(':').collect::<Vec<_>>()[..] {
            [step, "during", ms] => {
                let ms = ms.parse().map_err(|_| help())?;
                (step, Place::Workers(Duration::from_millis(ms)))
            }
            [step, when, blow] => {
                let when = match when {
                    "before" => When::Before,
                    "after" => When::After,
                    _ => return Err(help().to_owned()),
                };
                let blow = match blow {
                    "exit" => Blow::Exit,
                    "kill" => Blow::Kill,
                    "hang" => Blow::Hang,
                    _ => return Err(help().to_owned()),
                };
                (step, Place::Agent(when, blow))
            }
            _ => return Err(help().to_owned()),
        };
        if !Step::NAMES.contains(&step) {
            return Err(format!("no step {step}; steps: {}", Step::NAMES.join(" ")));
        }
        Ok(Self {
            step: step.to_owned(),
            place,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_is_a_step() {
        for good in [
            "format:after:exit",
            "open:before:hang",
            "link:after:kill",
            "open:during:30",
        ] {
            assert!(good.parse::<FailPoint>().is_ok(), "{good}");
        }
        for bad in [
            "formatt:after:exit",
            "format:exit",
            "open:during:kill",
            "open:before:30",
        ] {
            assert!(bad.parse::<FailPoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn children_are_found_and_others_are_not() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        assert!(children().contains(&pid));
        assert!(!children().contains(&Pid::this()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

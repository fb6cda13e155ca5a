//! Fail points for crash tests on a real kernel: the agent ends at once before or after a named step.
//!
//! Taken from `CRYPTVOL_FAILPOINT` in debug builds, or from the hidden flag `--failpoint`, as `STEP:before:exit` or
//! `STEP:after:exit`.

use std::str::FromStr;

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

/// One armed fail point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailPoint {
    step: String,
    when: When,
}

impl FailPoint {
    /// Ends the process if this is the place.
    pub fn hit(point: Option<&Self>, step: &str, when: When) {
        if point.is_some_and(|p| p.step == step && p.when == when) {
            tracing::error!(step, ?when, "fail point");
            std::process::exit(EXIT_STATUS);
        }
    }
}

impl FromStr for FailPoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (step, when) = match text.split(':').collect::<Vec<_>>()[..] {
            [step, "before", "exit"] => (step, When::Before),
            [step, "after", "exit"] => (step, When::After),
            _ => return Err("write STEP:before:exit or STEP:after:exit".to_owned()),
        };
        if !Step::NAMES.contains(&step) {
            return Err(format!("no step {step}; steps: {}", Step::NAMES.join(" ")));
        }
        Ok(Self {
            step: step.to_owned(),
            when,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_is_a_step() {
        assert!("format:after:exit".parse::<FailPoint>().is_ok());
        assert!("formatt:after:exit".parse::<FailPoint>().is_err());
        assert!("format:exit".parse::<FailPoint>().is_err());
    }
}

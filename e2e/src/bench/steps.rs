//! Times of steps, as the programs of a benchmark print them: lines `STEP name milliseconds`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::row::Stage;

/// Times by step, in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Steps(BTreeMap<String, Vec<f64>>);

impl Steps {
    /// Adds what a program printed.
    pub(super) fn read(&mut self, output: &str) -> Result<()> {
        for line in output.lines() {
            if let ["STEP", step, time] = line.split_whitespace().collect::<Vec<_>>()[..] {
                let time = time.parse().with_context(|| line.to_owned())?;
                self.0.entry(step.to_owned()).or_default().push(time);
            }
        }
        Ok(())
    }

    /// The middle one.
    pub(super) fn median(&self, step: &str) -> Result<f64> {
        let mut values = self.0.get(step).cloned().unwrap_or_default();
        values.sort_by(f64::total_cmp);
        let middle = values.get(values.len() / 2).copied();
        middle.with_context(|| format!("no step {step} was printed"))
    }

    /// Medians of ours beside those of a peer that has the step under a name of its own.
    pub(super) fn stages(&self, pairs: &[(&str, Option<&str>)]) -> Result<Vec<Stage>> {
        pairs
            .iter()
            .map(|(ours, peer)| {
                Ok(Stage {
                    name: (*ours).to_owned(),
                    ours: self.median(ours)?,
                    peer: peer.map(|p| self.median(p)).transpose()?,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_what_was_printed() {
        let mut steps = Steps::default();
        steps
            .read("STEP a 3.5\nnoise\nSTEP a 1.5\nSTEP b 9\n")
            .unwrap();
        steps.read("STEP a 2.5\n").unwrap();
        assert_eq!(steps.median("a").unwrap(), 2.5);
        assert_eq!(steps.median("b").unwrap(), 9.0);
        assert!(steps.median("c").is_err());
        assert!(steps.read("STEP a x").is_err());
        assert_eq!(
            steps.stages(&[("a", Some("b"))]).unwrap()[0].peer,
            Some(9.0)
        );
    }
}

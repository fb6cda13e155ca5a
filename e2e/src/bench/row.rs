//! A line of a benchmark: both sides, the ratio, the goal.

use serde::Serialize;

/// One line of a benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured, with its unit.
    pub metric: String,
    /// Ours.
    pub ours: f64,
    /// What it is measured against.
    pub peer: f64,
    /// Ours divided by the peer's.
    pub ratio: f64,
    /// What is to be reached; absent where the row only informs.
    pub goal: Option<f64>,
    /// What the goal is about.
    pub rule: Option<Rule>,
    /// Whether it is reached.
    pub met: Option<bool>,
    /// Where our time goes: values of the stages that it is made of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
}

/// A part of a value.
#[derive(Debug, Clone, Serialize)]
pub struct Stage {
    /// What it is.
    pub name: String,
    /// Ours.
    pub ours: f64,
    /// The peer's, where it has such a stage.
    pub peer: Option<f64>,
}

/// Rows for people; where a goal is missed, by how much, and where the time goes.
pub(super) fn print(rows: &[Row]) {
    println!(
        "{:<62} {:>10} {:>10} {:>8} {:>9}",
        "metric", "ours", "peer", "ratio", "goal"
    );
    for row in rows {
        println!(
            "{:<62} {:>10.2} {:>10.2} {:>8.2} {}",
            row.metric,
            row.ours,
            row.peer,
            row.ratio,
            row.verdict()
        );
        // Where no goal is set, what it is made of is what is told.
        if row.met != Some(true) {
            for stage in &row.stages {
                let peer = stage.peer.map_or(String::new(), |p| format!("{p:>10.2}"));
                println!("    {:<58} {:>10.2} {peer}", stage.name, stage.ours);
            }
        }
    }
}

/// What a goal is about.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Rule {
    /// Our value is at most so many times the peer's.
    RatioAtMost,
    /// Our value is at least so many times the peer's.
    RatioAtLeast,
    /// Our value itself is at most that.
    AtMost,
}

impl Row {
    pub(super) fn new(metric: &str, ours: f64, peer: f64, goal: Option<(Rule, f64)>) -> Self {
        let ratio = if peer > 0.0 { ours / peer } else { 0.0 };
        Self {
            metric: metric.into(),
            ours,
            peer,
            ratio,
            goal: goal.map(|(_, goal)| goal),
            rule: goal.map(|(rule, _)| rule),
            met: goal.map(|(rule, goal)| match rule {
                Rule::RatioAtMost => ratio <= goal,
                Rule::RatioAtLeast => ratio >= goal,
                Rule::AtMost => ours <= goal,
            }),
            stages: Vec::new(),
        }
    }

    /// With what it is made of.
    pub(super) fn of(mut self, stages: Vec<Stage>) -> Self {
        self.stages = stages;
        self
    }

    /// How many times too much (or too little) it is.
    fn excess(&self) -> Option<f64> {
        let goal = self.goal.filter(|goal| *goal > 0.0)?;
        Some(match self.rule? {
            Rule::RatioAtMost => self.ratio / goal,
            Rule::RatioAtLeast => goal / self.ratio,
            Rule::AtMost => self.ours / goal,
        })
    }

    /// The goal and whether it is reached, for people.
    pub(super) fn verdict(&self) -> String {
        let (Some(goal), Some(rule), Some(met)) = (self.goal, self.rule, self.met) else {
            return String::new();
        };
        let goal = match rule {
            Rule::RatioAtMost => format!("<= {goal} x"),
            Rule::RatioAtLeast => format!(">= {goal} x"),
            Rule::AtMost => format!("<= {goal}"),
        };
        let missed = self.excess().map_or("NOT MET".to_owned(), |times| {
            format!("NOT MET, by {times:.2} x")
        });
        format!("{goal:>9} {}", if met { "met" } else { &missed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_goal_says_by_how_much() {
        let row = Row::new("x", 3.0, 1.0, Some((Rule::RatioAtMost, 1.5)));
        assert_eq!(row.met, Some(false));
        assert!(
            row.verdict().ends_with("NOT MET, by 2.00 x"),
            "{}",
            row.verdict()
        );
        let row = Row::new("x", 0.5, 1.0, Some((Rule::RatioAtLeast, 0.95)));
        assert!(row.verdict().ends_with("by 1.90 x"), "{}", row.verdict());
        let row = Row::new("x", 1.0, 1.0, Some((Rule::RatioAtLeast, 0.95)));
        assert!(row.verdict().ends_with(" met"), "{}", row.verdict());
    }
}

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
        }
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
        format!("{goal:>9} {}", if met { "met" } else { "NOT MET" })
    }
}

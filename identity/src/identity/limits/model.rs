//! The two models of Keystone by which limits of projects and domains go together. Pure decisions.

use clap::ValueEnum;
use serde_json::{Value, json};

/// How limits of projects and of their domains go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LimitModel {
    /// They do not: each project and each domain stands for itself.
    #[default]
    Flat,
    /// No project of a domain may have more than the domain, and there are no projects below projects.
    StrictTwoLevel,
}

impl LimitModel {
    /// What `GET /v3/limits/model` says; names and texts are Keystone's, other services compare them.
    pub fn to_json(self) -> Value {
        match self {
            Self::Flat => json!({
                "name": "flat",
                "description": "Limit enforcement and validation does not take project hierarchy into consideration.",
            }),
            Self::StrictTwoLevel => json!({
                "name": "strict_two_level",
                "description": "This model requires project hierarchy never exceeds a depth of two",
            }),
        }
    }
}

/// A limit of one resource with its place in the hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed<'a> {
    /// Of the limit.
    pub id: &'a str,
    /// The domain: the limit's own, or that of its project.
    pub domain_id: &'a str,
    /// The project, unless it is the domain's limit.
    pub project_id: Option<&'a str>,
    /// -1: any number.
    pub value: i64,
}

/// -1 is more than every number. (Keystone compares it as a number, so that there a domain without limit leaves
/// nothing to its projects.)
fn rank(value: i64) -> i64 {
    if value < 0 { i64::MAX } else { value }
}

/// The limit, if any, that is more than its domain has. `all` are the limits of one resource as they would be, `touched`
/// the ids of those that change: what was so before is not the fault of this change. A domain without a limit of its own
/// has the registered `default`.
pub fn breaks_strict_two_level<'a>(
    all: &[Placed<'a>],
    default: i64,
    touched: impl Fn(&str) -> bool,
) -> Option<Placed<'a>> {
    all.iter()
        .filter(|child| child.project_id.is_some())
        .find(|child| {
            let domain = all
                .iter()
                .find(|one| one.project_id.is_none() && one.domain_id == child.domain_id);
            let above = domain.map_or(default, |one| one.value);
            let concerned = touched(child.id) || domain.is_some_and(|one| touched(one.id));
            concerned && rank(child.value) > rank(above)
        })
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(id: &'static str, value: i64) -> Placed<'static> {
        Placed {
            id,
            domain_id: "d",
            project_id: None,
            value,
        }
    }

    fn project(id: &'static str, value: i64) -> Placed<'static> {
        Placed {
            id,
            domain_id: "d",
            project_id: Some("p"),
            value,
        }
    }

    #[test]
    fn a_project_has_no_more_than_its_domain() {
        for (name, domain_value, default, project_value, breaks) in [
            ("less", Some(20), 5, 15, false),
            ("as much", Some(20), 5, 20, false),
            ("more", Some(20), 50, 21, true),
            ("more than the default", None, 10, 11, true),
            ("as much as the default", None, 10, 10, false),
            ("a domain without limit", Some(-1), 5, 1000, false),
            ("a project without limit", Some(20), 5, -1, true),
            ("both without limit", Some(-1), 5, -1, false),
            ("nothing for the domain", Some(0), 5, 1, true),
        ] {
            let mut all = vec![project("child", project_value)];
            all.extend(domain_value.map(|value| domain("parent", value)));
            // Whichever of the two is new.
            for touched in ["child", "parent"] {
                if touched == "parent" && domain_value.is_none() {
                    continue;
                }
                let found = breaks_strict_two_level(&all, default, |id| id == touched);
                assert_eq!(found.is_some(), breaks, "{name}, {touched}");
            }
        }
    }

    #[test]
    fn what_broke_before_is_not_the_fault_of_this_change() {
        let other = Placed {
            domain_id: "e",
            ..project("other", 99)
        };
        let all = [
            domain("parent", 1),
            project("old", 5),
            project("new", 1),
            other,
        ];
        assert_eq!(breaks_strict_two_level(&all, 1, |id| id == "new"), None);
        let found = breaks_strict_two_level(&all, 1, |id| id == "parent");
        assert_eq!(found.map(|one| one.id), Some("old"));
    }
}

//! From stored assignments to those that count: groups become their members, inherited ones reach the projects below,
//! implied roles are added. Every derivation is a line of its own, so that each can be traced.

use std::collections::HashSet;

use super::Directory;
use crate::store::assignments::Assignment;

/// Projects lie at most so deep.
const MAX_DEPTH: usize = 64;

/// An assignment with where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Line<'a> {
    /// `user` or `group`.
    pub(crate) actor_type: &'a str,
    pub(crate) actor_id: &'a str,
    /// `project`, `domain` or `system`.
    pub(crate) target_type: &'a str,
    pub(crate) target_id: &'a str,
    pub(crate) role_id: &'a str,
    pub(crate) inherited: bool,
    /// The group that gave it to this user.
    pub(crate) membership: Option<&'a str>,
    /// The target above from which it was inherited: its type and id.
    pub(crate) inherited_from: Option<(&'a str, &'a str)>,
    /// The role that implied it.
    pub(crate) prior_role: Option<&'a str>,
}

impl<'a> From<&'a Assignment> for Line<'a> {
    fn from(assignment: &'a Assignment) -> Self {
        Self {
            actor_type: &assignment.actor_type,
            actor_id: &assignment.actor_id,
            target_type: &assignment.target_type,
            target_id: &assignment.target_id,
            role_id: &assignment.role_id,
            inherited: assignment.inherited,
            membership: None,
            inherited_from: None,
            prior_role: None,
        }
    }
}

impl Directory {
    /// The assignments as they are stored.
    pub(crate) fn stored(&self) -> Vec<Line<'_>> {
        self.assignments.iter().map(Line::from).collect()
    }

    /// What follows from the assignments of everybody, or of one user and its groups. As in Keystone, those on the system
    /// are only listed as they are stored.
    pub(crate) fn effective<'a>(&'a self, user: Option<&str>) -> Vec<Line<'a>> {
        let mut out = Vec::new();
        match user {
            None => {
                for assignment in &self.assignments {
                    self.add_members(Line::from(assignment), None, &mut out);
                }
            }
            Some(user) => {
                let groups = self.groups_of.get(user).into_iter().flatten();
                let mut places: Vec<usize> = std::iter::once(user)
                    .chain(groups.map(|group| &**group))
                    .filter_map(|actor| self.by_actor.get(actor))
                    .flatten()
                    .copied()
                    .collect();
                places.sort_unstable();
                for assignment in places.into_iter().filter_map(|at| self.assignments.get(at)) {
                    self.add_members(Line::from(assignment), Some(user), &mut out);
                }
            }
        }
        // The same derivation twice is one line.
        let mut seen: HashSet<Line<'a>> = out.iter().copied().collect();
        let mut at = 0;
        while let Some(line) = out.get(at).copied() {
            at += 1;
            for role in self.implied.get(line.role_id).into_iter().flatten() {
                let next = Line {
                    prior_role: Some(line.role_id),
                    role_id: role,
                    ..line
                };
                if seen.insert(next) {
                    out.push(next);
                }
            }
        }
        // A domain's role counts only through what it implies.
        out.retain(|line| {
            let role = self.roles.get(line.role_id);
            role.is_some_and(|role| role.domain_id.is_none())
        });
        out
    }

    /// A group's line once for each member, or for the one that is asked about.
    fn add_members<'a>(&'a self, line: Line<'a>, only: Option<&str>, out: &mut Vec<Line<'a>>) {
        if line.target_type == "system" {
            return;
        }
        if line.actor_type != "group" {
            self.add_reached(line, out);
            return;
        }
        for user in self.members.get(line.actor_id).into_iter().flatten() {
            if only.is_none_or(|only| only == &**user) {
                let mine = Line {
                    actor_type: "user",
                    actor_id: user,
                    membership: Some(line.actor_id),
                    ..line
                };
                self.add_reached(mine, out);
            }
        }
    }

    /// An inherited line once for each project below its target.
    fn add_reached<'a>(&'a self, line: Line<'a>, out: &mut Vec<Line<'a>>) {
        if !line.inherited {
            out.push(line);
            return;
        }
        let reached = |project: &'a str| Line {
            inherited_from: Some((line.target_type, line.target_id)),
            target_type: "project",
            target_id: project,
            ..line
        };
        if line.target_type == "domain" {
            let projects = self.of_domain.get(line.target_id).into_iter().flatten();
            out.extend(projects.map(|project| reached(project)));
            return;
        }
        let mut level = vec![line.target_id];
        for _ in 0..MAX_DEPTH {
            level = level
                .into_iter()
                .filter_map(|project| self.below.get(project))
                .flatten()
                .map(|project| &**project)
                .collect();
            if level.is_empty() {
                break;
            }
            out.extend(level.iter().map(|project| reached(project)));
        }
    }
}

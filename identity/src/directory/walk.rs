//! From stored assignments to those that count: groups become their members, inherited ones reach the projects below,
//! implied roles are added. Every derivation is a line of its own, so that each can be traced.
//!
//! A walk gives them a few at a time: all those of a large site are hundreds of thousands.

use std::collections::VecDeque;

use super::{Actor, Directory, Place, Stored};

/// Projects lie at most so deep.
const MAX_DEPTH: usize = 64;

/// An assignment with where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) actor: Actor,
    pub(crate) target: Place,
    pub(crate) role: u32,
    pub(crate) inherited: bool,
    /// The group that gave it to this user.
    pub(crate) membership: Option<u32>,
    /// The target above from which it was inherited.
    pub(crate) inherited_from: Option<Place>,
    /// The role that implied it.
    pub(crate) prior_role: Option<u32>,
}

/// A way through the assignments of a directory, which must be the same one at each step.
#[derive(Debug)]
pub(crate) struct Walk {
    /// As they are stored, not what follows from them.
    plain: bool,
    /// Members of groups other than this one are not looked at, nor are other targets than that.
    only: Option<u32>,
    target: Option<Place>,
    /// The assignment at which the next run begins.
    next: usize,
    run: Option<Run>,
}

/// What follows from the assignments of one actor on one target.
#[derive(Debug)]
struct Run {
    from: Stored,
    /// Roles with the one that implied each.
    roles: Vec<(u32, Option<u32>)>,
    users: Vec<u32>,
    /// Targets that are still to come, and the next user on the first of them.
    targets: VecDeque<Place>,
    user: usize,
}

impl Walk {
    /// All assignments as they are stored.
    pub(crate) fn stored() -> Self {
        Self {
            plain: true,
            only: None,
            target: None,
            next: 0,
            run: None,
        }
    }

    /// What follows from them, for everybody or for one user, everywhere or on one target. As in Keystone, those on the system
    /// are only listed as they are stored.
    pub(crate) fn effective(only: Option<u32>, target: Option<Place>) -> Self {
        Self {
            plain: false,
            only,
            target,
            next: 0,
            run: None,
        }
    }

    /// Adds some lines to `lines`. Whether there may be more.
    pub(crate) fn step(&mut self, directory: &Directory, lines: &mut VecDeque<Line>) -> bool {
        if let Some(run) = &mut self.run {
            if run.step(lines) {
                return true;
            }
            self.run = None;
        }
        let rest = directory.assignments.get(self.next..).unwrap_or_default();
        let Some(first) = rest.first() else {
            return false;
        };
        let one = rest.iter().take_while(|other| {
            (other.target, other.actor, other.inherited)
                == (first.target, first.actor, first.inherited)
        });
        let roles: Vec<u32> = one.map(|stored| stored.role).collect();
        self.next += roles.len();
        if self.plain {
            lines.extend(roles.iter().map(|role| Line::stored(*first, *role)));
        } else if first.target != Place::System {
            self.run = directory.run(*first, &roles, (self.only, self.target));
        }
        true
    }
}

impl Line {
    fn stored(from: Stored, role: u32) -> Self {
        Self {
            actor: from.actor,
            target: from.target,
            role,
            inherited: from.inherited,
            membership: None,
            inherited_from: None,
            prior_role: None,
        }
    }
}

impl Run {
    /// One user on one target. Whether there was one.
    fn step(&mut self, lines: &mut VecDeque<Line>) -> bool {
        let Some(target) = self.targets.front().copied() else {
            return false;
        };
        let (actor, membership) = match self.from.actor {
            Actor::User(user) => (Actor::User(user), None),
            Actor::Group(group) => match self.users.get(self.user) {
                Some(user) => (Actor::User(*user), Some(group)),
                None => return false,
            },
        };
        self.user += 1;
        if self.user >= self.users.len() {
            self.user = 0;
            self.targets.pop_front();
        }
        lines.extend(self.roles.iter().map(|(role, prior)| Line {
            actor,
            target,
            membership,
            inherited_from: self.from.inherited.then_some(self.from.target),
            prior_role: *prior,
            ..Line::stored(self.from, *role)
        }));
        true
    }
}

impl Directory {
    /// What follows from these roles of one actor on one target, as far as it concerns one user and one target.
    fn run(
        &self,
        from: Stored,
        roles: &[u32],
        (only, on): (Option<u32>, Option<Place>),
    ) -> Option<Run> {
        if !from.inherited && on.is_some_and(|on| on != from.target) {
            return None;
        }
        let mut users: Vec<u32> = match from.actor {
            Actor::User(user) => vec![user],
            Actor::Group(group) => self.members.of(group).collect(),
        };
        if let Some(only) = only {
            users.retain(|user| *user == only);
        }
        let mut targets = self.reached(from);
        if let Some(on) = on {
            targets.retain(|target| *target == on);
        }
        (!users.is_empty()).then(|| Run {
            from,
            roles: self.with_implied(roles),
            users,
            targets,
            user: 0,
        })
    }

    /// Roles and what they imply. The same derivation twice is one.
    fn with_implied(&self, roles: &[u32]) -> Vec<(u32, Option<u32>)> {
        let mut all: Vec<(u32, Option<u32>)> = roles.iter().map(|role| (*role, None)).collect();
        let mut at = 0;
        while let Some((prior, _)) = all.get(at).copied() {
            at += 1;
            for role in self.implied.of(prior) {
                let next = (role, Some(prior));
                if !all.contains(&next) {
                    all.push(next);
                }
            }
        }
        // A domain's role counts only through what it implies.
        all.retain(|(role, _)| {
            self.roles.name(*role).is_some() && self.roles.domain(*role).is_none()
        });
        all
    }

    /// The target itself, or each project below the target of an inherited assignment.
    fn reached(&self, from: Stored) -> VecDeque<Place> {
        if !from.inherited {
            return VecDeque::from([from.target]);
        }
        match from.target {
            Place::System => VecDeque::new(),
            Place::Domain(domain) => self.of_domain.of(domain).map(Place::Project).collect(),
            Place::Project(project) => {
                let (mut level, mut all) = (vec![project], VecDeque::new());
                for _ in 0..MAX_DEPTH {
                    level = level
                        .into_iter()
                        .flat_map(|project| self.below.of(project))
                        .collect();
                    if level.is_empty() {
                        break;
                    }
                    all.extend(level.iter().copied().map(Place::Project));
                }
                all
            }
        }
    }
}

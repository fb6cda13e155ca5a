//! A list of role assignments as JSON, written a part at a time.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use serde::Serialize;

use super::{error::IdentityError, parts::Parts};
use crate::{
    directory::{Actor, Directory, Family, Id, Line, Place, Walk},
    http::Query,
};

/// Steps of the walk between two looks at what else there is to do.
const STEPS: usize = 256;

/// A list on its way.
#[derive(Debug)]
pub(super) struct AssignmentList {
    directory: Arc<Directory>,
    walk: Walk,
    /// Walked and not yet looked at.
    lines: VecDeque<Line>,
    wanted: Wanted,
    root: String,
    names: bool,
    /// How many were written, and how many may be.
    written: usize,
    limit: usize,
    /// The links to this list and to what follows it.
    own: String,
    next: String,
}

/// What is asked for, as numbers of the directory. The inner `None`: something that is not there.
#[derive(Debug)]
struct Wanted {
    actor: Option<Option<Actor>>,
    role: Option<Option<u32>>,
    target: Option<Option<Place>>,
    /// Projects instead of a target.
    tree: Option<HashSet<u32>>,
    is_system: bool,
    inherited: Option<bool>,
    /// The domain of the caller, who sees no other.
    confined: Option<Option<u32>>,
}

impl Wanted {
    fn new(
        directory: &Directory,
        query: &Query,
        confined: Option<&str>,
        tree: Option<Vec<String>>,
    ) -> Self {
        let user = query.non_empty("user.id");
        let group = query.non_empty("group.id");
        let project = query.non_empty("scope.project.id");
        let domain = query.non_empty("scope.domain.id");
        let tree = tree.map(|ids| {
            let numbers = ids.iter().filter_map(|id| directory.projects.number(id));
            numbers.collect()
        });
        Self {
            actor: user
                .map(|id| directory.users.number(id).map(Actor::User))
                .or_else(|| group.map(|id| directory.groups.number(id).map(Actor::Group))),
            role: query
                .non_empty("role.id")
                .map(|id| directory.roles.number(id)),
            target: domain
                .map(|id| directory.domains.number(id).map(Place::Domain))
                .or_else(|| project.map(|id| directory.projects.number(id).map(Place::Project)))
                .filter(|_| tree.is_none()),
            tree,
            // Measured: a list of effective assignments has none of the system, and takes no notice of this filter.
            is_system: query.non_empty("scope.system").is_some() && !query.flag("effective"),
            inherited: query
                .non_empty("scope.OS-INHERIT:inherited_to")
                .map(|to| to == "projects"),
            confined: confined.map(|id| directory.domains.number(id)),
        }
    }

    /// Whether this line is.
    fn has(&self, directory: &Directory, line: &Line) -> bool {
        self.actor.is_none_or(|actor| actor == Some(line.actor))
            && self.role.is_none_or(|role| role == Some(line.role))
            && self.target.is_none_or(|target| target == Some(line.target))
            && self.tree.as_ref().is_none_or(|tree| match line.target {
                Place::Project(project) => tree.contains(&project),
                _ => false,
            })
            && (!self.is_system || line.target == Place::System)
            && self.inherited.is_none_or(|wanted| line.inherited == wanted)
            && self.confined.is_none_or(|domain| {
                domain.is_some() && domain_of(directory, line.target) == domain
            })
    }
}

fn domain_of(directory: &Directory, target: Place) -> Option<u32> {
    match target {
        Place::Domain(domain) => Some(domain),
        Place::Project(project) => directory.projects.domain(project),
        Place::System => None,
    }
}

impl AssignmentList {
    /// Begins a list; `tree` are projects, one of which is to be the target.
    pub(super) fn new(
        directory: Arc<Directory>,
        root: String,
        query: &Query,
        confined: Option<&str>,
        tree: Option<Vec<String>>,
    ) -> Self {
        let wanted = Wanted::new(&directory, query, confined, tree);
        let limit = query.get("limit").and_then(|limit| limit.parse().ok());
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let mut own = format!("{root}{}", query.path);
        // An assignment has no id to go on from.
        let next = format!("{own}?limit={limit}&marker=");
        if !query.raw.is_empty() {
            own = format!("{own}?{}", query.raw);
        }
        let walk = if query.flag("effective") {
            let only = query.non_empty("user.id");
            let only = only.map(|id| directory.users.number(id).unwrap_or(u32::MAX));
            Walk::effective(only, wanted.target.flatten())
        } else {
            Walk::stored()
        };
        Self {
            directory,
            walk,
            lines: VecDeque::new(),
            wanted,
            root,
            names: query.flag("include_names"),
            written: 0,
            limit,
            own,
            next,
        }
    }

    fn end(&self, out: &mut Vec<u8>, cut: bool) -> Result<(), serde_json::Error> {
        if self.written == 0 {
            out.extend_from_slice(br#"{"role_assignments":["#);
        }
        out.extend_from_slice(br#"],"links":"#);
        let links = ListLinks {
            next: cut.then_some(self.next.as_str()),
            own: &self.own,
            previous: None,
        };
        serde_json::to_writer(&mut *out, &links)?;
        out.push(b'}');
        Ok(())
    }

    fn show(&self, line: &Line) -> Item<'_> {
        let directory = &*self.directory;
        let (user, group) = match line.actor {
            Actor::User(user) => (Some(self.object(&directory.users, user)), None),
            Actor::Group(group) => (None, Some(self.object(&directory.groups, group))),
        };
        let mut scope = Scope {
            project: None,
            domain: None,
            system: None,
            inherited_to: line.inherited.then_some("projects"),
        };
        match line.target {
            Place::System => scope.system = Some(System { all: true }),
            Place::Domain(domain) => scope.domain = Some(self.object(&directory.domains, domain)),
            Place::Project(project) => {
                scope.project = Some(self.object(&directory.projects, project));
            }
        }
        Item {
            role: self.object(&directory.roles, line.role),
            user,
            group,
            scope,
            links: self.links(line),
        }
    }

    fn object<'a>(&'a self, family: &'a Family, number: u32) -> Object<'a> {
        let named = self.names.then_some(number);
        let domains = &self.directory.domains;
        Object {
            id: family.id(number),
            name: named.and_then(|number| family.name(number)),
            domain: named
                .and_then(|number| family.domain(number))
                .map(|domain| Domain {
                    id: domains.id(domain),
                    name: domains.name(domain),
                }),
        }
    }

    /// Where the assignment behind a line is kept, and by which membership and inference it counts here.
    fn links(&self, line: &Line) -> Links {
        let (root, directory) = (&self.root, &*self.directory);
        let place = match line.inherited_from.unwrap_or(line.target) {
            Place::System => "system".to_owned(),
            Place::Domain(domain) => format!("domains/{}", directory.domains.id(domain)),
            Place::Project(project) => format!("projects/{}", directory.projects.id(project)),
        };
        let membership = line.membership.map(|group| directory.groups.id(group));
        let user = match line.actor {
            Actor::User(user) => directory.users.id(user),
            Actor::Group(group) => directory.groups.id(group),
        };
        let (kind, actor) = match (line.actor, membership) {
            (_, Some(group)) => ("groups", group),
            (Actor::User(_), None) => ("users", user),
            (Actor::Group(_), None) => ("groups", user),
        };
        let own = directory.roles.id(line.role);
        let prior = line.prior_role.map(|prior| directory.roles.id(prior));
        let role = prior.unwrap_or(own);
        let (head, tail) = if line.inherited {
            ("/OS-INHERIT", "/inherited_to_projects")
        } else {
            ("", "")
        };
        Links {
            assignment: format!("{root}{head}/{place}/{kind}/{actor}/roles/{role}{tail}"),
            membership: membership.map(|group| format!("{root}/groups/{group}/users/{user}")),
            // Keystone writes the implied role first.
            prior_role: prior.map(|prior| format!("{root}/prior_role/{own}/implies/{prior}")),
        }
    }
}

impl Parts for AssignmentList {
    async fn write(&mut self, out: &mut Vec<u8>) -> Result<bool, IdentityError> {
        let mut more = true;
        for _ in 0..STEPS {
            while let Some(line) = self.lines.pop_front() {
                if !self.wanted.has(&self.directory, &line) {
                    continue;
                }
                if self.written == self.limit {
                    self.end(out, true)?;
                    return Ok(false);
                }
                out.extend_from_slice(match self.written {
                    0 => br#"{"role_assignments":["#,
                    _ => b",",
                });
                self.written += 1;
                serde_json::to_writer(&mut *out, &self.show(&line))?;
            }
            if !more {
                self.end(out, false)?;
                return Ok(false);
            }
            more = self.walk.step(&self.directory, &mut self.lines);
        }
        Ok(true)
    }
}

#[derive(Serialize)]
struct ListLinks<'a> {
    next: Option<&'a str>,
    #[serde(rename = "self")]
    own: &'a str,
    previous: Option<&'a str>,
}

#[derive(Serialize)]
struct Item<'a> {
    role: Object<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Object<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<Object<'a>>,
    scope: Scope<'a>,
    links: Links,
}

#[derive(Serialize)]
struct Object<'a> {
    id: Id<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<Domain<'a>>,
}

#[derive(Serialize)]
struct Domain<'a> {
    id: Id<'a>,
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct System {
    all: bool,
}

#[derive(Serialize)]
struct Scope<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<Object<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<Object<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<System>,
    #[serde(
        rename = "OS-INHERIT:inherited_to",
        skip_serializing_if = "Option::is_none"
    )]
    inherited_to: Option<&'a str>,
}

#[derive(Serialize)]
struct Links {
    assignment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prior_role: Option<String>,
}

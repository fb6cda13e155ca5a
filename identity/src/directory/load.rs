//! Reading the records, some at a time: what a page of them takes is given back before the next one is read.

use super::{Actor, Directory, Pairs, Place, Stored, family::Family};
use crate::store::{
    Store, StoreResult,
    assignments::Assignment,
    directory::{ActorRow, ProjectRow},
};

/// Rows that are read at once.
const PAGE: i64 = 1024;

/// Where projects are, until all are read.
#[derive(Default)]
struct Places {
    of_domain: Vec<(u32, u32)>,
    /// Ids of projects with one that lies directly below.
    above: Vec<(String, u32)>,
}

impl Directory {
    /// Everything.
    ///
    /// # Errors
    /// From the store.
    pub(crate) async fn load(store: &Store) -> StoreResult<Self> {
        let mut directory = Self::few(store).await?;
        let mut last = String::new();
        loop {
            let rows = store.user_rows(&last, PAGE).await?;
            let Some(row) = rows.last() else { break };
            last.clone_from(&row.id);
            directory.add_users(&rows);
        }
        last.clear();
        loop {
            let rows = store.group_rows(&last, PAGE).await?;
            let Some(row) = rows.last() else { break };
            last.clone_from(&row.id);
            directory.add_groups(&rows);
        }
        last.clear();
        let mut places = Places::default();
        loop {
            let rows = store.project_rows(&last, PAGE).await?;
            let Some(row) = rows.last() else { break };
            last.clone_from(&row.id);
            directory.add_projects(&rows, &mut places);
        }
        directory.lay_out(places);
        let mut members = Vec::new();
        let mut last = (String::new(), String::new());
        loop {
            let rows = store.membership_rows((&last.0, &last.1), PAGE).await?;
            let Some(row) = rows.last() else { break };
            last.clone_from(row);
            members.extend(rows.iter().map(|(group, user)| {
                let group = directory.groups.named(group);
                (group, directory.users.named(user))
            }));
        }
        let users = &directory.users;
        members.sort_by(|(_, a), (_, b)| users.name(*a).cmp(&users.name(*b)));
        directory.members = Pairs::new(members);
        let mut last = None;
        loop {
            let mut rows = store.assignments_after(last.as_ref(), PAGE).await?;
            directory.add_assignments(&rows);
            last = rows.pop();
            if last.is_none() {
                break;
            }
        }
        directory.close();
        Ok(directory)
    }

    /// One user with its groups, the assignments of both, and the projects that those reach.
    ///
    /// # Errors
    /// From the store.
    pub(crate) async fn of_user(store: &Store, user: &str) -> StoreResult<Self> {
        let mut directory = Self::few(store).await?;
        directory.add_users(&Vec::from_iter(store.user_row(user).await?));
        let groups = store.group_rows_of(user).await?;
        directory.add_groups(&groups);
        let mut places = Places::default();
        directory.add_projects(&store.project_rows_of(user).await?, &mut places);
        directory.lay_out(places);
        let user_number = directory.users.named(user);
        let groups = groups
            .iter()
            .filter_map(|row| directory.groups.number(&row.id));
        directory.members = Pairs::new(groups.map(|group| (group, user_number)).collect());
        directory.add_assignments(&store.assignments_reaching(user).await?);
        directory.close();
        Ok(directory)
    }

    /// What there are never many of.
    async fn few(store: &Store) -> StoreResult<Self> {
        let mut directory = Self::default();
        for (id, name) in store.domain_rows().await? {
            directory.domains.add(&id, &name, None);
        }
        for row in store.role_rows().await? {
            let domain = row.domain_id.map(|id| directory.domains.named(&id));
            directory.roles.add(&row.id, &row.name, domain);
        }
        let inferences = store.inferences().await?.into_iter().map(|inference| {
            let prior = directory.roles.named(&inference.prior_role_id);
            (prior, directory.roles.named(&inference.implied_role_id))
        });
        directory.implied = Pairs::new(inferences.collect());
        Ok(directory)
    }

    fn add_users(&mut self, rows: &[ActorRow]) {
        add_actors(&mut self.users, &mut self.domains, rows);
    }

    fn add_groups(&mut self, rows: &[ActorRow]) {
        add_actors(&mut self.groups, &mut self.domains, rows);
    }

    /// Adds projects to the records, and to `places` each that lies below another one, with the id of that.
    fn add_projects(&mut self, rows: &[ProjectRow], places: &mut Places) {
        for row in rows {
            let domain = self.domains.named(&row.domain_id);
            let project = self.projects.add(&row.id, &row.name, Some(domain));
            places.of_domain.push((domain, project));
            // What is at the top has its domain there.
            if row.parent_id != row.domain_id {
                places.above.push((row.parent_id.clone(), project));
            }
        }
    }

    /// Which projects lie below which, and in which domain.
    fn lay_out(&mut self, places: Places) {
        self.of_domain = Pairs::new(places.of_domain);
        let below = places.above.iter();
        let below = below.map(|(parent, project)| (self.projects.named(parent), *project));
        self.below = Pairs::new(below.collect());
    }

    fn add_assignments(&mut self, rows: &[Assignment]) {
        for row in rows {
            let actor = match row.actor_type.as_str() {
                "group" => Actor::Group(self.groups.named(&row.actor_id)),
                _ => Actor::User(self.users.named(&row.actor_id)),
            };
            let target = match row.target_type.as_str() {
                "system" => Place::System,
                "domain" => Place::Domain(self.domains.named(&row.target_id)),
                _ => Place::Project(self.projects.named(&row.target_id)),
            };
            self.assignments.push(Stored {
                target,
                actor,
                inherited: row.inherited,
                role: self.roles.named(&row.role_id),
            });
        }
    }

    fn close(&mut self) {
        self.assignments.sort_unstable();
        self.assignments.shrink_to_fit();
        for family in [
            &mut self.users,
            &mut self.groups,
            &mut self.projects,
            &mut self.domains,
            &mut self.roles,
        ] {
            family.shrink();
        }
    }
}

fn add_actors(family: &mut Family, domains: &mut Family, rows: &[ActorRow]) {
    for row in rows {
        let domain = domains.named(&row.domain_id);
        family.add(&row.id, &row.name, Some(domain));
    }
}

//! The read model of who has which role where: every record that an assignment may name, in memory, for as long as none
//! of them changes; or only those that concern one user. Lists of assignments are worked out from it instead of from thousands
//! of rows a request.
//!
//! Records are numbers here (see `family`), and relations are sorted lists of pairs of numbers: a site of 100,000 users
//! takes some megabytes.

mod answers;
mod family;
mod ids;
mod load;
mod walk;

use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::store::{Store, StoreResult};

pub(crate) use answers::Answers;
pub(crate) use family::Family;
pub(crate) use ids::Id;
pub(crate) use walk::{Line, Walk};

/// What was worked out from one generation of the records.
#[derive(Debug, Default)]
pub(crate) struct ReadModel {
    /// Answers that were given.
    pub(crate) answers: Answers,
    whole: OnceCell<Arc<Directory>>,
}

impl ReadModel {
    /// All records, read at the first use.
    ///
    /// # Errors
    /// From the store.
    pub(crate) async fn whole(&self, store: &Store) -> StoreResult<Arc<Directory>> {
        let load = async || Directory::load(store).await.map(Arc::new);
        self.whole.get_or_try_init(load).await.map(Arc::clone)
    }
}

/// Who has a role: the number of a user or a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Actor {
    /// A user.
    User(u32),
    /// A group.
    Group(u32),
}

/// Where: the number of a domain or a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A domain.
    Domain(u32),
    /// A project.
    Project(u32),
    /// The system.
    System,
}

/// One stored assignment. The order is that of lists, and those of one actor on one target are beside each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stored {
    target: Place,
    actor: Actor,
    /// Whether it counts for the projects below instead of the target itself.
    inherited: bool,
    role: u32,
}

/// All of it, or what concerns one user.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub(crate) users: Family,
    pub(crate) groups: Family,
    pub(crate) projects: Family,
    pub(crate) domains: Family,
    pub(crate) roles: Family,
    assignments: Vec<Stored>,
    /// Groups and their users, those by name.
    members: Pairs,
    /// Projects and what lies directly below them; domains and all their projects.
    below: Pairs,
    of_domain: Pairs,
    /// Roles and what they imply.
    implied: Pairs,
}

/// A relation, sorted by its left side.
#[derive(Debug, Default)]
struct Pairs(Vec<(u32, u32)>);

impl Pairs {
    /// Keeps the order of those with the same left side.
    fn new(mut pairs: Vec<(u32, u32)>) -> Self {
        pairs.sort_by_key(|(left, _)| *left);
        pairs.shrink_to_fit();
        Self(pairs)
    }

    /// What is on the right side of this one.
    fn of(&self, left: u32) -> impl ExactSizeIterator<Item = u32> {
        let start = self.0.partition_point(|pair| pair.0 < left);
        let rest = self.0.get(start..).unwrap_or_default();
        let end = rest.partition_point(|pair| pair.0 == left);
        rest.iter().take(end).map(|pair| pair.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relation_keeps_its_order() {
        let pairs = Pairs::new(vec![(7, 3), (1, 9), (7, 1), (7, 2), (1, 4)]);
        assert_eq!(pairs.of(7).collect::<Vec<_>>(), [3, 1, 2]);
        assert_eq!(pairs.of(1).collect::<Vec<_>>(), [9, 4]);
        assert_eq!(pairs.of(2).len(), 0);
        assert_eq!(pairs.of(8).len(), 0);
    }
}

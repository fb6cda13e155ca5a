//! The read model of who has which role where: every record that an assignment may name, in memory, for as long as none
//! of them changes. Lists of assignments are worked out from it instead of from thousands of rows a request.

mod effective;

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use axum::body::Bytes;

use crate::store::{Store, StoreResult, assignments::Assignment};

pub(crate) use effective::Line;

/// Answers that are kept, in bytes.
const MAX_ANSWERS: usize = 4 * 1024 * 1024;
/// A longer question is answered and not kept.
const MAX_QUESTION: usize = 512;

/// A user, a group, or a role (whose domain may be none).
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) name: Box<str>,
    pub(crate) domain_id: Option<Box<str>>,
}

/// A project.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) name: Box<str>,
    pub(crate) domain_id: Box<str>,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub(crate) users: HashMap<Box<str>, Named>,
    pub(crate) groups: HashMap<Box<str>, Named>,
    pub(crate) projects: HashMap<Box<str>, Place>,
    pub(crate) domains: HashMap<Box<str>, Box<str>>,
    pub(crate) roles: HashMap<Box<str>, Named>,
    assignments: Vec<Assignment>,
    /// Assignments by actor: their places in `assignments`.
    by_actor: HashMap<Box<str>, Vec<usize>>,
    members: HashMap<Box<str>, Vec<Box<str>>>,
    groups_of: HashMap<Box<str>, Vec<Box<str>>>,
    /// Projects by what they lie directly below, and by their domain.
    below: HashMap<Box<str>, Vec<Box<str>>>,
    of_domain: HashMap<Box<str>, Vec<Box<str>>>,
    implied: HashMap<Box<str>, Vec<Box<str>>>,
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    by_question: HashMap<String, Bytes>,
    bytes: usize,
}

fn collect(pairs: impl Iterator<Item = (String, String)>) -> HashMap<Box<str>, Vec<Box<str>>> {
    let mut map: HashMap<Box<str>, Vec<Box<str>>> = HashMap::new();
    for (key, value) in pairs {
        map.entry(key.into()).or_default().push(value.into());
    }
    map
}

impl Directory {
    /// Reads the records.
    ///
    /// # Errors
    /// From the store.
    pub(crate) async fn load(store: &Store) -> StoreResult<Self> {
        let actors = |rows: Vec<crate::store::directory::ActorRow>| {
            rows.into_iter()
                .map(|row| {
                    let named = Named {
                        name: row.name.into(),
                        domain_id: Some(row.domain_id.into()),
                    };
                    (row.id.into(), named)
                })
                .collect()
        };
        let projects = store.project_rows().await?;
        let memberships = store.membership_rows().await?;
        let inferences = store.inferences().await?;
        let mut directory = Self {
            users: actors(store.user_rows().await?),
            groups: actors(store.group_rows().await?),
            domains: store
                .domain_rows()
                .await?
                .into_iter()
                .map(|(id, name)| (id.into(), name.into()))
                .collect(),
            roles: store
                .role_rows()
                .await?
                .into_iter()
                .map(|row| {
                    let named = Named {
                        name: row.name.into(),
                        domain_id: row.domain_id.map(Into::into),
                    };
                    (row.id.into(), named)
                })
                .collect(),
            below: collect(
                projects
                    .iter()
                    .map(|project| (project.parent_id.clone(), project.id.clone())),
            ),
            of_domain: collect(
                projects
                    .iter()
                    .map(|project| (project.domain_id.clone(), project.id.clone())),
            ),
            projects: projects
                .into_iter()
                .map(|row| {
                    let place = Place {
                        name: row.name.into(),
                        domain_id: row.domain_id.into(),
                    };
                    (row.id.into(), place)
                })
                .collect(),
            groups_of: collect(
                memberships
                    .iter()
                    .map(|(group, user)| (user.clone(), group.clone())),
            ),
            members: collect(memberships.into_iter()),
            implied: collect(
                inferences
                    .into_iter()
                    .map(|inference| (inference.prior_role_id, inference.implied_role_id)),
            ),
            assignments: store.assignments().await?,
            ..Self::default()
        };
        for (place, assignment) in directory.assignments.iter().enumerate() {
            directory
                .by_actor
                .entry(assignment.actor_id.as_str().into())
                .or_default()
                .push(place);
        }
        Ok(directory)
    }

    /// An answer that was given before to the same question.
    pub(crate) fn answer(&self, question: &str) -> Option<Bytes> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.by_question.get(question).cloned()
    }

    /// Keeps an answer for as long as the records do not change. The question must hold everything that decides the
    /// answer.
    pub(crate) fn keep(&self, question: String, answer: &Bytes) {
        if question.len() > MAX_QUESTION || answer.len() > MAX_ANSWERS / 2 {
            return;
        }
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let size = question.len() + answer.len();
        if answers.bytes + size > MAX_ANSWERS {
            *answers = Answers::default();
        }
        if answers
            .by_question
            .insert(question, answer.clone())
            .is_none()
        {
            answers.bytes += size;
        }
    }
}

//! Answers that were given before, for as long as the records they were worked out from do not change.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use axum::body::Bytes;

/// Answers that are kept, in bytes.
const MAX_ANSWERS: usize = 4 * 1024 * 1024;
/// A longer answer is not kept.
const MAX_ANSWER: usize = MAX_ANSWERS / 2;
/// A longer question is answered and not kept.
const MAX_QUESTION: usize = 512;

/// Answers of one generation of the records.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    by_question: HashMap<String, Bytes>,
    bytes: usize,
}

impl Answers {
    /// An answer that was given before to the same question.
    pub(crate) fn answer(&self, question: &str) -> Option<Bytes> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.by_question.get(question).cloned()
    }

    /// Keeps an answer. The question must hold everything that decides the answer, and the answer must come from records that
    /// were read after these answers began.
    pub(crate) fn keep(&self, question: String, answer: &Bytes) {
        if question.len() > MAX_QUESTION || answer.len() > MAX_ANSWER {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let size = question.len() + answer.len();
        if kept.bytes + size > MAX_ANSWERS {
            *kept = Kept::default();
        }
        if kept.by_question.insert(question, answer.clone()).is_none() {
            kept.bytes += size;
        }
    }
}

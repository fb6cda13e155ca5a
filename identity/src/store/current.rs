//! Rows that are changed whole: read in the change that writes them.

use std::ops::{Deref, DerefMut};

use super::{
    Change, StoreResult,
    sql::{Record, Records, Statement},
};

/// A row as the change that is to write it sees it. There is one writer, so nobody else changes it until that change is over.
///
/// What `Store` gives may be out of date by the time it is written, and to write it whole would undo what others did meanwhile.
/// So whatever writes a whole row takes it in this, which only a [`Change`] makes.
#[derive(Debug)]
pub struct Current<T>(T);

impl<T> Current<T> {
    /// The row, to be shown.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Current<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Current<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl Change {
    /// The row that this question gives.
    pub(super) async fn current<T: Record>(
        &mut self,
        question: Statement<'_, Records<T>>,
    ) -> StoreResult<Option<Current<T>>> {
        let row = question.fetch_optional(&mut *self.tx).await?;
        Ok(row.map(Current))
    }
}

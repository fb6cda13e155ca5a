//! Families that are kept whole: one JSON object a record, its owners in columns of their own.

use serde_json::{Map, Value};
use sqlx::FromRow;

use super::{Change, Current, Store, StoreResult, json_object, sql};

/// One record.
#[derive(Clone, Default, FromRow)]
pub struct Document {
    /// Which family: `policy`, `credential`, `limit`, …
    pub family: String,
    /// Unique in its family.
    pub id: String,
    /// The record ends with this user.
    pub user_id: Option<String>,
    /// The record ends with this project.
    pub project_id: Option<String>,
    /// The record ends with this domain.
    pub domain_id: Option<String>,
    /// JSON object.
    pub body: String,
    /// What nobody may read in the database; see `identity::documents`.
    pub sealed: Option<Vec<u8>>,
}

// By hand: the body of some families is for its owner's eyes only.
impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Document")
            .field("family", &self.family)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Document {
    /// A record without owners.
    pub fn new(family: &str, id: &str, body: &Map<String, Value>) -> Self {
        let mut document = Self {
            family: family.into(),
            id: id.into(),
            ..Self::default()
        };
        document.set(body);
        document
    }

    /// The object in it.
    pub fn object(&self) -> Map<String, Value> {
        json_object(&self.body)
    }

    /// Replaces the object.
    pub fn set(&mut self, body: &Map<String, Value>) {
        self.body = Value::Object(body.clone()).to_string();
    }

    /// One text attribute.
    pub fn text(&self, name: &str) -> Option<String> {
        self.object()
            .get(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
    }

    /// The object as the API shows it, with its id and without links.
    pub fn to_json(&self) -> Value {
        let mut object = self.object();
        object.insert("id".into(), self.id.as_str().into());
        Value::Object(object)
    }
}

const ONE: &str = "SELECT * FROM documents WHERE family = $1 AND id = $2";
const ALL: &str =
    "SELECT * FROM documents WHERE family = $1 AND ($2 IS NULL OR user_id = $2) ORDER BY id";
const FIRST_IDS: &str =
    "SELECT first_id FROM associations WHERE family = $1 AND second_id = $2 ORDER BY first_id";

impl Store {
    /// One record.
    ///
    /// # Errors
    /// `Query`.
    pub async fn document(&self, family: &str, id: &str) -> StoreResult<Option<Document>> {
        Ok(sql::query_as(ONE)
            .bind(family)
            .bind(id)
            .fetch_optional(&self.read)
            .await?)
    }

    /// All records of a family, or those of one user, by id.
    ///
    /// # Errors
    /// `Query`.
    pub async fn documents(
        &self,
        family: &str,
        user_id: Option<&str>,
    ) -> StoreResult<Vec<Document>> {
        Ok(sql::query_as(ALL)
            .bind(family)
            .bind(user_id)
            .fetch_all(&self.read)
            .await?)
    }

    /// The second ids that belong to a first one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn associated(&self, family: &str, first_id: &str) -> StoreResult<Vec<String>> {
        Ok(sql::query_scalar(
            "SELECT second_id FROM associations WHERE family = $1 AND first_id = $2 ORDER BY second_id",
        )
        .bind(family)
        .bind(first_id)
        .fetch_all(&self.read)
        .await?)
    }

    /// The first ids that belong to a second one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn associated_with(&self, family: &str, second_id: &str) -> StoreResult<Vec<String>> {
        Ok(sql::query_scalar(FIRST_IDS)
            .bind(family)
            .bind(second_id)
            .fetch_all(&self.read)
            .await?)
    }
}

impl Change {
    /// Adds a record.
    ///
    /// # Errors
    /// `Duplicate`, `Dangling`, `Query`.
    pub async fn insert_document(&mut self, document: &Document) -> StoreResult<()> {
        sql::query(
            "INSERT INTO documents (family, id, user_id, project_id, domain_id, body, sealed)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&document.family)
        .bind(&document.id)
        .bind(&document.user_id)
        .bind(&document.project_id)
        .bind(&document.domain_id)
        .bind(&document.body)
        .bind(&document.sealed)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// One record, to be changed.
    ///
    /// # Errors
    /// `Query`.
    pub async fn document(
        &mut self,
        family: &str,
        id: &str,
    ) -> StoreResult<Option<Current<Document>>> {
        self.current(sql::query_as(ONE).bind(family).bind(id)).await
    }

    /// All records of a family, as this change sees them.
    ///
    /// # Errors
    /// `Query`.
    pub async fn documents(&mut self, family: &str) -> StoreResult<Vec<Document>> {
        Ok(sql::query_as(ALL)
            .bind(family)
            .bind(None::<&str>)
            .fetch_all(&mut *self.tx)
            .await?)
    }

    /// The first ids that belong to a second one, as this change sees them.
    ///
    /// # Errors
    /// `Query`.
    pub async fn associated_with(
        &mut self,
        family: &str,
        second_id: &str,
    ) -> StoreResult<Vec<String>> {
        Ok(sql::query_scalar(FIRST_IDS)
            .bind(family)
            .bind(second_id)
            .fetch_all(&mut *self.tx)
            .await?)
    }

    /// Writes a record anew.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub async fn update_document(&mut self, document: &Current<Document>) -> StoreResult<()> {
        sql::query(
            "UPDATE documents SET user_id = $3, project_id = $4, domain_id = $5, body = $6, sealed = $7
             WHERE family = $1 AND id = $2",
        )
        .bind(&document.family)
        .bind(&document.id)
        .bind(&document.user_id)
        .bind(&document.project_id)
        .bind(&document.domain_id)
        .bind(&document.body)
        .bind(&document.sealed)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Deletes a record. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_document(&mut self, family: &str, id: &str) -> StoreResult<bool> {
        let done = sql::query("DELETE FROM documents WHERE family = $1 AND id = $2")
            .bind(family)
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Adds a pair; again is no error.
    ///
    /// # Errors
    /// `Query`.
    pub async fn associate(&mut self, family: &str, first: &str, second: &str) -> StoreResult<()> {
        sql::query(
            "INSERT INTO associations (family, first_id, second_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        )
        .bind(family)
        .bind(first)
        .bind(second)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Removes a pair. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn dissociate(
        &mut self,
        family: &str,
        first: &str,
        second: &str,
    ) -> StoreResult<bool> {
        let done = sql::query(
            "DELETE FROM associations WHERE family = $1 AND first_id = $2 AND second_id = $3",
        )
        .bind(family)
        .bind(first)
        .bind(second)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Removes every pair that names this id, on either side.
    ///
    /// # Errors
    /// `Query`.
    pub async fn dissociate_all(&mut self, id: &str) -> StoreResult<()> {
        sql::query(
            "DELETE FROM associations WHERE first_id = $1 OR second_id = $1
             OR substr(second_id, length(second_id) - length($1)) = '/' || $1
             OR substr(second_id, 1, length($1) + 1) = $1 || '/'",
        )
        .bind(id)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }
}

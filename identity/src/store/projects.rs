//! Projects, their hierarchy and tags.

use serde_json::{Value, json};
use sqlx::FromRow;

use super::{
    Change, Current, Store, StoreResult,
    description::Description,
    json_object,
    sql::{self, Records, Statement},
};

/// A project.
#[derive(Debug, Clone, FromRow)]
pub struct Project {
    /// 32 hex digits.
    pub id: String,
    /// The domain that owns it.
    pub domain_id: String,
    /// The project above, or the domain at the top.
    pub parent_id: String,
    /// Unique in its domain.
    pub name: String,
    /// Free text or none.
    #[sqlx(flatten)]
    pub description: Description,
    /// Tokens for a disabled project are not valid.
    pub enabled: bool,
    /// JSON object.
    pub options: String,
    /// JSON object of attributes that the API does not define but gives back.
    pub extra: String,
    /// Tags, joined by the unit separator; filled by the queries here.
    #[sqlx(default)]
    tags: Option<String>,
}

/// Between tags in one column; no tag may hold a control character.
const SEPARATOR: char = '\u{1f}';

impl Project {
    /// A project without tags.
    pub fn new(id: String, domain_id: String, parent_id: String, name: String) -> Self {
        Self {
            id,
            domain_id,
            parent_id,
            name,
            description: Description::default(),
            enabled: true,
            options: "{}".into(),
            extra: "{}".into(),
            tags: None,
        }
    }

    /// The tags.
    pub fn tags(&self) -> Vec<String> {
        self.tags
            .as_deref()
            .filter(|tags| !tags.is_empty())
            .map_or_else(Vec::new, |tags| {
                tags.split(SEPARATOR).map(str::to_owned).collect()
            })
    }

    /// Sets the tags in this copy; [`Change::set_tags`] stores them.
    pub fn set_tags(&mut self, tags: &[String]) {
        self.tags = Some(tags.join(&SEPARATOR.to_string()));
    }

    /// The object of the identity API, without links.
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "id": self.id, "name": self.name, "domain_id": self.domain_id, "description": self.description.shown(),
            "enabled": self.enabled, "parent_id": self.parent_id, "is_domain": false, "tags": self.tags(),
            "options": json_object(&self.options),
        });
        super::add_extra(&mut object, &self.extra);
        object
    }
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT p.*, (SELECT group_concat(t.tag, char(31)) FROM project_tags t WHERE t.project_id = p.id) AS tags FROM projects p ",
            $rest
        )
    };
}

/// All projects, for a statement that goes on; they are `p` in it.
pub(super) fn select<'q>() -> Statement<'q, Records<Project>> {
    sql::query_as(select!(""))
}

impl Store {
    /// One project.
    ///
    /// # Errors
    /// `Query`.
    pub async fn project(&self, id: &str) -> StoreResult<Option<Project>> {
        Ok(sql::query_as(select!("WHERE p.id = $1"))
            .bind(id)
            .fetch_optional(&self.read)
            .await?)
    }

    /// One project by domain and name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn project_by_name(
        &self,
        domain_id: &str,
        name: &str,
    ) -> StoreResult<Option<Project>> {
        Ok(
            sql::query_as(select!("WHERE p.domain_id = $1 AND p.name = $2"))
                .bind(domain_id)
                .bind(name)
                .fetch_optional(&self.read)
                .await?,
        )
    }

    /// Projects, optionally of one domain, one name, one parent; by name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn projects(
        &self,
        domain_id: Option<&str>,
        name: Option<&str>,
        parent_id: Option<&str>,
    ) -> StoreResult<Vec<Project>> {
        Ok(sql::query_as(select!(
            "WHERE ($1 IS NULL OR p.domain_id = $1) AND ($2 IS NULL OR p.name = $2)
             AND ($3 IS NULL OR p.parent_id = $3) ORDER BY p.name, p.id"
        ))
        .bind(domain_id)
        .bind(name)
        .bind(parent_id)
        .fetch_all(&self.read)
        .await?)
    }

    /// The projects above `id`, nearest first, without the domain.
    ///
    /// # Errors
    /// `Query`.
    pub async fn ancestors(&self, id: &str) -> StoreResult<Vec<String>> {
        Ok(sql::query_scalar(
            "WITH RECURSIVE up (id, depth) AS (
                 SELECT parent_id, 1 FROM projects WHERE id = $1
                 UNION ALL SELECT p.parent_id, up.depth + 1 FROM projects p JOIN up ON p.id = up.id WHERE up.depth < 64)
             SELECT up.id FROM up JOIN projects p ON p.id = up.id ORDER BY up.depth",
        )
        .bind(id)
        .fetch_all(&self.read)
        .await?)
    }

    /// Projects on which a user has any role, by name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn projects_by_ids(&self, ids: &[String]) -> StoreResult<Vec<Project>> {
        let list = serde_json::to_string(ids).unwrap_or_default();
        Ok(sql::query_as(select!(
            "WHERE p.id IN (SELECT value FROM json_each($1)) ORDER BY p.name, p.id"
        ))
        .bind(list)
        .fetch_all(&self.read)
        .await?)
    }
}

impl Change {
    /// Adds a project with its tags.
    ///
    /// # Errors
    /// `Duplicate`, `Dangling`, `Query`.
    pub async fn insert_project(&mut self, project: &Project) -> StoreResult<()> {
        sql::query(
            "INSERT INTO projects (id, domain_id, parent_id, name, description, enabled, options, extra, undescribed)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(&project.id)
        .bind(&project.domain_id)
        .bind(&project.parent_id)
        .bind(&project.name)
        .bind(project.description.text())
        .bind(project.enabled)
        .bind(&project.options)
        .bind(&project.extra)
        .bind(project.description.undescribed())
        .execute(&mut *self.tx)
        .await?;
        self.set_tags(&project.id, &project.tags()).await
    }

    /// One project by domain and name, to be changed.
    ///
    /// # Errors
    /// `Query`.
    pub async fn project_by_name(
        &mut self,
        domain_id: &str,
        name: &str,
    ) -> StoreResult<Option<Current<Project>>> {
        let question = sql::query_as(select!("WHERE p.domain_id = $1 AND p.name = $2"));
        self.current(question.bind(domain_id).bind(name)).await
    }

    /// One project, to be changed.
    ///
    /// # Errors
    /// `Query`.
    pub async fn project(&mut self, id: &str) -> StoreResult<Option<Current<Project>>> {
        self.current(sql::query_as(select!("WHERE p.id = $1")).bind(id))
            .await
    }

    /// The projects right below one, as this change sees them.
    ///
    /// # Errors
    /// `Query`.
    pub async fn projects_below(&mut self, id: &str) -> StoreResult<Vec<Project>> {
        Ok(sql::query_as(select!("WHERE p.parent_id = $1"))
            .bind(id)
            .fetch_all(&mut *self.tx)
            .await?)
    }

    /// The projects above one, as this change sees them.
    ///
    /// # Errors
    /// `Query`.
    pub async fn projects_above(&mut self, id: &str) -> StoreResult<Vec<Project>> {
        Ok(sql::query_as(select!(
            "WHERE p.id IN (WITH RECURSIVE up (id, depth) AS (
                 SELECT parent_id, 1 FROM projects WHERE id = $1
                 UNION ALL SELECT a.parent_id, up.depth + 1 FROM projects a JOIN up ON a.id = up.id WHERE up.depth < 64)
             SELECT id FROM up)"
        ))
        .bind(id)
        .fetch_all(&mut *self.tx)
        .await?)
    }

    /// Writes all attributes of a project but its domain and parent.
    ///
    /// # Errors
    /// `Duplicate`, `Query`.
    pub async fn update_project(&mut self, project: &Current<Project>) -> StoreResult<()> {
        sql::query(
            "UPDATE projects SET name = $2, description = $3, enabled = $4, options = $5, extra = $6, undescribed = $7 WHERE id = $1",
        )
        .bind(&project.id)
        .bind(&project.name)
        .bind(project.description.text())
        .bind(project.enabled)
        .bind(&project.options)
        .bind(&project.extra)
        .bind(project.description.undescribed())
        .execute(&mut *self.tx)
        .await?;
        self.set_tags(&project.id, &project.tags()).await
    }

    /// Replaces the tags of a project.
    ///
    /// # Errors
    /// `Query`.
    pub async fn set_tags(&mut self, project_id: &str, tags: &[String]) -> StoreResult<()> {
        sql::query("DELETE FROM project_tags WHERE project_id = $1")
            .bind(project_id)
            .execute(&mut *self.tx)
            .await?;
        for tag in tags {
            sql::query(
                "INSERT INTO project_tags (project_id, tag) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            )
            .bind(project_id)
            .bind(tag)
            .execute(&mut *self.tx)
            .await?;
        }
        Ok(())
    }

    /// Deletes a project, its assignments and application credentials.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_project(&mut self, id: &str) -> StoreResult<()> {
        for statement in [
            "DELETE FROM assignments WHERE target_type = 'project' AND target_id = $1",
            "UPDATE users SET default_project_id = NULL WHERE default_project_id = $1",
            "DELETE FROM projects WHERE id = $1",
        ] {
            sql::query(statement)
                .bind(id)
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(())
    }
}

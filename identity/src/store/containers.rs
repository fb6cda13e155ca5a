//! Containers: named groups of secrets, and who uses them.

use sqlx::FromRow;

use super::{Change, Store, StoreResult, sql};

/// A container.
#[derive(Debug, Clone, FromRow)]
pub struct Container {
    /// UUID.
    pub id: String,
    /// Owner project.
    pub project_id: String,
    /// User who made it.
    pub creator_id: String,
    /// Free text.
    pub name: Option<String>,
    /// `generic`, `rsa`, `certificate`.
    #[sqlx(rename = "type")]
    pub kind: String,
    /// Microseconds.
    pub created: i64,
    /// Microseconds.
    pub updated: i64,
}

/// A secret in a container.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct SecretLink {
    /// The secret.
    pub secret_id: String,
    /// What it is there, such as `private_key`.
    pub name: Option<String>,
}

/// Something that uses a container.
#[derive(Debug, Clone, FromRow)]
pub struct ContainerConsumer {
    /// Project that registered it.
    pub project_id: String,
    /// Name of the service.
    pub name: String,
    /// Where its resource is.
    pub url: String,
    /// Microseconds.
    pub created: i64,
}

const SECRETS_OF: &str =
    "SELECT secret_id, name FROM container_secrets WHERE container_id = $1 ORDER BY position";

const CONSUMERS_OF: &str = "SELECT project_id, name, url, created FROM container_consumers
     WHERE container_id = $1 ORDER BY name, url";

impl Store {
    /// One container.
    ///
    /// # Errors
    /// `Query`.
    pub async fn container(&self, id: &str) -> StoreResult<Option<Container>> {
        Ok(sql::query_as("SELECT * FROM containers WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.read)
            .await?)
    }

    /// One page of a project's containers, oldest first, and how many there are in all. `name` is a LIKE
    /// pattern.
    ///
    /// # Errors
    /// `Query`.
    pub async fn containers(
        &self,
        project_id: &str,
        name: Option<&str>,
        kind: Option<&str>,
        limit: i64,
        offset: i64,
    ) -> StoreResult<(Vec<Container>, i64)> {
        let total = sql::query_scalar(
            "SELECT COUNT(*) FROM containers
             WHERE project_id = $1 AND ($2 IS NULL OR name LIKE $2) AND ($3 IS NULL OR type = $3)",
        )
        .bind(project_id)
        .bind(name)
        .bind(kind)
        .fetch_one(&self.read)
        .await?;
        let page = sql::query_as(
            "SELECT * FROM containers
             WHERE project_id = $1 AND ($2 IS NULL OR name LIKE $2) AND ($3 IS NULL OR type = $3)
             ORDER BY created, id LIMIT $4 OFFSET $5",
        )
        .bind(project_id)
        .bind(name)
        .bind(kind)
        .bind(limit)
        .bind(offset)
        .fetch_all(&self.read)
        .await?;
        Ok((page, total))
    }

    /// The secrets of a container, in the order in which they were added.
    ///
    /// # Errors
    /// `Query`.
    pub async fn container_secrets(&self, container_id: &str) -> StoreResult<Vec<SecretLink>> {
        Ok(sql::query_as(SECRETS_OF)
            .bind(container_id)
            .fetch_all(&self.read)
            .await?)
    }

    /// The consumers of a container, by name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn container_consumers(
        &self,
        container_id: &str,
    ) -> StoreResult<Vec<ContainerConsumer>> {
        Ok(sql::query_as(CONSUMERS_OF)
            .bind(container_id)
            .fetch_all(&self.read)
            .await?)
    }
}

impl Change {
    /// The consumers of a container, as this change sees them.
    ///
    /// # Errors
    /// `Query`.
    pub async fn container_consumers(
        &mut self,
        container_id: &str,
    ) -> StoreResult<Vec<ContainerConsumer>> {
        Ok(sql::query_as(CONSUMERS_OF)
            .bind(container_id)
            .fetch_all(&mut *self.tx)
            .await?)
    }

    /// The secrets of a container, as this change sees it.
    ///
    /// # Errors
    /// `Query`.
    pub async fn container_secrets(&mut self, container_id: &str) -> StoreResult<Vec<SecretLink>> {
        Ok(sql::query_as(SECRETS_OF)
            .bind(container_id)
            .fetch_all(&mut *self.tx)
            .await?)
    }

    /// Adds a container with its secrets.
    ///
    /// # Errors
    /// `Dangling` if a secret is gone, `Query`.
    pub async fn insert_container(
        &mut self,
        container: &Container,
        links: &[SecretLink],
    ) -> StoreResult<()> {
        sql::query(
            "INSERT INTO containers (id, project_id, creator_id, name, type, created, updated)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&container.id)
        .bind(&container.project_id)
        .bind(&container.creator_id)
        .bind(&container.name)
        .bind(&container.kind)
        .bind(container.created)
        .bind(container.updated)
        .execute(&mut *self.tx)
        .await?;
        for link in links {
            self.add_container_secret(&container.id, link).await?;
        }
        Ok(())
    }

    /// Puts a secret into a container, behind the others.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub async fn add_container_secret(
        &mut self,
        container_id: &str,
        link: &SecretLink,
    ) -> StoreResult<()> {
        sql::query(
            "INSERT INTO container_secrets (container_id, secret_id, name, position)
             SELECT $1, $2, $3, COALESCE(MAX(position), 0) + 1 FROM container_secrets WHERE container_id = $1",
        )
        .bind(container_id)
        .bind(&link.secret_id)
        .bind(&link.name)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Takes a secret out of a container. Says whether it was there under this name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn remove_container_secret(
        &mut self,
        container_id: &str,
        link: &SecretLink,
    ) -> StoreResult<bool> {
        let done = sql::query(
            "DELETE FROM container_secrets
             WHERE container_id = $1 AND secret_id = $2 AND COALESCE(name, '') = COALESCE($3, '')",
        )
        .bind(container_id)
        .bind(&link.secret_id)
        .bind(&link.name)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Deletes a container; its secrets stay. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_container(&mut self, id: &str) -> StoreResult<bool> {
        let done = sql::query("DELETE FROM containers WHERE id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Registers a consumer of a container; again is no error.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub async fn insert_container_consumer(
        &mut self,
        container_id: &str,
        consumer: &ContainerConsumer,
    ) -> StoreResult<()> {
        sql::query(
            "INSERT INTO container_consumers (container_id, project_id, name, url, created)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        )
        .bind(container_id)
        .bind(&consumer.project_id)
        .bind(&consumer.name)
        .bind(&consumer.url)
        .bind(consumer.created)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Removes a consumer of a container. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_container_consumer(
        &mut self,
        container_id: &str,
        name: &str,
        url: &str,
    ) -> StoreResult<bool> {
        let done = sql::query(
            "DELETE FROM container_consumers WHERE container_id = $1 AND name = $2 AND url = $3",
        )
        .bind(container_id)
        .bind(name)
        .bind(url)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}

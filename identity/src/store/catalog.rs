//! Regions, services, endpoints: what the catalog is made of.

use serde_json::{Value, json};
use sqlx::FromRow;

use super::{Change, Current, Store, StoreResult, sql};

/// A region.
#[derive(Debug, Clone, FromRow)]
pub struct Region {
    /// Free text, chosen by the administrator.
    pub id: String,
    /// Free text.
    pub description: String,
    /// The region above.
    pub parent_region_id: Option<String>,
    /// JSON object of attributes that the API does not define but gives back.
    pub extra: String,
}

/// A service of the catalog.
#[derive(Debug, Clone, FromRow)]
pub struct Service {
    /// 32 hex digits.
    pub id: String,
    /// `identity`, `key-manager`, …
    #[sqlx(rename = "type")]
    pub kind: String,
    /// Display name.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Disabled services are not in the catalog.
    pub enabled: bool,
    /// JSON object of attributes that the API does not define but gives back; a description of null too.
    pub extra: String,
}

/// Where a service answers.
#[derive(Debug, Clone, FromRow)]
pub struct Endpoint {
    /// 32 hex digits.
    pub id: String,
    /// Its service.
    pub service_id: String,
    /// `public`, `internal` or `admin`.
    pub interface: String,
    /// Its region.
    pub region_id: Option<String>,
    /// Base URL.
    pub url: String,
    /// Disabled endpoints are not in the catalog.
    pub enabled: bool,
    /// JSON object of attributes that the API does not define but gives back.
    pub extra: String,
}

impl Region {
    /// The object of the identity API, without links.
    pub fn to_json(&self) -> Value {
        let mut object = json!({"id": self.id, "description": self.description, "parent_region_id": self.parent_region_id});
        super::add_extra(&mut object, &self.extra);
        object
    }
}

impl Service {
    /// The display name, empty where there is none, as in Keystone.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// The object of the identity API, without links.
    pub fn to_json(&self) -> Value {
        let mut object =
            json!({"id": self.id, "name": self.name(), "type": self.kind, "enabled": self.enabled});
        if let (Some(description), Some(map)) = (&self.description, object.as_object_mut()) {
            map.insert("description".into(), description.as_str().into());
        }
        super::add_extra(&mut object, &self.extra);
        object
    }
}

impl Endpoint {
    /// The object of the identity API, without links.
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "id": self.id, "interface": self.interface, "region_id": self.region_id, "region": self.region_id,
            "service_id": self.service_id, "url": self.url, "enabled": self.enabled,
        });
        super::add_extra(&mut object, &self.extra);
        object
    }
}

const REGIONS: &str = "SELECT * FROM regions ORDER BY id";
const SERVICES: &str = "SELECT * FROM services ORDER BY type, name, id";
const ENDPOINTS: &str = "SELECT * FROM endpoints ORDER BY service_id, interface, id";

impl Store {
    /// All regions.
    ///
    /// # Errors
    /// `Query`.
    pub async fn regions(&self) -> StoreResult<Vec<Region>> {
        Ok(sql::query_as(REGIONS).fetch_all(&self.read).await?)
    }

    /// All services.
    ///
    /// # Errors
    /// `Query`.
    pub async fn services(&self) -> StoreResult<Vec<Service>> {
        Ok(sql::query_as(SERVICES).fetch_all(&self.read).await?)
    }

    /// All endpoints.
    ///
    /// # Errors
    /// `Query`.
    pub async fn endpoints(&self) -> StoreResult<Vec<Endpoint>> {
        Ok(sql::query_as(ENDPOINTS).fetch_all(&self.read).await?)
    }
}

impl Change {
    /// All regions, as this change sees them.
    ///
    /// # Errors
    /// `Query`.
    pub async fn regions(&mut self) -> StoreResult<Vec<Region>> {
        Ok(sql::query_as(REGIONS).fetch_all(&mut *self.tx).await?)
    }

    /// All services, as this change sees them.
    ///
    /// # Errors
    /// `Query`.
    pub async fn services(&mut self) -> StoreResult<Vec<Service>> {
        Ok(sql::query_as(SERVICES).fetch_all(&mut *self.tx).await?)
    }

    /// All endpoints, as this change sees them.
    ///
    /// # Errors
    /// `Query`.
    pub async fn endpoints(&mut self) -> StoreResult<Vec<Endpoint>> {
        Ok(sql::query_as(ENDPOINTS).fetch_all(&mut *self.tx).await?)
    }

    /// One region, to be changed.
    ///
    /// # Errors
    /// `Query`.
    pub async fn region(&mut self, id: &str) -> StoreResult<Option<Current<Region>>> {
        self.current(sql::query_as("SELECT * FROM regions WHERE id = $1").bind(id))
            .await
    }

    /// One service, to be changed.
    ///
    /// # Errors
    /// `Query`.
    pub async fn service(&mut self, id: &str) -> StoreResult<Option<Current<Service>>> {
        self.current(sql::query_as("SELECT * FROM services WHERE id = $1").bind(id))
            .await
    }

    /// One endpoint, to be changed.
    ///
    /// # Errors
    /// `Query`.
    pub async fn endpoint(&mut self, id: &str) -> StoreResult<Option<Current<Endpoint>>> {
        self.current(sql::query_as("SELECT * FROM endpoints WHERE id = $1").bind(id))
            .await
    }

    /// Adds a region.
    ///
    /// # Errors
    /// `Duplicate`, `Query`.
    pub async fn insert_region(&mut self, region: &Region) -> StoreResult<()> {
        sql::query("INSERT INTO regions (id, description, parent_region_id, extra) VALUES ($1, $2, $3, $4)")
            .bind(&region.id)
            .bind(&region.description)
            .bind(&region.parent_region_id)
            .bind(&region.extra)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Writes description and parent of a region.
    ///
    /// # Errors
    /// `Query`.
    pub async fn update_region(&mut self, region: &Current<Region>) -> StoreResult<()> {
        sql::query(
            "UPDATE regions SET description = $2, parent_region_id = $3, extra = $4 WHERE id = $1",
        )
        .bind(&region.id)
        .bind(&region.description)
        .bind(&region.parent_region_id)
        .bind(&region.extra)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Writes all attributes of a service.
    ///
    /// # Errors
    /// `Query`.
    pub async fn update_service(&mut self, service: &Current<Service>) -> StoreResult<()> {
        sql::query("UPDATE services SET type = $2, name = $3, description = $4, enabled = $5, extra = $6 WHERE id = $1")
            .bind(&service.id)
            .bind(&service.kind)
            .bind(&service.name)
            .bind(&service.description)
            .bind(service.enabled)
            .bind(&service.extra)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Writes all attributes of an endpoint.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub async fn update_endpoint(&mut self, endpoint: &Current<Endpoint>) -> StoreResult<()> {
        sql::query(
            "UPDATE endpoints SET service_id = $2, interface = $3, region_id = $4, url = $5, enabled = $6, extra = $7 WHERE id = $1",
        )
        .bind(&endpoint.id)
        .bind(&endpoint.service_id)
        .bind(&endpoint.interface)
        .bind(&endpoint.region_id)
        .bind(&endpoint.url)
        .bind(endpoint.enabled)
        .bind(&endpoint.extra)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Deletes a region. Says whether there was one.
    ///
    /// # Errors
    /// `Dangling` while endpoints use it, `Query`.
    pub async fn delete_region(&mut self, id: &str) -> StoreResult<bool> {
        let done = sql::query("DELETE FROM regions WHERE id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Adds a service.
    ///
    /// # Errors
    /// `Query`.
    pub async fn insert_service(&mut self, service: &Service) -> StoreResult<()> {
        sql::query("INSERT INTO services (id, type, name, description, enabled, extra) VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(&service.id)
            .bind(&service.kind)
            .bind(&service.name)
            .bind(&service.description)
            .bind(service.enabled)
            .bind(&service.extra)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Deletes a service with its endpoints. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_service(&mut self, id: &str) -> StoreResult<bool> {
        let done = sql::query("DELETE FROM services WHERE id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Adds an endpoint.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub async fn insert_endpoint(&mut self, endpoint: &Endpoint) -> StoreResult<()> {
        sql::query(
            "INSERT INTO endpoints (id, service_id, interface, region_id, url, enabled, extra) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&endpoint.id)
        .bind(&endpoint.service_id)
        .bind(&endpoint.interface)
        .bind(&endpoint.region_id)
        .bind(&endpoint.url)
        .bind(endpoint.enabled)
        .bind(&endpoint.extra)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Changes the URL of an endpoint.
    ///
    /// # Errors
    /// `Query`.
    pub async fn set_endpoint_url(&mut self, id: &str, url: &str) -> StoreResult<()> {
        sql::query("UPDATE endpoints SET url = $2 WHERE id = $1")
            .bind(id)
            .bind(url)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Deletes an endpoint. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_endpoint(&mut self, id: &str) -> StoreResult<bool> {
        let done = sql::query("DELETE FROM endpoints WHERE id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

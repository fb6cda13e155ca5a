//! Options of single domains.

use sqlx::FromRow;

use super::{Change, Store, StoreResult, sql};

/// One option of one domain.
#[derive(Clone, FromRow)]
pub struct DomainOption {
    /// The domain.
    pub domain_id: String,
    /// Section, `identity` or `ldap`.
    pub section: String,
    /// Name.
    pub name: String,
    /// JSON; `null` where it is sealed.
    pub value: String,
    /// A sensitive value.
    pub sealed: Option<Vec<u8>>,
}

impl DomainOption {
    /// Where a sealed value belongs.
    pub fn place(&self) -> [&str; 4] {
        ["domain-config", &self.domain_id, &self.section, &self.name]
    }
}

// By hand: values may name what a site keeps to itself.
impl std::fmt::Debug for DomainOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}] {}", self.domain_id, self.section, self.name)
    }
}

const OPTIONS: &str = "SELECT domain_id, section, name, value, sealed FROM domain_config
     WHERE ($1 IS NULL OR domain_id = $1) ORDER BY domain_id, section, name";

impl Store {
    /// The options of one domain, or of all, by domain, section and name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn domain_options(&self, domain_id: Option<&str>) -> StoreResult<Vec<DomainOption>> {
        Ok(sql::query_as(OPTIONS)
            .bind(domain_id)
            .fetch_all(&self.read)
            .await?)
    }
}

impl Change {
    /// The options of one domain, as this change sees them.
    ///
    /// # Errors
    /// `Query`.
    pub async fn domain_options(&mut self, domain_id: &str) -> StoreResult<Vec<DomainOption>> {
        Ok(sql::query_as(OPTIONS)
            .bind(domain_id)
            .fetch_all(&mut *self.tx)
            .await?)
    }

    /// Sets an option.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub async fn set_domain_option(&mut self, option: &DomainOption) -> StoreResult<()> {
        sql::query(
            "INSERT INTO domain_config (domain_id, section, name, value, sealed) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (domain_id, section, name) DO UPDATE SET value = $4, sealed = $5",
        )
        .bind(&option.domain_id)
        .bind(&option.section)
        .bind(&option.name)
        .bind(&option.value)
        .bind(&option.sealed)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Deletes the options of a domain, of one section, or one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_domain_options(
        &mut self,
        domain_id: &str,
        section: Option<&str>,
        name: Option<&str>,
    ) -> StoreResult<()> {
        sql::query(
            "DELETE FROM domain_config WHERE domain_id = $1 AND ($2 IS NULL OR section = $2) AND ($3 IS NULL OR name = $3)",
        )
        .bind(domain_id)
        .bind(section)
        .bind(name)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }
}

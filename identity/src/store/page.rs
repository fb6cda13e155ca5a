//! Pages of lists that may be long: they go by name and id, and read no more rows than they show.

use super::{
    Store, StoreResult,
    groups::Group,
    projects::Project,
    sql::{self, Statement},
    users::User,
};

/// A part of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Name and id of the row before it.
    pub after: Option<(String, String)>,
    /// The most rows.
    pub limit: i64,
    /// What is in the name, letters of either case: rows that lack it are not read. Whether the case is the right one is for
    /// the reader to see.
    pub contains: Option<String>,
}

/// Names are shorter; no pattern that a database would find too long is made of more.
const MAX_PART: usize = 1024;

/// A pattern for LIKE with `\` as its escape. None for what is not worth one: then all rows are read.
fn pattern(part: &str) -> Option<String> {
    if part.is_empty() || part.len() > MAX_PART || part.chars().any(char::is_control) {
        return None;
    }
    let mut pattern = String::from("%");
    for letter in part.chars() {
        if matches!(letter, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern.push('%');
    Some(pattern)
}

/// Attributes that the rows of a list must have.
type Filters<'a> = [(&'static str, Option<&'a str>)];

impl Page {
    /// Only what is asked for is in the statement, so that an index is found for it. `table` is also the prefix of its columns.
    fn finish<'q, K>(
        &'q self,
        mut query: Statement<'q, K>,
        table: &str,
        filters: &Filters<'q>,
    ) -> Statement<'q, K> {
        let mut word = " WHERE ";
        for (column, wanted) in filters {
            if let Some(wanted) = wanted {
                query.push(word).push(table).push(".").push(column);
                query.push(" = ").push_bind(*wanted);
                word = " AND ";
            }
        }
        if let Some(pattern) = self.contains.as_deref().and_then(pattern) {
            query.push(word).push(table).push(".name LIKE ");
            query.push_bind(pattern).push(" ESCAPE '\\'");
            word = " AND ";
        }
        if let Some((name, id)) = &self.after {
            query
                .push(word)
                .push(&format!("({table}.name, {table}.id) > ("));
            query.push_bind(name).push(", ").push_bind(id).push(")");
        }
        query.push(&format!(" ORDER BY {table}.name, {table}.id LIMIT "));
        query.push_bind(self.limit);
        query
    }
}

impl Store {
    /// A page of the users, optionally of one domain and name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn users_page(
        &self,
        domain_id: Option<&str>,
        name: Option<&str>,
        page: &Page,
    ) -> StoreResult<Vec<User>> {
        let query = sql::query_as("SELECT users.* FROM users");
        let filters = [("domain_id", domain_id), ("name", name)];
        let query = page.finish(query, "users", &filters);
        Ok(query.fetch_all(&self.read).await?)
    }

    /// A page of the groups, optionally of one domain and name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn groups_page(
        &self,
        domain_id: Option<&str>,
        name: Option<&str>,
        page: &Page,
    ) -> StoreResult<Vec<Group>> {
        let query = sql::query_as("SELECT user_groups.* FROM user_groups");
        let filters = [("domain_id", domain_id), ("name", name)];
        let query = page.finish(query, "user_groups", &filters);
        Ok(query.fetch_all(&self.read).await?)
    }

    /// A page of the projects, optionally of one domain, one name, one parent.
    ///
    /// # Errors
    /// `Query`.
    pub async fn projects_page(
        &self,
        domain_id: Option<&str>,
        name: Option<&str>,
        parent_id: Option<&str>,
        page: &Page,
    ) -> StoreResult<Vec<Project>> {
        let filters = [
            ("domain_id", domain_id),
            ("name", name),
            ("parent_id", parent_id),
        ];
        let query = page.finish(super::projects::select(), "p", &filters);
        Ok(query.fetch_all(&self.read).await?)
    }
}

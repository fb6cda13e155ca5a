//! Records of one kind, as far as assignments show them.

use super::ids::{Id, Ids, slice};

/// Stands for the number of a domain where there is none.
const NONE: u32 = u32::MAX;

/// All users, or all groups, projects, roles, domains. Each is known by a number.
#[derive(Debug, Default)]
pub(crate) struct Family {
    ids: Ids,
    names: Vec<u8>,
    /// Where each name ends in `names`.
    ends: Vec<usize>,
    /// The number of each one's domain.
    domains: Vec<u32>,
}

impl Family {
    /// Adds a record with its name and the number of its domain.
    pub(super) fn add(&mut self, id: &str, name: &str, domain: Option<u32>) -> u32 {
        let number = self.ids.add(id);
        // Those that were only named before it. There are none, unless records come while they are read.
        while self.ends.len() < number as usize {
            self.ends.push(self.names.len());
            self.domains.push(NONE);
        }
        // An id that came twice has no second name.
        if number as usize == self.ends.len() {
            self.names.extend_from_slice(name.as_bytes());
            self.ends.push(self.names.len());
            self.domains.push(domain.unwrap_or(NONE));
        }
        number
    }

    /// The number of an id that something names, whether there is such a record or not. To be asked when all records were
    /// added.
    pub(super) fn named(&mut self, id: &str) -> u32 {
        self.ids.add(id)
    }

    /// The number of an id.
    pub(crate) fn number(&self, id: &str) -> Option<u32> {
        self.ids.number(id)
    }

    /// The id with this number.
    pub(crate) fn id(&self, number: u32) -> Id<'_> {
        self.ids.id(number)
    }

    /// Its name, if there is such a record.
    pub(crate) fn name(&self, number: u32) -> Option<&str> {
        self.ends.get(number as usize)?;
        str::from_utf8(slice(&self.names, &self.ends, number)).ok()
    }

    /// The number of its domain, if it has one.
    pub(crate) fn domain(&self, number: u32) -> Option<u32> {
        let domain = self.domains.get(number as usize).copied();
        domain.filter(|domain| *domain != NONE)
    }

    /// Gives back what was allocated in advance.
    pub(super) fn shrink(&mut self) {
        self.ids.shrink();
        self.names.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.domains.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_only_named_has_no_name() {
        let mut users = Family::default();
        let (a, b) = (users.add("aa", "Ann", Some(3)), users.add("bb", "", None));
        let c = users.named("cc");
        assert_eq!(users.named("aa"), a);
        assert_eq!((users.name(a), users.domain(a)), (Some("Ann"), Some(3)));
        assert_eq!((users.name(b), users.domain(b)), (Some(""), None));
        assert_eq!((users.name(c), users.domain(c)), (None, None));
        assert_eq!(users.id(c).to_string(), "cc");
        assert_eq!(users.number("dd"), None);
    }
}

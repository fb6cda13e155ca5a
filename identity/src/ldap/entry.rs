//! What an entry of a directory says about a user or a group, and when two names of entries are the same.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::config::{GroupTree, UserTree};

/// Longest id and name that are taken, in characters; Keystone's tables hold as much.
const LONGEST: usize = 255;

/// An entry: its name and the attributes that were asked for, by name in small letters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Distinguished name.
    pub dn: String,
    /// Values that are texts. Others are left out.
    pub attributes: BTreeMap<String, Vec<String>>,
}

impl Entry {
    fn values(&self, name: &str) -> &[String] {
        self.attributes
            .get(&name.to_ascii_lowercase())
            .map_or(&[], Vec::as_slice)
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.values(name).first().map(String::as_str)
    }

    /// An id must be one value: with several, which one it is would change with their order.
    fn id(&self, name: &str) -> Option<String> {
        match self.values(name) {
            [one] if fits(one) => Some(one.clone()),
            _ => None,
        }
    }
}

fn fits(text: &str) -> bool {
    !text.trim().is_empty()
        && text.chars().count() <= LONGEST
        && !text.chars().any(char::is_control)
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryUser {
    /// Distinguished name.
    pub dn: String,
    /// The value of the id attribute.
    pub local_id: String,
    /// Name.
    pub name: String,
    /// Whether the account is on.
    pub enabled: bool,
    /// Default project.
    pub default_project_id: Option<String>,
    /// Further attributes, by their names in the API.
    pub extra: Map<String, Value>,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryGroup {
    /// Distinguished name.
    pub dn: String,
    /// The value of the id attribute.
    pub local_id: String,
    /// Name.
    pub name: String,
    /// Description.
    pub description: String,
    /// Further attributes, by their names in the API.
    pub extra: Map<String, Value>,
    /// Members as the directory has them: names of entries, or users' ids.
    pub members: Vec<String>,
}

fn extra(entry: &Entry, pairs: &[(String, String)]) -> Map<String, Value> {
    pairs
        .iter()
        .filter_map(|(attribute, shown)| {
            let value = entry.first(attribute)?;
            Some((shown.clone(), Value::String(value.to_owned())))
        })
        .collect()
}

/// The user that an entry is; `None` where it has no id or name that can be used.
pub fn user(tree: &UserTree, entry: &Entry) -> Option<DirectoryUser> {
    Some(DirectoryUser {
        dn: entry.dn.clone(),
        local_id: entry.id(&tree.id)?,
        name: entry
            .first(&tree.name)
            .filter(|name| fits(name))?
            .to_owned(),
        enabled: tree.rule.enabled(entry.first(&tree.enabled)),
        default_project_id: tree
            .default_project
            .as_ref()
            .and_then(|attribute| entry.first(attribute))
            .map(str::to_owned),
        extra: extra(entry, &tree.extra),
    })
}

/// The group that an entry is.
pub fn group(tree: &GroupTree, entry: &Entry) -> Option<DirectoryGroup> {
    Some(DirectoryGroup {
        dn: entry.dn.clone(),
        local_id: entry.id(&tree.id)?,
        name: entry
            .first(&tree.name)
            .filter(|name| fits(name))?
            .to_owned(),
        description: entry
            .first(&tree.description)
            .unwrap_or_default()
            .to_owned(),
        extra: extra(entry, &tree.extra),
        members: entry.values(&tree.member).to_vec(),
    })
}

/// Whether the server gave only a part of the members, as Active Directory does with more than 1500
/// (`member;range=0-1499`).
pub fn has_more_members(tree: &GroupTree, entry: &Entry) -> bool {
    let ranged = format!("{};range=", tree.member.to_ascii_lowercase());
    entry
        .attributes
        .keys()
        .any(|name| name.starts_with(&ranged) && !name.ends_with("-*"))
}

/// A name of an entry in a form in which equal names are equal: small letters, no blanks around `,` and `=`.
pub fn same_dn(dn: &str) -> String {
    let mut out = String::with_capacity(dn.len());
    let mut escaped = false;
    let mut skip = true;
    for letter in dn.trim().chars() {
        if !escaped && skip && letter == ' ' {
            continue;
        }
        if !escaped && matches!(letter, ',' | '=') {
            out.truncate(out.trim_end().len());
            skip = true;
        } else {
            skip = false;
        }
        out.extend(letter.to_lowercase());
        escaped = !escaped && letter == '\\';
    }
    out
}

/// The users in each group, by their places in `users`. With `nesting`, members of a group in a group too; a circle
/// of groups is no harm.
pub fn members(
    users: &[DirectoryUser],
    groups: &[DirectoryGroup],
    ids: bool,
    nesting: bool,
) -> Vec<BTreeSet<usize>> {
    let key = |user: &DirectoryUser| {
        if ids {
            user.local_id.clone()
        } else {
            same_dn(&user.dn)
        }
    };
    let by_key: BTreeMap<String, usize> = users
        .iter()
        .enumerate()
        .map(|(at, user)| (key(user), at))
        .collect();
    let by_dn: BTreeMap<String, usize> = groups
        .iter()
        .enumerate()
        .map(|(at, group)| (same_dn(&group.dn), at))
        .collect();
    (0..groups.len())
        .map(|start| {
            let mut found = BTreeSet::new();
            let mut seen = BTreeSet::from([start]);
            let mut open = vec![start];
            while let Some(at) = open.pop() {
                for member in &groups[at].members {
                    let name = if ids { member.clone() } else { same_dn(member) };
                    if let Some(user) = by_key.get(&name) {
                        found.insert(*user);
                    }
                    if nesting
                        && !ids
                        && let Some(inner) = by_dn.get(&name)
                        && seen.insert(*inner)
                    {
                        open.push(*inner);
                    }
                }
            }
            found
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ldap::config::{Options, read};

    fn entry(dn: &str, attributes: &[(&str, &[&str])]) -> Entry {
        Entry {
            dn: dn.into(),
            attributes: attributes
                .iter()
                .map(|(name, values)| {
                    (
                        (*name).into(),
                        values.iter().map(|value| (*value).into()).collect(),
                    )
                })
                .collect(),
        }
    }

    #[test]
    fn users_by_their_attributes() {
        let options = [
            ("url", "ldaps://a"),
            ("suffix", "dc=x"),
            ("user_id_attribute", "uid"),
            ("user_name_attribute", "uid"),
            ("user_additional_attribute_mapping", "l:town"),
        ];
        let options: Options = options
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        let tree = read(&options).unwrap().users;
        let found = user(
            &tree,
            &entry(
                "uid=a,dc=x",
                &[("uid", &["a"]), ("mail", &["a@x", "b@x"]), ("l", &["Bern"])],
            ),
        )
        .unwrap();
        assert_eq!((found.local_id.as_str(), found.enabled), ("a", true));
        assert_eq!(found.extra["email"], "a@x");
        assert_eq!(found.extra["town"], "Bern");
        // Without an id, with two, or with one that no name can be.
        for values in [&[][..], &["a", "b"], &[" "], &["a\nb"]] {
            assert_eq!(user(&tree, &entry("uid=a,dc=x", &[("uid", values)])), None);
        }
    }

    #[test]
    fn names_of_entries_are_equal_in_any_spelling() {
        assert_eq!(
            same_dn("CN=Jo Doe , OU = People,DC=x"),
            same_dn("cn=jo doe,ou=people,dc=X")
        );
        assert_ne!(same_dn("cn=a\\,b,dc=x"), same_dn("cn=a,b,dc=x"));
    }

    #[test]
    fn members_of_members_and_circles() {
        let user = |name: &str| DirectoryUser {
            dn: format!("uid={name},dc=x"),
            local_id: name.into(),
            name: name.into(),
            enabled: true,
            default_project_id: None,
            extra: Map::new(),
        };
        let group = |name: &str, members: &[&str]| DirectoryGroup {
            dn: format!("cn={name},dc=x"),
            local_id: name.into(),
            name: name.into(),
            description: String::new(),
            extra: Map::new(),
            members: members.iter().map(|member| (*member).into()).collect(),
        };
        let users = [user("a"), user("b")];
        let groups = [
            group("outer", &["CN=inner,dc=x", "uid=a, dc=x"]),
            group("inner", &["uid=b,dc=x", "cn=outer,dc=x", "uid=gone,dc=x"]),
        ];
        let both = BTreeSet::from([0, 1]);
        assert_eq!(members(&users, &groups, false, true), [both.clone(), both]);
        assert_eq!(
            members(&users, &groups, false, false),
            [BTreeSet::from([0]), BTreeSet::from([1])]
        );
        let posix = [group("p", &["b", "uid=a,dc=x"])];
        assert_eq!(members(&users, &posix, true, true), [BTreeSet::from([1])]);
    }

    #[test]
    fn a_part_of_the_members_is_noticed() {
        let options: Options = [("url", "ldaps://a"), ("suffix", "dc=x")]
            .iter()
            .map(|(n, v)| ((*n).into(), (*v).into()))
            .collect();
        let tree = read(&options).unwrap().groups;
        let part = entry("cn=g", &[("member;range=0-1499", &["x"])]);
        assert!(has_more_members(&tree, &part));
        assert!(!has_more_members(
            &tree,
            &entry("cn=g", &[("member;range=1500-*", &["x"])])
        ));
        assert!(!has_more_members(
            &tree,
            &entry("cn=g", &[("member", &["x"])])
        ));
    }
}

//! The official client, command for command, in front of both sides: exit status, fields, and what it shows in them.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::answer::Difference;
use super::{Found, Pair};
use crate::client_rows::{Row, Services, walk};
use crate::openstack_client::OpenStackClient;

/// What two sides print that are to be the same, and with how many commands it was found.
pub(super) fn walked(pair: &Pair, dir: &Path) -> Result<(Found, usize)> {
    let client = OpenStackClient::ensure()?;
    let key_manager = pair.real.key_manager().url();
    let theirs = Services {
        auth_url: &pair.real.identity().url(),
        // The client asks the root for its versions.
        key_manager: key_manager.trim_end_matches("/v1"),
        ca: None,
        password: pair.real.password(),
    };
    let ours = Services {
        auth_url: &pair.service.auth_url(),
        key_manager: &format!("{}/key-manager", pair.service.base_url()),
        ca: None,
        password: pair.service.password(),
    };
    let mut walks = Vec::new();
    for (name, services) in [("ours", &ours), ("theirs", &theirs)] {
        let files = dir.join(name);
        std::fs::create_dir_all(&files)?;
        walks.push(walk(&client, services, &files)?);
    }
    let [mine, other] = &walks[..] else {
        unreachable!("there are two sides")
    };
    ensure!(mine.len() == other.len(), "the walks differ in length");
    let mut found = Found::new();
    for (mine, other) in mine.iter().zip(other) {
        ensure!(mine.run == other.run, "{} is not {}", mine.run, other.run);
        let name = format!("openstack {}", mine.run);
        if mine.code != other.code {
            // The words are not compared, but tell why.
            let said = [&mine.wrong, &other.wrong]
                .map(|wrong| wrong.as_deref().unwrap_or("as the table says"));
            println!("{name}\n    ours: {}\n    theirs: {}", said[0], said[1]);
        }
        found.extend(
            differences(mine, other)
                .into_iter()
                .map(|difference| (name.clone(), difference)),
        );
    }
    Ok((found, mine.len()))
}

/// Ours first, as in the list.
fn differences(mine: &Row, other: &Row) -> Vec<Difference> {
    if mine.code != other.code {
        let text = format!("exit {}, theirs {}", mine.code, other.code);
        return vec![Difference(text)];
    }
    let (Some(ours), Some(theirs)) = (objects(&mine.shown), objects(&other.shown)) else {
        if mine.shown == other.shown {
            return Vec::new();
        }
        let text = format!("shows {}, theirs {}", mine.shown, other.shown);
        return vec![Difference(text)];
    };
    let mut found = Vec::new();
    if ours.len() != theirs.len() {
        let text = format!("{} rows, theirs {}", ours.len(), theirs.len());
        found.push(Difference(text));
    }
    let names = |all: &[&serde_json::Map<String, Value>]| -> BTreeSet<String> {
        all.iter().flat_map(|one| one.keys().cloned()).collect()
    };
    let (mine, other) = (names(&ours), names(&theirs));
    for name in mine.union(&other) {
        let values = |all: &[&serde_json::Map<String, Value>]| -> BTreeSet<String> {
            all.iter()
                .filter_map(|one| one.get(name))
                .map(Value::to_string)
                .collect()
        };
        let (mine, other) = (values(&ours), values(&theirs));
        let only = |some: &BTreeSet<String>, others: &BTreeSet<String>| -> String {
            let list: Vec<&str> = some.difference(others).map(String::as_str).collect();
            if list.is_empty() {
                "nothing more".into()
            } else {
                list.join(" ")
            }
        };
        let what = match (mine.is_empty(), other.is_empty()) {
            (true, false) => format!("field {name} only theirs"),
            (false, true) => format!("field {name} only ours"),
            _ if mine == other => continue,
            _ => format!(
                "field {name}: {}, theirs {}",
                only(&mine, &other),
                only(&other, &mine)
            ),
        };
        found.push(Difference(what));
    }
    found
}

/// An object, or a list of them; `None` if it is anything else.
fn objects(shown: &Value) -> Option<Vec<&serde_json::Map<String, Value>>> {
    match shown {
        Value::Array(list) => list.iter().map(Value::as_object).collect(),
        Value::Object(one) => Some(vec![one]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(mine: (i32, Value), other: (i32, Value)) -> Vec<String> {
        let row = |(code, shown)| Row {
            step: String::new(),
            run: String::new(),
            wrong: None,
            code,
            shown,
        };
        differences(&row(mine), &row(other))
            .into_iter()
            .map(|difference| difference.0)
            .collect()
    }

    #[test]
    fn status_rows_fields_and_values() {
        let one = json!([{"Name": "a", "ID": "<id>"}]);
        assert!(told((0, one.clone()), (0, one.clone())).is_empty());
        assert_eq!(told((0, one.clone()), (1, json!({}))), ["exit 0, theirs 1"]);
        let two = json!([{"Name": "a", "ID": "<id>"}, {"Name": "b", "ID": "<id>", "More": 1}]);
        assert_eq!(
            told((0, one), (0, two)),
            [
                "1 rows, theirs 2",
                "field More only theirs",
                "field Name: nothing more, theirs \"b\""
            ]
        );
        assert_eq!(
            told((0, json!("said")), (0, json!(""))),
            ["shows \"said\", theirs \"\""]
        );
    }
}

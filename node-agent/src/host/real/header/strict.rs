//! Refuses metadata that two readers could understand differently: what is judged here is read again by libcryptsetup.
//!
//! json-c, which libcryptsetup uses, takes the last of two members with one name and ends a text at a NUL; it gives up below a
//! depth of 32. A header of cryptsetup has a depth of 5 and a few hundred values.

use std::{collections::BTreeSet, fmt};

use serde::{
    Deserializer,
    de::{self, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};

/// Deeper than any metadata of LUKS2 and of the tokens that are in use.
const MAX_DEPTH: usize = 16;
/// More values than 32 key slots, 32 digests and 32 tokens have.
const MAX_VALUES: usize = 10_000;

/// Walks the text once.
///
/// # Errors
/// What is wrong: no JSON, a name that stands twice in an object, control characters, too deep or too many values.
pub fn check(json: &str) -> Result<(), String> {
    let mut values = 0;
    let mut reader = serde_json::Deserializer::from_str(json);
    Walk {
        depth: 0,
        values: &mut values,
    }
    .deserialize(&mut reader)
    .and_then(|()| reader.end())
    .map_err(|e| format!("metadata: {e}"))
}

struct Walk<'a> {
    depth: usize,
    values: &'a mut usize,
}

impl Walk<'_> {
    fn below(&mut self) -> Walk<'_> {
        Walk {
            depth: self.depth + 1,
            values: self.values,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        *self.values += 1;
        if *self.values > MAX_VALUES {
            return Err(D::Error::custom("more values than a header has"));
        }
        if self.depth > MAX_DEPTH {
            return Err(D::Error::custom("deeper than a header is"));
        }
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut names = BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            plain::<A::Error>(&name)?;
            map.next_value_seed(self.below())?;
            if !names.insert(name) {
                return Err(A::Error::custom("a name stands there twice"));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self.below())?.is_some() {}
        Ok(())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        plain(text)
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

fn plain<E: de::Error>(text: &str) -> Result<(), E> {
    match text.chars().any(char::is_control) {
        true => Err(E::custom("control characters in a text")),
        false => Ok(()),
    }
}

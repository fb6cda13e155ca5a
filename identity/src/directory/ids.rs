//! Identifiers in as few bytes as they need: a large site has some hundred thousand of them.

use std::fmt;

use serde::{Serialize, Serializer};

/// First byte of an id that is kept as what its hexadecimal digits spell, and of one that is kept as it is.
const HEX: u8 = 0;
const TEXT: u8 = 1;

/// Different ids, each known by its number: the first one that was added has number 0.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    packed: Vec<u8>,
    /// Where each ends in `packed`.
    ends: Vec<usize>,
    /// The numbers in the order of the packed ids.
    order: Vec<u32>,
}

/// One id, to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id<'a>(&'a [u8]);

impl Ids {
    /// The number of an id; it is added if it is new. They are best added in ascending order.
    pub(crate) fn add(&mut self, id: &str) -> u32 {
        let packed = pack(id);
        let is_last = self
            .order
            .last()
            .is_none_or(|last| self.packed(*last) < packed.as_slice());
        let place = if is_last {
            self.order.len()
        } else {
            match self.place(&packed) {
                Ok(place) => return self.order.get(place).copied().unwrap_or(u32::MAX),
                Err(place) => place,
            }
        };
        // More than this cannot be held at all.
        let number = u32::try_from(self.ends.len()).unwrap_or(u32::MAX);
        self.packed.extend_from_slice(&packed);
        self.ends.push(self.packed.len());
        self.order.insert(place, number);
        number
    }

    /// The number of an id that was added.
    pub(crate) fn number(&self, id: &str) -> Option<u32> {
        let place = self.place(&pack(id)).ok()?;
        self.order.get(place).copied()
    }

    /// The id with this number; empty if there is none.
    pub(crate) fn id(&self, number: u32) -> Id<'_> {
        Id(self.packed(number))
    }

    /// Gives back what was allocated in advance.
    pub(crate) fn shrink(&mut self) {
        self.packed.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.order.shrink_to_fit();
    }

    fn place(&self, packed: &[u8]) -> Result<usize, usize> {
        self.order
            .binary_search_by(|number| self.packed(*number).cmp(packed))
    }

    fn packed(&self, number: u32) -> &[u8] {
        slice(&self.packed, &self.ends, number)
    }
}

/// What lies between the ends of the one before and of this one.
pub(super) fn slice<'a>(bytes: &'a [u8], ends: &[usize], number: u32) -> &'a [u8] {
    let at = number as usize;
    let Some(end) = ends.get(at) else {
        return &[];
    };
    let start = at.checked_sub(1).and_then(|before| ends.get(before));
    bytes
        .get(start.copied().unwrap_or_default()..*end)
        .unwrap_or_default()
}

fn pack(id: &str) -> Vec<u8> {
    let is_lower = !id.bytes().any(|byte| byte.is_ascii_uppercase());
    match hex::decode(id) {
        Ok(bytes) if is_lower && !id.is_empty() => [&[HEX], bytes.as_slice()].concat(),
        _ => [&[TEXT], id.as_bytes()].concat(),
    }
}

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_first() {
            Some((&HEX, bytes)) => {
                for byte in bytes {
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
            Some((_, text)) => f.write_str(str::from_utf8(text).unwrap_or_default()),
            None => Ok(()),
        }
    }
}

impl Serialize for Id<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_id_is_written_as_it_was() {
        let mut ids = Ids::default();
        let public = "ab".repeat(32);
        let all = [
            "0123456789abcdef0123456789abcdef",
            "default",
            // Not what a pair of digits each would give back.
            "ABCDEF",
            "abcdef",
            "abc",
            "",
            "ünïcode",
            &public,
            "00",
            "000",
        ];
        let numbers: Vec<u32> = all.iter().map(|id| ids.add(id)).collect();
        assert_eq!(numbers, (0..10).collect::<Vec<u32>>());
        for (number, id) in numbers.iter().zip(all) {
            assert_eq!(ids.id(*number).to_string(), id);
            assert_eq!(ids.number(id), Some(*number));
            assert_eq!(ids.add(id), *number, "added twice");
            let json = serde_json::to_value(ids.id(*number)).unwrap();
            assert_eq!(json, id);
        }
        assert_eq!(ids.number("nobody"), None);
        assert_eq!(ids.id(77).to_string(), "");
    }
}

//! Decisions about one entry of a directory: which id it has here, and whether it may log in.

use sha2::{Digest, Sha256};

/// What an entry is, as it goes into its public id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntityType {
    /// A person or service.
    User,
    /// A group.
    Group,
}

impl EntityType {
    /// The word in the id mapping.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Group => "group",
        }
    }
}

/// The id under which the API shows an entry: 64 hex digits of SHA-256 over the domain's id, the entity type and the
/// entry's own id, in this order (Keystone sorts the names of the three: `domain_id`, `entity_type`, `local_id`). The
/// same directory therefore has the same ids in Keystone and here, and after every restart.
pub fn public_id(domain_id: &str, entity: EntityType, local_id: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(domain_id);
    hash.update(entity.as_str());
    hash.update(local_id);
    hex::encode(hash.finalize())
}

/// How a directory says that an account is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnabledRule {
    /// A true or false attribute; `invert` where true means locked.
    Flag {
        /// Whether true means disabled.
        invert: bool,
        /// What an entry without the attribute is, before `invert`.
        default: bool,
    },
    /// Bits of a number (`userAccountControl` of Active Directory, mask 2): any of them set means disabled.
    Mask {
        /// The bits.
        mask: u32,
        /// The number of an entry without the attribute.
        default: u32,
    },
}

impl EnabledRule {
    /// Whether an account is enabled by the attribute's value, if it has one. A value that cannot be understood
    /// counts as disabled: letting somebody in because of a typing error is the worse mistake.
    pub fn enabled(&self, value: Option<&str>) -> bool {
        match self {
            Self::Flag { invert, default } => {
                let Some(value) = value else {
                    return default ^ invert;
                };
                match value.trim().to_ascii_lowercase().as_str() {
                    "true" => !invert,
                    "false" => *invert,
                    _ => false,
                }
            }
            Self::Mask { mask, default } => {
                let Some(value) = value else {
                    return default & mask == 0;
                };
                // Active Directory writes the number as a signed one.
                value
                    .trim()
                    .parse::<i64>()
                    .is_ok_and(|number| number & i64::from(*mask) == 0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_sha256_over_domain_type_and_local_id() {
        // printf 'default''user''alice' | sha256sum
        assert_eq!(
            public_id("default", EntityType::User, "alice"),
            "c43e4dd25aba357630477a0f49fde7da8567b753ddd430c9555ad09aa2a76e9e"
        );
        assert_eq!(
            public_id("default", EntityType::Group, "alice"),
            "569ee05e83dabe1b79db0a3a0bb35e5e46fb3325a3014483bb41151e6fbd22ea"
        );
    }

    #[test]
    fn flags_and_their_inverse() {
        let plain = EnabledRule::Flag {
            invert: false,
            default: true,
        };
        let lock = EnabledRule::Flag {
            invert: true,
            default: false,
        };
        for (value, by_plain, by_lock) in [
            (Some("TRUE"), true, false),
            (Some("false"), false, true),
            (None, true, true),
            (Some("1"), false, false),
            (Some(""), false, false),
        ] {
            assert_eq!(plain.enabled(value), by_plain, "{value:?}");
            assert_eq!(lock.enabled(value), by_lock, "{value:?}");
        }
        let strict = EnabledRule::Flag {
            invert: false,
            default: false,
        };
        assert!(!strict.enabled(None));
    }

    #[test]
    fn account_control_bits() {
        let rule = EnabledRule::Mask {
            mask: 2,
            default: 512,
        };
        for (value, enabled) in [
            (Some("512"), true),
            (Some("514"), false),
            (Some("66048"), true),
            (Some("66050"), false),
            (Some("-2147483136"), true),
            (Some("-2147483134"), false),
            (None, true),
            (Some("TRUE"), false),
            (Some(""), false),
        ] {
            assert_eq!(rule.enabled(value), enabled, "{value:?}");
        }
        assert!(
            !EnabledRule::Mask {
                mask: 2,
                default: 514
            }
            .enabled(None)
        );
    }
}

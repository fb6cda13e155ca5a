//! What becomes of each option of Keystone's `[ldap]` section. A file that works with Keystone works here: what a
//! read-only directory needs is used, what only concerns writing or the C library is named and left out, and whatever
//! cannot be kept or is not known is refused, because a site that sets it counts on it.

/// What becomes of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// Used.
    Used,
    /// Left out with a warning, for this reason.
    Ignored(&'static str),
    /// Not implemented. The sentence says so; `unless` is the value (in any case) under which nothing is asked for.
    Refused {
        /// Why, and what to do.
        why: &'static str,
        /// The value that asks for nothing.
        unless: &'static str,
    },
    /// No option of this name.
    Unknown,
}

const WRITES: &str = "directories are only read";
const C_LIBRARY: &str = "it concerns Keystone's LDAP library";
const OWN_BIND: &str = "each login binds on a connection of its own, closed after it";

/// What becomes of the option `name` of the section `[ldap]`. Names as of Keystone 30.
pub fn handling(name: &str) -> Handling {
    match name {
        "url"
        | "user"
        | "password"
        | "suffix"
        | "query_scope"
        | "page_size"
        | "alias_dereferencing"
        | "user_tree_dn"
        | "user_filter"
        | "user_objectclass"
        | "user_id_attribute"
        | "user_name_attribute"
        | "user_description_attribute"
        | "user_mail_attribute"
        | "user_enabled_attribute"
        | "user_enabled_invert"
        | "user_enabled_mask"
        | "user_enabled_default"
        | "user_default_project_id_attribute"
        | "user_additional_attribute_mapping"
        | "group_tree_dn"
        | "group_filter"
        | "group_objectclass"
        | "group_id_attribute"
        | "group_name_attribute"
        | "group_member_attribute"
        | "group_members_are_ids"
        | "group_desc_attribute"
        | "group_additional_attribute_mapping"
        | "group_ad_nesting"
        | "tls_cacertfile"
        | "tls_cacertdir"
        | "use_tls"
        | "tls_req_cert"
        | "use_pool"
        | "pool_size"
        | "pool_retry_max"
        | "pool_retry_delay"
        | "pool_connection_timeout"
        | "pool_connection_lifetime"
        | "connection_timeout"
        | "user_enabled_emulation"
        | "user_enabled_emulation_dn"
        | "user_enabled_emulation_use_group_config" => Handling::Used,
        "use_dumb_member"
        | "dumb_member"
        | "allow_subtree_delete"
        | "user_attribute_ignore"
        | "group_attribute_ignore"
        | "user_allow_create"
        | "user_allow_update"
        | "user_allow_delete"
        | "group_allow_create"
        | "group_allow_update"
        | "group_allow_delete"
        | "user_pass_attribute" => Handling::Ignored(WRITES),
        "debug_level" => Handling::Ignored(C_LIBRARY),
        "use_auth_pool" | "auth_pool_size" | "auth_pool_connection_lifetime" => {
            Handling::Ignored(OWN_BIND)
        }
        "chase_referrals" => Handling::Refused {
            why: "referrals are not followed; give the server that holds the entries as url, for Active Directory its global catalog",
            unless: "false",
        },
        "randomize_urls" => Handling::Refused {
            why: "servers are tried in the order in which they are given",
            unless: "false",
        },
        _ => Handling::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_about_writing_is_ignored_and_never_refused() {
        for name in ["user_allow_create", "group_allow_delete", "use_dumb_member"] {
            assert_eq!(handling(name), Handling::Ignored(WRITES), "{name}");
        }
    }

    #[test]
    fn what_a_site_counts_on_is_used_or_refused() {
        for name in [
            "url",
            "tls_req_cert",
            "user_enabled_mask",
            "group_ad_nesting",
        ] {
            assert_eq!(handling(name), Handling::Used, "{name}");
        }
        for name in ["chase_referrals", "randomize_urls"] {
            assert!(
                matches!(
                    handling(name),
                    Handling::Refused {
                        unless: "false",
                        ..
                    }
                ),
                "{name}"
            );
        }
        for name in ["tls_reqcert", "URL", "", "user_id"] {
            assert_eq!(handling(name), Handling::Unknown, "{name}");
        }
    }
}

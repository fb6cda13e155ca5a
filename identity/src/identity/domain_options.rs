//! Which options a domain may have of its own, what they are without it, and which requests about them make sense.
//! Names, defaults and refusals are Keystone's (`keystone.resource.core.DomainConfigManager`).

use serde_json::{Map, Value};

/// Options as `{section: {name: value}}`.
pub(super) type Config = Map<String, Value>;

/// Options that are stored and never answered.
const SENSITIVE: &[(&str, &str)] = &[("ldap", "password")];

/// Defaults of the section `identity`.
const IDENTITY: &str = r#"{"driver": "sql", "list_limit": null}"#;

/// Defaults of the section `ldap`.
const LDAP: &str = r#"{
    "url": "ldap://localhost", "user": null, "suffix": "cn=example,cn=com", "query_scope": "one",
    "page_size": 0, "alias_dereferencing": "default", "debug_level": null, "chase_referrals": null,
    "user_tree_dn": null, "user_filter": null, "user_objectclass": "inetOrgPerson",
    "user_id_attribute": "cn", "user_name_attribute": "sn", "user_mail_attribute": "mail",
    "user_description_attribute": "description", "user_pass_attribute": "userPassword",
    "user_enabled_attribute": "enabled", "user_enabled_invert": false, "user_enabled_mask": 0,
    "user_enabled_default": "True", "user_attribute_ignore": ["default_project_id"],
    "user_default_project_id_attribute": null, "user_enabled_emulation": false,
    "user_enabled_emulation_dn": null, "user_enabled_emulation_use_group_config": false,
    "user_additional_attribute_mapping": [], "group_tree_dn": null, "group_filter": null,
    "group_objectclass": "groupOfNames", "group_id_attribute": "cn", "group_name_attribute": "ou",
    "group_members_are_ids": false, "group_member_attribute": "member",
    "group_desc_attribute": "description", "group_attribute_ignore": [],
    "group_additional_attribute_mapping": [], "tls_cacertfile": null, "tls_cacertdir": null,
    "use_tls": false, "tls_req_cert": "demand", "use_pool": true, "pool_size": 10, "pool_retry_max": 3,
    "pool_retry_delay": 0.1, "pool_connection_timeout": -1, "pool_connection_lifetime": 600,
    "use_auth_pool": true, "auth_pool_size": 100, "auth_pool_connection_lifetime": 60
}"#;

/// Whether an option's value is for nobody's eyes.
pub(super) fn is_sensitive(section: &str, name: &str) -> bool {
    SENSITIVE.contains(&(section, name))
}

/// The options that can be read, with their defaults; `None` for a section that domains do not have.
pub(super) fn defaults(section: &str) -> Option<Map<String, Value>> {
    let text = match section {
        "identity" => IDENTITY,
        "ldap" => LDAP,
        _ => return None,
    };
    // A test reads both.
    serde_json::from_str(text).ok()
}

/// The sections that domains have.
pub(super) const SECTIONS: [&str; 2] = ["identity", "ldap"];

/// Whether there is such a section, and such an option in it.
///
/// # Errors
/// What is wrong, as a sentence without its end.
pub(super) fn check_known(section: &str, name: Option<&str>) -> Result<(), String> {
    let Some(known) = defaults(section) else {
        return Err(format!(
            "Group {section} is not supported for domain specific configurations"
        ));
    };
    match name {
        Some(name) if !known.contains_key(name) && !is_sensitive(section, name) => Err(format!(
            "Option {name} in group {section} is not supported for domain specific configurations"
        )),
        _ => Ok(()),
    }
}

/// Whether a set of options can be stored.
///
/// # Errors
/// As [`check_known`].
pub(super) fn check(config: &Config) -> Result<(), String> {
    if config.is_empty() {
        return Err("No options specified".into());
    }
    for (section, options) in config {
        let Some(options) = options.as_object().filter(|options| !options.is_empty()) else {
            return Err(format!(
                "The value of group {section} specified in the config should be a dictionary of options"
            ));
        };
        check_known(section, None)?;
        for name in options.keys() {
            check_known(section, Some(name))?;
        }
    }
    Ok(())
}

/// Whether a change that names one section, or one option, is about that and nothing else.
///
/// # Errors
/// As [`check_known`].
pub(super) fn check_only(config: &Config, section: &str, name: Option<&str>) -> Result<(), String> {
    check_known(section, name)?;
    let options = config.get(section).and_then(Value::as_object);
    let other = config.keys().next().map_or("", String::as_str);
    match (options, name) {
        (None, _) => Err(format!(
            "request to update group {section}, but config provided contains group {other} instead"
        )),
        (Some(_), None) if config.len() != 1 => Err(format!(
            "Trying to update group {section}, so that, and only that, group must be specified in the config"
        )),
        (Some(options), Some(name)) if config.len() != 1 || options.len() != 1 => Err(format!(
            "Trying to update option {name} in group {section}, so that, and only that, option must be specified in \
             the config"
        )),
        (Some(options), Some(name)) if !options.contains_key(name) => Err(format!(
            "Trying to update option {name} in group {section}, but config provided contains option {} instead",
            options.keys().next().map_or("", String::as_str)
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(value: Value) -> Config {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn only_known_options_of_known_sections() {
        assert!(check(&config(json!({"ldap": {"url": "x", "password": "y"}}))).is_ok());
        for (bad, words) in [
            (json!({}), "No options"),
            (json!({"ldap": {}}), "dictionary"),
            (json!({"ldap": "x"}), "dictionary"),
            (json!({"token": {"a": 1}}), "Group token"),
            (json!({"ldap": {"URL": 1}}), "Option URL"),
            (json!({"identity": {"password": 1}}), "Option password"),
        ] {
            let said = check(&config(bad.clone())).unwrap_err();
            assert!(said.contains(words), "{bad}: {said}");
        }
    }

    #[test]
    fn a_change_of_one_thing_is_about_that_alone() {
        let one = config(json!({"ldap": {"url": "x"}}));
        assert!(check_only(&one, "ldap", None).is_ok());
        assert!(check_only(&one, "ldap", Some("url")).is_ok());
        assert!(check_only(&one, "identity", None).is_err());
        assert!(check_only(&one, "ldap", Some("user")).is_err());
        let two =
            config(json!({"ldap": {"url": "x", "user": "y"}, "identity": {"driver": "ldap"}}));
        assert!(check_only(&two, "ldap", None).is_err());
        assert!(check_only(&two, "ldap", Some("url")).is_err());
    }

    #[test]
    fn nothing_sensitive_has_a_default_that_is_answered() {
        for section in SECTIONS {
            for name in defaults(section).unwrap().keys() {
                assert!(!is_sensitive(section, name), "{section} {name}");
            }
        }
    }
}

//! A directory as a site describes it: the options of Keystone's `[ldap]`, read, checked and with their defaults.

use std::{collections::BTreeMap, time::Duration};

use secrecy::SecretString;
use thiserror::Error;
use url::Url;

use super::{
    account::EnabledRule,
    filter,
    options::{Handling, handling},
    tls::{self, Authorities, Server, TlsError, Verify},
};

/// Options by name, as written.
pub type Options = BTreeMap<String, String>;

/// How long one step (connection, bind, page of a search) may take unless the site says otherwise.
const STEP: Duration = Duration::from_secs(5);

/// Why a directory cannot be used as described.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Where it is, or its certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No such option.
    #[error("[ldap] {0} is no option; look for a typing error")]
    Unknown(String),
    /// An option that is not implemented.
    #[error("[ldap] {0}: {1}")]
    Refused(String, &'static str),
    /// A value of the wrong kind.
    #[error("[ldap] {0} must be {1}")]
    Value(String, &'static str),
    /// An option that must be there.
    #[error("[ldap] {0} is missing; {1}")]
    Missing(&'static str, &'static str),
}

/// Where users are and what their attributes are called.
#[derive(Debug, Clone)]
pub struct UserTree {
    /// Where to look.
    pub base: String,
    /// Their object class.
    pub class: String,
    /// What else must be true of them.
    pub filter: Option<String>,
    /// Attribute with the id, which must not change and have one value.
    pub id: String,
    /// Attribute with the name.
    pub name: String,
    /// Attributes and what they are called in the API.
    pub extra: Vec<(String, String)>,
    /// Attribute with the id of the default project.
    pub default_project: Option<String>,
    /// Attribute that says whether the account is on.
    pub enabled: String,
    /// What its values mean.
    pub rule: EnabledRule,
    /// The group whose members are enabled, instead.
    pub emulation: Option<Emulation>,
}

/// A group whose members are the enabled users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emulation {
    /// Its name.
    pub dn: String,
    /// Attribute with the members.
    pub member: String,
    /// Whether members are ids and not names.
    pub ids: bool,
}

/// Where groups are and what their attributes are called.
#[derive(Debug, Clone)]
pub struct GroupTree {
    /// Where to look.
    pub base: String,
    /// Their object class.
    pub class: String,
    /// What else must be true of them.
    pub filter: Option<String>,
    /// Attribute with the id.
    pub id: String,
    /// Attribute with the name.
    pub name: String,
    /// Attribute with the description.
    pub description: String,
    /// Attributes and what they are called in the API.
    pub extra: Vec<(String, String)>,
    /// Attribute with the members.
    pub member: String,
    /// Whether members are users' ids and not names of entries.
    pub ids: bool,
    /// Whether the members of a group in a group are members of the outer one.
    pub nesting: bool,
}

/// Connections.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// Connections at once.
    pub size: usize,
    /// Whether they are kept for the next question.
    pub keep: bool,
    /// How often an operation is tried.
    pub tries: u32,
    /// Pause between tries.
    pub delay: Duration,
    /// How long one step may take.
    pub timeout: Duration,
    /// How long a connection is used.
    pub lifetime: Duration,
}

/// A directory.
#[derive(Debug, Clone)]
pub struct DirectoryConfig {
    /// Servers, in the order in which they are tried.
    pub servers: Vec<Server>,
    /// How certificates are judged.
    pub verify: Verify,
    /// Whose certificates are trusted.
    pub authorities: Authorities,
    /// Who asks; nobody where the directory lets anybody read.
    pub bind: Option<(String, SecretString)>,
    /// Whether searches go below the first level.
    pub subtree: bool,
    /// Entries a page; 0: no pages.
    pub page_size: i32,
    /// Aliases.
    pub aliases: Aliases,
    /// Users.
    pub users: UserTree,
    /// Groups.
    pub groups: GroupTree,
    /// Connections.
    pub pool: PoolConfig,
    /// What of the description has no effect here, for the log.
    pub ignored: Vec<String>,
}

/// When aliases are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aliases {
    /// Never.
    Never,
    /// Below the base.
    Searching,
    /// At the base.
    Finding,
    /// Always.
    Always,
}

/// Reads the options of `[ldap]`.
///
/// # Errors
/// Any [`ConfigError`]. None of them holds the password.
pub fn read(options: &Options) -> Result<DirectoryConfig, ConfigError> {
    let mut ignored = Vec::new();
    for (name, value) in options {
        match handling(name) {
            Handling::Used => {}
            Handling::Ignored(why) => {
                ignored.push(format!("[ldap] {name} has no effect here: {why}"));
            }
            Handling::Refused { unless, .. } if value.eq_ignore_ascii_case(unless) => {}
            Handling::Refused { why, .. } => return Err(ConfigError::Refused(name.clone(), why)),
            Handling::Unknown => return Err(ConfigError::Unknown(name.clone())),
        }
        if name != "password" && value.contains("%(") {
            return Err(ConfigError::Refused(
                name.clone(),
                "substitutions are not implemented; write the value itself",
            ));
        }
    }
    let reader = Reader(options);
    let suffix = reader.text("suffix");
    let base = |name: &'static str| {
        reader
            .text(name)
            .or(suffix)
            .map(str::to_owned)
            .ok_or(ConfigError::Missing(
                name,
                "give it, or suffix, as the place to look",
            ))
    };
    let users = user_tree(&reader, base("user_tree_dn")?)?;
    let groups = group_tree(&reader, base("group_tree_dn")?)?;
    let servers = tls::servers(
        reader.text("url").unwrap_or_default(),
        reader.flag("use_tls", false)?,
    )?;
    for server in &servers {
        // The library takes a host for granted.
        let host = Url::parse(&server.url).ok();
        if host
            .and_then(|url| url.host_str().map(str::len))
            .unwrap_or(0)
            == 0
        {
            return Err(ConfigError::Value(
                "url".into(),
                "ldaps://HOST or ldaps://HOST:PORT",
            ));
        }
    }
    let bind = match (reader.text("user"), reader.text("password")) {
        (Some(user), Some(password)) => {
            Some((user.to_owned(), SecretString::from(password.to_owned())))
        }
        (None, None) => None,
        (Some(_), None) => {
            return Err(ConfigError::Missing("password", "user needs one"));
        }
        (None, Some(_)) => return Err(ConfigError::Missing("user", "password belongs to one")),
    };
    Ok(DirectoryConfig {
        servers,
        verify: tls::verify(reader.text("tls_req_cert"))?,
        authorities: tls::authorities(reader.text("tls_cacertfile"), reader.text("tls_cacertdir")),
        bind,
        subtree: match reader.text("query_scope") {
            None | Some("one") => false,
            Some("sub") => true,
            Some(_) => return Err(ConfigError::Value("query_scope".into(), "one or sub")),
        },
        page_size: i32::try_from(reader.number::<u32>("page_size", 0)?).unwrap_or(i32::MAX),
        aliases: match reader.text("alias_dereferencing") {
            None | Some("default" | "never") => Aliases::Never,
            Some("searching") => Aliases::Searching,
            Some("finding") => Aliases::Finding,
            Some("always") => Aliases::Always,
            Some(_) => {
                return Err(ConfigError::Value(
                    "alias_dereferencing".into(),
                    "one of default, never, searching, finding, always",
                ));
            }
        },
        users,
        groups,
        pool: pool(&reader)?,
        ignored,
    })
}

fn user_tree(reader: &Reader<'_>, base: String) -> Result<UserTree, ConfigError> {
    let mut extra = reader.pairs("user_additional_attribute_mapping")?;
    for (option, default, name) in [
        ("user_description_attribute", "description", "description"),
        ("user_mail_attribute", "mail", "email"),
    ] {
        extra.push((reader.attribute(option, default)?, name.to_owned()));
    }
    let mask = reader.number::<u32>("user_enabled_mask", 0)?;
    let rule = if mask == 0 {
        EnabledRule::Flag {
            invert: reader.flag("user_enabled_invert", false)?,
            default: reader.flag("user_enabled_default", true)?,
        }
    } else {
        EnabledRule::Mask {
            mask,
            default: reader.number("user_enabled_default", 512)?,
        }
    };
    let emulation = if reader.flag("user_enabled_emulation", false)? {
        let of_groups = reader.flag("user_enabled_emulation_use_group_config", false)?;
        Some(Emulation {
            dn: reader
                .text("user_enabled_emulation_dn")
                .map_or_else(|| format!("cn=enabled_users,{base}"), str::to_owned),
            member: if of_groups {
                reader.attribute("group_member_attribute", "member")?
            } else {
                "member".into()
            },
            ids: of_groups && reader.flag("group_members_are_ids", false)?,
        })
    } else {
        None
    };
    Ok(UserTree {
        base,
        class: reader.attribute("user_objectclass", "inetOrgPerson")?,
        filter: reader.filter("user_filter")?,
        id: reader.attribute("user_id_attribute", "cn")?,
        name: reader.attribute("user_name_attribute", "sn")?,
        extra,
        default_project: match reader.text("user_default_project_id_attribute") {
            None => None,
            Some(_) => Some(reader.attribute("user_default_project_id_attribute", "")?),
        },
        enabled: reader.attribute("user_enabled_attribute", "enabled")?,
        rule,
        emulation,
    })
}

fn group_tree(reader: &Reader<'_>, base: String) -> Result<GroupTree, ConfigError> {
    Ok(GroupTree {
        base,
        class: reader.attribute("group_objectclass", "groupOfNames")?,
        filter: reader.filter("group_filter")?,
        id: reader.attribute("group_id_attribute", "cn")?,
        name: reader.attribute("group_name_attribute", "ou")?,
        description: reader.attribute("group_desc_attribute", "description")?,
        extra: reader.pairs("group_additional_attribute_mapping")?,
        member: reader.attribute("group_member_attribute", "member")?,
        ids: reader.flag("group_members_are_ids", false)?,
        nesting: reader.flag("group_ad_nesting", false)?,
    })
}

fn pool(reader: &Reader<'_>) -> Result<PoolConfig, ConfigError> {
    let seconds = |name: &'static str| -> Result<Option<Duration>, ConfigError> {
        let number = reader.number::<i64>(name, -1)?;
        // Keystone's -1 is its library's own limit; without any, a silent server would hold requests for ever.
        Ok(u64::try_from(number)
            .ok()
            .filter(|n| *n > 0)
            .map(Duration::from_secs))
    };
    let delay = reader.number::<f64>("pool_retry_delay", 0.1)?;
    let positive = |name, default: u32| match reader.number::<u32>(name, default)? {
        0 => Err(ConfigError::Value(name.into(), "at least 1")),
        number => Ok(number),
    };
    Ok(PoolConfig {
        size: usize::try_from(positive("pool_size", 10)?)
            .unwrap_or(usize::MAX)
            .min(1000),
        keep: reader.flag("use_pool", true)?,
        tries: positive("pool_retry_max", 3)?.min(10),
        delay: Duration::try_from_secs_f64(delay.clamp(0.0, 5.0)).unwrap_or(Duration::ZERO),
        timeout: seconds("pool_connection_timeout")?
            .or(seconds("connection_timeout")?)
            .unwrap_or(STEP),
        lifetime: Duration::from_secs(u64::from(positive("pool_connection_lifetime", 600)?)),
    })
}

/// Reads single options. An empty value counts as none.
struct Reader<'a>(&'a Options);

impl Reader<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(|text| text.as_str())
            .filter(|text| !text.is_empty())
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        // The words of oslo.config.
        match self.text(name).map(str::to_ascii_lowercase).as_deref() {
            None => Ok(default),
            Some("true" | "1" | "yes" | "on") => Ok(true),
            Some("false" | "0" | "no" | "off") => Ok(false),
            Some(_) => Err(ConfigError::Value(name.into(), "true or false")),
        }
    }

    fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, ConfigError> {
        match self.text(name) {
            None => Ok(default),
            // Keystone's default of user_enabled_default is a word, also with a mask.
            Some("True") if name == "user_enabled_default" => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| ConfigError::Value(name.into(), "a number that is not negative")),
        }
    }

    /// The name of an attribute or object class, which goes into filters as it is.
    fn attribute(&self, name: &str, default: &str) -> Result<String, ConfigError> {
        let text = self.text(name).unwrap_or(default);
        if filter::is_attribute(text) {
            Ok(text.to_owned())
        } else {
            Err(ConfigError::Value(
                name.into(),
                "the name of an attribute or class",
            ))
        }
    }

    fn filter(&self, name: &str) -> Result<Option<String>, ConfigError> {
        match self.text(name) {
            None => Ok(None),
            Some(text) if filter::is_filter(text) => Ok(Some(text.to_owned())),
            Some(_) => Err(ConfigError::Value(
                name.into(),
                "an LDAP filter in brackets, such as (memberOf=cn=cloud,dc=example,dc=org)",
            )),
        }
    }

    /// `attribute:name` pairs, separated by commas.
    fn pairs(&self, name: &str) -> Result<Vec<(String, String)>, ConfigError> {
        /// What the API says of users and groups by itself.
        const OWN: &[&str] = &[
            "id",
            "name",
            "domain_id",
            "enabled",
            "options",
            "links",
            "password",
            "password_expires_at",
            "default_project_id",
            "description",
            "email",
        ];
        let wrong = || {
            ConfigError::Value(
                name.into(),
                "a list of ATTRIBUTE:NAME, with names that the API does not have already",
            )
        };
        self.text(name)
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (attribute, shown) = pair.split_once(':').ok_or_else(wrong)?;
                if !filter::is_attribute(attribute) || shown.is_empty() || OWN.contains(&shown) {
                    return Err(wrong());
                }
                Ok((attribute.to_owned(), shown.to_owned()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(options: &[(&str, &str)]) -> Result<DirectoryConfig, ConfigError> {
        let mut all = Options::from_iter([
            ("url".to_owned(), "ldaps://a".to_owned()),
            ("suffix".to_owned(), "dc=x".to_owned()),
        ]);
        all.extend(
            options
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into())),
        );
        read(&all)
    }

    #[test]
    fn defaults_are_keystones() {
        let config = with(&[]).unwrap();
        assert_eq!(
            (config.users.id.as_str(), config.users.name.as_str()),
            ("cn", "sn")
        );
        assert_eq!(
            (config.groups.id.as_str(), config.groups.name.as_str()),
            ("cn", "ou")
        );
        assert_eq!(config.users.class, "inetOrgPerson");
        assert_eq!(config.verify, Verify::Demand);
        assert_eq!(
            (config.subtree, config.page_size, config.pool.size),
            (false, 0, 10)
        );
        assert!(config.bind.is_none() && config.users.emulation.is_none());
    }

    #[test]
    fn an_active_directory_as_its_guides_write_it() {
        let config = with(&[
            ("user", "CN=reader,DC=x"),
            ("password", "p=%(x)"),
            ("user_objectclass", "person"),
            ("user_id_attribute", "sAMAccountName"),
            ("user_name_attribute", "sAMAccountName"),
            ("user_enabled_attribute", "userAccountControl"),
            ("user_enabled_mask", "2"),
            ("user_enabled_default", "512"),
            ("group_objectclass", "group"),
            ("group_ad_nesting", "True"),
            ("query_scope", "sub"),
            ("page_size", "500"),
            (
                "user_additional_attribute_mapping",
                "telephoneNumber:phone, l:town",
            ),
            ("user_allow_create", "False"),
            ("chase_referrals", "False"),
        ])
        .unwrap();
        assert_eq!(
            config.users.rule,
            EnabledRule::Mask {
                mask: 2,
                default: 512
            }
        );
        assert!(config.groups.nesting && config.subtree);
        assert!(config.users.extra.contains(&("l".into(), "town".into())));
        assert_eq!(config.ignored.len(), 1, "{:?}", config.ignored);
        assert!(!format!("{config:?}").contains("p=%(x)"));
    }

    #[test]
    fn enabled_by_a_group() {
        let config = with(&[
            ("user_enabled_emulation", "true"),
            ("user_tree_dn", "ou=p,dc=x"),
        ])
        .unwrap();
        assert_eq!(
            config.users.emulation,
            Some(Emulation {
                dn: "cn=enabled_users,ou=p,dc=x".into(),
                member: "member".into(),
                ids: false
            })
        );
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_option() {
        for (name, value) in [
            ("url", "ldap://a"),
            ("url", "ldaps:///"),
            ("tls_req_cert", "maybe"),
            ("query_scope", "all"),
            ("page_size", "-1"),
            ("page_size", "many"),
            ("pool_size", "0"),
            ("use_pool", "perhaps"),
            ("user_filter", "(cn=*"),
            ("user_filter", "cn=*"),
            ("user_id_attribute", "cn)(x=*"),
            ("user_additional_attribute_mapping", "cn"),
            ("user_additional_attribute_mapping", "cn:id"),
            ("chase_referrals", "true"),
            ("nosuch", "1"),
            ("user", "cn=x"),
            ("password", "hunter2"),
            ("user_tree_dn", "%(suffix)s"),
        ] {
            let error = with(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains("[ldap]"), "{name} = {value}: {error}");
            assert!(!error.contains("hunter2"));
        }
        assert!(read(&Options::from_iter([("url".into(), "ldaps://a".into())])).is_err());
    }
}

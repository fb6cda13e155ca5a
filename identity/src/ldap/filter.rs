//! LDAP filters. Whatever a client sent goes in escaped (RFC 4515), so that it is only ever a value.

use ldap3::{ldap_escape, parse_filter};

/// Active Directory's rule for members of members; other servers do not know it, and a term that they do not know is
/// undefined, which `|` overlooks.
const IN_CHAIN: &str = "1.2.840.113556.1.4.1941";

/// Whether a text is the name of an attribute or class, and so nothing else in a filter.
pub fn is_attribute(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b';'))
}

/// Whether a site's filter is one.
pub fn is_filter(text: &str) -> bool {
    text.starts_with('(') && parse_filter(text).is_ok()
}

/// `(attribute=value)`.
pub fn equals(attribute: &str, value: &str) -> String {
    format!("({attribute}={})", ldap_escape(value))
}

/// Entries of a class that the site's filter lets through, and `more` if given.
pub fn entries(class: &str, site: Option<&str>, more: Option<&str>) -> String {
    let (site, more) = (site.unwrap_or_default(), more.unwrap_or_default());
    format!("(&(objectClass={class}){site}{more})")
}

/// Groups that have any of these as a member; `chain`: or as a member of a member.
pub fn having(member: &str, values: &[&str], chain: bool) -> String {
    let mut filter = String::from("(|");
    for value in values {
        filter.push_str(&equals(member, value));
        if chain {
            filter.push_str(&equals(&format!("member:{IN_CHAIN}:"), value));
        }
    }
    filter.push(')');
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_sent_leaves_its_place() {
        for value in [
            "*",
            "a)(uid=*",
            "a)(|(uid=*",
            "\\2a",
            "(",
            ")",
            "a\0b",
            "*)(&",
            "admin*",
            "\\",
        ] {
            let filter = entries("person", Some("(x=1)"), Some(&equals("uid", value)));
            assert!(is_filter(&filter), "{filter}");
            let inner = filter
                .strip_prefix("(&(objectClass=person)(x=1)(uid=")
                .and_then(|rest| rest.strip_suffix("))"))
                .unwrap();
            assert!(!inner.contains(['(', ')', '*', '\0']), "{filter}");
        }
        assert_eq!(equals("uid", "jörg-1"), "(uid=jörg-1)");
    }

    #[test]
    fn members_of_members() {
        assert_eq!(having("member", &["cn=a"], false), "(|(member=cn=a))");
        let filter = having("member", &["cn=a", "cn=b(x)"], true);
        assert!(filter.contains("(member:1.2.840.113556.1.4.1941:=cn=a)"));
        assert!(filter.contains("(member=cn=b\\28x\\29)"));
        assert!(is_filter(&filter));
    }

    #[test]
    fn names_of_attributes() {
        for good in ["cn", "userCertificate;binary", "1.2.840.1", "x-y"] {
            assert!(is_attribute(good));
        }
        for bad in ["", "a b", "a)", "a=", "a*", "a:x"] {
            assert!(!is_attribute(bad), "{bad}");
        }
    }
}

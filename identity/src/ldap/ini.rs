//! The files a site brings: the part of oslo.config's INI language that `keystone.DOMAIN.conf` files use.
//!
//! Sections in brackets, `name = value` (or `:`), comments on lines of their own after `#` or `;`, and values that go
//! on in indented lines. Names are given back with their line, so that a refusal can point at it.

use thiserror::Error;

/// One option as written.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    /// Section, such as `ldap`.
    pub section: String,
    /// Name, such as `url`.
    pub name: String,
    /// Value without white space around it or one pair of quotes.
    pub value: String,
    /// Line on which it begins, from 1.
    pub line: usize,
}

// By hand: a value may be the directory's password.
impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}] {} (line {})", self.section, self.name, self.line)
    }
}

/// Why a file cannot be read as such. No variant holds a line's text, which may be a password.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum IniError {
    /// An option above the first section.
    #[error("line {0} stands above the first [section]; begin the file with [ldap]")]
    NoSection(usize),
    /// A section without its closing bracket or name.
    #[error("line {0} begins with [ but is no [section]")]
    Section(usize),
    /// A line that is neither.
    #[error("line {0} is neither a [section], nor a comment, nor name = value")]
    Line(usize),
    /// An option that is set twice: which one is meant cannot be known.
    #[error("line {line} sets [{section}] {name} again; keep one of the two")]
    Twice {
        /// The second line.
        line: usize,
        /// Section.
        section: String,
        /// Name.
        name: String,
    },
}

/// Reads a file's text.
///
/// # Errors
/// Any [`IniError`].
pub fn parse(text: &str) -> Result<Vec<Setting>, IniError> {
    let mut settings: Vec<Setting> = Vec::new();
    let mut section: Option<String> = None;
    // Whether an indented line would go on with the last setting.
    let mut open = false;
    for (at, raw) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = at + 1;
        let trimmed = raw.trim();
        if trimmed.is_empty() {
            open = false;
            continue;
        }
        if trimmed.starts_with(['#', ';']) {
            continue;
        }
        if raw.starts_with([' ', '\t'])
            && open
            && let Some(last) = settings.last_mut()
        {
            last.value.push('\n');
            last.value.push_str(trimmed);
            continue;
        }
        if let Some(rest) = trimmed.strip_prefix('[') {
            let name = rest.strip_suffix(']').map(str::trim).unwrap_or_default();
            if name.is_empty() {
                return Err(IniError::Section(line));
            }
            section = Some(name.to_owned());
            open = false;
            continue;
        }
        let (name, value) = trimmed
            .split_once(['=', ':'])
            .map(|(name, value)| (name.trim(), value.trim()))
            .filter(|(name, _)| !name.is_empty())
            .ok_or(IniError::Line(line))?;
        let section = section.clone().ok_or(IniError::NoSection(line))?;
        if settings
            .iter()
            .any(|set| set.section == section && set.name == name)
        {
            return Err(IniError::Twice {
                line,
                section,
                name: name.to_owned(),
            });
        }
        settings.push(Setting {
            section,
            name: name.to_owned(),
            value: value.to_owned(),
            line,
        });
        open = true;
    }
    for setting in &mut settings {
        setting.value = unquoted(&setting.value).to_owned();
    }
    Ok(settings)
}

/// Without one pair of quotes around the whole, as oslo.config reads values.
fn unquoted(value: &str) -> &str {
    ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_values_comments_and_lines_that_go_on() {
        let text = "\u{feff}# a site's file\n[identity]\ndriver = ldap\n\n[ldap]\nurl = ldaps://a,\n  ldaps://b\n; password = old\npassword = \"a = b \"\nuser_filter: (memberOf=cn=x,dc=y)\n";
        let read: Vec<_> = parse(text)
            .unwrap()
            .into_iter()
            .map(|set| (set.section, set.name, set.value, set.line))
            .collect();
        let expect = |s: &str, n: &str, v: &str, l| (s.to_owned(), n.to_owned(), v.to_owned(), l);
        assert_eq!(
            read,
            [
                expect("identity", "driver", "ldap", 3),
                expect("ldap", "url", "ldaps://a,\nldaps://b", 6),
                expect("ldap", "password", "a = b ", 9),
                expect("ldap", "user_filter", "(memberOf=cn=x,dc=y)", 10),
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_names_its_line_and_never_shows_it() {
        for (text, error) in [
            ("url = x", IniError::NoSection(1)),
            ("[ldap\n", IniError::Section(1)),
            ("[]\n", IniError::Section(1)),
            ("[ldap]\nhunter2\n", IniError::Line(2)),
            ("[ldap]\n= hunter2\n", IniError::Line(2)),
            (
                "[ldap]\npassword = a\npassword = hunter2\n",
                IniError::Twice {
                    line: 3,
                    section: "ldap".into(),
                    name: "password".into(),
                },
            ),
        ] {
            let found = parse(text).unwrap_err();
            assert_eq!(found, error, "{text}");
            assert!(!format!("{found} {found:?}").contains("hunter2"));
        }
        let set = parse("[ldap]\npassword = hunter2").unwrap();
        assert!(!format!("{set:?}").contains("hunter2"));
    }
}

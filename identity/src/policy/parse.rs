//! The grammar: words split at white space, brackets peeled off their ends, `not` before `and` before `or`;
//! and the older spelling as a list of lists.
//!
//! What does not parse makes the whole rule false: a rule with a slip must never let anybody in.

use std::fmt;

use serde_json::Value;
use thiserror::Error;

/// How deep brackets and negations may be nested.
const MAX_DEPTH: usize = 64;
/// Longest rule, in bytes.
const MAX_RULE: usize = 64 * 1024;

/// One rule, parsed.
#[derive(Debug, Clone, PartialEq)]
pub enum Check {
    /// `@` or the empty rule.
    True,
    /// `!` or a rule that does not parse.
    False,
    /// Negation.
    Not(Box<Check>),
    /// All of them.
    And(Vec<Check>),
    /// Any of them.
    Or(Vec<Check>),
    /// `rule:NAME`.
    Rule(String),
    /// `role:NAME`; the name may hold substitutions.
    Role(String),
    /// `http:` or `https:`; the whole URL.
    Remote(String),
    /// A literal on the left: its text, compared with the right side.
    Literal(String, String),
    /// A dotted path into the credentials, compared with the right side.
    Attribute(Vec<String>, String),
}

/// Why a rule cannot be read; says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Slip {
    /// Neither a check nor a keyword.
    #[error("`{0}` is not a check; write KIND:VALUE, such as role:admin")]
    Word(String),
    /// A whole word in quotes.
    #[error("`{0}` in quotes is not a check; write KIND:VALUE without quotes around it")]
    Quoted(String),
    /// An operator, an opening bracket or the whole rule has nothing behind it.
    #[error("something is missing behind `{0}`")]
    Missing(String),
    /// A bracket that is never closed.
    #[error("a bracket is not closed")]
    Unclosed,
    /// What follows a complete rule.
    #[error("`{0}` follows without `and` or `or`")]
    Adjacent(String),
    /// Too deep or too long.
    #[error(
        "the rule is longer than {MAX_RULE} bytes or nested deeper than {MAX_DEPTH} brackets; split it with rule:NAME"
    )]
    TooLarge,
    /// Neither text nor list.
    #[error(
        "a rule must be text or a list of lists of checks; write \"@\" for always and \"!\" for never"
    )]
    Type,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Open,
    Close,
    And,
    Or,
    Not,
    Check(String),
    Quoted(String),
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "(",
            Self::Close => ")",
            Self::And => "and",
            Self::Or => "or",
            Self::Not => "not",
            Self::Check(text) | Self::Quoted(text) => text,
        })
    }
}

/// Parses one rule. A rule that cannot be read is [`Check::False`]; [`parse_strict`] says why.
pub fn parse_rule(text: &str) -> Check {
    parse_strict(text).unwrap_or(Check::False)
}

/// Parses one rule.
///
/// # Errors
/// [`Slip`].
pub fn parse_strict(text: &str) -> Result<Check, Slip> {
    if text.trim().is_empty() {
        return Ok(Check::True);
    }
    if text.len() > MAX_RULE {
        return Err(Slip::TooLarge);
    }
    let tokens = tokenize(text);
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        depth: 0,
    };
    let check = parser.or()?;
    match tokens.get(parser.at) {
        None => Ok(check),
        Some(rest) => Err(Slip::Adjacent(rest.to_string())),
    }
}

/// Parses a rule as it stands in a file: text, or a list (any of) of lists (all of) of checks.
///
/// # Errors
/// [`Slip`].
pub fn parse_value(value: &Value) -> Result<Check, Slip> {
    let outer = match value {
        Value::String(text) => return parse_strict(text),
        Value::Array(outer) => outer,
        _ => return Err(Slip::Type),
    };
    if outer.is_empty() {
        return Ok(Check::True);
    }
    let mut any = Vec::new();
    for inner in outer {
        let words = match inner {
            Value::String(word) => vec![inner_check(word)?],
            Value::Array(words) => words
                .iter()
                .map(|word| inner_check(word.as_str().ok_or(Slip::Type)?))
                .collect::<Result<_, _>>()?,
            _ => return Err(Slip::Type),
        };
        // An empty inner list counts for nothing: `[[]]` is never true.
        if !words.is_empty() {
            any.push(one_or(words, Check::And));
        }
    }
    Ok(if any.is_empty() {
        Check::False
    } else {
        one_or(any, Check::Or)
    })
}

fn inner_check(word: &str) -> Result<Check, Slip> {
    single(word).ok_or_else(|| Slip::Word(word.to_owned()))
}

fn one_or(mut parts: Vec<Check>, many: impl FnOnce(Vec<Check>) -> Check) -> Check {
    if parts.len() == 1 {
        parts.remove(0)
    } else {
        many(parts)
    }
}

fn tokenize(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    for word in text.split_whitespace() {
        let inner = word.trim_start_matches('(');
        tokens.extend(std::iter::repeat_n(Token::Open, word.len() - inner.len()));
        let clean = inner.trim_end_matches(')');
        if !clean.is_empty() {
            tokens.push(match clean.to_ascii_lowercase().as_str() {
                "and" => Token::And,
                "or" => Token::Or,
                "not" => Token::Not,
                _ if is_quoted(clean) => Token::Quoted(clean.to_owned()),
                _ => Token::Check(clean.to_owned()),
            });
        }
        tokens.extend(std::iter::repeat_n(Token::Close, inner.len() - clean.len()));
    }
    tokens
}

fn is_quoted(word: &str) -> bool {
    word.len() >= 2
        && ['"', '\'']
            .iter()
            .any(|q| word.starts_with(*q) && word.ends_with(*q))
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn take(&mut self, token: &Token) -> bool {
        let found = self.tokens.get(self.at) == Some(token);
        self.at += usize::from(found);
        found
    }

    fn or(&mut self) -> Result<Check, Slip> {
        let mut parts = vec![self.and()?];
        while self.take(&Token::Or) {
            parts.push(self.and()?);
        }
        Ok(one_or(parts, Check::Or))
    }

    fn and(&mut self) -> Result<Check, Slip> {
        let mut parts = vec![self.not()?];
        while self.take(&Token::And) {
            parts.push(self.not()?);
        }
        Ok(one_or(parts, Check::And))
    }

    fn not(&mut self) -> Result<Check, Slip> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Slip::TooLarge);
        }
        let check = self.operand();
        self.depth -= 1;
        check
    }

    fn operand(&mut self) -> Result<Check, Slip> {
        if self.take(&Token::Not) {
            return Ok(Check::Not(Box::new(self.not()?)));
        }
        if self.take(&Token::Open) {
            let inner = self.or()?;
            return match self.tokens.get(self.at) {
                Some(Token::Close) => {
                    self.at += 1;
                    Ok(inner)
                }
                Some(other) => Err(Slip::Adjacent(other.to_string())),
                None => Err(Slip::Unclosed),
            };
        }
        match self.tokens.get(self.at) {
            Some(Token::Check(text)) => {
                self.at += 1;
                inner_check(text)
            }
            Some(Token::Quoted(text)) => Err(Slip::Quoted(text.clone())),
            _ => Err(Slip::Missing(
                self.at
                    .checked_sub(1)
                    .and_then(|before| self.tokens.get(before))
                    .map_or_else(|| "the beginning".to_owned(), Token::to_string),
            )),
        }
    }
}

/// One check: `@`, `!` or KIND:VALUE, split at the first colon.
fn single(text: &str) -> Option<Check> {
    match text {
        "@" => return Some(Check::True),
        "!" => return Some(Check::False),
        _ => {}
    }
    let (kind, matched) = text.split_once(':')?;
    Some(match kind {
        "rule" => Check::Rule(matched.to_owned()),
        "role" => Check::Role(matched.to_owned()),
        "http" | "https" => Check::Remote(text.to_owned()),
        _ => match literal(kind) {
            Some(value) => Check::Literal(value, matched.to_owned()),
            None => Check::Attribute(
                kind.split('.').map(str::to_owned).collect(),
                matched.to_owned(),
            ),
        },
    })
}

/// What Python's `str()` gives for a literal: a number, a Boolean, None, or a quoted string.
fn literal(kind: &str) -> Option<String> {
    if is_quoted(kind) {
        return Some(kind[1..kind.len() - 1].to_owned());
    }
    if matches!(kind, "True" | "False" | "None") {
        return Some(kind.to_owned());
    }
    let (sign, digits) = match kind.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", kind.strip_prefix('+').unwrap_or(kind)),
    };
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if all_digits(digits) {
        let plain = digits.trim_start_matches('0');
        // Python refuses 05; it is a name then, which no caller has.
        return match plain {
            "" => Some("0".to_owned()),
            _ if plain.len() == digits.len() => Some(format!("{sign}{plain}")),
            _ => None,
        };
    }
    let (whole, fraction) = digits.split_once('.')?;
    if all_digits(whole) && all_digits(fraction) {
        return format!("{sign}{digits}")
            .parse::<f64>()
            .ok()
            .map(|n| format!("{n:?}"));
    }
    None
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, parts: &[Check], word: &str| {
            f.write_str("(")?;
            for (at, part) in parts.iter().enumerate() {
                if at > 0 {
                    write!(f, " {word} ")?;
                }
                write!(f, "{part}")?;
            }
            f.write_str(")")
        };
        match self {
            Self::True => f.write_str("@"),
            Self::False => f.write_str("!"),
            Self::Not(inner) => write!(f, "not {inner}"),
            Self::And(parts) => list(f, parts, "and"),
            Self::Or(parts) => list(f, parts, "or"),
            Self::Rule(name) => write!(f, "rule:{name}"),
            Self::Role(name) => write!(f, "role:{name}"),
            Self::Remote(url) => f.write_str(url),
            Self::Literal(value, matched) => match value.as_str() {
                "True" | "False" | "None" => write!(f, "{value}:{matched}"),
                number if literal(number).is_some() => write!(f, "{number}:{matched}"),
                text => write!(f, "'{text}':{matched}"),
            },
            Self::Attribute(path, matched) => write!(f, "{}:{matched}", path.join(".")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn attribute(name: &str, value: &str) -> Check {
        Check::Attribute(vec![name.into()], value.into())
    }

    #[test]
    fn and_binds_tighter_than_or() {
        assert_eq!(
            parse_rule("a:1 or b:2 and c:3 and d:4 or e:5"),
            Check::Or(vec![
                attribute("a", "1"),
                Check::And(vec![
                    attribute("b", "2"),
                    attribute("c", "3"),
                    attribute("d", "4")
                ]),
                attribute("e", "5"),
            ])
        );
    }

    #[test]
    fn slips_do_not_parse_and_say_why() {
        for (text, why) in [
            ("role:admin role:member", "`role:member` follows"),
            ("role:admin and", "behind `and`"),
            ("or role:admin", "behind `the beginning`"),
            ("(role:admin", "not closed"),
            ("role:admin)", "`)` follows"),
            ("()", "behind `(`"),
            ("\"quoted\"", "in quotes"),
            ("'quoted'", "in quotes"),
            ("justword", "KIND:VALUE"),
            ("not", "behind `not`"),
            ("not justword", "KIND:VALUE"),
            ("role:admin or justword", "KIND:VALUE"),
        ] {
            let slip = parse_strict(text).unwrap_err().to_string();
            assert!(slip.contains(why), "{text}: {slip}");
            assert_eq!(parse_rule(text), Check::False, "{text}");
        }
        let deep = format!("{}role:admin{}", "(".repeat(100_000), ")".repeat(100_000));
        assert_eq!(parse_strict(&deep), Err(Slip::TooLarge));
        let deep = format!("{}role:admin", "not ".repeat(1000));
        assert_eq!(parse_strict(&deep), Err(Slip::TooLarge));
    }

    #[test]
    fn newlines_case_and_brackets() {
        assert_eq!(parse_rule("  "), Check::True);
        assert_eq!(
            parse_rule("((a:1)\n AND (Not b:2))"),
            Check::And(vec![
                attribute("a", "1"),
                Check::Not(Box::new(attribute("b", "2")))
            ])
        );
        assert_eq!(
            parse_rule("role:key-manager:service-admin"),
            Check::Role("key-manager:service-admin".into())
        );
    }

    #[test]
    fn lists_are_any_of_all_of() {
        let role = |name: &str| Check::Role(name.into());
        for (value, expected) in [
            (json!([]), Check::True),
            (json!([[]]), Check::False),
            (json!([["role:a"]]), role("a")),
            (json!(["role:a"]), role("a")),
            (json!([["@"]]), Check::True),
            (
                json!([["role:a", "role:b"], ["role:c"], []]),
                Check::Or(vec![Check::And(vec![role("a"), role("b")]), role("c")]),
            ),
        ] {
            assert_eq!(parse_value(&value), Ok(expected), "{value}");
        }
        for bad in [
            json!(null),
            json!(true),
            json!(5),
            json!({"a": "b"}),
            json!([[5]]),
            json!([5]),
        ] {
            assert_eq!(parse_value(&bad), Err(Slip::Type), "{bad}");
        }
        assert!(
            parse_value(&json!([["role:a or role:b"]]))
                .is_ok_and(|check| check == role("a or role:b"))
        );
        assert_eq!(
            parse_value(&json!([["word"]])),
            Err(Slip::Word("word".into()))
        );
    }

    #[test]
    fn literals_are_spelt_as_python_does() {
        for (kind, value) in [
            ("5", "5"),
            ("-5", "-5"),
            ("+5", "5"),
            ("1.50", "1.5"),
            ("1.0", "1.0"),
            ("'x'", "x"),
            ("000", "0"),
        ] {
            assert_eq!(literal(kind).as_deref(), Some(value), "{kind}");
        }
        assert!(
            ["x", "a.b", "05", "1.x", ""]
                .iter()
                .all(|kind| literal(kind).is_none())
        );
    }

    #[test]
    fn a_printed_rule_reads_back_the_same() {
        for text in [
            "(a:1 or not b.c:%(d)s) and role:x",
            "'adm in':%(x)s or None:%(y)s or 5:%(z)s",
            "@ or !",
            "rule:r and http://x/y",
        ] {
            let check = parse_rule(text);
            if check != Check::False {
                assert_eq!(parse_rule(&check.to_string()), check, "{text}");
            }
        }
    }
}

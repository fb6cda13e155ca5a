//! The grammar: words split at white space, brackets peeled off their ends, `not` before `and` before `or`.
//!
//! What does not parse makes the whole rule false: a rule with a slip must never let anybody in.

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

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Open,
    Close,
    And,
    Or,
    Not,
    Check(String),
    Quoted,
}

/// Parses one rule. A rule that cannot be read is [`Check::False`]; the caller can see that with
/// [`parse_strict`].
pub fn parse_rule(text: &str) -> Check {
    parse_strict(text).unwrap_or(Check::False)
}

/// Parses one rule, `None` if it cannot be read.
pub fn parse_strict(text: &str) -> Option<Check> {
    if text.trim().is_empty() {
        return Some(Check::True);
    }
    let tokens = tokenize(text);
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
    };
    let check = parser.or()?;
    (parser.at == tokens.len()).then_some(check)
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
                _ if is_quoted(clean) => Token::Quoted,
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
}

impl Parser<'_> {
    fn take(&mut self, token: &Token) -> bool {
        let found = self.tokens.get(self.at) == Some(token);
        self.at += usize::from(found);
        found
    }

    fn or(&mut self) -> Option<Check> {
        let mut parts = vec![self.and()?];
        while self.take(&Token::Or) {
            parts.push(self.and()?);
        }
        Some(if parts.len() == 1 {
            parts.remove(0)
        } else {
            Check::Or(parts)
        })
    }

    fn and(&mut self) -> Option<Check> {
        let mut parts = vec![self.not()?];
        while self.take(&Token::And) {
            parts.push(self.not()?);
        }
        Some(if parts.len() == 1 {
            parts.remove(0)
        } else {
            Check::And(parts)
        })
    }

    fn not(&mut self) -> Option<Check> {
        if self.take(&Token::Not) {
            return Some(Check::Not(Box::new(self.not()?)));
        }
        if self.take(&Token::Open) {
            let inner = self.or()?;
            return self.take(&Token::Close).then_some(inner);
        }
        let Some(Token::Check(text)) = self.tokens.get(self.at) else {
            return None;
        };
        self.at += 1;
        single(text)
    }
}

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

/// The text of a Python literal: a number, a Boolean, None, or a quoted string.
fn literal(kind: &str) -> Option<String> {
    if is_quoted(kind) {
        return Some(kind[1..kind.len() - 1].to_owned());
    }
    if matches!(kind, "True" | "False" | "None") {
        return Some(kind.to_owned());
    }
    let digits = kind.strip_prefix('-').unwrap_or(kind);
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| kind.to_owned())
}

#[cfg(test)]
mod tests {
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
    fn slips_do_not_parse() {
        for text in [
            "role:admin role:member",
            "role:admin and",
            "or role:admin",
            "(role:admin",
            "role:admin)",
            "()",
            "\"quoted\"",
            "'quoted'",
            "justword",
            "not",
            "not justword",
        ] {
            assert_eq!(parse_strict(text), None, "{text}");
            assert_eq!(parse_rule(text), Check::False, "{text}");
        }
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
}

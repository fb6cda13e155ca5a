//! Words that came from outside (an array, a tool, the kernel) in a status or an Event.

/// The text, printable and with at most so many characters.
pub fn shown(text: &str, most: usize) -> String {
    let mut shown: String = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(most)
        .collect();
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn long_or_unprintable_words_do_not_get_through() {
        assert_eq!(shown("aes-xts-plain64", 64), "aes-xts-plain64");
        assert_eq!(shown("a\u{1b}[31mb\nc", 64), "a\u{fffd}[31mb\u{fffd}c");
        assert_eq!(shown("ääää", 2), "ää…");
    }
}

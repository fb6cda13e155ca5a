//! Times: stored as microseconds since the epoch, shown in the three spellings of the two protocols.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

/// Now, in microseconds since the Unix epoch.
pub fn now_us() -> i64 {
    Timestamp::now().as_microsecond()
}

/// Token times: `2026-11-21T23:26:29.000000Z`.
pub fn token_time(us: i64) -> String {
    format_us(us, "%Y-%m-%dT%H:%M:%S%.6fZ")
}

/// Application-credential expiry: microseconds, no zone.
pub fn zoneless_time(us: i64) -> String {
    format_us(us, "%Y-%m-%dT%H:%M:%S%.6f")
}

/// Key-manager times: whole seconds, no zone.
pub fn key_manager_time(us: i64) -> String {
    format_us(us, "%Y-%m-%dT%H:%M:%S")
}

fn format_us(us: i64, format: &str) -> String {
    Timestamp::from_microsecond(us)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .strftime(format)
        .to_string()
}

/// Reads an ISO-8601 time with or without zone (none means UTC). `None` if it is not a time.
pub fn parse_time(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(stamp) = text.parse::<Timestamp>() {
        return Some(stamp.as_microsecond());
    }
    let civil: DateTime = text.parse().ok()?;
    civil
        .to_zoned(TimeZone::UTC)
        .ok()
        .map(|zoned| zoned.timestamp().as_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_and_parsing_agree() {
        let us = parse_time("2026-11-21T23:26:29.000000Z").unwrap();
        assert_eq!(token_time(us), "2026-11-21T23:26:29.000000Z");
        assert_eq!(zoneless_time(us), "2026-11-21T23:26:29.000000");
        assert_eq!(key_manager_time(us), "2026-11-21T23:26:29");
        assert_eq!(parse_time("2026-11-21T23:26:29"), Some(us));
        assert_eq!(parse_time("2026-11-22T00:26:29+01:00"), Some(us));
        assert_eq!(parse_time("tomorrow"), None);
    }
}

//! Quantities of bytes, as Kubernetes writes them.

/// Bytes of a quantity such as `10Gi` or `32Mi`; nothing for one that is no whole positive number of bytes.
pub fn bytes(quantity: &str) -> Option<i64> {
    const SUFFIXES: [(&str, u64); 13] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("Ei", 1 << 60),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("E", 1_000_000_000_000_000_000),
        ("", 1),
    ];
    let (number, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((quantity.strip_suffix(suffix)?, *factor)))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 18 {
        return None;
    }
    let ten = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let number: u128 = format!("{whole}{fraction}").parse().ok()?;
    let scaled = number.checked_mul(u128::from(factor))?;
    (scaled % ten == 0 && scaled > 0)
        .then(|| i64::try_from(scaled / ten).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn whole_numbers_of_bytes() {
        for (text, number) in [
            ("10Gi", Some(10 << 30)),
            ("32Mi", Some(32 << 20)),
            ("33554432", Some(33_554_432)),
            ("1.5Gi", Some(3 << 29)),
            ("4k", Some(4000)),
            ("8Ei", None),
            ("0", None),
            ("-1Gi", None),
            ("100m", None),
            ("1.0001", None),
            ("Gi", None),
            ("ten", None),
            ("1 Gi", None),
            ("", None),
        ] {
            assert_eq!(bytes(text), number, "{text}");
        }
    }
}

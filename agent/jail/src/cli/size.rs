//! Sizes as people write them.

/// Bytes: a number with k, m, g or t for powers of 1024, with or without a b; −1 for no limit.
pub fn parse_size(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no size (1048576, 64m, 1g, -1)");
    let lower = text.to_ascii_lowercase();
    let number = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, shift) = match number.strip_suffix(['k', 'm', 'g', 't']) {
        Some(digits) => {
            (digits, number.chars().last().and_then(|unit| "kmgt".find(unit)).unwrap_or(0) as u32 * 10 + 10)
        }
        None => (number, 0),
    };
    let value: i64 = digits.parse().map_err(|_| wrong())?;
    value.checked_mul(1 << shift).filter(|value| *value >= -1).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("0", 0), ("-1", -1), ("64m", 64 << 20), ("1G", 1 << 30), ("2kb", 2048), ("1t", 1 << 40)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "m", "-2", "1x", "99999999999t", "1 m"] {
            assert!(parse_size(wrong).is_err(), "{wrong:?}");
        }
    }
}

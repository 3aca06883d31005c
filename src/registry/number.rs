//! Formats JSON numbers as plain digits.

/// Maximum number of digits that are written out.
const MAX_DIGITS: usize = 400;

/// Returns the digits of a JSON number with an integer value: `7.0` is `7`, `1e3` is `1000`.
pub(super) fn integer_digits(text: &str) -> Option<std::borrow::Cow<'_, str>> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    if unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        return (unsigned.len() <= MAX_DIGITS)
            .then_some(if unsigned == "0" { unsigned } else { text }.into());
    }
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0').len();
    if significant == 0 {
        return Some("0".into());
    }
    let zeros = digits.len() - significant;
    digits.truncate(significant);
    let power = exponent
        .parse::<i64>()
        .ok()?
        .checked_sub(i64::try_from(fraction.len()).ok()?)?
        .checked_add(i64::try_from(zeros).ok()?)?;
    let power = usize::try_from(power).ok()?;
    let digits = digits.trim_start_matches('0');
    if power > MAX_DIGITS || digits.len() + power > MAX_DIGITS {
        return None;
    }
    let sign = if text.starts_with('-') { "-" } else { "" };
    Some(format!("{sign}{digits}{}", "0".repeat(power)).into())
}

#[cfg(test)]
mod tests {
    use super::integer_digits;

    #[test]
    fn integers_are_formatted_in_plain_exact_digits() {
        for (text, digits) in [
            ("7", "7"),
            ("-7", "-7"),
            ("7.0", "7"),
            ("-7.00", "-7"),
            ("1e3", "1000"),
            ("1.5e1", "15"),
            ("1500e-2", "15"),
            ("0", "0"),
            ("-0", "0"),
            ("0.0", "0"),
            ("0e999999999999999999999", "0"),
            ("-0.0e5", "0"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("1.0E+2", "100"),
            ("0.05e2", "5"),
        ] {
            assert_eq!(integer_digits(text).as_deref(), Some(digits), "{text}");
        }
        for text in ["1.5", "1e-1", "1e999", "1e99999999999999999999", "15e-2", &"9".repeat(401)] {
            assert_eq!(integer_digits(text), None, "{text}");
        }
    }
}

//! Durations, sizes and rates, as people write them in settings and rule files.

use std::fmt;
use std::time::Duration;

/// Error in a quantity. It names the expected form and never the given text, which may be a secret
/// in the wrong place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a whole number with a unit of duration.
    #[error("not a duration: a whole number and one of ms, s, m, h, d, such as 500ms, 30s or 7d")]
    Duration,
    /// Not a whole number with a unit of size.
    #[error("not a size: a whole number and one of B, KiB, MiB, GiB, such as 1MiB")]
    Size,
    /// Not a whole number per second, minute or hour.
    #[error("not a rate: a whole number above 0 per s, m or h, such as 50/s")]
    Rate,
}

/// Units of duration in milliseconds, longest first.
const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Units of size in bytes, largest first.
const SIZE_UNITS: [(&str, u64); 4] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Parses `500ms`, `30s`, `15m`, `1h` or `7d`.
///
/// # Errors
/// [`QuantityError::Duration`] for any other text, such as a fraction or an overflow.
pub fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    parse(text, &DURATION_UNITS).map(Duration::from_millis).ok_or(QuantityError::Duration)
}

/// Formats a duration in its largest exact unit: sixty seconds are `1m`. Fractions of a millisecond
/// are dropped.
pub fn format_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (unit, size) = largest_exact(millis, &DURATION_UNITS).unwrap_or(("s", 1_000));
    format!("{}{unit}", millis / size)
}

/// Parses `512B`, `64KiB`, `1MiB` or `10GiB` as bytes.
///
/// # Errors
/// [`QuantityError::Size`] for any other text.
pub fn parse_size_bytes(text: &str) -> Result<u64, QuantityError> {
    parse(text, &SIZE_UNITS).ok_or(QuantityError::Size)
}

/// Formats a number of bytes in its largest exact unit.
pub fn format_size_bytes(bytes: u64) -> String {
    let (unit, size) = largest_exact(bytes, &SIZE_UNITS).unwrap_or(("B", 1));
    format!("{}{unit}", bytes / size)
}

/// A maximum number of actions in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Number of actions.
    pub count: u32,
    /// Length of the period.
    pub per: Duration,
}

impl Rate {
    /// Parses `50/s`, `600/m` or `1000/h`.
    ///
    /// # Errors
    /// [`QuantityError::Rate`] for any other text, zero included.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let (count, unit) = text.split_once('/').ok_or(QuantityError::Rate)?;
        let count = digits(count)
            .and_then(|n| u32::try_from(n).ok())
            .filter(|&n| n > 0)
            .ok_or(QuantityError::Rate)?;
        let per = match unit {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3_600),
            _ => return Err(QuantityError::Rate),
        };
        Ok(Self { count, per })
    }

    /// Returns the time between two actions that are evenly spread.
    pub fn interval(self) -> Duration {
        self.per / self.count
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            60 => "m",
            3_600 => "h",
            _ => "s",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let (_, size) = units.iter().find(|(name, _)| *name == unit)?;
    digits(number)?.checked_mul(*size)
}

fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn largest_exact<'u>(value: u64, units: &[(&'u str, u64)]) -> Option<(&'u str, u64)> {
    if value == 0 {
        return None;
    }
    units.iter().copied().find(|(_, size)| value.is_multiple_of(*size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_and_written_canonically() {
        for (text, millis, canonical) in [
            ("500ms", 500, "500ms"),
            ("1000ms", 1_000, "1s"),
            ("60s", 60_000, "1m"),
            ("90s", 90_000, "90s"),
            ("120m", 7_200_000, "2h"),
            ("7d", 604_800_000, "7d"),
            ("0s", 0, "0s"),
        ] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration, Duration::from_millis(millis), "{text}");
            assert_eq!(format_duration(duration), canonical);
        }
        for text in
            ["", "5", "s", "1.5s", "-1s", "1 s", "+1s", "1w", "1S", "99999999999999999d", "١s"]
        {
            assert_eq!(parse_duration(text), Err(QuantityError::Duration), "{text:?}");
        }
    }

    #[test]
    fn sizes_are_read_and_written_canonically() {
        for (text, bytes, canonical) in [
            ("1MiB", 1 << 20, "1MiB"),
            ("1024KiB", 1 << 20, "1MiB"),
            ("10GiB", 10 << 30, "10GiB"),
            ("7B", 7, "7B"),
        ] {
            assert_eq!(parse_size_bytes(text), Ok(bytes));
            assert_eq!(format_size_bytes(bytes), canonical);
        }
        for text in ["", "1", "1MB", "1mib", "-1B", "99999999999GiB"] {
            assert_eq!(parse_size_bytes(text), Err(QuantityError::Size), "{text:?}");
        }
    }

    #[test]
    fn rates_are_read_and_written() {
        for text in ["50/s", "600/m", "1/h"] {
            assert_eq!(Rate::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Rate::parse("50/s").unwrap().interval(), Duration::from_millis(20));
        for text in ["", "50", "0/s", "/s", "50/d", "50/", "1.5/s", "5000000000/s"] {
            assert_eq!(Rate::parse(text), Err(QuantityError::Rate), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn formatted_quantities_parse_back(millis in 0u64..u64::MAX / 2, bytes: u64) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_size_bytes(&format_size_bytes(bytes)), Ok(bytes));
        }
    }
}

//! Times as RFC 3339 text in UTC, whatever they came as.

use std::borrow::Cow;

use jiff::Timestamp;

/// 9999-12-31T23:59:59Z, the last second that RFC 3339 can write.
const LAST_SECOND: i64 = 253_402_300_799;

/// The same moment in UTC; borrowed where it stands in the form that we write. `None` for what is no RFC 3339 time.
pub(super) fn from_text(text: &str) -> Option<Cow<'_, str>> {
    let timestamp: Timestamp = text.parse().ok()?;
    if is_canonical(text) {
        return Some(Cow::Borrowed(text));
    }
    written(timestamp).map(Cow::Owned)
}

/// AMQP 0-9-1 counts seconds (section 4.2.5.4); some publishers give milliseconds, which as seconds lie beyond the year 9999 and are read as meant.
pub(super) fn from_unix_s(seconds: u64) -> Option<String> {
    let seconds = i64::try_from(seconds).ok()?;
    if seconds > LAST_SECOND {
        return from_unix_ms(seconds);
    }
    written(Timestamp::from_second(seconds).ok()?)
}

/// Milliseconds since the Unix epoch.
pub(super) fn from_unix_ms(milliseconds: i64) -> Option<String> {
    written(Timestamp::from_millisecond(milliseconds).ok()?)
}

fn written(timestamp: Timestamp) -> Option<String> {
    let text = timestamp.to_string();
    // A sign stands before years that RFC 3339 does not have.
    text.starts_with(|first: char| first.is_ascii_digit()).then_some(text)
}

/// `YYYY-MM-DDTHH:MM:SS[.fraction]Z`, no leap second. The text is known to be a time.
fn is_canonical(text: &str) -> bool {
    let bytes = text.as_bytes();
    let Some((date_and_time, rest)) = bytes.split_at_checked(19) else { return false };
    let shaped = date_and_time.iter().zip(b"0000-00-00T00:00:00").all(|(byte, shape)| match shape {
        b'0' => byte.is_ascii_digit(),
        _ => byte == shape,
    });
    let fraction = match rest {
        b"Z" => true,
        [b'.', digits @ .., b'Z'] => !digits.is_empty() && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    shaped && fraction && &date_and_time[17..] != b"60"
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_becomes_utc() {
        for (text, utc) in [
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05.120Z", "2026-01-02T03:04:05.120Z"),
            ("2026-01-02T03:04:05.123456789+02:00", "2026-01-02T01:04:05.123456789Z"),
            ("2026-01-02t03:04:05z", "2026-01-02T03:04:05Z"),
            ("2026-01-02 03:04:05-00:30", "2026-01-02T03:34:05Z"),
            ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59Z"),
        ] {
            assert_eq!(from_text(text).as_deref(), Some(utc), "{text}");
        }
        assert!(matches!(from_text("2026-01-02T03:04:05.5Z"), Some(Cow::Borrowed(_))));
    }

    #[test]
    fn what_names_no_moment_is_none() {
        for text in ["", "yesterday", "2026-01-02", "2026-01-02T03:04:05", "2026-13-02T03:04:05Z", "1700000000", "-000001-01-01T00:00:00Z"]
        {
            assert_eq!(from_text(text), None, "{text}");
        }
    }

    #[test]
    fn counts_become_utc() {
        assert_eq!(from_unix_s(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(from_unix_s(1_767_323_045).as_deref(), Some("2026-01-02T03:04:05Z"));
        assert_eq!(from_unix_s(1_767_323_045_120).as_deref(), Some("2026-01-02T03:04:05.12Z"), "milliseconds by mistake");
        assert_eq!(from_unix_s(u64::MAX), None);
        assert_eq!(from_unix_ms(i64::MIN), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_canonical(seconds in 0..LAST_SECOND, nanoseconds in 0..1_000_000_000_i32) {
            let text = written(Timestamp::new(seconds, nanoseconds).unwrap()).unwrap();
            prop_assert!(is_canonical(&text));
            prop_assert_eq!(from_text(&text), Some(Cow::Borrowed(text.as_str())));
        }
    }
}

//! Times as RFC 3339 text in UTC.

use std::borrow::Cow;

use jiff::Timestamp;

/// 9999-12-31T23:59:59Z, the last second that RFC 3339 can express.
const LAST_SECOND: i64 = 253_402_300_799;

/// Returns the same moment in UTC, borrowed if it is already in our form. `None` if the text is not
/// an RFC 3339 time.
pub(super) fn from_text(text: &str) -> Option<Cow<'_, str>> {
    let offset = offset_of(text)?;
    let timestamp: Timestamp = text.parse().ok()?;
    if offset == Offset::Utc && is_canonical(text) {
        return Some(Cow::Borrowed(text));
    }
    written(timestamp).map(Cow::Owned)
}

/// Returns a time in UTC. An unreadable time counts as absent, since the event is still valid
/// without it.
pub(super) fn to_utc(text: Cow<'_, str>) -> Option<Cow<'_, str>> {
    match text {
        Cow::Borrowed(text) => from_text(text),
        Cow::Owned(text) => from_text(&text).map(|time| Cow::Owned(time.into_owned())),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offset {
    Utc,
    Other,
}

/// Returns the offset of a text in the shape of an RFC 3339 time (section 5.6). The time parser
/// alone accepts more.
///
/// The shape is `YYYY-MM-DD`, then `T`, `t` or a space, `HH:MM:SS`, a fraction, and `Z`, `z` or
/// `+HH:MM` of less than a day.
fn offset_of(text: &str) -> Option<Offset> {
    let (date_and_time, rest) = text.as_bytes().split_at_checked(19)?;
    let is_shaped =
        date_and_time.iter().zip(b"0000-00-00T00:00:00").all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            b'T' => matches!(byte, b'T' | b't' | b' '),
            _ => byte == shape,
        });
    let offset = match rest {
        [b'.', fraction @ ..] => {
            let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
            fraction.get(digits..).filter(|_| digits > 0)?
        }
        offset => offset,
    };
    match offset {
        b"Z" | b"z" if is_shaped => Some(Offset::Utc),
        [
            b'+' | b'-',
            hour_1 @ b'0'..=b'2',
            hour_2 @ b'0'..=b'9',
            b':',
            b'0'..=b'5',
            b'0'..=b'9',
        ] if is_shaped => {
            let is_hour = *hour_1 < b'2' || *hour_2 < b'4';
            is_hour.then_some(Offset::Other)
        }
        _ => None,
    }
}

/// Returns the time for seconds since the Unix epoch, the unit of AMQP 0-9-1 (section 4.2.5.4).
///
/// Some publishers send milliseconds. As seconds these are beyond the year 9999, so they are read
/// as milliseconds.
pub(super) fn from_unix_s(seconds: u64) -> Option<String> {
    let seconds = i64::try_from(seconds).ok()?;
    if seconds > LAST_SECOND {
        return from_unix_ms(seconds);
    }
    written(Timestamp::from_second(seconds).ok()?)
}

/// Returns the time for milliseconds since the Unix epoch. Microseconds, which as milliseconds are
/// beyond the year 9999, are read as microseconds.
pub(super) fn from_unix_ms(milliseconds: i64) -> Option<String> {
    if milliseconds > LAST_SECOND * 1000 + 999 {
        return written(Timestamp::from_microsecond(milliseconds).ok()?);
    }
    written(Timestamp::from_millisecond(milliseconds).ok()?)
}

fn written(timestamp: Timestamp) -> Option<String> {
    let text = timestamp.to_string();
    // jiff writes a sign before years that RFC 3339 does not have.
    text.starts_with(|first: char| first.is_ascii_digit()).then_some(text)
}

/// Returns whether a time in UTC is in the form that we write: with `T` and `Z`, and without a leap
/// second.
fn is_canonical(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.last() == Some(&b'Z') && bytes.get(10) == Some(&b'T') && bytes.get(17..19) != Some(b"60")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn time_text_becomes_utc() {
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
    fn text_without_a_moment_is_not_a_time() {
        for text in [
            "",
            "yesterday",
            "2026-01-02",
            "2026-01-02T03:04:05",
            "2026-13-02T03:04:05Z",
            "1700000000",
            "-000001-01-01T00:00:00Z",
        ] {
            assert_eq!(from_text(text), None, "{text}");
        }
    }

    #[test]
    fn only_text_in_the_shape_of_rfc_3339_is_a_time() {
        for text in [
            "2018-04-05T18:31:00+05",
            "2018-04-05T18:31:00+0500",
            "2018-04-05T18:31:00+25:00",
            "2018-04-05T18:31:00+24:00",
            "2018-04-05T18:31:00-05:60",
            "2018-04-05T18:31:00+5:00",
            "2018-04-05T18:31:00+05:00:00",
            "2018-04-05T18:31Z",
            "2018-04-05T18Z",
            "20180405T183100Z",
            "2018-04-05T183100Z",
            "2018-W14-4T18:31:00Z",
            "2018-04-05T18:31:00,5Z",
            "2018-04-05T18:31:00.Z",
            "2018-04-05T18:31:00 Z",
            "2018-04-05T18:31:00Z ",
            "+002018-04-05T18:31:00Z",
            "2018-04-05T18:31:00+02:00[Europe/Zurich]",
            "2018-04-05T18:31:00Z[UTC]",
            "2018-04-05_18:31:00Z",
        ] {
            assert_eq!(from_text(text), None, "{text}");
        }
    }

    #[test]
    fn unix_times_become_utc() {
        assert_eq!(from_unix_s(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(from_unix_s(1_767_323_045).as_deref(), Some("2026-01-02T03:04:05Z"));
        assert_eq!(
            from_unix_s(1_767_323_045_120).as_deref(),
            Some("2026-01-02T03:04:05.12Z"),
            "milliseconds by mistake"
        );
        assert_eq!(from_unix_s(u64::MAX), None);
        assert_eq!(from_unix_ms(i64::MIN), None);
        assert_eq!(
            from_unix_ms(1_562_202_942_666_382).as_deref(),
            Some("2019-07-04T01:15:42.666382Z"),
            "microseconds by mistake"
        );
    }

    proptest! {
        #[test]
        fn written_times_are_canonical(seconds in 0..LAST_SECOND, nanoseconds in 0..1_000_000_000_i32) {
            let text = written(Timestamp::new(seconds, nanoseconds).unwrap()).unwrap();
            prop_assert!(offset_of(&text) == Some(Offset::Utc) && is_canonical(&text));
            prop_assert_eq!(from_text(&text), Some(Cow::Borrowed(text.as_str())));
        }
    }
}

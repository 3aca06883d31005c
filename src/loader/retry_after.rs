//! `Retry-After`: seconds or an HTTP-date (RFC 9110, section 10.2.3).

use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};

/// Maximum `Retry-After` that is respected. A longer one is most likely a mistake, and no event
/// should wait for days because of it.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns the time for which the server asks to be left alone. A date counts from the answer's own
/// `Date` if it has one, because both are then by the server's clock. Otherwise it counts from
/// `now`.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // Only an overflow fails here.
        return Some(
            text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs).min(MAX_RETRY_AFTER),
        );
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let date =
        headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    Some(until.duration_since(date.unwrap_or(now)).unwrap_or(Duration::ZERO).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    fn read(value: &str, date: Option<&str>) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_str(value).ok()?);
        if let Some(date) = date {
            headers.insert(DATE, date.parse().unwrap());
        }
        retry_after(&headers, httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:00 GMT").unwrap())
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        let seconds = |n| Some(Duration::from_secs(n));
        for (value, expected) in [
            ("0", seconds(0)),
            ("120", seconds(120)),
            (" 7 ", seconds(7)),
            ("99999999999999999999999", Some(MAX_RETRY_AFTER)),
            ("31536000", Some(MAX_RETRY_AFTER)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", seconds(37)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", seconds(37)),
            ("Sun Nov  6 08:49:37 1994", seconds(37)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", seconds(0)),
            ("Sat, 06 Nov 2094 08:00:00 GMT", Some(MAX_RETRY_AFTER)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(read(value, None), expected, "{value:?}");
        }
    }

    #[test]
    fn a_retry_after_date_counts_from_the_servers_own_clock() {
        assert_eq!(
            read("Sun, 06 Nov 1994 08:49:37 GMT", Some("Sun, 06 Nov 1994 08:49:30 GMT")),
            Some(Duration::from_secs(7))
        );
        assert_eq!(
            read("Sun, 06 Nov 1994 08:49:37 GMT", Some("yesterday")),
            Some(Duration::from_secs(37))
        );
    }

    proptest! {
        #[test]
        fn no_retry_after_panics_or_exceeds_the_maximum(value in "[ -~]{0,40}") {
            prop_assert!(read(&value, None).is_none_or(|after| after <= MAX_RETRY_AFTER));
        }
    }
}

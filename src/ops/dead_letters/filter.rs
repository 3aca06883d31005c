//! Which letters are meant.

use jiff::{SignedDuration, Timestamp};

use super::Letter;
use crate::quantity::parse_duration;
use crate::registry::Pattern;

/// Which letters are meant: those that satisfy every part; of a part with alternatives, one.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// One of these reasons; any where there is none.
    pub reasons: Vec<String>,
    /// The type matches one of these; any where there is none.
    pub types: Vec<Pattern>,
    /// Dead-lettered then or later.
    pub since: Option<Timestamp>,
    /// Whether a letter without a time satisfies `since`. RabbitMQ 3.10 lets a publisher's header hide the time.
    pub timeless: bool,
    /// The event's id is one of these; any where there is none.
    pub ids: Vec<String>,
}

impl Filter {
    /// Whether the letter is meant.
    pub fn matches(&self, letter: &Letter) -> bool {
        (self.reasons.is_empty() || self.reasons.contains(&letter.reason))
            && (self.types.is_empty() || self.types.iter().any(|pattern| pattern.matches(&letter.event_type)))
            && self.since.is_none_or(|since| letter.time.map_or(self.timeless, |time| time >= since))
            && (self.ids.is_empty() || letter.id.as_ref().is_some_and(|id| self.ids.contains(id)))
    }

    /// Whether every letter is meant.
    pub fn is_all(&self) -> bool {
        self.reasons.is_empty() && self.types.is_empty() && self.since.is_none() && self.ids.is_empty()
    }
}

/// A moment: an RFC 3339 time, or a duration before `now`.
///
/// # Errors
/// What was expected.
pub fn since(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(ago) = parse_duration(text) {
        let ago = SignedDuration::try_from(ago).map_err(|_| "too long ago".to_owned())?;
        return now.checked_sub(ago).map_err(|_| "too long ago".to_owned());
    }
    text.parse().map_err(|_| "expected a duration, such as 2h, or an RFC 3339 time, such as 2026-01-31T12:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::group::tests::letter;
    use super::*;

    #[test]
    fn every_part_must_hold() {
        let letter = letter("expired", "user.updated", Some("2026-01-02T03:04:05Z"));
        let at = |text: &str| Some(text.parse().unwrap());
        let types = |text: &str| vec![Pattern::parse(text)];
        for (filter, meant) in [
            (Filter::default(), true),
            (Filter { reasons: vec!["malformed".into(), "expired".into()], ..Filter::default() }, true),
            (Filter { reasons: vec!["malformed".into()], ..Filter::default() }, false),
            (Filter { types: types("user.*"), ..Filter::default() }, true),
            (Filter { types: types("user"), ..Filter::default() }, false),
            (Filter { since: at("2026-01-02T03:04:05Z"), ..Filter::default() }, true),
            (Filter { since: at("2026-01-02T03:04:06Z"), ..Filter::default() }, false),
            (Filter { ids: vec!["e-1".into()], ..Filter::default() }, true),
            (Filter { ids: vec!["e-2".into()], ..Filter::default() }, false),
            (Filter { ids: vec!["e-1".into()], types: types("order.*"), ..Filter::default() }, false),
        ] {
            assert_eq!(filter.matches(&letter), meant, "{filter:?}");
        }
    }

    #[test]
    fn what_has_no_time_or_id_is_not_meant_by_one() {
        let mut letter = letter("expired", "a", None);
        letter.id = None;
        let since = Filter { since: Some(Timestamp::UNIX_EPOCH), ..Filter::default() };
        assert!(!since.matches(&letter) && Filter { timeless: true, ..since }.matches(&letter));
        assert!(!Filter { ids: vec![String::new()], ..Filter::default() }.matches(&letter));
    }

    #[test]
    fn since_is_a_duration_or_a_time() {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        assert_eq!(since("2h", now).unwrap().to_string(), "2026-01-02T01:04:05Z");
        assert_eq!(since("2026-01-01T00:00:00+01:00", now).unwrap().to_string(), "2025-12-31T23:00:00Z");
        for text in ["", "2", "yesterday", "2026-01-01", "99999999d"] {
            assert!(since(text, now).is_err(), "{text}");
        }
    }
}

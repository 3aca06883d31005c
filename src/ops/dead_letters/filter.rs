//! The filter by which a command selects letters.

use jiff::{SignedDuration, Timestamp};

use super::Letter;
use crate::quantity::parse_duration;
use crate::registry::Pattern;

/// A filter of letters. A letter matches if it satisfies every part. A part with several values is
/// satisfied by any of them.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Reasons of letters; empty for any.
    pub reasons: Vec<String>,
    /// Patterns of the event's type; empty for any.
    pub types: Vec<Pattern>,
    /// Rules in which the event failed, or event definitions or files with that rule; empty for
    /// any.
    pub rules: Vec<String>,
    /// Texts that the error contains, in upper or lower case; empty for any.
    pub errors: Vec<String>,
    /// Earliest time of dead-lettering.
    pub since: Option<Timestamp>,
    /// Time of dead-lettering before which a letter matches.
    pub until: Option<Timestamp>,
    /// True if a letter without a time satisfies `since` and `until`. In RabbitMQ 3.10 a
    /// publisher's header can hide the time.
    pub timeless: bool,
    /// Ids of the event; empty for any. One that ends in `…`, as lists print long ids, matches
    /// every id with that beginning.
    pub ids: Vec<String>,
}

impl Filter {
    /// Returns true if the letter matches.
    pub fn matches(&self, letter: &Letter) -> bool {
        (self.reasons.is_empty() || self.reasons.contains(&letter.reason))
            && (self.types.is_empty()
                || self.types.iter().any(|pattern| pattern.matches(&letter.event_type)))
            && (self.rules.is_empty()
                || letter
                    .rule()
                    .is_some_and(|rule| self.rules.iter().any(|named| is_of(rule, named))))
            && (self.errors.is_empty()
                || letter
                    .error
                    .as_deref()
                    .is_some_and(|error| self.errors.iter().any(|text| has(error, text))))
            && self
                .since
                .is_none_or(|since| letter.time.map_or(self.timeless, |time| time >= since))
            && self.until.is_none_or(|until| letter.time.map_or(self.timeless, |time| time < until))
            && (self.ids.is_empty()
                || letter
                    .id
                    .as_ref()
                    .is_some_and(|id| self.ids.iter().any(|named| is_named(id, named))))
    }

    /// Returns true if every letter matches.
    pub fn is_all(&self) -> bool {
        let Self { reasons, types, rules, errors, since, until, timeless: _, ids } = self;
        let any_text = [reasons, rules, errors, ids].into_iter().any(|texts| !texts.is_empty());
        !any_text && types.is_empty() && since.is_none() && until.is_none()
    }
}

/// Returns true if the name is that of the rule, or of its event definition, file or folder.
fn is_of(rule: &str, named: &str) -> bool {
    rule.strip_prefix(named).is_some_and(|rest| rest.is_empty() || rest.starts_with(['#', '/']))
}

fn has(error: &str, text: &str) -> bool {
    error.to_lowercase().contains(&text.to_lowercase())
}

fn is_named(id: &str, named: &str) -> bool {
    id == named
        || named.strip_suffix('…').is_some_and(|start| !start.is_empty() && id.starts_with(start))
}

/// Parses a moment: an RFC 3339 time, or a duration before `now`.
///
/// # Errors
/// A text that says what was expected.
pub fn since(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(ago) = parse_duration(text) {
        let ago = SignedDuration::try_from(ago).map_err(|_| "too long ago".to_owned())?;
        return now.checked_sub(ago).map_err(|_| "too long ago".to_owned());
    }
    text.parse().map_err(|_| {
        "expected a duration, such as 2h, or an RFC 3339 time, such as 2026-01-31T12:00:00Z"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::super::group::tests::letter;
    use super::*;

    #[test]
    fn a_letter_matches_if_it_satisfies_every_part_of_the_filter() {
        let letter = letter("expired", "user.updated", Some("2026-01-02T03:04:05Z"));
        let at = |text: &str| Some(text.parse().unwrap());
        let types = |text: &str| vec![Pattern::parse(text)];
        for (filter, selected) in [
            (Filter::default(), true),
            (
                Filter { reasons: vec!["malformed".into(), "expired".into()], ..Filter::default() },
                true,
            ),
            (Filter { reasons: vec!["malformed".into()], ..Filter::default() }, false),
            (Filter { types: types("user.*"), ..Filter::default() }, true),
            (Filter { types: types("user"), ..Filter::default() }, false),
            (Filter { since: at("2026-01-02T03:04:05Z"), ..Filter::default() }, true),
            (Filter { since: at("2026-01-02T03:04:06Z"), ..Filter::default() }, false),
            (Filter { until: at("2026-01-02T03:04:05Z"), ..Filter::default() }, false),
            (Filter { until: at("2026-01-02T03:04:06Z"), ..Filter::default() }, true),
            (Filter { ids: vec!["e-1".into()], ..Filter::default() }, true),
            (Filter { ids: vec!["e…".into()], ..Filter::default() }, true),
            (Filter { ids: vec!["e".into(), "f…".into(), "…".into()], ..Filter::default() }, false),
            (Filter { ids: vec!["e-2".into()], ..Filter::default() }, false),
            (
                Filter { ids: vec!["e-1".into()], types: types("order.*"), ..Filter::default() },
                false,
            ),
        ] {
            assert_eq!(filter.matches(&letter), selected, "{filter:?}");
        }
    }

    #[test]
    fn filters_find_rules_and_texts_in_the_error_of_a_letter() {
        let error = "team/user.yaml#user.updated/12: no value for `{name}`";
        let letter = Letter {
            error: Some(error.to_owned()),
            ..letter("unresolvable", "user.updated", None)
        };
        let rules = |rule: &str| Filter { rules: vec![rule.to_owned()], ..Filter::default() };
        let errors = |text: &str| Filter { errors: vec![text.to_owned()], ..Filter::default() };
        for (filter, selected) in [
            (rules("team/user.yaml#user.updated/12"), true),
            (rules("team/user.yaml#user.updated/1"), false),
            (rules("team/user.yaml#user.updated"), true),
            (rules("team/user.yaml"), true),
            (rules("team"), true),
            (rules("user.yaml"), false),
            (rules("team/user.yaml#user"), false),
            (errors("no value"), true),
            (errors("NO Value"), true),
            (errors("no values"), false),
        ] {
            assert_eq!(filter.matches(&letter), selected, "{filter:?}");
            assert!(!filter.is_all());
        }
        assert!(!rules("team").matches(&Letter { error: None, ..letter.clone() }));
        assert!(!errors("").matches(&Letter { error: None, ..letter }));
    }

    #[test]
    fn a_letter_without_a_time_or_an_id_does_not_match_one() {
        let mut letter = letter("expired", "a", None);
        letter.id = None;
        let since = Filter { since: Some(Timestamp::UNIX_EPOCH), ..Filter::default() };
        assert!(!since.matches(&letter) && Filter { timeless: true, ..since }.matches(&letter));
        let until = Filter { until: Some(Timestamp::now()), ..Filter::default() };
        assert!(!until.matches(&letter) && Filter { timeless: true, ..until }.matches(&letter));
        assert!(!Filter { ids: vec![String::new()], ..Filter::default() }.matches(&letter));
    }

    #[test]
    fn since_is_a_duration_or_a_time() {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        assert_eq!(since("2h", now).unwrap().to_string(), "2026-01-02T01:04:05Z");
        assert_eq!(
            since("2026-01-01T00:00:00+01:00", now).unwrap().to_string(),
            "2025-12-31T23:00:00Z"
        );
        for text in ["", "2", "yesterday", "2026-01-01", "99999999d"] {
            assert!(since(text, now).is_err(), "{text}");
        }
    }
}

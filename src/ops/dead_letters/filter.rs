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
    /// It failed by one of these rules, or by a rule of one of these event definitions or files;
    /// any where there is none.
    pub rules: Vec<String>,
    /// Its error has one of these texts, whatever their case; any where there is none.
    pub errors: Vec<String>,
    /// Dead-lettered then or later.
    pub since: Option<Timestamp>,
    /// Dead-lettered before then.
    pub until: Option<Timestamp>,
    /// Whether a letter without a time satisfies `since` and `until`. RabbitMQ 3.10 lets a
    /// publisher's header hide the time.
    pub timeless: bool,
    /// The event's id is one of these, or begins as one that ends in `…`, as lists print long ids;
    /// any where there is none.
    pub ids: Vec<String>,
}

impl Filter {
    /// Whether the letter is meant.
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

    /// Whether every letter is meant.
    pub fn is_all(&self) -> bool {
        let Self { reasons, types, rules, errors, since, until, timeless: _, ids } = self;
        let any_text = [reasons, rules, errors, ids].into_iter().any(|texts| !texts.is_empty());
        !any_text && types.is_empty() && since.is_none() && until.is_none()
    }
}

/// Whether the rule is the one that is named, or one of an event definition or of a file of that
/// name.
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

/// A moment: an RFC 3339 time, or a duration before `now`.
///
/// # Errors
/// What was expected.
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
    fn every_part_must_hold() {
        let letter = letter("expired", "user.updated", Some("2026-01-02T03:04:05Z"));
        let at = |text: &str| Some(text.parse().unwrap());
        let types = |text: &str| vec![Pattern::parse(text)];
        for (filter, meant) in [
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
            assert_eq!(filter.matches(&letter), meant, "{filter:?}");
        }
    }

    #[test]
    fn rules_and_errors_are_found_in_what_went_wrong() {
        let error = "team/user.yaml#user.updated/12: no value for `{name}`";
        let letter = Letter {
            error: Some(error.to_owned()),
            ..letter("unresolvable", "user.updated", None)
        };
        let rules = |rule: &str| Filter { rules: vec![rule.to_owned()], ..Filter::default() };
        let errors = |text: &str| Filter { errors: vec![text.to_owned()], ..Filter::default() };
        for (filter, meant) in [
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
            assert_eq!(filter.matches(&letter), meant, "{filter:?}");
            assert!(!filter.is_all());
        }
        assert!(!rules("team").matches(&Letter { error: None, ..letter.clone() }));
        assert!(!errors("").matches(&Letter { error: None, ..letter }));
    }

    #[test]
    fn what_has_no_time_or_id_is_not_meant_by_one() {
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

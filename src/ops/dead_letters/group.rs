//! Groups of letters that have something in common, with their counts.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::json;

use super::Letter;

/// A property by which letters are grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupBy {
    /// The reason why it is a dead letter.
    Reason,
    /// The event's type.
    Type,
    /// The rule that failed.
    Rule,
    /// The error, without the rule's name.
    Error,
}

impl GroupBy {
    /// All properties.
    pub const ALL: [Self; 4] = [Self::Reason, Self::Type, Self::Rule, Self::Error];

    /// The properties by which dead letters are grouped by default.
    pub const DEFAULT: [Self; 2] = [Self::Reason, Self::Type];

    /// Returns the name in tables and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reason => "reason",
            Self::Type => "type",
            Self::Rule => "rule",
            Self::Error => "error",
        }
    }

    /// Returns the property of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|by| by.as_str() == name)
    }

    fn of(self, letter: &Letter) -> Option<&str> {
        match self {
            Self::Reason => Some(&letter.reason),
            Self::Type => Some(&letter.event_type),
            Self::Rule => letter.rule(),
            Self::Error => letter.error.as_deref().map(|error| match letter.rule() {
                Some(rule) => error[rule.len()..].trim_start_matches(": "),
                None => error,
            }),
        }
    }
}

/// A group of letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The common properties and their values, in the given order. `None` if the letters lack it.
    pub common: Vec<(GroupBy, Option<String>)>,
    /// Number of letters.
    pub count: usize,
    /// Time at which the first of them was dead-lettered.
    pub first: Option<Timestamp>,
    /// Time at which the last of them was dead-lettered.
    pub last: Option<Timestamp>,
}

impl Group {
    /// Returns the group as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
        let mut object =
            json!({ "count": self.count, "first": time(self.first), "last": time(self.last) });
        for (by, value) in &self.common {
            object[by.as_str()] = json!(value);
        }
        object
    }
}

/// Groups letters by these properties, the largest group first.
pub fn groups<'l>(letters: impl IntoIterator<Item = &'l Letter>, by: &[GroupBy]) -> Vec<Group> {
    let mut by_common: BTreeMap<Vec<Option<&str>>, Group> = BTreeMap::new();
    for letter in letters {
        let common: Vec<Option<&str>> = by.iter().map(|by| by.of(letter)).collect();
        let group = by_common.entry(common).or_insert_with(|| Group {
            common: by.iter().map(|by| (*by, by.of(letter).map(str::to_owned))).collect(),
            count: 0,
            first: None,
            last: None,
        });
        group.count += 1;
        group.first = [group.first, letter.time].into_iter().flatten().min();
        group.last = group.last.max(letter.time);
    }
    let mut groups: Vec<Group> = by_common.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    groups
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::broker::{DeadLetter, Delivery};

    pub(in super::super) fn letter(reason: &str, event_type: &str, time: Option<&str>) -> Letter {
        let dead = DeadLetter { delivery: Delivery::of("", "q", b"{}"), death: None };
        Letter {
            reason: reason.to_owned(),
            event_type: event_type.to_owned(),
            id: Some("e-1".to_owned()),
            time: time.map(|time| time.parse().unwrap()),
            ..Letter::read(&dead, crate::event::Reading::default())
        }
    }

    fn named(groups: &[Group]) -> Vec<(Vec<&str>, usize)> {
        let text = |value: &Option<String>| value.clone().map_or("-", |value| value.leak());
        groups
            .iter()
            .map(|group| (group.common.iter().map(|(_, value)| text(value)).collect(), group.count))
            .collect()
    }

    #[test]
    fn the_largest_group_of_letters_comes_first_with_its_times() {
        let letters = [
            letter("expired", "a", Some("2026-01-02T00:00:00Z")),
            letter("malformed", "b", Some("2026-01-04T00:00:00.5Z")),
            letter("malformed", "b", None),
            letter("malformed", "b", Some("2026-01-04T00:00:00Z")),
            letter("malformed", "c", None),
        ];
        let groups = groups(&letters, &GroupBy::DEFAULT);
        assert_eq!(
            named(&groups),
            [(vec!["malformed", "b"], 3), (vec!["expired", "a"], 1), (vec!["malformed", "c"], 1)]
        );
        let text = |time: Option<Timestamp>| time.map(|time| time.to_string());
        assert_eq!(text(groups[0].first).as_deref(), Some("2026-01-04T00:00:00Z"));
        assert_eq!(text(groups[0].last).as_deref(), Some("2026-01-04T00:00:00.5Z"));
        assert_eq!((groups[2].first, groups[2].last), (None, None));
    }

    #[test]
    fn letters_are_grouped_by_rule_and_by_error_without_the_rule() {
        let failed = |error: Option<&str>| Letter {
            error: error.map(str::to_owned),
            ..letter("unresolvable", "a", None)
        };
        let letters = [
            failed(Some("a.yaml#a/0: no value")),
            failed(Some("a.yaml#a/1: no value")),
            failed(Some("a.yaml#a/1: no text")),
            failed(Some("no JSON")),
            failed(None),
        ];
        let by_error =
            [(vec!["no value"], 2), (vec!["-"], 1), (vec!["no JSON"], 1), (vec!["no text"], 1)];
        assert_eq!(named(&groups(&letters, &[GroupBy::Error])), by_error);
        let by_rule = [(vec!["-"], 2), (vec!["a.yaml#a/1"], 2), (vec!["a.yaml#a/0"], 1)];
        assert_eq!(named(&groups(&letters, &[GroupBy::Rule])), by_rule);
        assert_eq!(groups(&letters, &[GroupBy::Rule, GroupBy::Error]).len(), 5);
        let one = groups(&letters[..1], &[GroupBy::Rule]).remove(0).to_json();
        assert_eq!(one, json!({ "count": 1, "first": null, "last": null, "rule": "a.yaml#a/0" }));
    }

    #[test]
    fn the_earlier_reasons_of_a_letter_are_bounded() {
        let mut letter = letter("expired", "a", Some("2026-01-02T00:00:00Z"));
        assert_eq!(letter.reasons(), "expired@2026-01-02T00:00:00Z");
        letter.earlier = (0..30).map(|at| format!("r{at}")).collect();
        let reasons = letter.reasons();
        assert_eq!(reasons.split(',').count(), 10);
        assert!(
            reasons.starts_with("r21,") && reasons.ends_with(",expired@2026-01-02T00:00:00Z"),
            "{reasons}"
        );
    }
}

//! Letters by reason and type.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Letter;

/// The letters of one reason and type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Why.
    pub reason: String,
    /// The event's type.
    pub event_type: String,
    /// How many.
    pub count: usize,
    /// When the first of them was dead-lettered.
    pub first: Option<Timestamp>,
    /// When the last of them was.
    pub last: Option<Timestamp>,
}

/// Groups letters by reason and type: the largest first.
pub fn groups<'l>(letters: impl IntoIterator<Item = &'l Letter>) -> Vec<Group> {
    let mut by_name: BTreeMap<(&str, &str), Group> = BTreeMap::new();
    for letter in letters {
        let group = by_name.entry((&letter.reason, &letter.event_type)).or_insert_with(|| Group {
            reason: letter.reason.clone(),
            event_type: letter.event_type.clone(),
            count: 0,
            first: None,
            last: None,
        });
        group.count += 1;
        group.first = [group.first, letter.time].into_iter().flatten().min();
        group.last = group.last.max(letter.time);
    }
    let mut groups: Vec<Group> = by_name.into_values().collect();
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

    #[test]
    fn the_largest_group_comes_first_with_its_span() {
        let letters = [
            letter("expired", "a", Some("2026-01-02T00:00:00Z")),
            letter("malformed", "b", Some("2026-01-04T00:00:00.5Z")),
            letter("malformed", "b", None),
            letter("malformed", "b", Some("2026-01-04T00:00:00Z")),
            letter("malformed", "c", None),
        ];
        let groups = groups(&letters);
        let named: Vec<_> = groups.iter().map(|group| (group.reason.as_str(), group.event_type.as_str(), group.count)).collect();
        assert_eq!(named, [("malformed", "b", 3), ("expired", "a", 1), ("malformed", "c", 1)]);
        let text = |time: Option<Timestamp>| time.map(|time| time.to_string());
        assert_eq!(text(groups[0].first).as_deref(), Some("2026-01-04T00:00:00Z"));
        assert_eq!(text(groups[0].last).as_deref(), Some("2026-01-04T00:00:00.5Z"));
        assert_eq!((groups[2].first, groups[2].last), (None, None));
    }

    #[test]
    fn history_grows_and_is_bounded() {
        let mut letter = letter("expired", "a", Some("2026-01-02T00:00:00Z"));
        assert_eq!(letter.history(), "expired@2026-01-02T00:00:00Z");
        letter.earlier = (0..30).map(|at| format!("r{at}")).collect();
        let history = letter.history();
        assert_eq!(history.split(',').count(), 10);
        assert!(history.starts_with("r21,") && history.ends_with(",expired@2026-01-02T00:00:00Z"), "{history}");
    }
}

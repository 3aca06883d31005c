//! Limits lines that would repeat for each event: the first of a kind is logged at once, then a
//! count each minute.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Period for which repetitions are counted before they are logged together.
pub(crate) const PERIOD: Duration = Duration::from_secs(60);

/// Maximum number of kinds that are counted separately. Events choose some of their names, so there
/// could be many.
const KINDS_MAX: usize = 1_000;

/// Lines of each kind within its period.
#[derive(Debug)]
pub(crate) struct Repeats<K> {
    kinds: HashMap<K, Repeated>,
    /// Number of lines whose kind found no room.
    others: u64,
}

#[derive(Debug)]
struct Repeated {
    since: Instant,
    more: u64,
}

/// Repetitions that were not logged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Due<K> {
    /// By kind.
    pub kinds: Vec<(K, u64)>,
    /// Repetitions whose kind was not counted separately.
    pub others: u64,
}

impl<K> Default for Repeats<K> {
    fn default() -> Self {
        Self { kinds: HashMap::new(), others: 0 }
    }
}

impl<K: Hash + Eq + Clone> Repeats<K> {
    /// Returns whether to log this line now, as the first of its kind. Otherwise the line is
    /// counted.
    pub(crate) fn is_first(&mut self, kind: K, now: Instant) -> bool {
        if let Some(repeated) = self.kinds.get_mut(&kind) {
            repeated.more += 1;
            return false;
        }
        if self.kinds.len() >= KINDS_MAX {
            self.others += 1;
            return false;
        }
        self.kinds.insert(kind, Repeated { since: now, more: 0 });
        true
    }

    /// Returns the repetitions of periods that are over, and begins the next periods. A kind
    /// without repetitions is forgotten.
    pub(crate) fn due(&mut self, now: Instant) -> Due<K> {
        self.take(|since| now.duration_since(since) >= PERIOD)
    }

    /// Returns the repetitions so far.
    pub(crate) fn rest(&mut self) -> Due<K> {
        self.take(|_| true)
    }

    fn take(&mut self, is_over: impl Fn(Instant) -> bool) -> Due<K> {
        let mut due = Due { kinds: Vec::new(), others: 0 };
        let mut any_over = self.kinds.is_empty();
        self.kinds.retain(|kind, repeated| {
            if !is_over(repeated.since) {
                return true;
            }
            any_over = true;
            let more = std::mem::take(&mut repeated.more);
            repeated.since += PERIOD;
            if more > 0 {
                due.kinds.push((kind.clone(), more));
            }
            more > 0
        });
        if any_over {
            due.others = std::mem::take(&mut self.others);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(kinds: &[(&'static str, u64)]) -> Due<&'static str> {
        Due { kinds: kinds.to_vec(), others: 0 }
    }

    #[test]
    fn the_first_line_is_logged_and_repetitions_are_counted_by_the_minute() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut repeats = Repeats::default();
        assert!(repeats.is_first("a", at(0)));
        assert!(!repeats.is_first("a", at(1)));
        assert!(repeats.is_first("b", at(30)), "of another kind");
        assert!(!repeats.is_first("a", at(59)));
        assert_eq!(repeats.due(at(59)), due(&[]));
        assert_eq!(repeats.due(at(60)), due(&[("a", 2)]));
        assert!(!repeats.is_first("a", at(61)));
        assert_eq!(repeats.due(at(90)), due(&[]), "b was not repeated, and is forgotten");
        assert!(repeats.is_first("b", at(91)));
        assert_eq!(repeats.due(at(120)), due(&[("a", 1)]));
        assert_eq!(repeats.due(at(180)), due(&[]));
        assert!(
            repeats.is_first("a", at(181)),
            "after a minute of silence it is logged at once again"
        );
    }

    #[test]
    fn counts_of_repeated_lines_survive_until_shutdown() {
        let mut repeats = Repeats::default();
        let now = Instant::now();
        let _ = (repeats.is_first("a", now), repeats.is_first("a", now));
        assert_eq!(repeats.rest(), due(&[("a", 1)]));
    }

    #[test]
    fn kinds_of_repeated_lines_are_bounded() {
        let mut repeats = Repeats::default();
        let now = Instant::now();
        let logged = (0..KINDS_MAX + 500).filter(|kind| repeats.is_first(*kind, now)).count();
        assert_eq!((logged, repeats.kinds.len()), (KINDS_MAX, KINDS_MAX));
        assert_eq!(repeats.due(now), Due { kinds: Vec::new(), others: 0 });
        assert_eq!(repeats.due(now + PERIOD), Due { kinds: Vec::new(), others: 500 });
        assert!(repeats.is_first(0, now + PERIOD), "there is room again");
    }
}

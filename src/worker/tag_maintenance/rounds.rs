//! Determines when tag maintenance looks through which tag set.
//!
//! A scan of all keys finds the sets. Its cost grows with the number of keys, so the pause after it
//! grows with its duration.
//!
//! A set that held dead members is looked through again without a scan, the sooner the more there
//! were. So few members die between two looks, with any time to live.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Share of a set that may die between two looks. A set has at most 1.2 × its live members while
/// less than a sixth of it is dead.
const SHARE_AIMED_AT: f64 = 0.08;

/// Share of dead members from which a set is looked through again without a scan.
const SHARE_WORTH_COMING_BACK: f64 = 0.02;

/// Time before the second look at a set that reached this share for the first time.
const FIRST_RETURN: Duration = Duration::from_secs(1);

/// Minimum and maximum time between two looks at one set. Beyond the maximum, the scan finds the
/// set as soon.
const RETURN: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(60)];

/// Maximum number of sets that are looked through again without a scan. The others wait for the
/// scan.
const MAX_RETURNS: usize = 4_000;

/// Minimum and maximum time between two scans. In between, the pause is `SCAN_PAUSE_IN_SCANS` times
/// the last scan's duration.
const SCAN_PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
const SCAN_PAUSE_IN_SCANS: u32 = 10;

/// The next step of the maintenance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Scans for sets from that cursor on.
    Scan(u64),
    /// Looks through a slice of a set.
    Slice {
        /// The key of the set.
        set: Vec<u8>,
        /// The cursor in the set.
        cursor: u64,
    },
    /// Waits until then.
    Wait(Instant),
}

/// A look through one set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Look {
    set: Vec<u8>,
    cursor: u64,
    looked: u64,
    gone: u64,
}

/// The next look at a set without a scan.
#[derive(Debug, Clone, Copy)]
struct Return {
    due: Instant,
    after: Duration,
}

/// Totals since the last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Found {
    pub(super) looks: u64,
    pub(super) looked: u64,
    pub(super) gone: u64,
}

/// The order of the looks.
#[derive(Debug)]
pub(super) struct Rounds {
    /// The looks in progress. Each gets one slice in turn, so that a huge set delays no other.
    under_way: VecDeque<Look>,
    returns: HashMap<Vec<u8>, Return>,
    scan: Scan,
    found: Found,
}

#[derive(Debug, Clone, Copy)]
enum Scan {
    Due(Instant),
    UnderWay { since: Instant, cursor: u64 },
}

impl Rounds {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            under_way: VecDeque::new(),
            returns: HashMap::new(),
            scan: Scan::Due(now),
            found: Found::default(),
        }
    }

    /// Returns the next step. The caller reports its result with [`scanned`](Self::scanned) or
    /// [`sliced`](Self::sliced).
    pub(super) fn next(&mut self, now: Instant) -> Step {
        for (set, again) in &mut self.returns {
            if again.due <= now {
                self.under_way.push_back(Look { set: set.clone(), ..Look::default() });
                // Set again when this look ends, however long it takes.
                again.due = now + Duration::from_secs(24 * 60 * 60);
            }
        }
        if let Some(look) = self.under_way.front() {
            return Step::Slice { set: look.set.clone(), cursor: look.cursor };
        }
        match self.scan {
            Scan::UnderWay { cursor, .. } => Step::Scan(cursor),
            Scan::Due(due) if due <= now => {
                self.scan = Scan::UnderWay { since: now, cursor: 0 };
                Step::Scan(0)
            }
            Scan::Due(due) => Step::Wait(
                self.returns
                    .values()
                    .map(|again| again.due)
                    .min()
                    .map_or(due, |first| first.min(due)),
            ),
        }
    }

    /// Notes the sets that a step of the scan found. Returns the totals since the last scan if this
    /// scan has ended.
    pub(super) fn scanned(&mut self, next: u64, sets: Vec<Vec<u8>>, now: Instant) -> Option<Found> {
        let unknown = sets.into_iter().filter(|set| !self.returns.contains_key(set));
        self.under_way.extend(unknown.map(|set| Look { set, ..Look::default() }));
        let Scan::UnderWay { since, cursor } = &mut self.scan else { return None };
        *cursor = next;
        if next != 0 {
            return None;
        }
        let pause =
            (now.duration_since(*since) * SCAN_PAUSE_IN_SCANS).clamp(SCAN_PAUSE[0], SCAN_PAUSE[1]);
        self.scan = Scan::Due(now + pause);
        Some(std::mem::take(&mut self.found))
    }

    /// Notes that a slice of the current set was looked through.
    pub(super) fn sliced(&mut self, next: u64, looked: u64, gone: u64, now: Instant) {
        let Some(mut look) = self.under_way.pop_front() else { return };
        look.looked += looked;
        look.gone += gone;
        look.cursor = next;
        if next != 0 {
            return self.under_way.push_back(look);
        }
        self.found.looks += 1;
        self.found.looked += look.looked;
        self.found.gone += look.gone;
        self.come_back(look, now);
    }

    /// Notes that the current set cannot be looked through.
    pub(super) fn skipped(&mut self) {
        if let Some(look) = self.under_way.pop_front() {
            self.returns.remove(&look.set);
        }
    }

    fn come_back(&mut self, look: Look, now: Instant) {
        #[expect(clippy::cast_precision_loss, reason = "a share needs no more digits")]
        let share = look.gone as f64 / look.looked.max(1) as f64;
        let after = match self.returns.get(&look.set) {
            // The number of dead members grows with the time between two looks.
            Some(again) if look.looked > 0 => {
                again.after.mul_f64((SHARE_AIMED_AT / share.max(0.001)).clamp(0.25, 4.0))
            }
            None if share >= SHARE_WORTH_COMING_BACK && self.returns.len() < MAX_RETURNS => {
                FIRST_RETURN
            }
            Some(_) | None => RETURN[1],
        };
        if after >= RETURN[1] {
            self.returns.remove(&look.set);
        } else {
            let after = after.max(RETURN[0]);
            self.returns.insert(look.set, Return { due: now + after, after });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn look(rounds: &mut Rounds, now: Instant, expected: &str, looked: u64, gone: u64) {
        assert_eq!(rounds.next(now), Step::Slice { set: expected.into(), cursor: 0 });
        rounds.sliced(0, looked, gone, now);
    }

    #[test]
    fn a_scan_finds_sets_and_pauses_longer_the_longer_it_took() {
        let start = Instant::now();
        let mut rounds = Rounds::new(start);
        assert_eq!(rounds.next(start), Step::Scan(0));
        assert_eq!(rounds.scanned(7, vec![b"a".to_vec(), b"b".to_vec()], start), None);
        look(&mut rounds, start, "a", 10, 0);
        look(&mut rounds, start, "b", 0, 0);
        let end = start + 2 * SECOND;
        assert_eq!(rounds.next(end), Step::Scan(7));
        assert_eq!(rounds.scanned(0, vec![], end), Some(Found { looks: 2, looked: 10, gone: 0 }));
        assert_eq!(rounds.next(end), Step::Wait(end + 20 * SECOND));
        assert_eq!(rounds.next(end + 20 * SECOND), Step::Scan(0));
    }

    #[test]
    fn big_sets_take_turns() {
        let now = Instant::now();
        let mut rounds = Rounds::new(now);
        rounds.next(now);
        rounds.scanned(0, vec![b"a".to_vec(), b"b".to_vec()], now);
        for (set, cursor, next) in [("a", 0, 5), ("b", 0, 6), ("a", 5, 0), ("b", 6, 0)] {
            assert_eq!(rounds.next(now), Step::Slice { set: set.into(), cursor });
            rounds.sliced(next, 1, 0, now);
        }
        assert!(matches!(rounds.next(now), Step::Wait(_)));
    }

    /// The dead share settles below a sixth, with any time to live of the members.
    #[test]
    fn what_goes_fast_is_looked_through_as_often_as_needed() {
        for lifetime in [SECOND, 10 * SECOND, 100 * SECOND, 1_000 * SECOND] {
            let start = Instant::now();
            let mut rounds = Rounds::new(start);
            let (mut now, mut last_look, mut looks) = (start, start, 0);
            let mut worst_late: f64 = 0.0;
            while now < start + 10 * lifetime.max(60 * SECOND) {
                match rounds.next(now) {
                    Step::Scan(_) => {
                        rounds.scanned(0, vec![b"t".to_vec()], now);
                    }
                    Step::Slice { .. } => {
                        // 1,000 live members, each replaced once in a lifetime.
                        let gone =
                            1_000.0 * (now - last_look).as_secs_f64() / lifetime.as_secs_f64();
                        last_look = now;
                        looks += 1;
                        if looks > 8 {
                            worst_late = worst_late.max(gone / 1_000.0);
                        }
                        #[expect(
                            clippy::cast_possible_truncation,
                            clippy::cast_sign_loss,
                            reason = "a small positive number"
                        )]
                        let gone = gone as u64;
                        rounds.sliced(0, 1_000 + gone, gone, now);
                    }
                    Step::Wait(until) => now = until,
                }
            }
            assert!(worst_late > 0.0 && worst_late < 0.2, "{lifetime:?}: {worst_late}");
        }
    }

    #[test]
    fn a_set_that_is_clean_again_or_gone_is_left_to_the_scan() {
        for outcome in [(1_000, 0), (0, 0)] {
            let start = Instant::now();
            let (mut now, mut rounds) = (start, Rounds::new(start));
            rounds.next(now);
            rounds.scanned(0, vec![b"t".to_vec()], now);
            look(&mut rounds, now, "t", 100, 50);
            assert_eq!(rounds.returns.len(), 1);
            while now < start + 100 * SECOND {
                match rounds.next(now) {
                    Step::Wait(until) => now = until,
                    Step::Slice { .. } => rounds.sliced(0, outcome.0, outcome.1, now),
                    Step::Scan(_) => drop(rounds.scanned(0, vec![], now)),
                }
            }
            assert!(rounds.returns.is_empty(), "{outcome:?}");
        }
    }
}

//! The circuit breaker of one loader. While most of its loads fail, no request is sent to it.
//!
//! The loads are retried later, and their places and time go to other loaders. Events choose the
//! resources that are loaded. A resource that always fails counts once, so events for one broken
//! resource do not open the breaker for all others.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Doubling;

/// Number of latest outcomes that decide whether the breaker opens.
const WINDOW: usize = 20;

/// Minimum number of failures among them, and at least half must be failures. Fewer may be chance.
const FAILURES: usize = 5;

/// Time that the breaker stays open. It doubles whenever the trial load fails too.
const OPEN_FOR: Doubling =
    Doubling { first: Duration::from_secs(5), longest: Duration::from_secs(60) };

/// The outcome of a load, as far as it shows the loader's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// The loader answered.
    Good,
    /// The loader did not answer in time, refused the connection, or asked for fewer loads.
    Bad,
    /// The loader failed for one resource.
    Failing {
        /// Hash of the resource's path and query.
        resource: u64,
    },
}

/// The answer of the breaker to a load that wants to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// Every load may start.
    Closed {
        /// Epoch of the breaker. Outcomes of loads from an earlier epoch are ignored.
        epoch: u64,
    },
    /// This load alone may start, and its outcome decides.
    Trial {
        /// Epoch of the breaker.
        epoch: u64,
    },
    /// No load may start.
    Open {
        /// Time until a trial may start; zero while a trial is under way, whose end is not known.
        left: Duration,
    },
}

/// A change of the breaker's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transition {
    /// The breaker opened.
    Opened {
        /// Time that it stays open.
        open_time: Duration,
        /// True if it was open before, and the trial load failed.
        is_repeated: bool,
    },
    /// The breaker closed.
    Closed,
}

/// The circuit breaker of one loader.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    epoch: u64,
    /// The latest outcomes, the newest last. Each failing resource is in it at most once.
    outcomes: VecDeque<Health>,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    until: Instant,
    open_time: Duration,
    trial_under_way: bool,
}

impl Breaker {
    /// Returns whether a load may start. The caller must end a [`Pass::Trial`] by
    /// [`ended`](Self::ended) or [`given_up`](Self::given_up).
    pub(super) fn pass(&self, now: Instant) -> Pass {
        let mut state = self.state();
        let epoch = state.epoch;
        let Some(open) = &mut state.open else { return Pass::Closed { epoch } };
        if open.trial_under_way || now < open.until {
            return Pass::Open { left: open.until.saturating_duration_since(now) };
        }
        open.trial_under_way = true;
        Pass::Trial { epoch }
    }

    /// Returns the time until a trial may start, if the breaker is open. Loads ask before they wait
    /// for a place.
    pub(super) fn open_for(&self, now: Instant) -> Option<Duration> {
        let state = self.state();
        let open = state.open.as_ref()?;
        (open.trial_under_way || now < open.until)
            .then(|| open.until.saturating_duration_since(now))
    }

    /// Returns true if the breaker is open, also while a trial load runs.
    pub(super) fn is_open(&self) -> bool {
        self.state().open.is_some()
    }

    /// Records the outcome of a load that had this pass.
    pub(super) fn ended(&self, pass: Pass, health: Health, now: Instant) -> Option<Transition> {
        let mut state = self.state();
        match pass {
            Pass::Trial { epoch } if epoch == state.epoch => {
                let before = state.open.map_or(OPEN_FOR.first, |open| open.open_time);
                let is_news = state.note(health);
                Some(match health {
                    Health::Good => state.close(),
                    // A resource that failed before is no new evidence about the others.
                    Health::Failing { .. } if !is_news => state.trip(before, true, now),
                    Health::Bad | Health::Failing { .. } => {
                        state.trip(OPEN_FOR.after(before), true, now)
                    }
                })
            }
            Pass::Closed { epoch } if epoch == state.epoch => {
                state.note(health);
                let failures =
                    state.outcomes.iter().filter(|outcome| **outcome != Health::Good).count();
                (failures >= FAILURES && failures * 2 >= state.outcomes.len())
                    .then(|| state.trip(OPEN_FOR.first, false, now))
            }
            Pass::Trial { .. } | Pass::Closed { .. } | Pass::Open { .. } => None,
        }
    }

    /// Ends a load that had this pass and was aborted, so that it has no outcome.
    pub(super) fn given_up(&self, pass: Pass) {
        let mut state = self.state();
        if let Pass::Trial { epoch } = pass
            && epoch == state.epoch
            && let Some(open) = &mut state.open
        {
            open.trial_under_way = false;
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Adds an outcome to the latest ones. Returns false if the same resource is among them as
    /// failing; it then keeps its place.
    fn note(&mut self, health: Health) -> bool {
        if matches!(health, Health::Failing { .. }) && self.outcomes.contains(&health) {
            return false;
        }
        if self.outcomes.len() == WINDOW {
            self.outcomes.pop_front();
        }
        self.outcomes.push_back(health);
        true
    }

    fn trip(&mut self, open_time: Duration, is_repeated: bool, now: Instant) -> Transition {
        self.epoch += 1;
        self.open = Some(Open { until: now + open_time, open_time, trial_under_way: false });
        Transition::Opened { open_time, is_repeated }
    }

    fn close(&mut self) -> Transition {
        *self = Self { epoch: self.epoch + 1, ..Self::default() };
        Transition::Closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(breaker: &Breaker, health: Health, now: Instant) -> Option<Transition> {
        let pass = breaker.pass(now);
        assert!(!matches!(pass, Pass::Open { .. }), "{breaker:?}");
        breaker.ended(pass, health, now)
    }

    fn tripped(now: Instant) -> Breaker {
        let breaker = Breaker::default();
        for _ in 1..FAILURES {
            assert_eq!(load(&breaker, Health::Bad, now), None);
        }
        assert_eq!(
            load(&breaker, Health::Bad, now),
            Some(Transition::Opened { open_time: OPEN_FOR.first, is_repeated: false })
        );
        breaker
    }

    #[test]
    fn the_breaker_opens_after_five_failures_lets_one_load_try_and_closes() {
        let now = Instant::now();
        let breaker = tripped(now);
        assert_eq!(breaker.pass(now), Pass::Open { left: OPEN_FOR.first });
        assert_eq!(breaker.open_for(now), Some(OPEN_FOR.first));
        let later = now + OPEN_FOR.first;
        assert_eq!(breaker.open_for(later), None);
        let trial = breaker.pass(later);
        assert!(matches!(trial, Pass::Trial { .. }));
        assert!(matches!(breaker.pass(later), Pass::Open { .. }), "one trial at a time");
        assert_eq!(breaker.ended(trial, Health::Good, later), Some(Transition::Closed));
        assert_eq!(load(&breaker, Health::Bad, later), None, "earlier outcomes are forgotten");
    }

    #[test]
    fn a_failed_trial_opens_the_breaker_for_longer_and_an_aborted_one_does_not() {
        let mut now = Instant::now();
        let breaker = tripped(now);
        for doublings in 1..6 {
            now += OPEN_FOR.longest;
            breaker.given_up(breaker.pass(now));
            let expected = (OPEN_FOR.first * 2_u32.pow(doublings)).min(OPEN_FOR.longest);
            assert_eq!(
                load(&breaker, Health::Bad, now),
                Some(Transition::Opened { open_time: expected, is_repeated: true })
            );
        }
    }

    #[test]
    fn the_breaker_of_a_loader_that_mostly_answers_stays_closed() {
        let now = Instant::now();
        let breaker = Breaker::default();
        for round in 0..100 {
            let health = if round % 3 == 0 { Health::Bad } else { Health::Good };
            assert_eq!(load(&breaker, health, now), None);
        }
        for _ in 0..2 {
            assert_eq!(load(&breaker, Health::Bad, now), None, "most of the last twenty were good");
        }
    }

    #[test]
    fn a_resource_that_always_fails_does_not_open_the_breaker_for_others() {
        let now = Instant::now();
        let breaker = Breaker::default();
        for _ in 0..100 {
            assert_eq!(load(&breaker, Health::Failing { resource: 7 }, now), None);
        }
        for resource in 1..4 {
            assert_eq!(load(&breaker, Health::Failing { resource }, now), None);
        }
        let opened = Some(Transition::Opened { open_time: OPEN_FOR.first, is_repeated: false });
        assert_eq!(
            load(&breaker, Health::Failing { resource: 4 }, now),
            opened,
            "five resources fail, and none is answered"
        );
        let later = now + OPEN_FOR.longest;
        let again = |open_time| Some(Transition::Opened { open_time, is_repeated: true });
        assert_eq!(
            load(&breaker, Health::Failing { resource: 7 }, later),
            again(OPEN_FOR.first),
            "no longer than before for a resource that is known to fail"
        );
        let later = later + OPEN_FOR.longest;
        assert_eq!(
            load(&breaker, Health::Failing { resource: 8 }, later),
            again(OPEN_FOR.first * 2)
        );
    }

    #[test]
    fn outcomes_of_loads_that_began_before_the_breaker_changed_are_ignored() {
        let now = Instant::now();
        let breaker = Breaker::default();
        let old = breaker.pass(now);
        for _ in 0..FAILURES {
            load(&breaker, Health::Bad, now);
        }
        assert_eq!(breaker.ended(old, Health::Good, now), None);
        assert!(matches!(breaker.pass(now), Pass::Open { .. }));
        let later = now + OPEN_FOR.first;
        let trial = breaker.pass(later);
        assert_eq!(breaker.ended(old, Health::Bad, later), None);
        assert_eq!(breaker.ended(trial, Health::Good, later), Some(Transition::Closed));
        assert_eq!(breaker.ended(trial, Health::Bad, later), None);
    }
}

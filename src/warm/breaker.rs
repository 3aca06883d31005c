//! A circuit breaker for one loader: while most of its loads fail, it is not asked. What would have
//! been asked is tried again later, and the places and the time that hopeless loads would take go
//! to other loaders.
//!
//! Events choose what is loaded. A resource that always fails counts once, so that events for one
//! broken resource do not close the loader to all others.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Doubling;

/// The last loads that decide.
const WINDOW: usize = 20;

/// So many of them must have failed, and at least half: fewer may be chance.
const FAILURES: usize = 5;

/// How long it stays open. Each trial that fails too doubles it.
const OPEN_FOR: Doubling =
    Doubling { first: Duration::from_secs(5), longest: Duration::from_secs(60) };

/// How a load went, as far as the loader's health goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// It answered.
    Good,
    /// It gave no answer: no connection, or none in time. Or it asked for fewer loads.
    Bad,
    /// It failed to answer for one resource.
    Failing {
        /// A hash of its path and query.
        resource: u64,
    },
}

/// Who may load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// Everybody.
    Closed {
        /// Loads that began before the breaker last changed say nothing of now.
        epoch: u64,
    },
    /// The asker alone: its load decides.
    Trial {
        /// As above.
        epoch: u64,
    },
    /// Nobody.
    Open {
        /// For so long still; a trial under way has no end that is known.
        left: Duration,
    },
}

/// What a load's end changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// From now on the loader is not asked, for so long.
    Opened {
        /// How long.
        for_so_long: Duration,
        /// Nothing was let through between this and the last time.
        again: bool,
    },
    /// It is asked again.
    Closed,
}

/// The state of one loader.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    epoch: u64,
    /// The last outcomes, the newest last; each failing resource at most once.
    outcomes: VecDeque<Health>,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    until: Instant,
    for_so_long: Duration,
    trial_under_way: bool,
}

impl Breaker {
    /// Whether a load may begin. A [`Pass::Trial`] must come to an end, by [`ended`](Self::ended)
    /// or [`given_up`](Self::given_up).
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

    /// How long nobody may load, if so: for those who would only stand in line.
    pub(super) fn open_for(&self, now: Instant) -> Option<Duration> {
        let state = self.state();
        let open = state.open.as_ref()?;
        (open.trial_under_way || now < open.until)
            .then(|| open.until.saturating_duration_since(now))
    }

    /// Whether the loader's health is in doubt: nobody may load, or one to find out.
    pub(super) fn is_open(&self) -> bool {
        self.state().open.is_some()
    }

    /// A load that had this pass went so.
    pub(super) fn ended(&self, pass: Pass, health: Health, now: Instant) -> Option<Turn> {
        let mut state = self.state();
        match pass {
            Pass::Trial { epoch } if epoch == state.epoch => {
                let before = state.open.map_or(OPEN_FOR.first, |open| open.for_so_long);
                let is_news = state.note(health);
                Some(match health {
                    Health::Good => state.close(),
                    // A resource that failed before says nothing new of the others.
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

    /// A load that had this pass was broken off, and says nothing.
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
    /// Keeps the outcome among the last ones. False where the same resource is among them as
    /// failing: it stays at its place.
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

    fn trip(&mut self, for_so_long: Duration, again: bool, now: Instant) -> Turn {
        self.epoch += 1;
        self.open = Some(Open { until: now + for_so_long, for_so_long, trial_under_way: false });
        Turn::Opened { for_so_long, again }
    }

    fn close(&mut self) -> Turn {
        *self = Self { epoch: self.epoch + 1, ..Self::default() };
        Turn::Closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(breaker: &Breaker, health: Health, now: Instant) -> Option<Turn> {
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
            Some(Turn::Opened { for_so_long: OPEN_FOR.first, again: false })
        );
        breaker
    }

    #[test]
    fn opens_after_failures_that_are_no_chance_lets_one_try_and_closes() {
        let now = Instant::now();
        let breaker = tripped(now);
        assert_eq!(breaker.pass(now), Pass::Open { left: OPEN_FOR.first });
        assert_eq!(breaker.open_for(now), Some(OPEN_FOR.first));
        let later = now + OPEN_FOR.first;
        assert_eq!(breaker.open_for(later), None);
        let trial = breaker.pass(later);
        assert!(matches!(trial, Pass::Trial { .. }));
        assert!(matches!(breaker.pass(later), Pass::Open { .. }), "one at a time");
        assert_eq!(breaker.ended(trial, Health::Good, later), Some(Turn::Closed));
        assert_eq!(load(&breaker, Health::Bad, later), None, "what was before is forgotten");
    }

    #[test]
    fn a_trial_that_fails_opens_it_for_longer_and_one_that_is_given_up_does_not() {
        let mut now = Instant::now();
        let breaker = tripped(now);
        for doublings in 1..6 {
            now += OPEN_FOR.longest;
            breaker.given_up(breaker.pass(now));
            let expected = (OPEN_FOR.first * 2_u32.pow(doublings)).min(OPEN_FOR.longest);
            assert_eq!(
                load(&breaker, Health::Bad, now),
                Some(Turn::Opened { for_so_long: expected, again: true })
            );
        }
    }

    #[test]
    fn a_loader_that_mostly_answers_is_asked() {
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
    fn a_resource_that_always_fails_does_not_close_the_loader_to_others() {
        let now = Instant::now();
        let breaker = Breaker::default();
        for _ in 0..100 {
            assert_eq!(load(&breaker, Health::Failing { resource: 7 }, now), None);
        }
        for resource in 1..4 {
            assert_eq!(load(&breaker, Health::Failing { resource }, now), None);
        }
        let opened = Some(Turn::Opened { for_so_long: OPEN_FOR.first, again: false });
        assert_eq!(
            load(&breaker, Health::Failing { resource: 4 }, now),
            opened,
            "five resources fail, and none is answered"
        );
        let later = now + OPEN_FOR.longest;
        let again = |for_so_long| Some(Turn::Opened { for_so_long, again: true });
        assert_eq!(
            load(&breaker, Health::Failing { resource: 7 }, later),
            again(OPEN_FOR.first),
            "no longer for one that is known to fail"
        );
        let later = later + OPEN_FOR.longest;
        assert_eq!(
            load(&breaker, Health::Failing { resource: 8 }, later),
            again(OPEN_FOR.first * 2)
        );
    }

    #[test]
    fn loads_that_began_before_it_changed_say_nothing_of_now() {
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
        assert_eq!(breaker.ended(trial, Health::Good, later), Some(Turn::Closed));
        assert_eq!(breaker.ended(trial, Health::Bad, later), None);
    }
}

//! Judge: it knows which effects were applied when, and which values must therefore not be read.

use super::event::{Change, Event};

pub(super) const STALE_LOAD: &str = "a value loaded before an invalidation is read after it";
pub(super) const STALE_STORE: &str = "a value stored before a deletion is read after it";
pub(super) const LOST_PASS: &str = "a value is read whose second deletion never came";
pub(super) const OLDER_WRITE: &str =
    "an older write is readable although a newer event of its entity took effect";
pub(super) const SKIPPED: &str =
    "an invalidation was skipped: what stood before it is read after it";

/// One application of an effect.
#[derive(Debug)]
struct Application {
    event: usize,
    start: u64,
    end: Option<u64>,
    /// Time by which its one round trip was done. The slow lane does the rest.
    left: Option<u64>,
    /// If false, another effect or none may have been applied in its place.
    takes_hold: bool,
}

/// Application that took effect, at some time from `start` on.
struct Held<'j> {
    start: u64,
    /// Time by which it certainly took effect.
    end: u64,
    event: &'j Event,
}

#[derive(Debug, Default)]
pub(super) struct Judge {
    pub(super) events: Vec<Event>,
    applied: Vec<Application>,
    /// First application after the last loss: Redis no longer holds earlier ones.
    era: usize,
    /// Nothing is in flight, and nothing is still to come.
    is_over: bool,
    /// In a cluster, a write sets its value between the two times that its key joins its tags'
    /// sets.
    sets_are_elsewhere: bool,
}

impl Judge {
    pub(super) fn new(sets_are_elsewhere: bool) -> Self {
        Self { sets_are_elsewhere, ..Self::default() }
    }

    /// Begins applications, and returns their places.
    pub(super) fn begin(
        &mut self,
        events: impl IntoIterator<Item = usize>,
        now: u64,
        takes_hold: bool,
    ) -> Vec<usize> {
        let first = self.applied.len();
        self.applied.extend(events.into_iter().map(|event| Application {
            event,
            start: now,
            end: None,
            left: None,
            takes_hold,
        }));
        (first..self.applied.len()).collect()
    }

    /// Notes that the slow lane continues the application.
    pub(super) fn left(&mut self, application: usize, now: u64) {
        self.applied[application].left = Some(now);
    }

    /// Notes that the applications took effect.
    pub(super) fn ended(&mut self, applications: &[usize], now: u64) {
        applications.iter().for_each(|&at| self.applied[at].end = Some(now));
    }

    /// Notes that their worker died. Any part that was done was done by now.
    pub(super) fn died(&mut self, applications: &[usize], now: u64) {
        applications.iter().for_each(|&at| self.applied[at].takes_hold = false);
        self.ended(applications, now);
    }

    /// Notes that Redis lost everything.
    pub(super) fn lost(&mut self) {
        self.era = self.applied.len();
    }

    pub(super) fn is_over(&mut self) {
        self.is_over = true;
    }

    /// Returns the applications of a write that may have set its value since Redis began.
    ///
    /// One that has taken effect is the last. A repetition does nothing, unless it has no version.
    fn settings(&self, of: usize) -> impl Iterator<Item = &Application> {
        let mut has_held = false;
        self.applied[self.era..]
            .iter()
            .filter(move |application| application.event == of)
            .take_while(move |application| {
                let is_before = !has_held;
                has_held |= self.events[of].row().is_some()
                    && application.end.is_some()
                    && application.takes_hold;
                is_before
            })
    }

    fn held(&self) -> impl Iterator<Item = Held<'_>> {
        self.applied
            .iter()
            .enumerate()
            .filter(|(_, application)| application.takes_hold)
            .filter_map(|(at, application)| {
                let (end, event) = (application.end?, &self.events[application.event]);
                if event.change.serves() && !self.is_over {
                    // The old value may be read until another load has ended, which serves this one
                    // too.
                    return None;
                }
                if !matches!(event.change, Change::Write { .. }) || event.row().is_none() {
                    return Some(Held { start: application.start, end, event });
                }
                let start = self.applied[..=at]
                    .iter()
                    .find(|earlier| earlier.event == application.event)?
                    .start;
                Some(Held { start, end, event })
            })
    }

    fn invalidates(&self, event: &Event, key: usize, tags: &[usize]) -> bool {
        match event.change {
            Change::Delete { key: of, .. } | Change::Warm { key: of, .. } => of == key,
            Change::InvalidateTag(tag) => tags.contains(&tag),
            // Among writes only the newest must take effect, and only if no other event has its
            // version.
            Change::Write { key: of, .. } => {
                of == key
                    && !self.applied.iter().any(|applied| self.events[applied.event].outdoes(event))
            }
        }
    }

    /// Returns whether the value was loaded before an invalidation of its key or of one of its
    /// tags.
    pub(super) fn stale_load(&self, key: usize, at: u64, tags: &[usize]) -> Option<&'static str> {
        self.held()
            .any(|held| at < held.start && self.invalidates(held.event, key, tags))
            .then_some(STALE_LOAD)
    }

    /// Returns the violation if a stranger stored the value before a deletion of its key, such as a
    /// second delete.
    pub(super) fn kept_store(&self, key: usize, at: u64) -> Option<&'static str> {
        if self.held().any(|held| at < held.start && self.invalidates(held.event, key, &[])) {
            return Some(STALE_STORE);
        }
        let of_key = |held: &Held<'_>| matches!(held.event.change, Change::Delete { key: of, .. } if of == key);
        let is_second = |held: &Held<'_>| of_key(held) && held.event.id == 0;
        let owed = self
            .held()
            .filter(|held| of_key(held) && held.event.again)
            .map(|held| held.start)
            .max();
        let is_owed = owed
            .is_some_and(|since| !self.held().any(|held| is_second(&held) && held.start >= since));
        (self.is_over && is_owed).then_some(LOST_PASS)
    }

    /// Returns whether a warm may have come between the write of the value and `other`, and serves
    /// the value.
    ///
    /// A newer warm makes the other write too old to do anything. The value then stays until the
    /// warm's load has ended. Deletions always delete.
    fn is_served(&self, value_of: usize, other: &Held<'_>) -> bool {
        let applied = &self.applied[self.era..];
        let serves = |warm: &Application| {
            let event = &self.events[warm.event];
            event.change.serves() && event.is_newer_than(other.event) && warm.start <= other.end
        };
        let was_fenced = |by: usize, start: u64| {
            applied
                .iter()
                .any(|warm| warm.event == by && warm.left.is_some_and(|left| left < start))
        };
        let stood = |warm: &Application| {
            self.settings(value_of).any(|setting| !was_fenced(warm.event, setting.start))
        };
        let is_write = matches!(other.event.change, Change::Write { .. });
        !self.is_over && is_write && applied.iter().any(|warm| serves(warm) && stood(warm))
    }

    pub(super) fn wrong_write(
        &self,
        key: usize,
        at: usize,
        tags: &[usize],
    ) -> Option<&'static str> {
        let own = &self.events[at];
        if self.held().any(|held| held.event.outdoes(own) && !self.is_served(at, &held)) {
            return Some(OLDER_WRITE);
        }
        // The value was there before, and no write has set it since. A worker that died may have
        // left it outside its tags' sets, until its event is applied again.
        let is_found = |by: &Held<'_>| {
            let is_by_tag =
                self.sets_are_elsewhere && matches!(by.event.change, Change::InvalidateTag(_));
            !is_by_tag || self.settings(at).last().is_none_or(|setting| setting.takes_hold)
        };
        let was_there_before = |held: &Held<'_>| {
            is_found(held)
                && self.settings(at).all(|setting| setting.end.is_some_and(|end| end < held.start))
        };
        self.held()
            .any(|held| self.invalidates(held.event, key, tags) && was_there_before(&held))
            .then_some(SKIPPED)
    }
}

#[cfg(test)]
mod tests {
    use unstale::registry::{Only, Stale};

    use super::super::event::{Life, Order};
    use super::*;

    fn order(version: u64) -> Option<Order> {
        Some(Order { family: 0, version })
    }

    fn write(version: u64) -> Change {
        Change::Write { key: 0, order: order(version), tags: Vec::new(), life: Life::Hour }
    }

    fn warm(version: u64, stale: Stale) -> Change {
        Change::Warm { key: 0, order: order(version), tags: Vec::new(), stale, only: Only::Always }
    }

    /// Returns the verdict on the first write's value if the others are applied in turn, two steps
    /// each. Warms that serve still load.
    fn judged(others: Vec<Change>) -> (Judge, Option<&'static str>) {
        let mut judge = Judge::default();
        for (id, change) in (1..).zip([write(4)].into_iter().chain(others)) {
            let (at, now, serves) = (judge.events.len(), 2 * id, change.serves());
            judge.events.push(Event { id, place: 1, change, again: false, is_made: false });
            let applications = judge.begin([at], now, true);
            if serves {
                judge.left(applications[0], now + 1)
            } else {
                judge.ended(&applications, now + 1)
            }
        }
        let said = judge.wrong_write(0, 0, &[]);
        (judge, said)
    }

    #[test]
    fn what_a_warm_serves_is_there_until_its_load_has_ended_unless_something_else_removed_it() {
        let serve = || warm(6, Stale::Serve);
        for too_old in [write(4), write(5)] {
            let (mut judge, said) = judged(vec![serve(), too_old]);
            assert_eq!(said, None);
            judge.ended(&[1], 9);
            judge.is_over();
            assert_eq!(judge.wrong_write(0, 0, &[]), Some(OLDER_WRITE));
        }
        let deletion = Change::Delete { key: 0, order: order(5) };
        for removed in [
            vec![serve(), write(6)],
            vec![serve(), write(7)],
            vec![serve(), deletion],
            vec![serve(), warm(5, Stale::Drop)],
        ] {
            assert_eq!(judged(removed).1, Some(OLDER_WRITE));
        }
        assert_eq!(
            judged(vec![write(5), serve()]).1,
            Some(OLDER_WRITE),
            "the other was there before the warm"
        );
        assert_eq!(
            judged(vec![warm(5, Stale::Drop), write(5)]).1,
            Some(OLDER_WRITE),
            "nothing is served"
        );
    }

    #[test]
    fn what_is_set_behind_a_warm_that_is_newer_was_not_there_to_be_served() {
        let mut judge = Judge {
            events: judged(vec![warm(6, Stale::Serve), write(5)]).0.events,
            ..Judge::default()
        };
        for (step, event) in (1..).zip([1, 2, 0]) {
            let applications = judge.begin([event], 2 * step, true);
            if event == 1 {
                judge.left(applications[0], 3)
            } else {
                judge.ended(&applications, 2 * step + 1)
            }
        }
        assert_eq!(judge.wrong_write(0, 0, &[]), Some(OLDER_WRITE));
    }

    #[test]
    fn in_a_cluster_a_worker_that_died_during_a_write_may_have_left_it_outside_its_tag() {
        let row = Change::Write { key: 0, order: order(4), tags: vec![0], life: Life::Hour };
        let events = [row, Change::InvalidateTag(0)].into_iter().zip(1..);
        let events: Vec<Event> = events
            .map(|(change, id)| Event { id, place: 1, change, again: false, is_made: false })
            .collect();
        for sets_are_elsewhere in [false, true] {
            let mut judge =
                Judge { events: events.clone(), sets_are_elsewhere, ..Judge::default() };
            let mut now = 0;
            let mut said = Vec::new();
            for (event, dies) in [(0, true), (1, false), (0, false), (1, false)] {
                now += 2;
                let applications = judge.begin([event], now, true);
                if dies {
                    judge.died(&applications, now + 1)
                } else {
                    judge.ended(&applications, now + 1)
                }
                said.push(judge.wrong_write(0, 0, &[0]).is_some());
            }
            assert_eq!(said, [false, !sets_are_elsewhere, false, true]);
        }
    }
}

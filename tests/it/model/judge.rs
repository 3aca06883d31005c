//! What was applied when, and what must therefore not be read.

use super::event::{Change, Event};

pub(super) const STALE_LOAD: &str = "a value loaded before an invalidation is read after it";
pub(super) const STALE_STORE: &str = "a value stored before a deletion is read after it";
pub(super) const LOST_PASS: &str = "a value is read whose second deletion never came";
pub(super) const OLDER_WRITE: &str = "an older write stands where a newer event of its entity took hold";
pub(super) const SKIPPED: &str = "an invalidation was skipped: what stood before it is read after it";

/// One application of an effect.
#[derive(Debug)]
struct Application {
    event: usize,
    start: u64,
    end: Option<u64>,
    /// Else something else may have been done in its place, or nothing.
    takes_hold: bool,
}

/// One that took hold, somewhen from there on.
struct Held<'j> {
    start: u64,
    event: &'j Event,
}

#[derive(Debug, Default)]
pub(super) struct Judge {
    pub(super) events: Vec<Event>,
    applied: Vec<Application>,
    /// What was applied before is in Redis no more.
    era: usize,
    /// Nothing is under way, and nothing is still to come.
    is_over: bool,
}

impl Judge {
    /// The places of the applications that begin.
    pub(super) fn begin(&mut self, events: impl IntoIterator<Item = usize>, now: u64, takes_hold: bool) -> Vec<usize> {
        let first = self.applied.len();
        self.applied.extend(events.into_iter().map(|event| Application { event, start: now, end: None, takes_hold }));
        (first..self.applied.len()).collect()
    }

    /// They took hold.
    pub(super) fn ended(&mut self, applications: &[usize], now: u64) {
        applications.iter().for_each(|&at| self.applied[at].end = Some(now));
    }

    /// Who applied them died over it: whatever of them was done was done by now.
    pub(super) fn died(&mut self, applications: &[usize], now: u64) {
        applications.iter().for_each(|&at| self.applied[at].takes_hold = false);
        self.ended(applications, now);
    }

    /// Redis lost all that it had.
    pub(super) fn lost(&mut self) {
        self.era = self.applied.len();
    }

    pub(super) fn is_over(&mut self) {
        self.is_over = true;
    }

    /// Applications of a write that may have set its value since Redis began. One that has taken hold is the last: come again, it does nothing,
    /// unless it has no version.
    fn settings(&self, of: usize) -> impl Iterator<Item = &Application> {
        let mut has_held = false;
        self.applied[self.era..].iter().filter(move |application| application.event == of).take_while(move |application| {
            let is_before = !has_held;
            has_held |= self.events[of].row().is_some() && application.end.is_some() && application.takes_hold;
            is_before
        })
    }

    fn held(&self) -> impl Iterator<Item = Held<'_>> {
        let ended = self.applied.iter().enumerate().filter(|(_, application)| application.end.is_some() && application.takes_hold);
        ended.filter_map(|(at, application)| {
            let event = &self.events[application.event];
            if event.change.serves() && !self.is_over {
                // The old value may be read until another's load, which does for this one too, has ended.
                return None;
            }
            if !matches!(event.change, Change::Write { .. }) || event.row().is_none() {
                return Some(Held { start: application.start, event });
            }
            let start = self.applied[..=at].iter().find(|earlier| earlier.event == application.event)?.start;
            Some(Held { start, event })
        })
    }

    fn invalidates(&self, event: &Event, key: usize, tags: &[usize]) -> bool {
        match event.change {
            Change::Delete { key: of, .. } | Change::Warm { key: of, .. } => of == key,
            Change::InvalidateTag(tag) => tags.contains(&tag),
            // Of writes only the newest must take hold, and only if no other event has its version.
            Change::Write { key: of, .. } => of == key && !self.applied.iter().any(|applied| self.events[applied.event].outdoes(event)),
        }
    }

    /// A value that was loaded before an invalidation of its key or of one of its tags.
    pub(super) fn stale_load(&self, key: usize, at: u64, tags: &[usize]) -> Option<&'static str> {
        self.held().any(|held| at < held.start && self.invalidates(held.event, key, tags)).then_some(STALE_LOAD)
    }

    /// A value that a stranger stored before a deletion of its key, a second pass perhaps.
    pub(super) fn kept_store(&self, key: usize, at: u64) -> Option<&'static str> {
        if self.held().any(|held| at < held.start && self.invalidates(held.event, key, &[])) {
            return Some(STALE_STORE);
        }
        let of_key = |held: &Held<'_>| matches!(held.event.change, Change::Delete { key: of, .. } if of == key);
        let is_second = |held: &Held<'_>| of_key(held) && held.event.id == 0;
        let owed = self.held().filter(|held| of_key(held) && held.event.again).map(|held| held.start).max();
        let is_owed = owed.is_some_and(|since| !self.held().any(|held| is_second(&held) && held.start >= since));
        (self.is_over && is_owed).then_some(LOST_PASS)
    }

    pub(super) fn wrong_write(&self, key: usize, at: usize, tags: &[usize]) -> Option<&'static str> {
        let own = &self.events[at];
        if self.held().any(|held| held.event.outdoes(own)) {
            return Some(OLDER_WRITE);
        }
        // It was there before, and nobody wrote it since.
        let was_there_before = |start: u64| self.settings(at).all(|setting| setting.end.is_some_and(|end| end < start));
        self.held().any(|held| self.invalidates(held.event, key, tags) && was_there_before(held.start)).then_some(SKIPPED)
    }
}

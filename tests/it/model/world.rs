//! What happens outside the cache: rows, the events of their changes, and what must never be read.

use std::cell::RefCell;
use std::collections::BTreeSet;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};

pub(super) const KEYS: [&str; 2] = ["k0", "k1"];
pub(super) const TAGS: [&str; 2] = ["t0", "t1"];

/// Where versions begin: a double cannot tell those above apart.
const FIRST_VERSION: u64 = 9_007_199_254_740_992;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Write { key: usize, version: u64, tags: Vec<usize> },
    Delete { key: usize, version: u64 },
    Warm { key: usize, version: u64 },
    InvalidateTag(usize),
}

#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) id: u64,
    pub(super) change: Change,
}

impl Event {
    /// The key and the version of a change of a row.
    pub(super) fn row(&self) -> Option<(usize, u64)> {
        match self.change {
            Change::Write { key, version, .. } | Change::Delete { key, version } | Change::Warm { key, version } => Some((key, version)),
            Change::InvalidateTag(_) => None,
        }
    }
}

/// What a write stores: it tells which event's it is, and its tags.
pub(super) fn written(id: u64, tags: &[usize]) -> String {
    format!("w:{id}:{}", text(tags))
}

/// What a reader or a warm stores: it tells when it was loaded, and its tags.
pub(super) fn loaded(at: u64, tags: &[usize]) -> String {
    format!("r:{at}:{}", text(tags))
}

fn text(tags: &[usize]) -> String {
    tags.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// One application of an event by a worker.
#[derive(Debug)]
struct Applied {
    event: usize,
    start: u64,
    end: Option<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Of each key's row.
    versions: [u64; 2],
    tags: [Vec<usize>; 2],
    events: Vec<Event>,
    queue: Vec<usize>,
    deliveries: Vec<u32>,
    applied: Vec<Applied>,
    writers: usize,
    violations: BTreeSet<&'static str>,
    /// The same for people.
    seen: Vec<String>,
}

/// Rows, events and their queue.
#[derive(Debug)]
pub(super) struct World {
    inner: RefCell<Inner>,
    redis: MultiplexedConnection,
}

impl World {
    pub(super) fn new(redis: MultiplexedConnection, writers: usize, random: &mut fastrand::Rng) -> Self {
        let tags = std::array::from_fn(|_| (0..TAGS.len()).filter(|_| random.bool()).collect());
        Self { inner: RefCell::new(Inner { writers, tags, versions: [FIRST_VERSION; 2], ..Inner::default() }), redis }
    }

    /// One command by itself.
    pub(super) async fn ask(&self, command: &Cmd) -> Value {
        command.query_async(&mut self.redis.clone()).await.unwrap()
    }

    /// A row as it is now: its tags.
    pub(super) fn load(&self, key: usize) -> Vec<usize> {
        self.inner.borrow().tags[key].clone()
    }

    /// Changes a row, or what a tag stands for, and publishes the event.
    pub(super) fn commit(&self, random: &mut fastrand::Rng) {
        let mut inner = self.inner.borrow_mut();
        let key = random.usize(..KEYS.len());
        let change = if random.u8(..4) == 0 {
            Change::InvalidateTag(random.usize(..TAGS.len()))
        } else {
            // Now and then two events have one version.
            inner.versions[key] += u64::from(random.u8(..8) > 0);
            let version = inner.versions[key];
            if random.bool() {
                inner.tags[key] = (0..TAGS.len()).filter(|_| random.bool()).collect();
            }
            match random.u8(..5) {
                0 | 1 => Change::Write { key, version, tags: inner.tags[key].clone() },
                2 | 3 => Change::Delete { key, version },
                _ => Change::Warm { key, version },
            }
        };
        let at = inner.events.len();
        inner.events.push(Event { id: at as u64 + 1, change });
        inner.deliveries.push(0);
        inner.queue.push(at);
    }

    pub(super) fn writer_ended(&self) {
        self.inner.borrow_mut().writers -= 1;
    }

    /// Some events that wait, in any order; `None` where none will ever come.
    pub(super) fn take(&self, random: &mut fastrand::Rng) -> Option<Vec<usize>> {
        let mut inner = self.inner.borrow_mut();
        if inner.queue.is_empty() {
            return (inner.writers > 0).then(Vec::new);
        }
        let count = random.usize(1..=3).min(inner.queue.len());
        Some(
            (0..count)
                .map(|_| {
                    let at = random.usize(..inner.queue.len());
                    inner.queue.swap_remove(at)
                })
                .collect(),
        )
    }

    pub(super) fn event(&self, at: usize) -> Event {
        self.inner.borrow().events[at].clone()
    }

    /// A worker begins to apply these. The places of the applications.
    pub(super) fn begin(&self, events: &[usize], now: u64) -> Vec<usize> {
        let mut inner = self.inner.borrow_mut();
        let first = inner.applied.len();
        inner.applied.extend(events.iter().map(|&event| Applied { event, start: now, end: None }));
        (first..inner.applied.len()).collect()
    }

    /// They took hold. Some come again: an acknowledgement was lost, or somebody replays.
    pub(super) async fn end(&self, applications: &[usize], now: u64, random: &mut fastrand::Rng) {
        {
            let mut inner = self.inner.borrow_mut();
            for &at in applications {
                inner.applied[at].end = Some(now);
                let event = inner.applied[at].event;
                inner.deliveries[event] += 1;
                if inner.deliveries[event] < 3 && random.u8(..4) == 0 {
                    inner.queue.push(event);
                }
            }
        }
        self.check().await;
    }

    /// Reads every key, and notes what must not be read.
    pub(super) async fn check(&self) {
        let mut command = redis::cmd("MGET");
        command.arg(&KEYS);
        let values: Vec<Option<String>> = command.query_async(&mut self.redis.clone()).await.unwrap();
        let mut inner = self.inner.borrow_mut();
        for (key, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let mut parts = value.split(':');
            let kind = parts.next().unwrap();
            let number: u64 = parts.next().unwrap().parse().unwrap();
            let tags: Vec<usize> = parts.next().unwrap().split(',').filter_map(|tag| tag.parse().ok()).collect();
            let violation = if kind == "r" { inner.stale_load(key, number, &tags) } else { inner.wrong_write(key, number, &tags) };
            if let Some(violation) = violation
                && inner.violations.insert(violation)
            {
                inner.seen.push(format!("{} = {value}: {violation}", KEYS[key]));
            }
        }
    }

    /// What was read and must not have been.
    pub(super) fn violations(&self) -> BTreeSet<&'static str> {
        self.inner.borrow().violations.clone()
    }
}

impl Inner {
    /// Applications that have ended. Of a write the first alone: come again, it does nothing.
    fn ended(&self) -> impl Iterator<Item = (&Applied, &Event)> {
        let is_first = |at: usize, event: usize| self.applied[..at].iter().all(|earlier| earlier.event != event);
        let ended = self.applied.iter().enumerate().filter(|(_, applied)| applied.end.is_some());
        ended.map(|(at, applied)| (at, applied, &self.events[applied.event])).filter_map(move |(at, applied, event)| {
            (!matches!(event.change, Change::Write { .. }) || is_first(at, applied.event)).then_some((applied, event))
        })
    }

    fn invalidates(&self, event: &Event, key: usize, tags: &[usize]) -> bool {
        match event.change {
            Change::Delete { key: of, .. } | Change::Warm { key: of, .. } => of == key,
            Change::InvalidateTag(tag) => tags.contains(&tag),
            // Of writes only the newest must take hold, and only if no other event has its version.
            Change::Write { key: of, version, .. } => {
                let begun = self.applied.iter().map(|applied| &self.events[applied.event]);
                of == key
                    && begun.filter(|other| other.id != event.id).filter_map(Event::row).all(|(other, its)| other != key || its < version)
            }
        }
    }

    /// A value that was loaded before an invalidation of its key or of one of its tags.
    fn stale_load(&self, key: usize, at: u64, tags: &[usize]) -> Option<&'static str> {
        let is_stale = self.ended().any(|(applied, event)| at < applied.start && self.invalidates(event, key, tags));
        is_stale.then_some("a value loaded before an invalidation is read after it")
    }

    fn wrong_write(&self, key: usize, id: u64, tags: &[usize]) -> Option<&'static str> {
        let own = self.events.iter().find(|event| event.id == id)?;
        let (_, version) = own.row()?;
        let newer = |event: &Event| event.id != id && event.row().is_some_and(|(of, its)| of == key && its >= version);
        if self.ended().any(|(_, event)| newer(event)) {
            return Some("an older write stands where a newer event of its entity took hold");
        }
        // It was there before, and nobody wrote it since.
        let was_there_before = |start: u64| {
            self.applied
                .iter()
                .filter(|applied| self.events[applied.event].id == id)
                .all(|applied| applied.end.is_some_and(|end| end < start))
        };
        let skipped = self.ended().any(|(applied, event)| {
            !matches!(event.change, Change::Write { .. }) && self.invalidates(event, key, tags) && was_there_before(applied.start)
        });
        skipped.then_some("an invalidation was skipped: what stood before it is read after it")
    }
}

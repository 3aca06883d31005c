//! What happens outside the cache: rows, the events of their changes, and what must never be read.

use std::cell::RefCell;
use std::collections::BTreeSet;

use redis::aio::MultiplexedConnection;
use redis::{Arg, Cmd, RedisResult, Value};

/// In a cluster of three: each key, each tag and the sequence have a node beside which something else is on another.
pub(super) const KEYS: [&str; 2] = ["k0", "k1"];
pub(super) const TAGS: [&str; 2] = ["t0", "t1"];

/// Where versions begin: a double cannot tell those above apart.
const FIRST_VERSION: u64 = 9_007_199_254_740_992;

/// What must never be read.
pub(super) const STALE_LOAD: &str = "a value loaded before an invalidation is read after it";
pub(super) const STALE_STORE: &str = "a value stored before a deletion is read after it";
pub(super) const OLDER_WRITE: &str = "an older write stands where a newer event of its entity took hold";
pub(super) const SKIPPED: &str = "an invalidation was skipped: what stood before it is read after it";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Write {
        key: usize,
        version: u64,
        tags: Vec<usize>,
    },
    Delete {
        key: usize,
        version: u64,
    },
    Warm {
        key: usize,
        version: u64,
    },
    InvalidateTag(usize),
    /// A second pass.
    DeleteAgain(usize),
}

/// One effect of an event.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) id: u64,
    /// Which effect of the event it is, from 1.
    pub(super) place: u32,
    pub(super) change: Change,
    /// It asks for a second pass.
    pub(super) again: bool,
    /// What a replay made of it.
    is_replay: bool,
}

impl Event {
    /// The key and the version of a change of a row.
    pub(super) fn row(&self) -> Option<(usize, u64)> {
        match self.change {
            Change::Write { key, version, .. } | Change::Delete { key, version } | Change::Warm { key, version } => Some((key, version)),
            Change::InvalidateTag(_) | Change::DeleteAgain(_) => None,
        }
    }

    /// Whether it leaves nothing of what another wrote to the key of both.
    fn outdoes(&self, write: &Self) -> bool {
        let (Some((key, version)), Some((of, its))) = (self.row(), write.row()) else { return false };
        let is_same = self.id == write.id;
        key == of
            && (version > its
                || (version == its && !is_same)
                || (is_same && (self.place > write.place || (self.is_replay && self.place == write.place))))
    }
}

/// What a write stores: it tells which effect's it is, and its tags.
pub(super) fn written(event: usize, tags: &[usize]) -> String {
    format!("w:{event}:{}", text(tags))
}

/// What a reader or a warm stores: it tells when it was loaded, and its tags.
pub(super) fn loaded(at: u64, tags: &[usize]) -> String {
    format!("r:{at}:{}", text(tags))
}

/// What a reader that takes no part stores: it tells when it was stored.
pub(super) fn stored(at: u64) -> String {
    format!("s:{at}:")
}

fn text(tags: &[usize]) -> String {
    tags.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// A message in the queue: the effects that are to be applied.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    pub(super) effects: Vec<usize>,
    /// It was tried before, and these are left.
    pub(super) is_copy: bool,
    times: u32,
}

/// One application of an effect.
#[derive(Debug)]
struct Applied {
    event: usize,
    start: u64,
    end: Option<u64>,
    /// Else something else may have been done in its place.
    takes_hold: bool,
}

#[derive(Debug, Default)]
struct Inner {
    /// Of each key's row.
    versions: [u64; 2],
    tags: [Vec<usize>; 2],
    has_second_passes: bool,
    events: Vec<Event>,
    /// So many of them are whole and published.
    published: u64,
    queue: Vec<Delivery>,
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
    /// The servers: one, or the primaries of a cluster in the order of their slots.
    servers: Vec<MultiplexedConnection>,
}

impl World {
    pub(super) fn new(servers: Vec<MultiplexedConnection>, writers: usize, random: &mut fastrand::Rng) -> Self {
        let tags = std::array::from_fn(|_| (0..TAGS.len()).filter(|_| random.bool()).collect());
        let has_second_passes = random.u8(..4) == 0;
        let inner = Inner { writers, tags, has_second_passes, versions: [FIRST_VERSION; 2], ..Inner::default() };
        Self { inner: RefCell::new(inner), servers }
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.servers.len() > 1
    }

    pub(super) fn has_second_passes(&self) -> bool {
        self.inner.borrow().has_second_passes
    }

    /// One command by itself.
    pub(super) async fn ask(&self, command: &Cmd) -> Value {
        self.try_ask(command).await.unwrap()
    }

    pub(super) async fn try_ask(&self, command: &Cmd) -> RedisResult<Value> {
        command.query_async(&mut self.servers[self.place(command)].clone()).await
    }

    /// One command, on every server.
    pub(super) async fn ask_all(&self, command: &Cmd) -> Value {
        let mut last = Value::Nil;
        for server in &self.servers {
            last = command.query_async(&mut server.clone()).await.unwrap();
        }
        last
    }

    /// The server of a command's first key.
    fn place(&self, command: &Cmd) -> usize {
        if !self.is_cluster() {
            return 0;
        }
        let argument = |place: usize| match command.args_iter().nth(place) {
            Some(Arg::Simple(bytes)) => bytes,
            other => panic!("no argument: {other:?}"),
        };
        let key = argument(if argument(0).starts_with(b"EVAL") { 3 } else { 1 });
        usize::from(slot(key)) * self.servers.len() / 16_384
    }

    /// A row as it is now: its tags.
    pub(super) fn load(&self, key: usize) -> Vec<usize> {
        self.inner.borrow().tags[key].clone()
    }

    /// Changes a row or two, or what a tag stands for, and publishes the event.
    pub(super) fn commit(&self, random: &mut fastrand::Rng) {
        let mut inner = self.inner.borrow_mut();
        inner.published += 1;
        let first = inner.events.len();
        let mut changed = None;
        for place in 1..=(1 + u32::from(random.u8(..4) == 0)) {
            let change = if random.u8(..4) == 0 {
                Change::InvalidateTag(random.usize(..TAGS.len()))
            } else {
                let key = random.usize(..KEYS.len());
                // Now and then two events have one version; the effects of one event always have.
                inner.versions[key] += u64::from(changed.replace(key) != Some(key) && random.u8(..8) > 0);
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
            let again = inner.has_second_passes && random.bool();
            let id = inner.published;
            inner.events.push(Event { id, place, change, again, is_replay: false });
        }
        let effects = (first..inner.events.len()).collect();
        inner.queue.push(Delivery { effects, is_copy: false, times: 0 });
    }

    pub(super) fn writer_ended(&self) {
        self.inner.borrow_mut().writers -= 1;
    }

    /// Some messages that wait, in any order; `None` where none will ever come.
    pub(super) fn take(&self, random: &mut fastrand::Rng) -> Option<Vec<Delivery>> {
        let mut inner = self.inner.borrow_mut();
        if inner.queue.is_empty() {
            return (inner.writers > 0).then(Vec::new);
        }
        let count = random.usize(1..=3).min(inner.queue.len());
        let mut deliveries = Vec::new();
        for _ in 0..count {
            let at = random.usize(..inner.queue.len());
            let mut delivery = inner.queue.swap_remove(at);
            // One of its effects fails: a copy with that one alone will come later.
            if delivery.effects.len() > 1 && random.u8(..4) == 0 {
                let left = delivery.effects.swap_remove(random.usize(..delivery.effects.len()));
                inner.queue.push(Delivery { effects: vec![left], is_copy: true, times: 0 });
            }
            deliveries.push(delivery);
        }
        Some(deliveries)
    }

    pub(super) fn event(&self, at: usize) -> Event {
        self.inner.borrow().events[at].clone()
    }

    /// All that was published so far, in order.
    pub(super) fn history(&self) -> Vec<usize> {
        let inner = self.inner.borrow();
        let is_published = |&at: &usize| !inner.events[at].is_replay && !matches!(inner.events[at].change, Change::DeleteAgain(_));
        (0..inner.events.len()).filter(is_published).collect()
    }

    /// Somebody begins to apply these. The places of the applications.
    pub(super) fn begin(&self, events: impl IntoIterator<Item = usize>, now: u64) -> Vec<usize> {
        let mut inner = self.inner.borrow_mut();
        let first = inner.applied.len();
        inner.applied.extend(events.into_iter().map(|event| Applied { event, start: now, end: None, takes_hold: true }));
        (first..inner.applied.len()).collect()
    }

    /// A replay begins to apply what folded into something else: that it takes hold cannot be told, but other things must not be expected either.
    pub(super) fn begin_folded(&self, events: impl IntoIterator<Item = usize>, now: u64) -> Vec<usize> {
        let applications = self.begin(events, now);
        let mut inner = self.inner.borrow_mut();
        applications.iter().for_each(|&at| inner.applied[at].takes_hold = false);
        applications
    }

    /// A deletion that is in no event: what a replay made of the effect at that place.
    pub(super) fn replayed(&self, of: usize) -> usize {
        let mut inner = self.inner.borrow_mut();
        let original = inner.events[of].clone();
        let (key, version) = original.row().expect("a key's");
        inner.events.push(Event { change: Change::Delete { key, version }, is_replay: true, ..original });
        inner.events.len() - 1
    }

    /// A second pass of a key.
    pub(super) fn second_pass(&self, change: Change) -> usize {
        let mut inner = self.inner.borrow_mut();
        inner.events.push(Event { id: 0, place: 0, change, again: false, is_replay: true });
        inner.events.len() - 1
    }

    /// They took hold.
    pub(super) fn ended(&self, applications: &[usize], now: u64) {
        let mut inner = self.inner.borrow_mut();
        applications.iter().for_each(|&at| inner.applied[at].end = Some(now));
    }

    /// Some come again: an acknowledgement was lost, or somebody replays dead letters.
    pub(super) fn redeliver(&self, deliveries: Vec<Delivery>, random: &mut fastrand::Rng) {
        for mut delivery in deliveries {
            delivery.times += 1;
            if delivery.times < 3 && random.u8(..4) == 0 {
                self.inner.borrow_mut().queue.push(delivery);
            }
        }
    }

    /// Reads every key, and notes what must not be read.
    pub(super) async fn check(&self) {
        let mut values: Vec<Option<String>> = Vec::new();
        for key in KEYS {
            let mut command = redis::cmd("GET");
            command.arg(key);
            values.push(redis::from_redis_value(self.ask(&command).await).unwrap());
        }
        let mut inner = self.inner.borrow_mut();
        for (key, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let mut parts = value.split(':');
            let kind = parts.next().unwrap();
            let number: u64 = parts.next().unwrap().parse().unwrap();
            let tags: Vec<usize> = parts.next().unwrap().split(',').filter_map(|tag| tag.parse().ok()).collect();
            let violation = match kind {
                "r" => inner.stale_load(key, number, &tags),
                "s" => inner.kept_store(key, number),
                _ => inner.wrong_write(key, usize::try_from(number).unwrap(), &tags),
            };
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
    /// Applications that took hold. Of a write the first alone: come again, it does nothing.
    fn ended(&self) -> impl Iterator<Item = (&Applied, &Event)> {
        let is_first = |at: usize, event: usize| self.applied[..at].iter().all(|earlier| earlier.event != event);
        let ended = self.applied.iter().enumerate().filter(|(_, applied)| applied.end.is_some() && applied.takes_hold);
        ended.map(|(at, applied)| (at, applied, &self.events[applied.event])).filter_map(move |(at, applied, event)| {
            (!matches!(event.change, Change::Write { .. }) || is_first(at, applied.event)).then_some((applied, event))
        })
    }

    fn invalidates(&self, event: &Event, key: usize, tags: &[usize]) -> bool {
        match event.change {
            Change::Delete { key: of, .. } | Change::Warm { key: of, .. } | Change::DeleteAgain(of) => of == key,
            Change::InvalidateTag(tag) => tags.contains(&tag),
            // Of writes only the newest must take hold, and only if no other event has its version.
            Change::Write { key: of, .. } => of == key && !self.applied.iter().any(|applied| self.events[applied.event].outdoes(event)),
        }
    }

    /// A value that was loaded before an invalidation of its key or of one of its tags.
    fn stale_load(&self, key: usize, at: u64, tags: &[usize]) -> Option<&'static str> {
        let is_stale = self.ended().any(|(applied, event)| at < applied.start && self.invalidates(event, key, tags));
        is_stale.then_some(STALE_LOAD)
    }

    /// A value that a stranger stored before a deletion of its key, a second pass perhaps.
    fn kept_store(&self, key: usize, at: u64) -> Option<&'static str> {
        let is_kept = self.ended().any(|(applied, event)| at < applied.start && self.invalidates(event, key, &[]));
        is_kept.then_some(STALE_STORE)
    }

    fn wrong_write(&self, key: usize, at: usize, tags: &[usize]) -> Option<&'static str> {
        let own = &self.events[at];
        if self.ended().any(|(_, event)| event.outdoes(own)) {
            return Some(OLDER_WRITE);
        }
        // It was there before, and nobody wrote it since.
        let was_there_before = |start: u64| {
            let its = self.applied.iter().filter(|applied| applied.event == at);
            its.clone().all(|applied| applied.end.is_some_and(|end| end < start))
        };
        let skipped = self.ended().any(|(applied, event)| {
            !matches!(event.change, Change::Write { .. }) && self.invalidates(event, key, tags) && was_there_before(applied.start)
        });
        skipped.then_some(SKIPPED)
    }
}

/// A key's slot, as Redis Cluster counts.
fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let tag = key[open + 1..].split(|&byte| byte == b'}').next()?;
        (!tag.is_empty() && open + 1 + tag.len() < key.len()).then_some(tag)
    });
    let crc = tag.unwrap_or(key).iter().fold(0_u16, |crc, &byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 })
    });
    crc % 16_384
}

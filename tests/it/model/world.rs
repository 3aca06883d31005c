//! World outside the cache: rows, the events of their changes, and the work that remains.

use std::cell::RefCell;
use std::collections::BTreeSet;

use redis::aio::MultiplexedConnection;
use redis::{Arg, Cmd, RedisResult, Value};
use unstale::registry::{Only, Stale};

use super::event::{AGAIN, Change, Event, FIRST_VERSIONS, Life, Order, read};
use super::judge::Judge;

/// Keys. In a cluster of three, each key, each tag and the sequence share a node with only some of
/// the others.
pub(super) const KEYS: [&str; 2] = ["k0", "k1"];
pub(super) const TAGS: [&str; 2] = ["t0", "t1"];

/// Advances the time.
///
/// Values with a shorter life end, and second deletes become due. The four sets of a tag's
/// quarantined members rotate, so that others are old enough to be checked.
const ADVANCE: &str = "
local by = tonumber(ARGV[1])
local fillings = math.floor(by / tonumber(ARGV[2])) % 4
local asides = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left >= 0 and left <= by then
    redis.call('UNLINK', key)
  elseif left >= 0 then
    redis.call('PEXPIRE', key, left - by)
  end
  if string.sub(key, 1, 14) == 'unstale:again:' then
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      redis.call('ZINCRBY', key, -by, member)
    end
  end
  local base, place = string.match(key, '^(.*:aside)(%d)$')
  if base and redis.call('EXISTS', key) == 1 then
    redis.call('RENAME', key, key .. ':moves')
    asides[#asides + 1] = { key .. ':moves', base .. (tonumber(place) - fillings) % 4 }
  end
end
for _, moves in ipairs(asides) do
  redis.call('RENAME', moves[1], moves[2])
end";

/// Time during which one of these sets is filled.
pub(super) const ASIDE_FILLED_FOR: std::time::Duration = std::time::Duration::from_secs(15);

/// Attempts at a load.
pub(super) const ATTEMPTS: u32 = 2;

/// Message in the main queue: the effects to apply.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    pub(super) effects: Vec<usize>,
    /// It was tried before, and these effects are left.
    pub(super) is_copy: bool,
    pub(super) attempt: u32,
    times: u32,
}

/// Message in the slow queue: an effect that one round trip could not finish.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) effect: usize,
    /// Applications that end with it.
    pub(super) applications: Vec<usize>,
    pub(super) attempt: u32,
}

/// Next work of a worker.
#[derive(Debug)]
pub(super) enum Work {
    Batch(Vec<Delivery>),
    Slow(Task),
    Nothing,
}

/// Subject of the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Leaning {
    #[default]
    Rows,
    /// All rows have tags, and events are about these.
    Tags,
}

#[derive(Debug, Default)]
struct Inner {
    /// Versions of each family, for each key's row.
    versions: [[u64; 2]; 2],
    tags: [Vec<usize>; 2],
    judge: Judge,
    /// Number of published events.
    published: u64,
    /// Event that is committed, and is published after the next.
    held_back: Option<Vec<(Change, bool)>>,
    leaning: Leaning,
    has_second_passes: bool,
    queue: Vec<Delivery>,
    slow: Vec<Task>,
    writers: usize,
    violations: BTreeSet<&'static str>,
    /// The violations in readable form.
    seen: Vec<String>,
}

/// Rows, events and their queues.
#[derive(Debug)]
pub(super) struct World {
    inner: RefCell<Inner>,
    /// The servers: one, or the primaries of a cluster in the order of their slots.
    servers: Vec<MultiplexedConnection>,
}

impl World {
    pub(super) fn new(
        servers: Vec<MultiplexedConnection>,
        leaning: Leaning,
        has_second_passes: bool,
        random: &mut fastrand::Rng,
    ) -> Self {
        let tags = std::array::from_fn(|_| leaning.some_tags(random));
        let judge = Judge::new(servers.len() > 1);
        let inner = Inner {
            judge,
            leaning,
            has_second_passes,
            tags,
            versions: FIRST_VERSIONS.map(|first| [first; 2]),
            ..Inner::default()
        };
        Self { inner: RefCell::new(inner), servers }
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.servers.len() > 1
    }

    /// Sends one command by itself.
    pub(super) async fn ask(&self, command: &Cmd) -> Value {
        self.try_ask(command).await.unwrap()
    }

    pub(super) async fn try_ask(&self, command: &Cmd) -> RedisResult<Value> {
        command.query_async(&mut self.servers[self.place(command)].clone()).await
    }

    /// Sends one command to every server.
    pub(super) async fn ask_all(&self, command: &Cmd) -> Value {
        let mut last = Value::Nil;
        for server in &self.servers {
            last = command.query_async(&mut server.clone()).await.unwrap();
        }
        last
    }

    /// Returns the server of a command's first key.
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

    /// Advances the time.
    pub(super) async fn advance(&self, by: std::time::Duration) {
        let mut command = redis::cmd("EVAL");
        let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap();
        command.arg(ADVANCE).arg(0).arg(millis(by)).arg(millis(ASIDE_FILLED_FOR));
        self.ask_all(&command).await;
    }

    /// Advances the time by as much as second deletes wait for.
    pub(super) async fn advance_to_second_passes(&self) {
        self.advance(AGAIN + std::time::Duration::from_secs(1)).await;
    }

    /// Loads a row in its current state: its tags.
    pub(super) fn load(&self, key: usize) -> Vec<usize> {
        self.inner.borrow().tags[key].clone()
    }

    /// Notes that this many writers will commit newer versions than before.
    pub(super) fn writers_begin(&self, count: usize) {
        let mut inner = self.inner.borrow_mut();
        inner.writers += count;
        inner.versions.iter_mut().flatten().for_each(|version| *version += 1);
    }

    /// Changes a row or two, or the meaning of a tag, and publishes the event, sometimes after the
    /// next one.
    pub(super) fn commit(&self, random: &mut fastrand::Rng) {
        let mut inner = self.inner.borrow_mut();
        let family = match random.u8(..8) {
            0 | 1 => None,
            2 | 3 => Some(1),
            _ => Some(0),
        };
        let mut changed = None;
        let changes = (0..(1 + u32::from(random.u8(..4) == 0))).map(|_| {
            let change = inner.change(family, &mut changed, random);
            (change, inner.has_second_passes && random.bool())
        });
        let changes = changes.collect();
        let late = if random.u8(..4) == 0 {
            inner.held_back.replace(changes)
        } else {
            inner.publish(changes);
            inner.held_back.take()
        };
        late.into_iter().for_each(|changes| inner.publish(changes));
    }

    pub(super) fn writer_ended(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.writers -= 1;
        if inner.writers == 0 {
            inner.held_back.take().into_iter().for_each(|changes| inner.publish(changes));
        }
    }

    /// Returns some waiting messages, in any order; `None` if none will ever come.
    pub(super) fn take(&self, random: &mut fastrand::Rng) -> Option<Work> {
        let mut inner = self.inner.borrow_mut();
        if !inner.slow.is_empty() && (inner.queue.is_empty() || random.bool()) {
            let at = random.usize(..inner.slow.len());
            return Some(Work::Slow(inner.slow.swap_remove(at)));
        }
        if inner.queue.is_empty() {
            return (inner.writers > 0).then_some(Work::Nothing);
        }
        let count = random.usize(1..=3).min(inner.queue.len());
        let mut deliveries = Vec::new();
        for _ in 0..count {
            let at = random.usize(..inner.queue.len());
            let mut delivery = inner.queue.swap_remove(at);
            // One of its effects fails: a retry message with that one alone will come later.
            if delivery.effects.len() > 1 && random.u8(..4) == 0 {
                let left = delivery.effects.swap_remove(random.usize(..delivery.effects.len()));
                inner.queue.push(Delivery::copy(left, delivery.attempt));
            }
            deliveries.push(delivery);
        }
        Some(Work::Batch(deliveries))
    }

    pub(super) fn event(&self, at: usize) -> Event {
        self.inner.borrow().judge.events[at].clone()
    }

    /// Returns all published events so far, in order.
    pub(super) fn history(&self) -> Vec<usize> {
        let inner = self.inner.borrow();
        let events = &inner.judge.events;
        (0..events.len()).filter(|&at| !events[at].is_made).collect()
    }

    /// Returns the number of published events so far.
    pub(super) fn published(&self) -> u64 {
        self.inner.borrow().published
    }

    /// Notes that an actor begins to apply these. Returns the places of the applications.
    pub(super) fn begin(&self, events: impl IntoIterator<Item = usize>, now: u64) -> Vec<usize> {
        self.inner.borrow_mut().judge.begin(events, now, true)
    }

    /// Notes that a replay begins to apply effects that were folded into others.
    ///
    /// These may take effect or not, so neither can be expected.
    pub(super) fn begin_folded(
        &self,
        events: impl IntoIterator<Item = usize>,
        now: u64,
    ) -> Vec<usize> {
        self.inner.borrow_mut().judge.begin(events, now, false)
    }

    /// Returns a deletion that is in no event: the one that a replay made of the effect at that
    /// place.
    pub(super) fn replayed(&self, of: usize) -> usize {
        let original = self.event(of);
        let (key, order) = original.row().expect("a key's");
        self.add(Event {
            change: Change::Delete { key, order: Some(order) },
            is_made: true,
            ..original
        })
    }

    /// Returns a second delete, or a deletion without a version.
    pub(super) fn made(&self, change: Change) -> usize {
        self.add(Event::made(change))
    }

    fn add(&self, event: Event) -> usize {
        let mut inner = self.inner.borrow_mut();
        inner.judge.events.push(event);
        inner.judge.events.len() - 1
    }

    /// Notes that the part of one round trip is done.
    pub(super) fn left(&self, application: usize, now: u64) {
        self.inner.borrow_mut().judge.left(application, now);
    }

    /// Notes that the applications took effect.
    pub(super) fn ended(&self, applications: &[usize], now: u64) {
        self.inner.borrow_mut().judge.ended(applications, now);
    }

    /// Notes that their worker died.
    pub(super) fn died(&self, applications: &[usize], now: u64) {
        self.inner.borrow_mut().judge.died(applications, now);
    }

    /// Queues the rest that one round trip did not finish.
    pub(super) fn is_slow(&self, task: Task) {
        self.inner.borrow_mut().slow.push(task);
    }

    /// Notes a task that is done or abandoned. Its acknowledgement may be lost.
    pub(super) fn settled(&self, task: Task, random: &mut fastrand::Rng) {
        if random.u8(..8) == 0 {
            self.is_slow(Task { applications: Vec::new(), ..task });
        }
    }

    /// Notes that a load failed, and queues it again.
    pub(super) fn retry(&self, task: &Task) {
        self.inner.borrow_mut().queue.push(Delivery::copy(task.effect, task.attempt + 1));
    }

    /// Redelivers some: an acknowledgement was lost, or an operator replays dead letters.
    pub(super) fn redeliver(&self, deliveries: Vec<Delivery>, random: &mut fastrand::Rng) {
        for mut delivery in deliveries {
            delivery.times += 1;
            if delivery.times < 3 && random.u8(..4) == 0 {
                self.inner.borrow_mut().queue.push(delivery);
            }
        }
    }

    /// Redelivers all, because their worker died.
    pub(super) fn give_back(&self, deliveries: Vec<Delivery>) {
        self.inner.borrow_mut().queue.extend(deliveries);
    }

    /// Expires the fences of all events applied so far.
    pub(super) async fn end_fences(&self) {
        let mut command = redis::cmd("EVAL");
        command.arg("for _, key in ipairs(redis.call('KEYS', 'unstale:fence*')) do redis.call('UNLINK', key) end").arg(0);
        self.ask_all(&command).await;
    }

    /// Empties Redis.
    pub(super) async fn lose_all(&self) {
        self.ask_all(&redis::cmd("FLUSHDB")).await;
        self.inner.borrow_mut().judge.lost();
    }

    /// Reads every key once more, when nothing is in flight and nothing is still to come.
    pub(super) async fn check_at_last(&self) {
        self.inner.borrow_mut().judge.is_over();
        self.check().await;
    }

    /// Reads every key, and notes values that must not be read.
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
            let (kind, number, tags) = read(value);
            let violation = match kind {
                "r" => inner.judge.stale_load(key, number, &tags),
                "s" => inner.judge.kept_store(key, number),
                _ => inner.judge.wrong_write(key, usize::try_from(number).unwrap(), &tags),
            };
            if let Some(violation) = violation
                && inner.violations.insert(violation)
            {
                inner.seen.push(format!("{} = {value}: {violation}", KEYS[key]));
            }
        }
    }

    /// Returns the values that were read and must not have been.
    pub(super) fn violations(&self) -> BTreeSet<&'static str> {
        self.inner.borrow().violations.clone()
    }
}

impl Delivery {
    /// Returns the delivery with one of its effects.
    pub(super) fn only(&self, effect: usize) -> Self {
        Self { effects: vec![effect], ..self.clone() }
    }

    fn copy(effect: usize, attempt: u32) -> Self {
        Self { effects: vec![effect], is_copy: true, attempt, times: 0 }
    }
}

impl Inner {
    fn change(
        &mut self,
        family: Option<usize>,
        changed: &mut Option<usize>,
        random: &mut fastrand::Rng,
    ) -> Change {
        if random.u8(..4) < if self.leaning == Leaning::Tags { 3 } else { 1 } {
            return Change::InvalidateTag(random.usize(..TAGS.len()));
        }
        let key = random.usize(..KEYS.len());
        let is_first = changed.replace(key) != Some(key);
        let order = family.map(|family| {
            let version = &mut self.versions[family][key];
            // Sometimes two events have one version. The effects of one event always do.
            *version += u64::from(is_first && random.u8(..8) > 0);
            Order { family, version: *version }
        });
        if random.bool() {
            self.tags[key] = self.leaning.some_tags(random);
        }
        let tags = self.tags[key].clone();
        match random.u8(..5) {
            0 | 1 => Change::Write { key, order, tags, life: Life::any(random) },
            2 | 3 => Change::Delete { key, order },
            _ => {
                let stale = if random.bool() { Stale::Serve } else { Stale::Drop };
                let only = if random.u8(..4) == 0 { Only::Present } else { Only::Always };
                Change::Warm { key, order, tags, stale, only }
            }
        }
    }

    fn publish(&mut self, changes: Vec<(Change, bool)>) {
        self.published += 1;
        let (id, first) = (self.published, self.judge.events.len());
        for (place, (change, again)) in (1..).zip(changes) {
            self.judge.events.push(Event { id, place, change, again, is_made: false });
        }
        self.queue.push(Delivery {
            effects: (first..self.judge.events.len()).collect(),
            is_copy: false,
            attempt: 1,
            times: 0,
        });
    }
}

impl Leaning {
    fn some_tags(self, random: &mut fastrand::Rng) -> Vec<usize> {
        let some: Vec<usize> = (0..TAGS.len()).filter(|_| random.bool()).collect();
        if some.is_empty() && self == Self::Tags { vec![0] } else { some }
    }
}

/// Returns a key's slot, as Redis Cluster computes it.
fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let tag = key[open + 1..].split(|&byte| byte == b'}').next()?;
        (!tag.is_empty() && open + 1 + tag.len() < key.len()).then_some(tag)
    });
    let crc = tag.unwrap_or(key).iter().fold(0_u16, |crc, &byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % 16_384
}

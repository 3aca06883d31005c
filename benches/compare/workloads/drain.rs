//! Measures the drain of a full queue.

use std::time::{Duration, Instant};

use crate::contender::{Contender, Running, Target};
use crate::events;
use crate::process;
use crate::results::Results;
use crate::stage::Stage;

/// Maximum time of a drain. A longer one is judged by its progress until then.
const LONGEST: Duration = Duration::from_secs(10);

/// Time between two looks at the number of keys in Redis, near the end. A look costs about 200 µs
/// (a trace of the scheduler), and the bare drain has none.
const LOOK_AT_KEYS: Duration = Duration::from_millis(3);

/// The same before that.
const LOOK_AT_KEYS_FROM_AFAR: Duration = Duration::from_millis(100);

/// Time between two looks at the worker's own count, each of which costs the worker about 100 µs.
const LOOK_AT_COUNT: Duration = Duration::from_millis(20);

/// Maximum number of keys that belong to workers: checkpoints, reports, and the key that probes for
/// writes.
const WORKERS_OWN_KEYS: u64 = 16;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Drained {
    pub(crate) events_per_s: f64,
    /// CPU time of the contender's processes.
    pub(crate) cpu_us_per_event: f64,
    machine: Machine,
}

/// Where the rest of the machine's time went, for each event.
#[derive(Debug, Clone, Copy)]
struct Machine {
    rabbitmq_us: f64,
    redis_us: f64,
    idle_us: f64,
}

impl Drained {
    pub(crate) fn note(self, results: &mut Results, workload: char, who: &str) {
        results.note(workload, who, "events/s", self.events_per_s);
        results.note(workload, who, "µs of CPU an event", self.cpu_us_per_event);
        results.note(workload, who, "µs an event: RabbitMQ", self.machine.rabbitmq_us);
        results.note(workload, who, "µs an event: Redis", self.machine.redis_us);
        results.note(
            workload,
            who,
            "µs an event: cores that had nothing to do",
            self.machine.idle_us,
        );
    }
}

/// CPU time of the servers and idle time so far.
#[derive(Clone, Copy)]
struct Clocks {
    rabbitmq: Duration,
    redis: Duration,
    idle: Duration,
}

impl Clocks {
    fn read(stage: &Stage) -> Self {
        let of = |pid: Option<u32>| pid.map_or(Duration::ZERO, process::cpu_of_group);
        Self {
            rabbitmq: of(stage.broker.pid()),
            redis: of(stage.redis.pid()),
            idle: process::idle(),
        }
    }

    fn to(self, end: Self, events: f64) -> Machine {
        let each =
            |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64() * 1e6 / events;
        Machine {
            rabbitmq_us: each(self.rabbitmq, end.rabbitmq),
            redis_us: each(self.redis, end.redis),
            idle_us: each(self.idle, end.idle),
        }
    }
}

/// Progress of a drain.
#[derive(Clone, Copy)]
struct Progress {
    at: Instant,
    done: u64,
    cpu: Duration,
    clocks: Clocks,
}

impl Progress {
    fn of(stage: &Stage, running: &[Running], done: u64) -> Self {
        // The time comes first, since reading the counts of all processes takes a millisecond.
        Self {
            at: Instant::now(),
            done,
            cpu: running.iter().map(Running::cpu).sum(),
            clocks: Clocks::read(stage),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of events")]
    fn to(self, end: Self) -> Drained {
        let events = end.done.saturating_sub(self.done) as f64;
        Drained {
            events_per_s: events / (end.at - self.at).as_secs_f64(),
            cpu_us_per_event: end.cpu.saturating_sub(self.cpu).as_secs_f64() * 1e6 / events,
            machine: self.clocks.to(end.clocks, events),
        }
    }
}

/// Measures a bare loop over `events` that are already waiting.
///
/// The loop measures the time itself, from the first delivery to the last acknowledgement. The CPU
/// time of the servers counts from its start.
pub(crate) async fn bare(
    stage: &Stage,
    contender: Contender,
    target: &Target,
    events: u64,
) -> Drained {
    let clocks = Clocks::read(stage);
    let mut running = contender.start(target, events);
    let line = running.last_line().await;
    let ended = Clocks::read(stage);
    running.stop().await;
    let mut numbers = line.split(' ').filter_map(|number| number.parse::<f64>().ok());
    let (Some(seconds), Some(cpu_us)) = (numbers.next(), numbers.next()) else {
        panic!("the bare drain printed `{line}`")
    };
    #[expect(clippy::cast_precision_loss, reason = "a count of events")]
    let events = events as f64;
    Drained {
        events_per_s: events / seconds,
        cpu_us_per_event: cpu_us / events,
        machine: clocks.to(ended, events),
    }
}

/// Measures a drain in which each event deletes one key and Redis has no other keys. The time is
/// from the first deleted key to the last.
pub(crate) async fn by_keys(stage: &Stage, running: &[Running], events: u64) -> Drained {
    let done = async || events.saturating_sub(stage.keys().await);
    let begun = first(async || done().await > 0, &done).await;
    let from = Progress::of(stage, running, begun);
    let mut now = begun;
    while now + WORKERS_OWN_KEYS < events && from.at.elapsed() < LONGEST {
        tokio::time::sleep(until_next_look(from.at.elapsed(), now - begun, events - now)).await;
        now = done().await;
    }
    from.to(Progress::of(stage, running, now))
}

/// Returns half of the remaining time, at the rate so far.
fn until_next_look(so_far: Duration, done: u64, left: u64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "counts of events")]
    let rest = so_far.mul_f64(left as f64 / done.max(1) as f64);
    (rest / 2).clamp(LOOK_AT_KEYS, LOOK_AT_KEYS_FROM_AFAR)
}

/// Measures a drain by the worker's own count of applied events of a type.
pub(crate) async fn by_count(
    stage: &Stage,
    running: &Running,
    event_type: &str,
    events: u64,
) -> Drained {
    let done = async || running.counted(event_type, "applied").await;
    let running_alone = std::slice::from_ref(running);
    let begun = first(async || done().await > 0, &done).await;
    let from = Progress::of(stage, running_alone, begun);
    let mut now = begun;
    while now < events {
        assert!(
            from.at.elapsed() < Duration::from_secs(120),
            "the drain makes no progress at {now} of {events}"
        );
        tokio::time::sleep(LOOK_AT_COUNT).await;
        now = done().await;
    }
    from.to(Progress::of(stage, running_alone, now))
}

async fn first(begun: impl AsyncFn() -> bool, done: &impl AsyncFn() -> u64) -> u64 {
    let start = Instant::now();
    while !begun().await {
        assert!(start.elapsed() < Duration::from_secs(60), "the drain does not begin");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    done().await
}

/// Fills the queue with events that delete one key each, sets the keys, and drains it.
pub(crate) async fn one_delete(
    stage: &Stage,
    contender: Contender,
    target: &Target,
    events: u64,
) -> Drained {
    stage.fill(target, events, events::user_updated).await;
    if matches!(contender, Contender::Bare | Contender::BareWide) {
        return bare(stage, contender, target, events).await;
    }
    stage.seed((0..events).map(|id| format!("user:{id}"))).await;
    let running = [contender.start(target, events)];
    let drained = by_keys(stage, &running, events).await;
    let [running] = running;
    running.stop().await;
    stage.clear(target).await;
    drained
}

//! Schedule of the faults, by seed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::watch;

use super::naive::Naive;
use super::{Scene, WORKERS};
use crate::support::Worker;

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// `kill -9` of one worker and of one control worker; both start again at once.
    WorkerKilled(usize),
    /// `kill -9`, and a restart with its data.
    BrokerRestarted,
    /// `kill -9`, and a restart with its data.
    RedisRestarted,
    /// Every connection to RabbitMQ is closed.
    BrokerCut,
    /// Every connection to Redis is closed.
    RedisCut,
    /// Nothing passes between RabbitMQ and the workers.
    BrokerStalled(Duration),
    /// Nothing passes between Redis and the workers.
    RedisStalled(Duration),
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::WorkerKilled(_) => "kills of workers",
            Self::BrokerRestarted => "restarts of RabbitMQ",
            Self::RedisRestarted => "restarts of Redis",
            Self::BrokerCut => "cuts of RabbitMQ",
            Self::RedisCut => "cuts of Redis",
            Self::BrokerStalled(_) => "stalls of RabbitMQ",
            Self::RedisStalled(_) => "stalls of Redis",
        }
    }
}

/// Faults, in order, each due once a number of events is published.
#[derive(Debug)]
pub(super) struct Schedule(Vec<(u32, Fault)>);

/// Progress of the publisher and the faults: neither runs ahead of the other.
#[derive(Debug)]
pub(super) struct Progress {
    published: watch::Sender<u32>,
    faults: watch::Sender<usize>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { published: watch::Sender::new(0), faults: watch::Sender::new(0) }
    }

    pub(super) fn published(&self, events: u32) {
        self.published.send_replace(events);
    }
}

impl Schedule {
    /// Returns `count` faults spread over `events`.
    ///
    /// Every kind occurs at least once in ten. Kills of workers and of Redis are more frequent.
    /// Restarts of RabbitMQ, which take seconds, are less frequent.
    pub(super) fn of(seed: u64, events: u32, count: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut faults = Vec::with_capacity(count);
        while faults.len() < count {
            // The longer stalls exceed the time after which the worker reports silence.
            let stall = Duration::from_millis(if count > 20 {
                rng.u64(100..8_000)
            } else {
                rng.u64(100..1_500)
            });
            let mut ten = [
                Fault::WorkerKilled(rng.usize(..WORKERS)),
                Fault::WorkerKilled(rng.usize(..WORKERS)),
                Fault::WorkerKilled(rng.usize(..WORKERS)),
                Fault::BrokerRestarted,
                Fault::RedisRestarted,
                Fault::RedisRestarted,
                Fault::BrokerCut,
                Fault::RedisCut,
                Fault::BrokerStalled(stall),
                Fault::RedisStalled(stall),
            ];
            rng.shuffle(&mut ten);
            faults.extend(ten);
        }
        faults.truncate(count);
        let gap = events / u32::try_from(count + 1).expect("a count of faults");
        let due = |at: usize, rng: &mut Rng| {
            gap * u32::try_from(at).expect("a count of faults") + rng.u32(gap / 2..gap)
        };
        Self(faults.into_iter().enumerate().map(|(at, fault)| (due(at, &mut rng), fault)).collect())
    }

    /// Waits until that event may be published: one fault may be active.
    pub(super) async fn admits(&self, event: u32, progress: &Progress) {
        let due = self.0.iter().take_while(|(due, _)| *due < event).count();
        let _ = progress.faults.subscribe().wait_for(|done| done + 1 >= due).await;
    }

    /// Runs every fault.
    pub(super) async fn run(
        &self,
        scene: &Scene,
        workers: &mut [Worker],
        control: &mut [Naive],
        progress: &Progress,
    ) {
        let mut published = progress.published.subscribe();
        for (due, fault) in &self.0 {
            let _ = published.wait_for(|published| published >= due).await;
            fault.come_and_go(scene, workers, control).await;
            progress.faults.send_modify(|faults| *faults += 1);
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts = BTreeMap::<_, u32>::new();
        for (_, fault) in &self.0 {
            *counts.entry(fault.name()).or_default() += 1;
        }
        let counts: Vec<String> =
            counts.into_iter().map(|(name, count)| format!("{count} {name}")).collect();
        f.write_str(&counts.join(", "))
    }
}

impl Fault {
    async fn come_and_go(self, scene: &Scene, workers: &mut [Worker], control: &mut [Naive]) {
        match self {
            Self::WorkerKilled(at) => {
                // Dropping the old workers kills them.
                workers[at] = scene.worker();
                control[at] = scene.naive();
            }
            Self::BrokerRestarted => scene.broker.restart().await,
            Self::RedisRestarted => scene.stage.redis.restart().await,
            Self::BrokerCut => scene.amqp.cut().await,
            Self::RedisCut => scene.redis.cut().await,
            Self::BrokerStalled(how_long) => {
                scene.amqp.stall();
                tokio::time::sleep(how_long).await;
                scene.amqp.resume().await;
            }
            Self::RedisStalled(how_long) => {
                scene.redis.stall();
                tokio::time::sleep(how_long).await;
                scene.redis.resume().await;
            }
        }
    }
}

#[test]
fn a_seed_gives_the_same_schedule_again_and_another_seed_another() {
    let text = |seed| format!("{:?}", Schedule::of(seed, 3_000, 10));
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}

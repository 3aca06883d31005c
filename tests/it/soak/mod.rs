//! Soak test: events are published while a seeded schedule kills workers, restarts both servers and
//! breaks connections.
//!
//! At the end a checker compares Redis with the events. A naive worker goes through the same faults
//! and must fail. Otherwise the checker proves nothing.
//!
//! In reading order: `application` publishes and checks, `schedule` decides the faults, `naive` is
//! the control.
//!
//! Deliberately absent: losses of Redis' data, which are in `heal`.

mod application;
mod naive;
mod schedule;

use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::worker::Metrics;
use crate::support::{Proxy, RabbitMq, Redis, Worker, full_runs, wait_until};

use application::{Application, RULES, Verdict};
use naive::Naive;
use schedule::Schedule;

/// Databases of the one Redis. Our worker applies each event to the first, and the naive worker to
/// the second.
const OURS: u8 = 0;
const NAIVE: u8 = 1;

const WORKERS: usize = 2;

/// Returns the seeds. By default they and their events are few; `make soak` runs all.
///
/// `UNSTALE_SOAK_SEEDS` (`3,7`) and `UNSTALE_SOAK_EVENTS` set others.
fn seeds() -> Vec<u64> {
    match std::env::var("UNSTALE_SOAK_SEEDS") {
        Ok(seeds) => seeds
            .split(',')
            .map(|seed| seed.trim().parse().expect("UNSTALE_SOAK_SEEDS: numbers, between commas"))
            .collect(),
        Err(_) if full_runs() => (1..=10).collect(),
        Err(_) => vec![1],
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "what a run of many minutes came to")]
async fn a_seeded_storm_loses_nothing_and_costs_a_naive_worker_some() {
    let (mut events, faults) = if full_runs() { (200_000, 60) } else { (3_000, 10) };
    if let Ok(text) = std::env::var("UNSTALE_SOAK_EVENTS") {
        events = text.parse().expect("UNSTALE_SOAK_EVENTS: a number");
    }
    for seed in seeds() {
        let start = Instant::now();
        let storm = storm(seed, events, faults).await;
        eprintln!("seed {seed}: {events} events, {storm}; {:.0} s", start.elapsed().as_secs_f64());
        assert!(storm.ours.is_clean(), "seed {seed}: {}\n{}", storm.ours, storm.logs);
        assert!(
            storm.naive.lost() > 0,
            "seed {seed}: the naive worker lost nothing, so that the checker shows nothing"
        );
    }
}

/// Result of a storm.
struct Storm {
    schedule: Schedule,
    ours: Verdict,
    naive: Verdict,
    logs: String,
}

impl std::fmt::Display for Storm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ours {}; naive {}", self.schedule, self.ours, self.naive)
    }
}

/// Both servers behind proxies, as all except the application use them.
struct Scene {
    stage: Stage,
    broker: RabbitMq,
    amqp: Proxy,
    redis: Proxy,
    loader: String,
}

impl Scene {
    fn amqp_url(&self) -> String {
        self.broker.url().replace(&self.broker.addr(), &self.amqp.addr())
    }

    fn redis_url(&self, db: u8) -> String {
        format!("redis://{}/{db}", self.redis.addr())
    }

    fn worker(&self) -> Worker {
        self.stage.start_worker(&[
            ("UNSTALE_AMQP_URL", &self.amqp_url()),
            ("UNSTALE_REDIS_URL", &self.redis_url(OURS)),
            ("UNSTALE_RETRY_DELAYS", "50ms,100ms,200ms,1s"),
            ("UNSTALE_VAR_PAGES_URL", &self.loader),
        ])
    }

    fn naive(&self) -> Naive {
        Naive::start(self.amqp_url(), self.redis_url(NAIVE), naive_queue(&self.stage))
    }
}

fn naive_queue(stage: &Stage) -> String {
    format!("{}-naive", stage.queue)
}

async fn storm(seed: u64, events: u32, faults: usize) -> Storm {
    let broker = RabbitMq::start().await;
    let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let stage = Stage::with(&broker.url(), redis, &[("rules.yaml", RULES)]).await;
    let amqp = Proxy::start(&broker.addr()).await;
    let redis = Proxy::start(&stage.redis.addr()).await;
    let (mut application, loader) = Application::start(&stage, seed).await;
    let mut scene = Scene { stage, broker, amqp, redis, loader };

    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| scene.worker()).collect();
    for worker in &mut workers {
        worker.wait_ready().await;
    }
    naive::declare(&scene.stage, &naive_queue(&scene.stage)).await;
    let mut control: Vec<Naive> = (0..WORKERS).map(|_| scene.naive()).collect();
    scene.broker.flush_declarations().await;

    let schedule = Schedule::of(seed, events, faults);
    let progress = schedule::Progress::new();
    let within = Duration::from_secs(300) + Duration::from_millis(u64::from(events) * 10);
    let all = async {
        tokio::join!(
            application.publish(events, &schedule, &progress),
            schedule.run(&scene, &mut workers, &mut control, &progress)
        )
    };
    let came_to_its_end = timeout(within, all).await.is_ok();
    assert!(
        came_to_its_end,
        "after {within:?} the storm stands still: {progress:?} of {schedule:?}"
    );

    wait_until(SOON, "RabbitMQ answers", async || scene.stage.try_reconnect().await).await;
    control_settled(&scene, &mut control).await;
    let begun = Instant::now();
    let ours = loop {
        settled(&mut scene, &workers, events).await;
        let dead = application.dead_letters(&scene.stage).await;
        let ours = application.check(&scene.stage, OURS, &dead).await;
        if ours.is_clean() || begun.elapsed() > ON_ITS_WAY {
            break ours;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let naive = application.check(&scene.stage, NAIVE, &Default::default()).await;
    let logs = workers.iter().map(Worker::stderr).collect();
    for worker in workers {
        assert_eq!(
            worker.terminate().await.code(),
            Some(0),
            "after all of it a worker stops cleanly"
        );
    }
    Storm { schedule, ours, naive, logs }
}

/// Maximum time for one look at everything, on a connection that may have lost its broker.
const LOOK: Duration = Duration::from_secs(20);

/// Time without progress after which a naive worker counts as hung.
const HANGS: Duration = Duration::from_secs(10);

/// Maximum time to check again for a value that seems lost. A worker may have its event and not
/// have applied it yet.
const ON_ITS_WAY: Duration = Duration::from_secs(15);

/// Waits until every queue except the dead-letter queue is empty and no worker has anything in
/// flight.
async fn settled(scene: &mut Scene, workers: &[Worker], events: u32) {
    let start = Instant::now();
    let deadline = Duration::from_secs(90) + Duration::from_millis(u64::from(events) * 4);
    loop {
        let unsettled = timeout(LOOK, unsettled(scene, workers))
            .await
            .unwrap_or_else(|_| Some("no look was possible".to_owned()));
        let Some(unsettled) = unsettled else { return };
        if start.elapsed() > deadline {
            let logs: String = workers.iter().map(Worker::stderr).collect();
            panic!("after {deadline:?} not settled: {unsettled}\n{logs}");
        }
        if scene.stage.look(&scene.stage.queue).await.is_none() {
            scene.stage.try_reconnect().await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Returns a description of what is not settled yet.
async fn unsettled(scene: &Scene, workers: &[Worker]) -> Option<String> {
    let stage = &scene.stage;
    for suffix in ["", ".slow", ".retry.50ms", ".retry.100ms", ".retry.200ms", ".retry.1s"] {
        // Lanes pause, so a consumer may be missing.
        let look = stage.look(&format!("{}{suffix}", stage.queue)).await;
        if !matches!(look, Some((0, _))) {
            return Some(format!("the queue {suffix:?}, with (messages, consumers) {look:?}"));
        }
    }
    for worker in workers {
        let Some((200, metrics)) = worker.get("/metrics").await else {
            return Some("a worker does not answer".into());
        };
        let in_hand = Metrics::parse(&metrics).sum("unstale_in_flight", &[]);
        if in_hand > 0.0 {
            return Some(format!("a worker has {in_hand} in hand"));
        }
    }
    None
}

/// Waits until the control workers have handled all events.
///
/// Some may hang, as naive workers do. Those are started again, as their operator would do, and
/// lose their events in flight.
async fn control_settled(scene: &Scene, control: &mut [Naive]) {
    let queue = naive_queue(&scene.stage);
    let (mut last, mut since) = (None, Instant::now());
    loop {
        let look = timeout(LOOK, scene.stage.look(&queue)).await.ok().flatten();
        let now = (look, control.iter().map(Naive::taken).sum::<u64>());
        let gets_on = last != Some(now);
        if !gets_on
            && matches!(look, Some((0, consumers)) if consumers > 0)
            && control.iter().all(Naive::is_idle)
        {
            return;
        }
        if gets_on {
            (last, since) = (Some(now), Instant::now());
        } else if since.elapsed() > HANGS {
            control.iter_mut().for_each(|naive| *naive = scene.naive());
            since = Instant::now();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

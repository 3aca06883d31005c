//! The soak: events published while a seeded schedule kills workers, restarts both servers and breaks connections; at the end a checker
//! compares Redis with what the events said. A naive worker goes through the same, and must fail: else the checker shows nothing.

mod application;
mod naive;
mod schedule;

use std::time::{Duration, Instant};

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Proxy, RabbitMq, Redis, Worker, full_runs, wait_until};

use application::{Application, RULES, Verdict};
use naive::Naive;
use schedule::Schedule;

/// The databases of the one Redis: each event is applied by ours to the first, and by the naive worker to the second.
const OURS: u8 = 0;
const NAIVE: u8 = 1;

const WORKERS: usize = 2;

/// By default few events and seeds; `make soak` runs all of it. `UNSTALE_SOAK_SEEDS` (`3,7`) and `UNSTALE_SOAK_EVENTS` say otherwise.
fn seeds() -> Vec<u64> {
    match std::env::var("UNSTALE_SOAK_SEEDS") {
        Ok(seeds) => seeds.split(',').map(|seed| seed.trim().parse().expect("UNSTALE_SOAK_SEEDS: numbers, between commas")).collect(),
        Err(_) if full_runs() => (1..=10).collect(),
        Err(_) => vec![1, 2],
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a run of minutes, which did not always end on a busy machine: make soak"]
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
        assert!(storm.naive.lost() > 0, "seed {seed}: the naive worker lost nothing, so that the checker shows nothing");
    }
}

/// What a storm came to.
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

/// Both servers behind proxies, as everybody but the application sees them.
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
    tokio::join!(application.publish(events, &schedule, &progress), schedule.run(&scene, &mut workers, &mut control, &progress));

    wait_until(SOON, "RabbitMQ answers", async || scene.stage.try_reconnect().await).await;
    settled(&scene, &workers, &control, events).await;
    let dead = application.dead_letters(&scene.stage).await;
    let ours = application.check(&scene.stage, OURS, &dead).await;
    let naive = application.check(&scene.stage, NAIVE, &Default::default()).await;
    let logs = workers.iter().map(Worker::stderr).collect();
    for worker in workers {
        assert_eq!(worker.terminate().await.code(), Some(0), "after all of it a worker stops cleanly");
    }
    Storm { schedule, ours, naive, logs }
}

/// Waits until no queue but the dead-letter queue holds anything, and nobody has anything in hand.
async fn settled(scene: &Scene, workers: &[Worker], control: &[Naive], events: u32) {
    let start = Instant::now();
    let deadline = Duration::from_secs(60) + Duration::from_millis(u64::from(events) * 4);
    while let Some(unsettled) = unsettled(scene, workers, control).await {
        if start.elapsed() > deadline {
            let logs: String = workers.iter().map(Worker::stderr).collect();
            panic!("after {deadline:?} not settled: {unsettled}\n{logs}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What is not settled yet, in words.
async fn unsettled(scene: &Scene, workers: &[Worker], control: &[Naive]) -> Option<String> {
    let stage = &scene.stage;
    for suffix in ["", ".slow", ".retry.50ms", ".retry.100ms", ".retry.200ms", ".retry.1s", "-naive"] {
        let look = stage.look(&format!("{}{suffix}", stage.queue)).await;
        // One of the control's is enough: what another lost with its connection is lost. Ours have lanes that pause.
        if !matches!(look, Some((0, consumers)) if suffix != "-naive" || consumers > 0) {
            return Some(format!("the queue {suffix:?}, with (messages, consumers) {look:?}"));
        }
    }
    for worker in workers {
        let Some((200, metrics)) = worker.get("/metrics").await else { return Some("a worker does not answer".into()) };
        let in_hand = crate::support::worker::Metrics::parse(&metrics).sum("unstale_in_flight", &[]);
        if in_hand > 0.0 {
            return Some(format!("a worker has {in_hand} in hand"));
        }
    }
    control.iter().any(|naive| !naive.is_idle()).then(|| "a naive worker has one in hand".into())
}

//! (f) The time from publishing an event to the deletion of its key, at light load and at half of
//! the bare loop's maximum.

use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::MissedTickBehavior;

use super::ONE_DELETE;
use super::tracking::Tracker;
use crate::contender::{Contender, Running, Target};
use crate::events;
use crate::results::{Results, percentile};
use crate::stage::Stage;
use crate::support::wait_until;

/// Number of events whose keys are watched, and the time between two of them.
const WATCHED: u64 = 1_500;
const PAUSE: Duration = Duration::from_millis(4);

/// Interval of the bursts in which the load beside them is published.
const BURST: Duration = Duration::from_millis(2);

/// Time for which a rate must be sustained to count as possible.
const TRIAL: Duration = Duration::from_secs(4);

/// First id of events without a cached key. It is above those that are watched.
const UNWATCHED: u64 = 1_000_000_000;

pub(crate) const LOADS: [(&str, &str, &str); 2] = [
    ("p50 ms, light load", "p99 ms, light load", "light"),
    ("p50 ms, half load", "p99 ms, half load", "half"),
];

pub(super) async fn run(stage: &Stage, rounds: usize, results: &mut Results) {
    let target = stage.target("latency", ONE_DELETE).await;
    let ceiling = ceiling(stage, &target).await;
    results.note('f', Contender::Sketch.name(), "events/s published and deleted at most", ceiling);
    for _ in 0..rounds {
        for contender in [Contender::Sketch, Contender::Unstale] {
            for (p50, p99, load) in LOADS {
                let beside = if load == "half" { ceiling / 2.0 } else { 0.0 };
                let mut latencies = measure(stage, &target, contender, beside).await;
                results.note('f', contender.name(), p50, percentile(&mut latencies, 50.0));
                results.note('f', contender.name(), p99, percentile(&mut latencies, 99.0));
            }
        }
    }
}

async fn measure(
    stage: &Stage,
    target: &Target,
    contender: Contender,
    beside_per_s: f64,
) -> Vec<f64> {
    stage.begin_new_log().await;
    let running = contender.start(target, 0);
    // The keys must not exist before the worker is ready. A worker that finds Redis emptied since
    // its last run first applies the history again.
    ready(stage, target, &running).await;
    let mut tracker = Tracker::start(stage).await;
    let keys: Vec<String> = (0..WATCHED).map(|id| format!("user:{id}")).collect();
    stage.seed(keys.iter().cloned()).await;
    tracker.watch(&keys).await;
    let (published, seen) = unbounded_channel();
    let publish = async move {
        let channel = stage.channel().await;
        let mut ticks = tokio::time::interval(PAUSE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for (id, key) in (0..).zip(keys) {
            ticks.tick().await;
            let body = events::user_updated(id);
            let at = Instant::now();
            stage.publish(&channel, target, "user.updated", &body).await;
            published.send((key, at)).expect("the tracker listens");
        }
        drop(published);
    };
    let latencies = async {
        let ((), latencies) =
            tokio::join!(publish, tracker.latencies(seen, Duration::from_secs(20)));
        latencies
    };
    let latencies = tokio::select! {
        latencies = latencies => latencies,
        _ = load(stage, target, beside_per_s, Duration::from_secs(600)) => unreachable!("the load outlasts the measurement"),
    };
    running.stop().await;
    stage.clear(target).await;
    latencies
}

/// Waits until the contender consumes: an event of this function has left the queue, and a moment
/// has passed.
async fn ready(stage: &Stage, target: &Target, running: &Running) {
    if let Running::Worker(_) = running {
        wait_until(Duration::from_secs(30), "the worker is ready", async || {
            running.is_ready().await
        })
        .await;
    }
    // A session of the worker begins with one delivery at a time.
    let channel = stage.channel().await;
    for id in 0..64 {
        stage
            .publish(&channel, target, "user.updated", &events::user_updated(UNWATCHED + id))
            .await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    wait_until(Duration::from_secs(30), "the contender consumes", async || {
        stage.ready(target).await == 0
    })
    .await;
}

/// Publishes this many events a second, evenly, for this duration. Returns their number. A delay
/// makes the next burst larger.
async fn load(stage: &Stage, target: &Target, per_s: f64, duration: Duration) -> u64 {
    if per_s <= 0.0 {
        tokio::time::sleep(duration).await;
        return 0;
    }
    let channel = stage.channel().await;
    let (start, mut sent) = (Instant::now(), 0_u64);
    let mut ticks = tokio::time::interval(BURST);
    while start.elapsed() < duration {
        ticks.tick().await;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let due = (start.elapsed().as_secs_f64() * per_s) as u64;
        let due = due.min(sent + 2_000);
        let bodies: Vec<String> =
            (sent..due).map(|id| events::user_updated(UNWATCHED + id)).collect();
        let exchange = target.exchange();
        let publish = bodies.iter().map(|body| {
            let properties = BasicProperties::default().with_delivery_mode(2);
            channel.basic_publish(
                exchange.into(),
                "user.updated".into(),
                BasicPublishOptions::default(),
                body.as_bytes(),
                properties,
            )
        });
        futures_util::future::join_all(publish).await;
        sent = due;
    }
    sent
}

/// Returns the rate that one publisher reaches while the bare loop receives and deletes. All three
/// share the machine.
async fn ceiling(stage: &Stage, target: &Target) -> f64 {
    let running = Contender::Sketch.start(target, 0);
    ready(stage, target, &running).await;
    let start = Instant::now();
    let sent = load(stage, target, f64::INFINITY, TRIAL).await;
    wait_until(Duration::from_secs(60), "the loop has caught up", async || {
        stage.ready(target).await == 0
    })
    .await;
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let rate = sent as f64 / start.elapsed().as_secs_f64();
    running.stop().await;
    stage.clear(target).await;
    rate
}

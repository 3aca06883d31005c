//! (e) Invalidates a tag of 1,000,000 keys. Meanwhile another client asks Redis for a key every
//! millisecond, and single-key events flow.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::unbounded_channel;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::tracking::Tracker;
use crate::contender::{Contender, Target};
use crate::events;
use crate::results::{Results, percentile};
use crate::stage::Stage;
use crate::support::wait_until;

const MEMBERS: u64 = 1_000_000;

const RULES: &str = r#"
events:
  user.updated: { effects: [ { delete: "user:{id}" } ] }
  team.updated: { effects: [ { invalidate_tags: "team:{id}" } ] }
"#;

/// Duration of the quiet run, about that of the drain.
const QUIET: Duration = Duration::from_secs(5);

const PROBE_EVERY: Duration = Duration::from_millis(1);
const EVENT_EVERY: Duration = Duration::from_millis(5);
const WATCHED: u64 = 20_000;

pub(crate) const QUIET_RUN: &str = "nothing else to do";
pub(crate) const DRAINING: &str = "while the tag drains";
pub(crate) const PROBE_P99: &str = "ms, the other client's p99";
pub(crate) const PROBE_WORST: &str = "ms, the other client's worst";
pub(crate) const EVENT_P99: &str = "ms, single-key events' p99";

pub(super) async fn run(stage: &Stage, rounds: usize, results: &mut Results) {
    let target = stage.target("tag", RULES).await;
    for _ in 0..rounds {
        // The keys must not exist before the worker is ready. A worker that finds Redis emptied
        // since its last run first applies the history again.
        let worker = Contender::Unstale.start(&target, 0);
        wait_until(Duration::from_secs(30), "the worker is ready", async || {
            worker.is_ready().await
        })
        .await;
        stage.seed_tag("team:1", (0..MEMBERS).map(|member| format!("member:{member}"))).await;
        let keys: Vec<String> = (0..WATCHED).map(|id| format!("user:{id}")).collect();
        stage.seed(keys.iter().cloned()).await;
        let mut tracker = Tracker::start(stage).await;
        tracker.watch(&keys).await;
        let (quiet, draining) = keys.split_at(keys.len() / 2);
        observe(stage, &target, &mut tracker, quiet, tokio::time::sleep(QUIET))
            .await
            .note(results, QUIET_RUN);
        let channel = stage.channel().await;
        let start = Instant::now();
        let drained = async {
            stage
                .publish(&channel, &target, "team.updated", &events::plain("team.updated", 1))
                .await;
            // The members are deleted before the last of the single keys.
            wait_until(Duration::from_secs(120), "the tag is drained", async || {
                stage.keys().await <= 2 * WATCHED
            })
            .await;
            start.elapsed()
        };
        let mut took = Duration::ZERO;
        observe(stage, &target, &mut tracker, draining, async { took = drained.await })
            .await
            .note(results, DRAINING);
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        results.note(
            'e',
            Contender::Unstale.name(),
            "keys/s of the tag",
            MEMBERS as f64 / took.as_secs_f64(),
        );
        worker.stop().await;
        stage.clear(&target).await;
    }
}

struct Observed {
    probes_ms: Vec<f64>,
    events_ms: Vec<f64>,
}

impl Observed {
    fn note(mut self, results: &mut Results, who: &str) {
        results.note('e', who, PROBE_P99, percentile(&mut self.probes_ms, 99.0));
        results.note('e', who, PROBE_WORST, percentile(&mut self.probes_ms, 100.0));
        results.note('e', who, EVENT_P99, percentile(&mut self.events_ms, 99.0));
    }
}

/// Probes Redis and publishes single-key events until something has ended.
async fn observe(
    stage: &Stage,
    target: &Target,
    tracker: &mut Tracker,
    keys: &[String],
    until: impl Future<Output = ()>,
) -> Observed {
    let stop = CancellationToken::new();
    let (published, seen) = unbounded_channel();
    let probe = async {
        let mut connection = stage.redis.connection().await;
        let mut latencies = Vec::new();
        let mut ticks = ticks(PROBE_EVERY);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let asked = Instant::now();
            let _: Option<String> = redis::cmd("GET")
                .arg("a key that nobody has")
                .query_async(&mut connection)
                .await
                .expect("Redis answers");
            latencies.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        latencies
    };
    let publish = async {
        let channel = stage.channel().await;
        let mut ticks = ticks(EVENT_EVERY);
        for key in keys {
            if stop.run_until_cancelled(ticks.tick()).await.is_none() {
                break;
            }
            let id = key.trim_start_matches("user:").parse().expect("a key of ours");
            let at = Instant::now();
            stage.publish(&channel, target, "user.updated", &events::user_updated(id)).await;
            published.send((key.clone(), at)).expect("the tracker listens");
        }
        drop(published);
    };
    let ends = async {
        until.await;
        stop.cancel();
    };
    let (probes_ms, (), events_ms, ()) =
        tokio::join!(probe, publish, tracker.latencies(seen, Duration::from_secs(60)), ends);
    Observed { probes_ms, events_ms }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

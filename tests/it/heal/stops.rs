//! Stops, deploys, fewer workers and dead workers.
//!
//! None of them is a loss of Redis. After each of them, a heal begins only a short time earlier.

#![expect(clippy::print_stderr, reason = "figures for who reads the output")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::beside::status;
use super::{heals, mark_fields, on, publish, wait_marks};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Proxy, Redis, Worker, full_runs, rabbitmq, wait_until};

const SOME: u32 = 200;

/// Margin by which every heal that begins at a time begins earlier, since clocks differ.
const MARGIN: Duration = Duration::from_secs(60);

/// Time after which no message of a worker that is gone may be in flight any more. The full runs
/// wait for it.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(180);

/// Returns a stage on a Redis that loses nothing.
async fn safe_stage() -> Stage {
    on(Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await).await
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// Checks that no worker has healed, or reports that a heal is needed.
async fn assert_no_heal(workers: &[&Worker]) {
    for worker in workers {
        assert_eq!(heals(worker).await, 0.0, "{}", worker.stderr());
        assert!(!worker.stderr().contains("applying the history again"), "{}", worker.stderr());
    }
}

async fn wait_logged(worker: &Worker, words: &str) {
    wait_until(SOON, words, async || worker.stderr().contains(words)).await;
}

/// Returns the age of the lowest low watermark of all checkpoints.
async fn covered(stage: &Stage) -> Duration {
    let now_ms = u64::try_from(since_epoch().as_millis()).unwrap();
    let lows = mark_fields(stage).await.into_iter().filter_map(|(field, mark)| {
        let is_worker = field.len() == 32 || field.starts_with("stopped:");
        let parts: Vec<u64> = mark.split(':').map_while(|part| part.parse().ok()).collect();
        (is_worker && parts.len() == 3 && parts[1] < now_ms * 2).then(|| parts[1])
    });
    Duration::from_millis(now_ms.saturating_sub(lows.min().unwrap_or(now_ms)))
}

/// Restarts Redis, which always causes a heal. Returns how far before the restart it began, without
/// the margin.
async fn reach_of_a_heal(stage: &Stage, what: &str, workers: &[&Worker]) -> Duration {
    if full_runs() {
        let begun = std::time::Instant::now();
        let each = async || {
            let waited = begun.elapsed();
            if waited.as_secs().is_multiple_of(10) {
                eprintln!(
                    "{what}: {} s later, the low watermark is {:.1} s back",
                    waited.as_secs(),
                    covered(stage).await.as_secs_f64()
                );
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            waited > FORGOTTEN_AFTER
        };
        wait_until(FORGOTTEN_AFTER * 2, "what is gone is forgotten", each).await;
    }
    let restarted = since_epoch();
    stage.redis.kill();
    stage.redis.restart().await;
    let mut from = None;
    wait_until(SOON, "one heals", async || {
        let logs = workers.iter().map(|worker| worker.stderr());
        from = logs
            .filter_map(|log| {
                log.lines().find(|line| line.contains("Redis was restarted")).map(str::to_owned)
            })
            .next();
        from.is_some()
    })
    .await;
    let line = from.unwrap();
    let time = line
        .split([' ', '"', '='])
        .find_map(|word| word.parse::<jiff::Timestamp>().ok().filter(|_| !line.starts_with(word)));
    let time = time.unwrap_or_else(|| panic!("it begins at no time: {line}"));
    let back = restarted.saturating_sub(
        Duration::from_millis(u64::try_from(time.as_millisecond()).unwrap()) + MARGIN,
    );
    eprintln!(
        "{what}: a heal begins {:.1} s (and the margin of 60 s) before the restart of Redis",
        back.as_secs_f64()
    );
    back
}

/// Ages the checkpoints, as if no worker had run for that long.
pub(crate) async fn age_marks(stage: &Stage, by: Duration) {
    let by = u64::try_from(by.as_millis()).unwrap();
    for (field, mark) in mark_fields(stage).await {
        let parts: Vec<u64> = mark.split(':').map_while(|part| part.parse().ok()).collect();
        if let [number, low, at] = parts[..] {
            let aged = format!("{number}:{}:{}", low.saturating_sub(by), at.saturating_sub(by));
            let marks = format!("unstale:mark:{}", stage.queue);
            redis::cmd("HSET")
                .arg(marks)
                .arg(field)
                .arg(aged)
                .exec_async(&mut stage.connection().await)
                .await
                .unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_without_workers_heals_nothing() {
    let stage = safe_stage().await;
    let (one, other) = (stage.worker(&[]).await, stage.worker(&[]).await);
    wait_marks(&stage, 2).await;
    publish(&stage, SOME).await;
    stage.wait_settled(&[&one, &other]).await;
    assert!(one.terminate().await.success() && other.terminate().await.success());
    age_marks(&stage, Duration::from_secs(3_600)).await;
    publish(&stage, SOME).await;
    let shown = status(&stage).await;
    assert!(shown.contains("no worker runs") && shown.contains("200 events waiting"), "{shown}");
    let next = stage.worker(&[]).await;
    stage.wait_settled(&[&next]).await;
    wait_logged(&next, "no heal is needed: Redis holds what workers left").await;
    wait_logged(
        &next,
        "stopped in order: this worker's low watermark includes the events that they left",
    )
    .await;
    assert_no_heal(&[&next]).await;
    assert!(
        covered(&stage).await > Duration::from_secs(3_500),
        "what came in that hour may be lost with Redis"
    );
    if full_runs() {
        let back = reach_of_a_heal(&stage, "an hour without workers", &[&next]).await;
        assert!(back < Duration::from_secs(60), "{back:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_heals_nothing() {
    let stage = safe_stage().await;
    let (one, other) = (stage.worker(&[]).await, stage.worker(&[]).await);
    wait_marks(&stage, 2).await;
    publish(&stage, SOME).await;
    let third = stage.worker(&[]).await;
    assert!(one.terminate().await.success());
    publish(&stage, SOME).await;
    let fourth = stage.worker(&[]).await;
    assert!(other.terminate().await.success());
    publish(&stage, SOME).await;
    stage.wait_settled(&[&third, &fourth]).await;
    assert_no_heal(&[&third, &fourth]).await;
    let back = reach_of_a_heal(&stage, "a deploy", &[&third, &fourth]).await;
    assert!(back < Duration::from_secs(60), "{back:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_workers_heal_nothing() {
    let stage = safe_stage().await;
    let (one, other) = (stage.worker(&[]).await, stage.worker(&[]).await);
    wait_marks(&stage, 2).await;
    publish(&stage, SOME).await;
    assert!(one.terminate().await.success());
    publish(&stage, SOME).await;
    stage.wait_settled(&[&other]).await;
    assert_no_heal(&[&other]).await;
    let back = reach_of_a_heal(&stage, "a scale-down", &[&other]).await;
    // Ages are subtracted from the time of the newest chunk, which is known within minutes.
    wait_logged(&other, "first_offset=0 events=").await;
    assert!(back < Duration::from_secs(60), "{back:?}");
}

/// The worker dies with deliveries in flight. Another worker gets them, and its low watermark
/// includes them.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_heals_nothing_and_is_covered_by_the_others() {
    let stage = safe_stage().await;
    let proxy = Proxy::start(&stage.redis.addr()).await;
    let doomed =
        stage.worker(&[("UNSTALE_REDIS_URL", &format!("redis://{}/0", proxy.addr()))]).await;
    let living = stage.worker(&[]).await;
    wait_marks(&stage, 2).await;
    proxy.stall();
    publish(&stage, SOME).await;
    wait_until(SOON, "some are in flight", async || {
        doomed.metrics().await.sum("unstale_in_flight", &[]) > 0.0
    })
    .await;
    doomed.kill();
    stage.wait_settled(&[&living]).await;
    let covering = async || {
        let fields = mark_fields(&stage).await;
        fields
            .iter()
            .filter(|(field, mark)| field.len() == 32 && !mark.contains(":9007199254740991:"))
            .count()
    };
    wait_until(SOON, "one checkpoint alone has a low watermark", async || covering().await == 1)
        .await;
    wait_logged(&living, "silent for 10 s, so they were killed").await;
    assert_no_heal(&[&living]).await;
    let back = reach_of_a_heal(&stage, "kill -9 of a worker", &[&living]).await;
    assert!(back < Duration::from_secs(60), "{back:?}");
}

/// The worker gets SIGTERM in the middle of a heal. It gives up the heal, and does not count as
/// killed by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_stopped_in_a_heal_gives_its_turn_up() {
    let stage = safe_stage().await;
    let broker = rabbitmq().await;
    let proxy = Proxy::start(&broker.addr()).await;
    let amqp_url = broker.url().replace(&broker.addr(), &proxy.addr());
    let stopped =
        stage.worker(&[("UNSTALE_AMQP_URL", &amqp_url), ("UNSTALE_SHUTDOWN_GRACE", "1s")]).await;
    wait_marks(&stage, 1).await;
    publish(&stage, SOME).await;
    stage.wait_settled(&[&stopped]).await;
    let id = mark_fields(&stage).await.into_iter().find(|(field, _)| field.len() == 32).unwrap().0;
    // The heal gets no further than its beginning.
    proxy.stall();
    stage.redis.kill();
    stage.redis.restart().await;
    let has_lock = async || mark_fields(&stage).await.iter().any(|(field, _)| field == "lock");
    wait_until(SOON, "it heals", has_lock).await;
    stopped.terminate().await;
    assert!(!has_lock().await, "another worker need not wait for it");
    assert!(mark_fields(&stage).await.iter().any(|(field, _)| *field == format!("survived:{id}")));
    let mut next = stage.start_worker(&[]);
    next.wait_ready().await;
    assert_eq!(heals(&next).await, 1.0, "{}", next.stderr());
}

//! A long outage of Redis under a steady load, and its cost.

use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::load::{no_blame, stage};
use super::wire::Deliveries;
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Proxy, full_runs, rabbitmq, wait_until};

/// Maximum memory of the worker, however many events wait in the queue.
const MEMORY_KIB: u64 = 64 * 1024;

/// Steady load, independent of the worker.
struct Load {
    per_second: u32,
    before: u32,
    outage: u32,
    after: u32,
}

impl Load {
    fn events(&self) -> u32 {
        self.per_second * (self.before + self.outage + self.after)
    }

    /// Publishes events by tenths of a second. It waits for no confirm, but counts all of them at
    /// the end.
    async fn publish(&self, stage: &Stage, numbers: std::ops::Range<u32>) {
        let mut beat = tokio::time::interval(Duration::from_millis(100));
        let mut confirms = FuturesUnordered::new();
        let numbers: Vec<u32> = numbers.collect();
        for chunk in numbers.chunks(self.per_second as usize / 10) {
            beat.tick().await;
            for n in chunk {
                confirms.push(
                    stage
                        .send(
                            &stage.exchange,
                            "user.updated",
                            Default::default(),
                            format!(r#"{{"id":{n}}}"#).as_bytes(),
                        )
                        .await,
                );
            }
            while confirms.len() > 2_000 {
                assert!(matches!(confirms.next().await, Some(Ok(lapin::Confirmation::Ack(None)))));
            }
        }
        while let Some(confirm) = confirms.next().await {
            assert!(matches!(confirm, Ok(lapin::Confirmation::Ack(None))));
        }
    }
}

async fn left(stage: &Stage) -> u64 {
    let Some(mut redis) = stage.redis.try_connection().await else { return u64::MAX };
    redis::cmd("DBSIZE").query_async(&mut redis).await.unwrap_or(u64::MAX)
}

/// Returns the most memory that a process ever had.
fn peak_memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Five minutes under 1,000 events/s in the full size.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "what a run of many minutes came to")]
async fn an_outage_under_a_steady_load_spends_nothing_and_is_made_up_for() {
    let load = if full_runs() {
        Load { per_second: 1_000, before: 10, outage: 300, after: 10 }
    } else {
        Load { per_second: 500, before: 2, outage: 6, after: 2 }
    };
    let broker = rabbitmq().await;
    let stage = stage(&broker.url()).await;
    let keys: Vec<u32> = (0..load.events()).collect();
    let mut redis = stage.connection().await;
    for chunk in keys.chunks(5_000) {
        let pairs: Vec<(String, &str)> =
            chunk.iter().map(|n| (format!("user:{n}"), "old")).collect();
        let _: () = redis::cmd("MSET").arg(pairs).query_async(&mut redis).await.unwrap();
    }
    let deliveries = Deliveries::default();
    let proxy = Proxy::start_tapped(&broker.addr(), deliveries.tap(0)).await;
    let amqp_url = broker.url().replace(&broker.addr(), &proxy.addr());
    let worker = stage
        .worker(&[("UNSTALE_AMQP_URL", &amqp_url), ("UNSTALE_VAR_PAGES_URL", "http://127.0.0.1:9")])
        .await;

    load.publish(&stage, 0..load.per_second * load.before).await;
    stage.redis.kill();
    let out = Instant::now();
    let from = load.per_second * load.before;
    load.publish(&stage, from..from + load.per_second * load.outage).await;
    let (status, cause) = worker.get("/readyz").await.unwrap();
    assert!(status == 503 && cause.contains("Redis"), "{status} {cause}");
    let waiting = stage.ready("").await;
    let mut redis_is_back = Instant::now();
    let (out_for, made_up_for) = tokio::join!(
        async {
            stage.redis.restart().await;
            redis_is_back = Instant::now();
            out.elapsed()
        },
        load.publish(&stage, from + load.per_second * load.outage..load.events()),
    );
    let () = made_up_for;
    wait_until(SOON, "it consumes again", async || {
        matches!(worker.get("/readyz").await, Some((200, _)))
    })
    .await;
    wait_until(Duration::from_secs(120), "no old value is left", async || left(&stage).await < 20)
        .await;
    let drained = redis_is_back.elapsed();
    stage.wait_settled(&[&worker]).await;
    let mut redis = stage.connection().await;
    let old: Vec<String> = redis::cmd("KEYS").arg("user:*").query_async(&mut redis).await.unwrap();
    assert!(old.is_empty(), "{} old values", old.len());
    no_blame(&stage, &[&worker]).await;
    let in_vain = deliveries.worst("", |seen| seen.in_vain).in_vain;
    assert!(in_vain <= 1, "a message was redelivered {in_vain} times");
    let peak_kib = peak_memory_kib(worker.pid());
    eprintln!(
        "{:.0} s without Redis at {} events/s: {waiting} waited; made up for {:.1} s after its return; {in_vain} redelivery at most; the worker had {:.1} MiB at most",
        out_for.as_secs_f64(),
        load.per_second,
        drained.as_secs_f64(),
        peak_kib as f64 / 1024.0
    );
    assert!(peak_kib <= MEMORY_KIB, "the worker had {peak_kib} KiB at most");
}

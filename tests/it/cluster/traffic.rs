//! Traffic of 2,000 events a second. Afterwards no value in Redis is stale, and no event has
//! failed.

use std::ops::Range;
use std::time::Duration;

use futures_util::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use lapin::{BasicProperties, Confirmation};
use redis::AsyncCommands;
use redis::aio::ConnectionLike;
use tokio::time::Instant;

use crate::end_to_end::stage::Stage;
use crate::support::{Worker, wait_until};

pub(crate) const RULES: &str = r#"
defaults: { ttl: 1h }
events:
  user.updated:
    effects: [ { delete: ["user:{id}", "{{user:{id}}}:page"] } ]
  price.changed:
    effects: [ { write: "price:{id}", value: "{cents}", encoding: raw, tags: ["prices:{shelf}", "all"] } ]
  group.changed:
    effects: [ { invalidate_tags: "group:{id}" }, { bump_version: "group:{id}:version" } ]
"#;

const EVENTS_PER_SECOND: u32 = 2_000;

/// For everything to settle on a busy machine.
const SETTLES: Duration = Duration::from_secs(60);

/// Commands under way at once while Redis is filled or looked at.
const AT_ONCE: usize = 200;

/// Members of each group; each hundredth group has more than one round trip deletes.
const MEMBERS: u32 = 3;
const MANY_MEMBERS: u32 = 600;

/// One event a number.
#[derive(Debug, Clone)]
pub(crate) struct Traffic(Range<u32>);

impl Traffic {
    pub(crate) fn of(numbers: Range<u32>) -> Self {
        Self(numbers)
    }

    fn event(n: u32) -> (&'static str, String) {
        match n % 4 {
            0 | 1 => ("user.updated", format!(r#"{{"id":{n}}}"#)),
            2 => ("price.changed", format!(r#"{{"id":{n},"cents":{n},"shelf":{}}}"#, n % 50)),
            _ => ("group.changed", format!(r#"{{"id":{n}}}"#)),
        }
    }

    /// Keys that the event is about, and what they must hold after it.
    fn keys(n: u32) -> Vec<(String, Option<String>)> {
        match n % 4 {
            0 | 1 => vec![(format!("user:{n}"), None), (format!("{{user:{n}}}:page"), None)],
            2 => vec![(format!("price:{n}"), Some(n.to_string()))],
            _ => {
                (0..Self::members(n)).map(|member| (format!("group:{n}:{member}"), None)).collect()
            }
        }
    }

    fn members(n: u32) -> u32 {
        if n % 400 == 3 { MANY_MEMBERS } else { MEMBERS }
    }

    /// Fills Redis with what the events make stale.
    pub(crate) async fn seed<C: ConnectionLike + Clone + Send + Sync>(&self, redis: &C) {
        stream::iter(self.0.clone())
            .for_each_concurrent(AT_ONCE, async |n| {
                let mut redis = redis.clone();
                for (key, _) in Self::keys(n) {
                    redis.set::<_, _, ()>(&key, "old").await.unwrap();
                    if n % 4 == 3 {
                        redis.sadd::<_, _, ()>(format!("cache_tag:group:{n}"), &key).await.unwrap();
                    }
                }
            })
            .await;
    }

    /// Publishes at an even pace, and waits for each confirm.
    pub(crate) async fn publish(&self, stage: &Stage) {
        let start = Instant::now();
        let mut confirms = FuturesUnordered::new();
        for n in self.0.clone() {
            tokio::time::sleep_until(
                start + Duration::from_secs(1) * (n - self.0.start) / EVENTS_PER_SECOND,
            )
            .await;
            let (routing_key, body) = Self::event(n);
            confirms.push(
                stage
                    .send(&stage.exchange, routing_key, BasicProperties::default(), body.as_bytes())
                    .await,
            );
        }
        while let Some(confirm) = confirms.next().await {
            assert!(matches!(confirm, Ok(Confirmation::Ack(None))), "the broker took an event");
        }
    }

    /// Waits until the worker has come as far as that event.
    pub(crate) async fn reached<C: ConnectionLike + Clone + Send + Sync>(&self, redis: &C, n: u32) {
        wait_until(SETTLES, "the worker is in the middle of it", async || {
            Self(n..n + 1).wrong(redis, false).await.is_empty()
        })
        .await;
    }

    /// Waits until nothing in Redis is stale and the queues are empty. Then no attempt may have
    /// been spent, and nothing dead-lettered. Each look is on a connection of its own: one that saw
    /// a primary die may never recover.
    pub(crate) async fn settled<C: ConnectionLike + Clone + Send + Sync>(
        &self,
        stage: &Stage,
        worker: &Worker,
        connect: impl AsyncFn() -> C,
    ) {
        let start = Instant::now();
        loop {
            // A heal deletes values without a version: they may be absent.
            let healed = worker.metrics().await.sum("unstale_heals_total", &[]) > 0.0;
            let wrong = self.wrong(&connect().await, healed).await;
            if wrong.is_empty() {
                break;
            }
            let some = &wrong[..wrong.len().min(5)];
            assert!(
                start.elapsed() < SETTLES,
                "{} keys are wrong, such as {some:?}\n{}",
                wrong.len(),
                worker.stderr()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        stage.wait_settled(&[worker]).await;
        assert_eq!(stage.ready(".dead").await, 0, "dead letters\n{}", worker.stderr());
        let metrics = worker.metrics().await;
        let blamed =
            metrics.sum("unstale_retries_total", &[]) + metrics.sum("unstale_dead_total", &[]);
        assert!(
            blamed.abs() < f64::EPSILON,
            "{blamed} retries or dead letters:\n{}",
            worker.stderr()
        );
    }

    async fn wrong<C: ConnectionLike + Clone + Send + Sync>(
        &self,
        redis: &C,
        healed: bool,
    ) -> Vec<String> {
        let look = async |(key, expected): (String, Option<String>)| {
            let found: redis::RedisResult<Option<String>> = redis.clone().get(&key).await;
            match found {
                Ok(found) if found == expected || (healed && found.is_none()) => Ok(None),
                Ok(found) => Ok(Some(format!("{key}: {found:?}"))),
                Err(error) => Err(format!("{key}: {error}")),
            }
        };
        let looks =
            stream::iter(self.0.clone().flat_map(Self::keys)).map(look).buffer_unordered(AT_ONCE);
        // Where Redis does not answer, one look is enough.
        looks
            .try_filter_map(async |wrong| Ok(wrong))
            .try_collect()
            .await
            .unwrap_or_else(|error: String| vec![error])
    }
}

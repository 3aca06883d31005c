//! Redis comes back without writes that it had confirmed: they are made again before anybody is
//! ready.

mod beside;
mod brokers;
mod clocks;
mod cluster;
mod commands;
mod deaths;
mod histories;
mod identity;
mod large;
mod marks;
mod restores;
pub(crate) mod stops;
mod workers;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::AsyncCommands;

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Redis, Worker, rabbitmq, wait_until};

const USERS: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// By contract: from the return of Redis on.
const WITHIN: Duration = Duration::from_secs(10);

async fn stage() -> Stage {
    Stage::new(&[("users.yaml", USERS)]).await
}

async fn on(redis: Redis) -> Stage {
    Stage::with(&rabbitmq().await.url(), redis, &[("users.yaml", USERS)]).await
}

async fn seed(redis: &Redis, count: u32) {
    let mut connection = redis.connection().await;
    let mut pipeline = redis::pipe();
    for id in 0..count {
        pipeline.set(format!("user:{id}"), "old").ignore();
    }
    pipeline.exec_async(&mut connection).await.unwrap();
}

/// Publishes an event for each, and waits for the confirms.
async fn publish(stage: &Stage, count: u32) {
    let mut confirms = Vec::new();
    for id in 0..count {
        confirms.push(
            stage
                .send(
                    &stage.exchange,
                    "user.updated",
                    Default::default(),
                    format!(r#"{{"id":{id}}}"#).as_bytes(),
                )
                .await,
        );
        if confirms.len() == 500 {
            for confirm in confirms.drain(..) {
                confirm.await.unwrap();
            }
        }
    }
    for confirm in confirms {
        confirm.await.unwrap();
    }
}

/// How many users can be read; `None` while Redis is away.
async fn readable(redis: &Redis) -> Option<usize> {
    let mut connection = redis.try_connection().await?;
    let keys: Vec<String> = connection.keys("user:*").await.ok()?;
    Some(keys.len())
}

async fn wait_gone(redis: &Redis, within: Duration) {
    wait_until(within, "no old value can be read", async || readable(redis).await == Some(0)).await;
}

async fn heals(worker: &Worker) -> f64 {
    worker.metrics().await.sum("unstale_heals_total", &[])
}

/// Waits until each is ready, having seen that something was wrong.
async fn wait_healed(workers: &mut [&mut Worker]) {
    for worker in workers {
        worker.wait_ready().await;
    }
}

/// A field of the marks.
async fn mark_fields(stage: &Stage) -> Vec<(String, String)> {
    stage
        .connection()
        .await
        .hgetall::<_, std::collections::BTreeMap<String, String>>(format!(
            "unstale:mark:{}",
            stage.queue
        ))
        .await
        .unwrap()
        .into_iter()
        .collect()
}

/// The lowest of the workers' marks.
pub(crate) async fn low_ms(stage: &Stage) -> Option<u64> {
    let marks = mark_fields(stage).await;
    marks
        .iter()
        .filter(|(field, _)| field.len() == 32)
        .filter_map(|(_, mark)| mark.split(':').nth(1)?.parse().ok())
        .min()
}

/// Waits until the marks say that the queue was empty a moment ago.
async fn wait_quiet(stage: &Stage) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    wait_until(SOON, "the queue was seen empty", async || {
        low_ms(stage).await.is_some_and(|low| low > now)
    })
    .await;
}

/// Waits until so many workers have a mark.
async fn wait_marks(stage: &Stage, workers: usize) {
    wait_until(SOON, "the workers have marks", async || {
        mark_fields(stage).await.iter().filter(|(field, _)| field.len() == 32).count() >= workers
    })
    .await;
}

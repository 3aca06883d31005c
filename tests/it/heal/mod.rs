//! Redis comes back without confirmed writes: they are made again before any worker is ready.
//!
//! In reading order:
//! - Detection: `marks`, `identity`.
//! - Losses: `restores`, `refusals`, `closers`, `cluster`, `clocks`, `large`.
//! - Workers: `workers`, `stops`, `deaths`, `beside`, `brokers`, `commands`.
//! - The history itself: `histories`, `both_deleted`.
//!
//! Deliberately absent: outages without a loss, which are in `faults`.

mod beside;
mod both_deleted;
mod brokers;
mod clocks;
mod closers;
mod cluster;
mod commands;
mod deaths;
mod histories;
mod identity;
mod large;
mod marks;
mod refusals;
mod restores;
pub(crate) mod stops;
mod workers;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::AsyncCommands;

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Redis, Worker, rabbitmq, wait_until};

const USERS: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// Maximum time by contract, from the return of Redis on.
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

/// Publishes an event for each user, and waits for the confirms.
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

/// Returns the number of readable users; `None` while Redis is away.
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

/// Waits until each worker is ready, after it has noticed a problem.
async fn wait_healed(workers: &mut [&mut Worker]) {
    for worker in workers {
        worker.wait_ready().await;
    }
}

/// Returns the fields of the checkpoints.
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

/// Returns the lowest of the workers' low watermarks.
pub(crate) async fn low_ms(stage: &Stage) -> Option<u64> {
    let marks = mark_fields(stage).await;
    marks
        .iter()
        .filter(|(field, _)| field.len() == 32)
        .filter_map(|(_, mark)| mark.split(':').nth(1)?.parse().ok())
        .min()
}

/// Waits until the checkpoints show that the queue was empty a moment ago.
async fn wait_quiet(stage: &Stage) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    wait_until(SOON, "the queue was seen empty", async || {
        low_ms(stage).await.is_some_and(|low| low > now)
    })
    .await;
}

/// Waits until that many workers have a checkpoint.
async fn wait_marks(stage: &Stage, workers: usize) {
    wait_until(SOON, "the workers have marks", async || {
        mark_fields(stage).await.iter().filter(|(field, _)| field.len() == 32).count() >= workers
    })
    .await;
}

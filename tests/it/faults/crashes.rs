//! Workers killed at any moment.

use std::time::Duration;

use super::load::{Kinds, Pages, SETTINGS, stage};
use crate::support::rabbitmq;

const EVENTS: u32 = 6_000;
const ROUNDS: u32 = 5;

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_under_load_lose_nothing() {
    let mut stage = stage(&rabbitmq().await.url()).await;
    let pages = Pages::serve().await;
    let settings: Vec<(&str, &str)> =
        SETTINGS.iter().copied().chain([("UNSTALE_VAR_PAGES_URL", pages.as_str())]).collect();
    Kinds::MIXED.seed(&stage, 0..EVENTS).await;
    let (mut one, mut two) = (stage.worker(&settings).await, stage.worker(&settings).await);
    let share = EVENTS / ROUNDS;
    for round in 0..ROUNDS {
        Kinds::MIXED.publish(&mut stage, round * share..(round + 1) * share, Duration::ZERO).await;
        // The test has no condition to wait for, since it may kill at any moment.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..400))).await;
        one.kill();
        one = std::mem::replace(&mut two, stage.worker(&settings).await);
    }
    Kinds::MIXED.settled(&stage, &[&one, &two], 0..EVENTS).await;
    assert_eq!(stage.ready(".dead").await, 0);
}

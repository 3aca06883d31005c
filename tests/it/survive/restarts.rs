//! A worker that is killed again and again.

use std::time::{Duration, Instant};

use super::{Boxed, READY, publish, sized, stage, stale, store};
use crate::support::{RabbitMq, wait_until};

/// One event in this many has a body of a mebibyte.
const LARGE_EVERY: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_again_and_again_loses_nothing_in_a_small_box() {
    let (kills, lives) = (sized(3, 10), Duration::from_secs(sized(4, 12) as u64));
    let broker = RabbitMq::start().await;
    let stage = stage(&broker).await;
    let first = Boxed::start(&stage);
    first.ready_within(READY).await;
    drop(first);
    let mut published = 0;
    for _ in 0..kills {
        let boxed = Boxed::start(&stage);
        let until = Instant::now() + lives;
        while Instant::now() < until {
            let numbers = published..published + LARGE_EVERY;
            store(&stage, "body", numbers.clone()).await;
            publish(&stage, |_| "body.changed".to_owned(), published..numbers.end - 1, 100).await;
            publish(&stage, |_| "body.changed".to_owned(), numbers.end - 1..numbers.end, 1 << 20)
                .await;
            published = numbers.end;
            boxed.usage();
        }
        // `kill -9`
        drop(boxed);
    }
    let boxed = Boxed::start(&stage);
    let within = READY + Duration::from_millis(20) * u32::try_from(published).unwrap();
    wait_until(within, "all that was published is applied", async || {
        boxed.usage();
        stale(&stage, "body").await == Some(0)
    })
    .await;
    boxed.ready_within(within).await;
    assert_eq!(stage.ready(".dead").await, 0);
    eprintln!("{published} events through {kills} kills: {:?}", boxed.usage());
}

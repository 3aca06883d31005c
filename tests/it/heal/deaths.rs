//! Events that kill the worker during a heal.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::{publish, readable, seed, stage};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Flow, Proxy, Tap, Way};

const SOME: u32 = 400;

/// Offset of the event and number of its user: there is one publisher and one queue.
const AT: u64 = 123;

/// Returns the range that a heal notes as in work, if the bytes hold such a note.
fn in_work(bytes: &[u8]) -> Option<(u64, u64)> {
    let text = String::from_utf8_lossy(bytes);
    let (_, range) = text.split_once(r#""in_work":["#)?;
    let (first, behind) = range.split_once(']')?.0.split_once(',')?;
    Some((first.parse().ok()?, behind.parse().ok()?))
}

/// Starts a worker that gets no further than the event, and kills it there. Returns the range it
/// had in work.
async fn die(stage: &Stage) -> (u64, u64) {
    let (held, noted) = (Arc::new(Notify::new()), Arc::new(Mutex::new(None)));
    let (holds, notes) = (Arc::clone(&held), Arc::clone(&noted));
    let tap = Tap::new(move |connection, way, bytes| {
        let mut noted = notes.lock().unwrap();
        match (*noted, way) {
            // Redis has the note, but the worker never receives the answer.
            (Some((held, _)), Way::ToClient) if held == connection => {
                holds.notify_one();
                Flow::Halt
            }
            (None, Way::ToServer) => {
                *noted = in_work(bytes)
                    .filter(|(first, behind)| (*first..*behind).contains(&AT))
                    .map(|range| (connection, range));
                Flow::Pass
            }
            _ => Flow::Pass,
        }
    });
    let proxy = Proxy::start_tapped(&stage.redis.addr(), tap).await;
    let worker = stage.start_worker(&[
        ("UNSTALE_REDIS_URL", &format!("redis://{}/0", proxy.addr())),
        ("UNSTALE_HEAL_WINDOW", "1h"),
    ]);
    tokio::time::timeout(SOON, held.notified())
        .await
        .unwrap_or_else(|_| panic!("it never got there:\n{}", worker.stderr()));
    worker.kill();
    noted.lock().unwrap().map(|(_, range)| range).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_at_which_three_heals_died_is_passed_over() {
    let stage = stage().await;
    let first = stage.worker(&[]).await;
    publish(&stage, SOME).await;
    stage.wait_settled(&[&first]).await;
    first.kill();
    // Without checkpoints, the next worker heals.
    let _: () = redis::AsyncCommands::del(
        &mut stage.connection().await,
        format!("unstale:mark:{}", stage.queue),
    )
    .await
    .unwrap();
    seed(&stage.redis, SOME).await;

    let died = [die(&stage).await, die(&stage).await, die(&stage).await];
    assert!(died[0].1 - died[0].0 > 1, "first among others: {died:?}");
    assert_eq!(died[1..], [(AT, AT + 1); 2], "then alone");
    let mut last = stage.start_worker(&[("UNSTALE_HEAL_WINDOW", "1h")]);
    last.wait_ready().await;
    assert_eq!(readable(&stage.redis).await, Some(1), "all but that one: {}", last.stderr());
    assert!(stage.exists(&format!("user:{AT}")).await);
    assert!(last.stderr().contains("event of the history skipped"), "{}", last.stderr());
    let marks = format!("unstale:mark:{}", stage.queue);
    let heal: String =
        redis::AsyncCommands::hget(&mut stage.connection().await, marks, "heal").await.unwrap();
    assert!(heal.ends_with(":0"), "the heal does not count as whole: {heal}");
}

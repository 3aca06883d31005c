//! Looking keeps the queue as it was: nothing lost, nothing moved.

use std::ffi::OsString;
use std::num::NonZeroU16;

use redis::AsyncCommands as _;
use unstale::broker::DeadLetters;
use unstale::config::{Config, Scope};

use super::{command, declare, dlq, publish_letters};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::wait_until;

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

fn config(stage: &Stage) -> Config {
    let pairs = [("UNSTALE_AMQP_URL", stage.amqp_url()), ("UNSTALE_QUEUE", &stage.queue)];
    let pairs = pairs.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Config::from_pairs(pairs, |path| std::fs::read(path), Scope::All).unwrap().0
}

/// The bodies in the queue's order, over channels of 700 letters; every seventh is taken where `take` says so.
async fn look(config: &Config, take: bool) -> Vec<Vec<u8>> {
    let mut letters = DeadLetters::connect(&config.amqp).await.unwrap().with_channel_max(NonZeroU16::new(700).unwrap());
    let mut bodies = Vec::new();
    loop {
        let batch = letters.next_batch(64).await.unwrap();
        if batch.is_empty() {
            break;
        }
        let mut taken = Vec::new();
        for letter in &batch {
            if take && bodies.len() % 7 == 0 {
                taken.push(letter.delivery.tag());
            }
            bodies.push(letter.delivery.body().to_vec());
        }
        letters.take(&taken).await.unwrap();
    }
    letters.close().await.unwrap();
    bodies
}

fn assert_same(found: &[Vec<u8>], expected: &[Vec<u8>], what: &str) {
    let differ = found.iter().zip(expected).position(|(found, expected)| found != expected);
    let place = differ.map(|at| (at, String::from_utf8_lossy(&found[at]), String::from_utf8_lossy(&expected[at])));
    assert!(place.is_none() && found.len() == expected.len(), "{what}: {} of {}, {place:?}", found.len(), expected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn order_holds_over_many_channels_and_while_letters_are_taken() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_letters(&stage, 0..3000).await;
    let config = config(&stage);
    let published: Vec<Vec<u8>> = (0..3000).map(|id| format!("{{\"id\":{id}}}").into_bytes()).collect();
    assert_same(&look(&config, false).await, &published, "the first look");
    assert_same(&look(&config, true).await, &published, "the second look");
    let kept: Vec<Vec<u8>> = published.into_iter().enumerate().filter(|(at, _)| at % 7 != 0).map(|(_, body)| body).collect();
    assert_same(&look(&config, false).await, &kept, "what was not taken is there, in its order");
    assert_eq!(stage.ready(".dead").await as usize, kept.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_letters_are_listed_twice_alike() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_letters(&stage, 0..20_000).await;
    let (code, first, err) = dlq(&stage, &["list"]).await;
    assert_eq!(code, 0, "{err}");
    let (_, second, _) = dlq(&stage, &["list"]).await;
    assert!(first == second, "the lists differ");
    assert!(first.starts_with("20000 dead letters"));
    // All have the same time: what tells them apart is the queue's order.
    let lines: Vec<&str> = first.lines().skip(6).collect();
    assert_eq!(lines.len(), 20_000);
    assert!(lines.iter().zip(0..).all(|(line, id)| line.split_whitespace().nth(3) == Some(&format!("e{id}"))));
    assert_eq!(stage.ready(".dead").await, 20_000);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute or two: run it by hand"]
#[expect(clippy::print_stderr, reason = "its times are what it is run for")]
async fn a_hundred_thousand_letters_are_listed_alike_and_replayed_though_killed() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_letters(&stage, 0..100_000).await;
    let mut before: Option<String> = None;
    for _ in 0..3 {
        let start = std::time::Instant::now();
        let (code, listed, err) = dlq(&stage, &["list"]).await;
        eprintln!("list: {:?}", start.elapsed());
        assert_eq!(code, 0, "{err}");
        assert!(listed.starts_with("100000 dead letters"), "{}, and {} are ready", &listed[..60], stage.ready(".dead").await);
        assert!(listed.lines().skip(6).zip(0..).all(|(line, id)| line.split_whitespace().nth(3) == Some(&format!("e{id}"))));
        assert!(before.replace(listed.clone()).is_none_or(|before| before == listed));
    }
    let start = std::time::Instant::now();
    let (_, json, _) = dlq(&stage, &["list", "--json"]).await;
    eprintln!("list --json: {:?}", start.elapsed());
    assert_eq!(json.lines().count(), 100_000);
    let mut child = command(&stage, &["replay", "--type", "user.*"]).spawn().unwrap();
    wait_until(SOON, "it is in the middle", async || stage.ready("").await >= 30_000).await;
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until(SOON, "the rest is back", async || stage.ready("").await + stage.ready(".dead").await >= 100_000).await;
    let (main, dead) = (stage.ready("").await, stage.ready(".dead").await);
    eprintln!("killed: {main} replayed, {dead} left");
    assert!(dead > 0 && main + dead <= 100_500);
    let start = std::time::Instant::now();
    let (code, _, err) = dlq(&stage, &["replay", "--type", "user.*"]).await;
    eprintln!("the rest: {:?}: {err}", start.elapsed());
    assert_eq!((code, stage.ready(".dead").await), (0, 0));
    let pairs: Vec<(String, &str)> = (0..100_000).map(|id| (format!("user:{id}"), "old")).collect();
    let _: () = stage.connection().await.mset(&pairs).await.unwrap();
    let worker = stage.worker(&[]).await;
    wait_until(SOON, "each is applied", async || {
        let left: Vec<String> = stage.connection().await.keys("user:*").await.unwrap();
        left.is_empty()
    })
    .await;
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 0);
}

//! Reading the dead-letter queue loses no letter, and keeps their order.

use std::ffi::OsString;
use std::num::NonZeroU16;

use unstale::broker::{DeadLetters, Signer};
use unstale::config::{Config, Scope};

use super::{declare, dlq, publish_letters};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{full_runs, wait_until};

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

fn config(stage: &Stage) -> Config {
    let pairs = [("UNSTALE_AMQP_URL", stage.amqp_url()), ("UNSTALE_QUEUE", &stage.queue)];
    let pairs = pairs.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Config::from_pairs(pairs, |path| std::fs::read(path), Scope::All).unwrap().0
}

/// Returns the bodies in the queue's order, read over channels of 700 letters. If `take` is true,
/// every seventh letter is taken.
async fn look(config: &Config, take: bool) -> Vec<Vec<u8>> {
    let mut letters = DeadLetters::connect(&config.amqp, &Signer::default())
        .await
        .unwrap()
        .with_channel_max(NonZeroU16::new(700).unwrap());
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
    let place = differ.map(|at| {
        (at, String::from_utf8_lossy(&found[at]), String::from_utf8_lossy(&expected[at]))
    });
    assert!(
        place.is_none() && found.len() == expected.len(),
        "{what}: {} of {}, {place:?}",
        found.len(),
        expected.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_keep_their_order_over_many_channels_and_while_some_are_taken() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_letters(&stage, 0..3000).await;
    let config = config(&stage);
    let published: Vec<Vec<u8>> =
        (0..3000).map(|id| format!("{{\"id\":{id}}}").into_bytes()).collect();
    assert_same(&look(&config, false).await, &published, "the first look");
    assert_same(&look(&config, true).await, &published, "the second look");
    let kept: Vec<Vec<u8>> = published
        .into_iter()
        .enumerate()
        .filter(|(at, _)| at % 7 != 0)
        .map(|(_, body)| body)
        .collect();
    assert_same(&look(&config, false).await, &kept, "what was not taken is there, in its order");
    assert_eq!(stage.ready(".dead").await as usize, kept.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_list_prints_many_letters_twice_in_the_same_order() {
    let count = if full_runs() { 100_000 } else { 20_000 };
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_letters(&stage, 0..count).await;
    let (code, first, err) = dlq(&stage, &["list"]).await;
    assert_eq!(code, 0, "{err}");
    let (_, second, _) = dlq(&stage, &["list"]).await;
    assert!(first == second, "the lists differ");
    assert!(first.starts_with(&format!("{count} dead letters")));
    // All have the same time, so only the queue's order distinguishes them.
    let lines: Vec<&str> = first.lines().skip(6).collect();
    assert_eq!(lines.len(), count as usize);
    assert!(
        lines
            .iter()
            .zip(0..)
            .all(|(line, id)| line.split_whitespace().nth(3) == Some(&format!("e{id}")))
    );
    let (_, json, _) = dlq(&stage, &["list", "--json"]).await;
    assert_eq!(json.lines().count(), count as usize);
    wait_until(SOON, "all are back", async || stage.ready(".dead").await == count).await;
}

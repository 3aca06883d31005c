//! Many readers at once cost one load of each key, whichever reader makes it.

use futures_util::future::join_all;
use unstale_reader::Options;

use super::{HOUR, Held, RULES, Source, reader};
use crate::end_to_end::catalogue::Catalogue;
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::wait_until;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_readers_of_one_invalidated_key_cost_one_load() {
    let stage = Stage::new(&[("products.yaml", RULES)]).await;
    let _worker = stage.worker(&[("UNSTALE_VAR_CATALOGUE_URL", "http://127.0.0.1:1")]).await;
    let reader = reader(&stage, Options::default()).await;
    stage.set("product:7", "old").await;
    stage.publish("product.changed", r#"{"id":7}"#).await;
    stage.wait_gone("product:7").await;
    let source = Source::default();
    let values = join_all(
        (0..200)
            .map(|_| reader.get_or_load("product:7", || source.load("new"), HOUR, ["products"])),
    )
    .await;
    assert!(values.iter().all(|value| value.as_ref().unwrap().as_deref() == Some(b"new")));
    assert_eq!(source.loads(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_keys_of_an_invalidated_tag_cost_a_thousand_loads_at_most() {
    let stage = Stage::new(&[("products.yaml", RULES)]).await;
    let worker = stage.worker(&[("UNSTALE_VAR_CATALOGUE_URL", "http://127.0.0.1:1")]).await;
    let reader = reader(&stage, Options::default()).await;
    let (source, keys) =
        (Source::default(), (0..1_000).map(|n| format!("product:{n}")).collect::<Vec<_>>());
    let read_all = async |value: &str| {
        // Four readers of each key.
        let reads = (0..4)
            .flat_map(|_| &keys)
            .map(|key| reader.get_or_load(key, || source.load(value), HOUR, ["products"]));
        join_all(reads).await.into_iter().map(|read| read.unwrap().unwrap()).collect::<Vec<_>>()
    };
    read_all("old").await;
    assert_eq!(source.loads(), 1_000);
    stage.publish("products.imported", "{}").await;
    // While it drains some still get the old value, which is what the law allows; none loads twice.
    read_all("new").await;
    stage.wait_settled(&[&worker]).await;
    assert!(read_all("new").await.iter().all(|value| value == b"new"));
    assert!(source.loads() <= 2_000, "{} loads for 1,000 keys invalidated", source.loads() - 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_readers_wait_for_the_warm_that_loads_their_key() {
    let stage = Stage::new(&[("products.yaml", RULES)]).await;
    let catalogue = Catalogue::gated().await;
    let worker = stage.worker(&[("UNSTALE_VAR_CATALOGUE_URL", &catalogue.url)]).await;
    let (reader, source) = (reader(&stage, Options::default()).await, Source::default());
    catalogue.set("7", "new");
    stage.set("product:7", "old").await;
    stage.publish("product.ranked", r#"{"id":7}"#).await;
    catalogue.wait_asked("7", 1).await;
    let reads =
        join_all((0..200).map(|_| {
            reader.get_or_load("product:7", || source.load("theirs"), HOUR, ["products"])
        }));
    let before = calls(&stage, "evalsha").await;
    let answer = async {
        wait_until(SOON, "all have asked", async || calls(&stage, "evalsha").await >= before + 200)
            .await;
        catalogue.answer(1);
    };
    let (values, ()) = tokio::join!(reads, answer);
    assert!(values.iter().all(|value| value.as_ref().unwrap().as_deref() == Some(b"new")));
    stage.wait_settled(&[&worker]).await;
    assert_eq!((source.loads(), catalogue.loads("7")), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_waits_for_the_one_of_two_hundred_readers_that_loads_its_key() {
    let stage = Stage::new(&[("products.yaml", RULES)]).await;
    let catalogue = Catalogue::gated().await;
    let worker = stage
        .worker(&[("UNSTALE_VAR_CATALOGUE_URL", &catalogue.url), ("UNSTALE_WARM_CONCURRENCY", "1")])
        .await;
    let (reader, source, held) =
        (reader(&stage, Options::default()).await, Source::default(), Held::default());
    // There is no place for another load.
    catalogue.set("1", "other");
    stage.publish("product.ranked", r#"{"id":1}"#).await;
    catalogue.wait_asked("1", 1).await;
    catalogue.set("7", "warm");
    stage.set("product:7", "old").await;
    stage.set("marker", "there").await;
    for n in 0..3 {
        stage.publish("product.ranked", &format!(r#"{{"id":7,"n":{n}}}"#)).await;
    }
    stage.publish("product.changed", r#"{"id":8}"#).await;
    stage.wait_gone("marker").await;
    let load = async || {
        source.load("counted").await?;
        held.load("new").await
    };
    let reads =
        join_all((0..200).map(|_| reader.get_or_load("product:7", load, HOUR, ["products"])));
    let others = async {
        tokio::time::timeout(SOON, held.begun.notified()).await.expect("a reader loads");
        catalogue.answer(1);
        wait_until(SOON, "there is a place again", async || stage.get("product:1").await.is_some())
            .await;
        let before = calls(&stage, "exists").await;
        wait_until(SOON, "the warm waits for the reader's lease", async || {
            calls(&stage, "exists").await > before + 3
        })
        .await;
        held.end.notify_one();
    };
    let (values, ()) = tokio::join!(reads, others);
    assert!(values.iter().all(|value| value.as_ref().unwrap().as_deref() == Some(b"new")));
    stage.wait_settled(&[&worker]).await;
    assert_eq!((source.loads(), catalogue.loads("7")), (1, 0));
    assert_eq!(stage.get("product:7").await.as_deref(), Some("new"));
}

/// How often Redis was sent a command.
async fn calls(stage: &Stage, command: &str) -> u64 {
    let stats: String =
        crate::cache::run(&mut stage.connection().await, &["INFO", "commandstats"]).await;
    let sign = format!("cmdstat_{command}:calls=");
    stats
        .lines()
        .find_map(|line| line.strip_prefix(&sign)?.split(',').next()?.parse().ok())
        .unwrap_or(0)
}

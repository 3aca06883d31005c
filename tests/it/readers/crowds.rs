//! Many readers at once cost one load a key.

use futures_util::future::join_all;
use unstale::reader::Options;

use super::{HOUR, RULES, Source, reader};
use crate::end_to_end::stage::Stage;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_readers_of_one_invalidated_key_cost_one_load() {
    let stage = Stage::new(&[("products.yaml", RULES)]).await;
    let _worker = stage.worker(&[("UNSTALE_VAR_CATALOGUE_URL", "http://127.0.0.1:1")]).await;
    let reader = reader(&stage, Options::default()).await;
    stage.set("product:7", "old").await;
    stage.publish("product.changed", r#"{"id":7}"#).await;
    stage.wait_gone("product:7").await;
    let source = Source::default();
    let values = join_all((0..200).map(|_| reader.get_or_load("product:7", || source.load("new"), HOUR, ["products"]))).await;
    assert!(values.iter().all(|value| value.as_ref().unwrap().as_deref() == Some(b"new")));
    assert_eq!(source.loads(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_keys_of_an_invalidated_tag_cost_a_thousand_loads_at_most() {
    let stage = Stage::new(&[("products.yaml", RULES)]).await;
    let worker = stage.worker(&[("UNSTALE_VAR_CATALOGUE_URL", "http://127.0.0.1:1")]).await;
    let reader = reader(&stage, Options::default()).await;
    let (source, keys) = (Source::default(), (0..1_000).map(|n| format!("product:{n}")).collect::<Vec<_>>());
    let read_all = async |value: &str| {
        // Four readers of each key.
        let reads = (0..4).flat_map(|_| &keys).map(|key| reader.get_or_load(key, || source.load(value), HOUR, ["products"]));
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

//! Consumer tags of the worker, which RabbitMQ sends with every message.

use super::stage::Stage;
use crate::support;

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

#[tokio::test(flavor = "multi_thread")]
async fn their_tags_are_short() {
    let stage = Stage::new(&[("users.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    let told =
        support::rabbitmq().await.ctl(&["list_consumers", "queue_name", "consumer_tag"]).await;
    let of = |queue: &str| {
        told.lines()
            .filter_map(|line| line.split_once('\t'))
            .find(|(name, _)| *name == queue)
            .map(|(_, tag)| tag.len())
    };
    // A tag that the broker chooses has 31 bytes. A number that rises with each window stays below
    // this limit.
    for queue in [stage.queue.clone(), format!("{}.slow", stage.queue)] {
        assert!(of(&queue).is_some_and(|bytes| bytes < 10), "{queue} in\n{told}");
    }
    worker.terminate().await;
}

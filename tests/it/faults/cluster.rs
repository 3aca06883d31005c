//! A RabbitMQ cluster of three nodes that loses the node that leads the queues.

use std::time::Duration;

use redis::AsyncCommands;

use super::load::{Kinds, Pages, SETTINGS, stage};
use crate::end_to_end::stage::SOON;
use crate::support::{RabbitMq, wait_for, wait_until};

const EVENTS: u32 = 4_000;

/// Returns the node that leads a queue; `None` while there is none.
async fn leader(asked: &RabbitMq, queue: &str, nodes: &[RabbitMq]) -> Option<usize> {
    let leaders = asked.ctl(&["list_queues", "name", "leader"]).await;
    let leader = leaders
        .lines()
        .find_map(|line| line.strip_prefix(queue)?.strip_prefix('\t'))?
        .trim()
        .to_owned();
    nodes.iter().position(|node| node.name() == leader)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_of_a_cluster_killed_under_load() {
    let nodes = RabbitMq::start_cluster().await;
    let pages = Pages::serve().await;
    // The application publishes through the last node. The worker prefers the first, so the queues'
    // leaders are there.
    let mut stage = stage(&nodes[2].url()).await;
    let urls = nodes.each_ref().map(RabbitMq::url).join(",");
    let settings: Vec<(&str, &str)> = SETTINGS
        .iter()
        .copied()
        .chain([("UNSTALE_VAR_PAGES_URL", pages.as_str()), ("UNSTALE_AMQP_URL", &urls)])
        .collect();
    Kinds::MIXED.seed(&stage, 0..EVENTS).await;
    let worker = stage.worker(&settings).await;
    let queue = stage.queue.clone();
    assert_eq!(leader(&nodes[0], &queue, &nodes).await, Some(0), "the worker's node leads");
    let redis = stage.connection().await;
    let publishing = async {
        Kinds::MIXED.publish(&mut stage, 0..EVENTS, Duration::from_millis(50)).await;
        stage
    };
    let breaking = async {
        Kinds::MIXED.reached(&redis, 500).await;
        // Its first load fails. A message that leaves a retry queue while the leader dies may stay
        // there until the node is back (RabbitMQ 3.10).
        let page = async || redis.clone().get::<_, Option<String>>("page:10").await.unwrap();
        wait_until(SOON, "a retry queue has handed on a copy", async || {
            page().await.as_deref() == Some("page 10")
        })
        .await;
        nodes[0].kill();
    };
    let (stage, ()) = tokio::join!(publishing, breaking);
    let next = wait_for(SOON, "another node leads", async || {
        leader(&nodes[2], &queue, &nodes).await.filter(|node| *node != 0)
    })
    .await;
    assert!([1, 2].contains(&next));
    Kinds::MIXED.settled(&stage, &[&worker], 0..EVENTS).await;
    assert_eq!(stage.ready(".dead").await, 0);
    wait_until(SOON, "it consumes at another node", async || {
        matches!(worker.get("/readyz").await, Some((200, _)))
    })
    .await;
    assert_eq!(worker.terminate().await.code(), Some(0));
}

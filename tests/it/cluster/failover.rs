//! A primary dies under 2,000 events a second.

use std::time::Duration;

use super::traffic::{RULES, Traffic};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{RedisCluster, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_a_primary_is_killed() {
    let cluster = RedisCluster::start_with(Duration::from_secs(3), &[]).await;
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let traffic = Traffic::of(0..10_000);
    let redis = cluster.client().await;
    traffic.seed(&redis).await;
    for primary in 0..3 {
        cluster.ask::<u32>(primary, &["WAIT", "1", "5000"]).await;
    }
    let urls = cluster.urls();
    let worker =
        stage.worker(&[("UNSTALE_REDIS_MODE", "cluster"), ("UNSTALE_REDIS_URL", &urls)]).await;
    let kill = async {
        traffic.reached(&redis, 2_000).await;
        cluster.nodes[1].kill();
    };
    tokio::join!(traffic.publish(&stage), kill);
    wait_until(SOON, "the replica has taken its place", async || {
        cluster.ask::<String>(0, &["CLUSTER", "INFO"]).await.contains("cluster_state:ok")
    })
    .await;
    traffic.settled(&stage, &worker, async || cluster.client().await).await;
    assert_eq!(worker.terminate().await.code(), Some(0));
}

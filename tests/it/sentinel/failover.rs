//! The primary dies under load.

use crate::cluster::traffic::{RULES, Traffic};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Sentinels, sentinels, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_primary_is_killed() {
    let watch = Sentinels::start().await;
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let traffic = Traffic::of(0..8_000);
    let mut primary = watch.servers[0].connection().await;
    traffic.seed(&primary).await;
    let _: u32 = redis::cmd("WAIT").arg(1).arg(5_000).query_async(&mut primary).await.unwrap();

    let urls = watch.urls();
    let settings = [
        ("UNSTALE_REDIS_MODE", "sentinel"),
        ("UNSTALE_REDIS_URL", &urls),
        ("UNSTALE_REDIS_SENTINEL_MASTER", sentinels::NAME),
    ];
    let worker = stage.worker(&settings).await;
    let kill = async {
        traffic.reached(&primary, 2_000).await;
        watch.servers[0].kill();
    };
    tokio::join!(traffic.publish(&stage), kill);
    wait_until(SOON, "the replica is the primary", async || watch.is_primary(1).await).await;
    traffic.settled(&stage, &worker, async || watch.servers[1].connection().await).await;
    assert_eq!(worker.terminate().await.code(), Some(0));
}

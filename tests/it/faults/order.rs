//! Writes without a version end with the last that was published, whatever Redis went through.

use std::time::Duration;

use redis::AsyncCommands;

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Redis, rabbitmq, wait_until};

const KEYS: u32 = 50;
const WRITES: u32 = 4_000;

#[tokio::test(flavor = "multi_thread")]
async fn unversioned_writes_keep_their_order_through_outages() {
    let rules = r#"
defaults: { ttl: 1h }
events: { price.changed: { effects: [ { write: "price:{id}", value: "{cents} {text}", encoding: raw } ] } }
"#;
    let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let stage = Stage::with(&rabbitmq().await.url(), redis, &[("prices.yaml", rules)]).await;
    let worker = stage.worker(&[("UNSTALE_BATCH", "20")]).await;
    let text = "x".repeat(1_000);
    let publish = async {
        for n in 0..WRITES / 200 {
            let mut confirms = Vec::new();
            for n in n * 200..(n + 1) * 200 {
                let body = format!(r#"{{"id":{},"cents":{n},"text":"{text}"}}"#, n % KEYS);
                confirms.push(stage.send(&stage.exchange, "price.changed", Default::default(), body.as_bytes()).await);
            }
            for confirm in confirms {
                assert!(matches!(confirm.await, Ok(lapin::Confirmation::Ack(None))));
            }
        }
    };
    let trouble = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stage.redis.freeze();
        tokio::time::sleep(Duration::from_secs(6)).await;
        stage.redis.thaw();
        tokio::time::sleep(Duration::from_millis(200)).await;
        stage.redis.restart().await;
    };
    tokio::join!(publish, trouble);
    wait_until(SOON, "everything is acknowledged", async || {
        stage.ready("").await == 0 && worker.metrics().await.sum("unstale_in_flight", &[]) < 1.0
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut redis = stage.connection().await;
    for key in 0..KEYS {
        let value: String = redis.get(format!("price:{key}")).await.unwrap();
        assert_eq!(value.split(' ').next().unwrap(), (WRITES - KEYS + key).to_string(), "price:{key}");
    }
}

//! After any outage of Redis, writes without a version end with the last published one.

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
                confirms.push(
                    stage
                        .send(&stage.exchange, "price.changed", Default::default(), body.as_bytes())
                        .await,
                );
            }
            for confirm in confirms {
                assert!(matches!(confirm.await, Ok(lapin::Confirmation::Ack(None))));
            }
        }
    };
    let trouble = async {
        let ready = async |status| {
            wait_until(
                SOON,
                "it is noticed",
                async || matches!(worker.get("/readyz").await, Some((is, _)) if is == status),
            )
            .await
        };
        wait_until(SOON, "the worker is in the middle of it", async || {
            stage.exists("price:1").await
        })
        .await;
        stage.redis.freeze();
        ready(503).await;
        stage.redis.thaw();
        ready(200).await;
        stage.redis.restart().await;
    };
    tokio::join!(publish, trouble);
    wait_until(SOON, "everything is acknowledged", async || {
        stage.ready("").await == 0 && worker.metrics().await.sum("unstale_in_flight", &[]) < 1.0
    })
    .await;
    let mut redis = stage.connection().await;
    for key in 0..KEYS {
        let last = (WRITES - KEYS + key).to_string();
        wait_until(SOON, &format!("price:{key} holds the last that was published"), async || {
            let value: String = redis.get(format!("price:{key}")).await.unwrap();
            value.split(' ').next() == Some(&last)
        })
        .await;
    }
}

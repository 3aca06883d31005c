//! A republished event is acknowledged at once. Otherwise another worker would publish it again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Flow, Proxy, RabbitMq, Tap, Way, wait_until};

const RULES: &str = r#"
defaults: { ttl: 1h }
loaders: { pages: { url: "http://127.0.0.1:9" } }
events:
  user.updated: { effects: [ { delete: "user:{id}" } ] }
  page.changed: { effects: [ { warm: "page:{id}", from: "pages:/{id}" } ] }
"#;

/// Returns whether the bytes hold this method frame, on any channel: class 60, method 80.
fn acknowledges(bytes: &[u8]) -> bool {
    bytes.windows(11).any(|frame| frame[0] == 1 && frame[3..] == [0, 0, 0, 13, 0, 60, 0, 80])
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Observer of the traffic to one server.
#[derive(Debug, Clone, Default)]
struct Witness(Arc<AtomicBool>);

impl Witness {
    fn look(&self, way: Way, is_it: bool) -> bool {
        self.0.fetch_or(way == Way::ToServer && is_it, Ordering::SeqCst);
        self.saw_it()
    }

    fn saw_it(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_no_batch_behind_it() {
    let broker = RabbitMq::start().await;
    let stage = Stage::on_broker(&broker, &[("rules.yaml", RULES)]).await;
    let (first, second, acknowledgement) =
        (Witness::default(), Witness::default(), Witness::default());
    let (sees_first, sees_second, sees_acks) =
        (first.clone(), second.clone(), acknowledgement.clone());
    let redis = Tap::new(move |_, way, bytes| {
        sees_first.look(way, holds(bytes, "page:71"));
        if way == Way::ToServer && sees_second.look(way, holds(bytes, "user:71")) {
            Flow::Halt
        } else {
            Flow::Pass
        }
    });
    let amqp = Tap::new(move |_, way, bytes| {
        sees_acks.look(way, acknowledges(bytes));
        Flow::Pass
    });
    let (amqp, redis) = (
        Proxy::start_tapped(&broker.addr(), amqp).await,
        Proxy::start_tapped(&stage.redis.addr(), redis).await,
    );
    let amqp_url = broker.url().replace(&broker.addr(), &amqp.addr());
    let redis_url = format!("redis://{}/0", redis.addr());
    let settings = [
        ("UNSTALE_BATCH", "1"),
        ("UNSTALE_AMQP_URL", amqp_url.as_str()),
        ("UNSTALE_REDIS_URL", &redis_url),
    ];
    let _worker = stage.worker(&settings).await;
    // The second batch is on its way before Redis has answered the first.
    redis.delay(Duration::from_millis(300));
    stage.publish("page.changed", r#"{"id":71}"#).await;
    wait_until(SOON, "the first batch is on its way", async || first.saw_it()).await;
    stage.publish("user.updated", r#"{"id":71}"#).await;
    wait_until(SOON, "the second batch is on its way", async || second.saw_it()).await;
    assert!(!acknowledgement.saw_it(), "the first has come back already");
    wait_until(
        Duration::from_secs(4),
        "the event that went on as a copy is acknowledged",
        async || acknowledgement.saw_it(),
    )
    .await;
}

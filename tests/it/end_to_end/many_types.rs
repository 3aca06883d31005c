//! A registry of many event types, whose routing keys are bound in few round trips.

use std::fmt::Write as _;
use std::time::Duration;

use super::stage::{SOON, Stage};
use crate::support::rabbitmq::url_at;
use crate::support::{Proxy, rabbitmq, wait_until};

const TYPES: u32 = 1_500;

/// One round trip for each routing key would take 30 s, for the queue and for the history.
#[tokio::test(flavor = "multi_thread")]
async fn many_types_are_bound_over_a_slow_connection() {
    let mut rules = "events:\n".to_owned();
    for n in 0..TYPES {
        writeln!(rules, "  t{n}.updated: {{ effects: [ {{ delete: 'user:{n}' }} ] }}").unwrap();
    }
    let stage = Stage::new(&[("many.yaml", &rules)]).await;
    let proxy = Proxy::start(&rabbitmq().await.addr()).await;
    proxy.delay(Duration::from_millis(20));
    let url = url_at(&proxy.addr(), "guest", "guest", "/");
    let worker = stage.start_worker(&[("UNSTALE_AMQP_URL", &url)]);
    wait_until(SOON, "the worker is ready", async || {
        matches!(worker.get("/readyz").await, Some((200, _)))
    })
    .await;
    let last = TYPES - 1;
    let key = format!("user:{last}");
    stage.set(&key, "old").await;
    stage.publish(&format!("t{last}.updated"), "{}").await;
    stage.wait_gone(&key).await;
    wait_until(SOON, "the history has it", async || stage.ready(".history").await > 0).await;
    assert!(!worker.stderr().contains("the history cannot be used"), "{}", worker.stderr());
}

//! The low watermark in Redis, while a worker holds an event for a long time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::routing::get;
use jiff::{SignedDuration, Timestamp};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation};
use tokio::sync::Semaphore;

use crate::end_to_end::stage::{SOON, Stage};
use crate::heal::low_ms;
use crate::support::wait_until;

const RULES: &str = r#"
defaults: { ttl: 1h }
loaders: { pages: { url: "{vars.PAGES_URL}", timeout: 60s } }
events: { page.changed: { effects: [ { warm: "page:{id}", from: "pages:/{id}" } ] } }
"#;

/// Starts a loader that answers once `released` has permits, and returns the number of loads it was
/// asked for.
async fn held_pages(released: Arc<Semaphore>) -> (String, Arc<AtomicU32>) {
    let begun = Arc::<AtomicU32>::default();
    let counter = Arc::clone(&begun);
    let page = move || async move {
        counter.fetch_add(1, Ordering::SeqCst);
        let _permit = released.acquire().await.unwrap();
        "{}"
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(
        async move { axum::serve(listener, Router::new().route("/{id}", get(page))).await },
    );
    (url, begun)
}

/// Writes that Redis loses after this moment are applied again only if the checkpoint reaches back
/// to them.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspected_message_that_waits_to_be_begun_holds_the_low_watermark_back() {
    let released = Arc::new(Semaphore::new(0));
    let (pages, begun) = held_pages(Arc::clone(&released)).await;
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let worker = stage.worker(&[("UNSTALE_VAR_PAGES_URL", &pages)]).await;
    stage.publish("page.changed", r#"{"id":1}"#).await;
    wait_until(SOON, "a load is under way", async || begun.load(Ordering::SeqCst) == 1).await;

    let an_hour_ago = Timestamp::now() - SignedDuration::from_hours(1);
    let body = br#"{"id":2}"#;
    let mut headers = FieldTable::default();
    headers
        .insert("unstale-exchange".into(), AMQPValue::LongString(stage.exchange.as_str().into()));
    headers.insert("unstale-routing-key".into(), AMQPValue::LongString("page.changed".into()));
    headers.insert("unstale-redelivered".into(), AMQPValue::LongLongInt(2));
    headers.insert(
        "unstale-arrived-after".into(),
        AMQPValue::LongString(an_hour_ago.to_string().into()),
    );
    stage.signer().await.sign(&mut headers, body);
    let slow = format!("{}.slow", stage.queue);
    let confirm =
        stage.send("", &slow, BasicProperties::default().with_headers(headers), body).await;
    assert!(matches!(confirm.await.unwrap(), Confirmation::Ack(None)));
    let low_limit = u64::try_from(an_hour_ago.as_millisecond()).unwrap();
    wait_until(SOON, "the checkpoint covers the message that waits for the load", async || {
        low_ms(&stage).await.is_some_and(|low| low <= low_limit)
    })
    .await;
    assert_eq!(begun.load(Ordering::SeqCst), 1, "it has not been begun");

    released.add_permits(Semaphore::MAX_PERMITS);
    wait_until(SOON, "both pages are loaded", async || {
        stage.exists("page:1").await && stage.exists("page:2").await
    })
    .await;
    stage.wait_settled(&[&worker]).await;
}

//! A graceful stop under load: every applied event is acknowledged.

use std::time::Duration;

use redis::AsyncCommands;
use unstale::broker::{LaneName, Outgoing, Session};
use unstale::event::OwnedMessage;

use crate::broker::{config, depth, message, next, open, other};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{rabbitmq, wait_until};

const EVENTS: u32 = 4_000;

/// Every counted event was acknowledged: the counter and the events in the queue add up to all
/// events.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_leaves_nothing_done_and_unacknowledged() {
    let rules = r#"events: { visit.made: { effects: [ { bump_version: "visits" } ] } }"#;
    let stage = Stage::new(&[("visits.yaml", rules)]).await;
    stage.set("visits", "0").await;
    // Small batches cause many acknowledgements.
    let settings = [("UNSTALE_BATCH", "1")];
    assert_eq!(stage.worker(&settings).await.terminate().await.code(), Some(0));
    for _ in 0..EVENTS / 500 {
        let mut confirms = Vec::new();
        for n in 0..500 {
            confirms.push(
                stage
                    .send(
                        &stage.exchange,
                        "visit.made",
                        Default::default(),
                        format!(r#"{{"id":{n}}}"#).as_bytes(),
                    )
                    .await,
            );
        }
        for confirm in confirms {
            assert!(matches!(confirm.await, Ok(lapin::Confirmation::Ack(None))));
        }
    }
    let visits = async || -> u32 { stage.connection().await.get("visits").await.unwrap() };
    let mut before = 0;
    while visits().await < EVENTS {
        let worker = stage.worker(&settings).await;
        wait_until(Duration::from_secs(20), "it is in the middle of it", async || {
            visits().await >= (before + 700).min(EVENTS)
        })
        .await;
        assert_eq!(worker.terminate().await.code(), Some(0));
        before = visits().await;
        wait_until(SOON, "counted and queued add up", async || {
            before + stage.ready("").await == EVENTS
        })
        .await;
    }
    assert_eq!(visits().await, EVENTS);
}

#[tokio::test]
async fn acks_made_just_before_the_close_arrive() {
    let rabbitmq = rabbitmq().await;
    for _ in 0..3 {
        let config = config(&rabbitmq.url());
        let session = open(&config).await;
        publish_many(&session, &config.exchange, 1_000).await;
        let mut lane = session.lane(LaneName::Main).await.unwrap();
        lane.consume(1_000).await.unwrap();
        let mut tags = Vec::new();
        while tags.len() < 1_000 {
            tags.push(next(&mut lane).await.tag());
        }
        for tag in tags {
            lane.ack_one(tag).unwrap();
        }
        drop(lane);
        session.close().await;
        let channel = other(rabbitmq).await;
        // The broker requeues unacknowledged messages when it notices that the channel ended.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(depth(&channel, &config.queue).await, 0);
    }
}

async fn publish_many(session: &Session, exchange: &str, count: usize) {
    let mut publisher = session.publisher().await.unwrap();
    let messages: Vec<OwnedMessage> =
        (0..count).map(|number| message(exchange, "k", number.to_string().as_bytes())).collect();
    let messages: Vec<Outgoing<'_>> =
        messages.iter().map(|message| Outgoing::of(message).unwrap()).collect();
    assert!(publisher.publish_all(&messages).await.iter().all(Result::is_ok));
}

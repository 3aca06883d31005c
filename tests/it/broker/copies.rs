//! Republished messages: none is lost, doubled or refused.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue, FieldTable};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use unstale::broker::{
    CopyHeaders, LaneName, Outgoing, PublishError, Publisher, Session, Signer, copy_to,
};
use unstale::config::AmqpConfig;
use unstale::event::{HeaderValue, OwnedMessage};
use unstale::reason::Reason;

use super::{SOON, config, depth, message, next, open, other, take, with_headers};
use crate::support::{rabbitmq, wait_until};

const NOW: &str = "2026-01-02T03:04:05Z";

fn headers<'a>() -> CopyHeaders<'a> {
    CopyHeaders {
        attempt: 1,
        reason: Some(Reason::Malformed),
        error: Some("why"),
        registry: "digest",
        time: NOW,
        ..CopyHeaders::default()
    }
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Publishes to the exchange as another program, and republishes the arriving messages to `queue`.
async fn through(
    session: &Session,
    config: &AmqpConfig,
    properties: BasicProperties,
    body: &[u8],
    queue: &str,
) {
    let channel = other(rabbitmq().await).await;
    channel
        .basic_publish(
            config.exchange.as_str().into(),
            "user.updated".into(),
            Default::default(),
            body,
            properties,
        )
        .await
        .unwrap();
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(10).await.unwrap();
    let mut publisher = session.publisher().await.unwrap();
    let delivery = next(&mut lane).await;
    let copy =
        copy_to(queue, &delivery, &headers(), publisher.frame_max_bytes(), &Signer::default());
    assert!(matches!(publisher.publish_all(&[copy]).await.as_slice(), [Ok(())]));
    lane.ack_through(delivery.tag()).unwrap();
    lane.cancel().await.unwrap();
}

#[tokio::test]
async fn what_would_make_a_copy_vanish_is_taken_off() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    let channel = other(rabbitmq).await;
    super::declare_queue(&channel, &format!("{}.cc", config.queue), FieldTable::default()).await;
    let mut table = FieldTable::default();
    table.insert(
        "CC".into(),
        AMQPValue::FieldArray(vec![text(&format!("{}.cc", config.queue))].into()),
    );
    table.insert("decimal".into(), AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 }));
    let properties = with_headers(table)
        .with_expiration("60000".into())
        .with_user_id("guest".into())
        .with_delivery_mode(1);
    through(&session, &config, properties, b"{\"a\":1}", &session.names().dead).await;

    let dead = take(&channel, &session.names().dead).await;
    assert_eq!(dead.data, b"{\"a\":1}");
    let properties = &dead.properties;
    assert_eq!(
        (properties.expiration(), properties.user_id(), properties.delivery_mode()),
        (&None, &None, &Some(2))
    );
    let table = properties.headers().as_ref().unwrap().inner();
    for (name, value) in [
        ("unstale-expiration", text("60000")),
        ("unstale-user-id", text("guest")),
        ("unstale-exchange", text(&config.exchange)),
        ("unstale-routing-key", text("user.updated")),
        ("unstale-reason", text("malformed")),
        ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 })),
    ] {
        assert_eq!(table.get(name), Some(&value), "{name}");
    }
    assert!(table.contains_key("unstale-cc") && !table.contains_key("CC"));
    wait_until(SOON, "the main queue is empty", async || depth(&channel, &config.queue).await == 0)
        .await;
}

/// With a kept `x-death`, the broker takes the second round for a cycle and drops the message.
#[tokio::test]
async fn a_message_takes_the_same_retry_step_again_and_again() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    let channel = other(rabbitmq).await;
    channel
        .basic_publish(
            config.exchange.as_str().into(),
            "user.updated".into(),
            Default::default(),
            b"{}",
            BasicProperties::default(),
        )
        .await
        .unwrap();
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(10).await.unwrap();
    let mut publisher = session.publisher().await.unwrap();
    let retry_queue = session.names().retry_queue(1).unwrap();
    for attempt in 1..=3 {
        let delivery = next(&mut lane).await;
        let message = delivery.message();
        let died = message.headers.get("x-death").is_some();
        assert_eq!(died, attempt > 1, "the broker tells where it comes from");
        let copy = copy_to(
            retry_queue,
            &delivery,
            &CopyHeaders { attempt, ..headers() },
            publisher.frame_max_bytes(),
            &Signer::default(),
        );
        assert!(matches!(publisher.publish_all(&[copy]).await.as_slice(), [Ok(())]));
        lane.ack_through(delivery.tag()).unwrap();
    }
    let last = next(&mut lane).await;
    let message = last.message();
    assert_eq!(message.headers.get("unstale-attempt"), Some(&HeaderValue::Integer(3)));
    assert_eq!(message.headers.text("unstale-exchange"), Some(config.exchange.as_str()));
    assert_eq!(message.headers.text("unstale-routing-key"), Some("user.updated"));
}

#[tokio::test]
async fn headers_as_large_as_a_frame_allows_do_not_end_the_session() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    let channel = other(rabbitmq).await;
    for filler in [100_000, 126_500, 130_900] {
        let mut table = FieldTable::default();
        table.insert("big".into(), AMQPValue::LongString(vec![b'x'; filler].into()));
        through(
            &session,
            &config,
            with_headers(table),
            b"{}",
            session.names().retry_queue(1).unwrap(),
        )
        .await;
        // Back from the retry queue, with the broker's additions.
        let back = take(&channel, &config.queue).await;
        let table = back.properties.headers().as_ref().unwrap();
        assert_eq!(
            table.contains_key("big"),
            !table.contains_key("unstale-headers-dropped"),
            "{filler}"
        );
        assert_eq!(table.contains_key("big"), filler < 126_900, "{filler}");
    }
}

fn any_properties() -> impl Strategy<Value = BasicProperties> {
    let value = prop_oneof![
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<f64>().prop_map(AMQPValue::Double),
        Just(AMQPValue::Void),
        prop::collection::vec(any::<u8>(), 0..18_000)
            .prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        prop::collection::vec(any::<i32>().prop_map(AMQPValue::LongInt), 0..4)
            .prop_map(|values| AMQPValue::FieldArray(values.into())),
    ];
    let name = prop_oneof![
        "[a-z]{1,20}",
        Just("x-first-death-queue".to_owned()),
        Just("unstale-effects".to_owned())
    ];
    let headers = prop::collection::btree_map(name, value, 0..6);
    let cleared = (any::<bool>(), any::<bool>(), prop::option::of(0_u8..10), ".{0,60}");
    (headers, cleared).prop_map(|(headers, (expires, user, priority, id))| {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert(name.as_str().into(), value);
        }
        let mut properties = with_headers(table).with_message_id(id.as_str().into());
        if expires {
            properties = properties.with_expiration("600000".into());
        }
        if user {
            properties = properties.with_user_id("guest".into());
        }
        if let Some(priority) = priority {
            properties = properties.with_priority(priority);
        }
        properties
    })
}

#[tokio::test]
async fn no_copy_is_lost_doubled_or_refused() {
    const MESSAGES: u16 = 120;
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    let channel = other(rabbitmq).await;
    let mut runner = TestRunner::deterministic();
    for number in 0..MESSAGES {
        let properties = any_properties().new_tree(&mut runner).unwrap().current();
        let body = format!("{{\"n\":{number}}}");
        let sent = channel.basic_publish(
            config.exchange.as_str().into(),
            "k".into(),
            Default::default(),
            body.as_bytes(),
            properties,
        );
        sent.await.unwrap();
    }
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(200).await.unwrap();
    let mut publisher = session.publisher().await.unwrap();
    let mut settled = 0;
    while settled < MESSAGES {
        let batch = tokio::time::timeout(SOON, lane.next_batch(64)).await.unwrap().unwrap();
        let dead = &session.names().dead;
        let copies: Vec<Outgoing<'_>> = batch
            .iter()
            .map(|delivery| {
                copy_to(dead, delivery, &headers(), publisher.frame_max_bytes(), &Signer::default())
            })
            .collect();
        assert!(publisher.publish_all(&copies).await.iter().all(Result::is_ok));
        lane.ack_through(batch.last().unwrap().tag()).unwrap();
        settled += u16::try_from(batch.len()).unwrap();
    }
    let mut bodies = std::collections::BTreeSet::new();
    for _ in 0..MESSAGES {
        assert!(bodies.insert(take(&channel, &session.names().dead).await.data), "none twice");
    }
    assert_eq!(depth(&channel, &session.names().dead).await, 0);
    drop(session);
    wait_until(SOON, "the main queue is empty", async || depth(&channel, &config.queue).await == 0)
        .await;
}

#[tokio::test]
async fn a_publisher_goes_on_with_another_channel() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    let mut publisher = session.publisher().await.unwrap();
    let (dead, nowhere) = (session.names().dead.clone(), format!("{}.nowhere", config.queue));
    for _ in 0..3 {
        publisher.publish(&message("", &dead, b"stored")).await.unwrap();
        publisher.publish(&message("", &nowhere, b"returned")).await.unwrap_err();
        publisher.renew().await.unwrap();
    }
    assert!(session.watch().cause().is_none(), "to close a channel ends no session");
    let channel = other(rabbitmq).await;
    wait_until(SOON, "all are stored", async || depth(&channel, &dead).await == 3).await;
}

#[tokio::test]
async fn a_message_that_no_queue_takes_is_reported_by_itself() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    let mut publisher = session.publisher().await.unwrap();
    let nowhere = format!("{}.nowhere", config.queue);
    let messages: Vec<OwnedMessage> = (0..600)
        .map(|number: usize| {
            let queue = if number.is_multiple_of(7) { &nowhere } else { &session.names().dead };
            message("", queue, (number % 300).to_string().as_bytes())
        })
        .collect();
    let messages: Vec<Outgoing<'_>> =
        messages.iter().map(|message| Outgoing::of(message).unwrap()).collect();
    let results = publisher.publish_all(&messages).await;
    for (at, result) in results.iter().enumerate() {
        match result {
            Ok(()) => assert_ne!(at % 7, 0),
            Err(PublishError::Returned(words)) => {
                assert_eq!(at % 7, 0, "{words}");
                assert!(words.contains("NO_ROUTE") && words.contains(&nowhere), "{words}");
            }
            Err(other) => panic!("{at}: {other}"),
        }
    }
    let arrived = u32::try_from(results.iter().filter(|result| result.is_ok()).count()).unwrap();
    let channel = other(rabbitmq).await;
    wait_until(SOON, "all others arrived", async || {
        depth(&channel, &session.names().dead).await == arrived
    })
    .await;
}

#[tokio::test]
async fn a_publisher_of_events_outlives_what_the_broker_refuses() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    let mut publisher = Publisher::connect(&config).await.unwrap();
    let refused = publisher.publish(&message("no-such-exchange", "k", b"{}")).await.unwrap_err();
    assert!(
        matches!(&refused, PublishError::Refused(error) if error.is_missing_exchange()),
        "{refused:?}"
    );
    let long = "k".repeat(256);
    let unsendable = publisher.publish(&message(&config.exchange, &long, b"{}")).await.unwrap_err();
    assert!(matches!(unsendable, PublishError::Unsendable(_)), "{unsendable:?}");
    let line = r#"{"routing_key":"k","headers":{"ce-type":"user.updated"},"body":"{}",
        "properties":{"content_type":"application/json","message_id":"m-1","type":"user.updated","timestamp":12}}"#;
    let event = OwnedMessage {
        exchange: config.exchange.clone(),
        ..OwnedMessage::from_line(line).unwrap()
    };
    publisher.publish(&event).await.unwrap();
    publisher.close().await;
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(1).await.unwrap();
    let delivery = next(&mut lane).await;
    let message = delivery.message();
    assert_eq!(
        (message.properties.content_type, message.properties.message_id),
        (Some("application/json"), Some("m-1"))
    );
    assert_eq!(
        (message.properties.event_type, message.properties.timestamp_s),
        (Some("user.updated"), Some(12))
    );
    assert_eq!(message.headers.text("ce-type"), Some("user.updated"));
}

//! Lanes and their end.

use std::time::Duration;

use unstale::broker::{
    BrokerError, LaneName, Outgoing, PublishError, Publisher, Session, Signer, Start,
};
use unstale::causes::Explain;
use unstale::config::SecretUrl;
use unstale::event::OwnedMessage;

use super::{SOON, config, depth, keys, message, next, open, other, publish};
use crate::support::rabbitmq::url_at;
use crate::support::{Proxy, RabbitMq, port, rabbitmq, wait_for, wait_until};

async fn publish_many(session: &Session, exchange: &str, count: usize) {
    let mut publisher = session.publisher().await.unwrap();
    let messages: Vec<OwnedMessage> =
        (0..count).map(|number| message(exchange, "k", number.to_string().as_bytes())).collect();
    let messages: Vec<Outgoing<'_>> =
        messages.iter().map(|message| Outgoing::of(message).unwrap()).collect();
    assert!(publisher.publish_all(&messages).await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn batches_come_in_order_and_one_ack_settles_each() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    publish_many(&session, &config.exchange, 1_000).await;
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(300).await.unwrap();
    let mut seen = 0;
    while seen < 1_000 {
        let batch = tokio::time::timeout(SOON, lane.next_batch(256)).await.unwrap().unwrap();
        assert!((1..=256).contains(&batch.len()));
        for delivery in &batch {
            assert_eq!(delivery.body(), seen.to_string().as_bytes());
            assert!(!delivery.redelivered());
            seen += 1;
        }
        lane.ack_through(batch.last().unwrap().tag()).unwrap();
    }
    // Neither ready nor unacknowledged messages.
    wait_until(SOON, "nothing is left", async || {
        rabbitmq.queue_figure(&config.queue, "messages").await == Some(0)
    })
    .await;
    session.close().await;
}

#[tokio::test]
async fn a_batch_of_large_bodies_ends_early() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    let body = vec![b'x'; 1 << 20];
    for _ in 0..10 {
        publish(&session, &config, "k", &body).await;
    }
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(100).await.unwrap();
    let channel = other(rabbitmq).await;
    wait_until(SOON, "all are delivered", async || depth(&channel, &config.queue).await == 0).await;
    // All that was sent before the broker's answer has arrived with it.
    lane.cancel().await.unwrap();
    for expected in [4, 4, 2] {
        let batch = tokio::time::timeout(SOON, lane.next_batch(256)).await.unwrap().unwrap();
        assert_eq!(batch.len(), expected, "4 MiB of bodies");
    }
    session.close().await;
}

#[tokio::test]
async fn a_cancelled_lane_gives_out_what_had_arrived_or_gives_it_back() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    publish_many(&session, &config.exchange, 20).await;
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(10).await.unwrap();
    let first = next(&mut lane).await;
    // Another prefetch: nothing is lost, doubled or out of order.
    lane.consume(5).await.unwrap();
    let mut bodies = vec![first.body().to_vec()];
    let mut last = first.tag();
    while bodies.len() < 12 {
        lane.ack_through(last).unwrap();
        let delivery = next(&mut lane).await;
        last = delivery.tag();
        bodies.push(delivery.body().to_vec());
    }
    let expected: Vec<Vec<u8>> =
        (0..12).map(|number: usize| number.to_string().into_bytes()).collect();
    assert_eq!(bodies, expected);
    lane.ack_through(last).unwrap();

    lane.cancel().await.unwrap();
    lane.nack_all().await.unwrap();
    let channel = other(rabbitmq).await;
    wait_until(SOON, "the rest is back", async || depth(&channel, &config.queue).await == 8).await;
    let idle = tokio::time::timeout(Duration::from_millis(50), lane.next_batch(1)).await;
    assert!(idle.is_err(), "without a consumer nothing comes");
    lane.consume(10).await.unwrap();
    assert!(
        !bodies.contains(&next(&mut lane).await.body().to_vec()),
        "what was acknowledged stays away"
    );
}

/// A delivery before the end of a session keeps its count: it ended no worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_the_end_of_the_session_interrupts_is_kept() {
    let rabbitmq = rabbitmq().await;
    let proxy = Proxy::start(&rabbitmq.addr()).await;
    let config = config(&rabbitmq.url().replace(&rabbitmq.addr(), &proxy.addr()));
    let session = open(&config).await;
    publish_many(&session, &config.exchange, 10).await;
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(100).await.unwrap();
    let channel = other(rabbitmq).await;
    wait_until(SOON, "all are delivered", async || depth(&channel, &config.queue).await == 0).await;
    // All that was sent before the broker's answer has arrived with it.
    lane.consume(100).await.unwrap();
    assert!(!lane.all_read().unwrap(), "they have arrived");
    let mut given_out = lane.next_batch(4).await.unwrap().len();
    publish_many(&session, &config.exchange, 10).await;
    wait_until(SOON, "the others are delivered", async || {
        depth(&channel, &config.queue).await == 0
    })
    .await;
    // The answer comes after the deliveries.
    session.lane(LaneName::Slow).await.unwrap().cancel().await.unwrap();
    proxy.cut().await;
    tokio::time::timeout(SOON, session.watch().ended()).await.expect("it notices");
    while let Ok(batch) = lane.next_batch(100).await {
        given_out += batch.len();
    }
    let kept = lane.not_given_out().count();
    assert!(kept + given_out >= 20, "{given_out} were given out and {kept} are kept, of 20");
}

#[tokio::test]
async fn a_lane_without_a_consumer_fetches_one_at_a_time() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    publish_many(&session, &config.exchange, 3).await;
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    for number in 0..2 {
        let fetched = lane.get().await.unwrap().unwrap();
        assert_eq!(
            (fetched.body(), fetched.counted_redeliveries()),
            (number.to_string().as_bytes(), None)
        );
        lane.ack_one(fetched.tag()).unwrap();
    }
    assert_eq!(lane.get().await.unwrap().unwrap().body(), b"2");
    assert!(lane.get().await.unwrap().is_none(), "it is in hand, and there are no others");
    session.close().await;
    let again = open(&config).await;
    let mut lane = again.lane(LaneName::Main).await.unwrap();
    let channel = other(rabbitmq).await;
    wait_until(SOON, "it is back", async || depth(&channel, &config.queue).await == 1).await;
    let back = lane.get().await.unwrap().unwrap();
    assert_eq!((back.body(), back.counted_redeliveries()), (b"2".as_slice(), Some(1)));
    lane.ack_one(back.tag()).unwrap();
}

#[tokio::test]
async fn single_acks_leave_the_others() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    publish_many(&session, &config.exchange, 3).await;
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(10).await.unwrap();
    let (first, second, third) =
        (next(&mut lane).await, next(&mut lane).await, next(&mut lane).await);
    lane.ack_one(third.tag()).unwrap();
    lane.ack_one(first.tag()).unwrap();
    session.close().await;
    let again = open(&config).await;
    let mut lane = again.lane(LaneName::Main).await.unwrap();
    lane.consume(10).await.unwrap();
    let back = next(&mut lane).await;
    assert_eq!(back.body(), second.body());
    assert!(back.redelivered());
    assert_eq!(back.delivery_count(), 1);
    // A tag of the previous session has no meaning here.
    lane.ack_through(third.tag()).unwrap();
    lane.ack_through(back.tag()).unwrap();
    again.close().await;
    let channel = other(rabbitmq).await;
    wait_until(SOON, "nothing is left", async || depth(&channel, &config.queue).await == 0).await;
}

#[tokio::test]
async fn an_ack_that_the_broker_refuses_ends_the_session() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    publish(&session, &config, "k", b"{}").await;
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(10).await.unwrap();
    let delivery = next(&mut lane).await;
    lane.ack_one(delivery.tag()).unwrap();
    lane.ack_one(delivery.tag()).unwrap();
    let ended = tokio::time::timeout(SOON, lane.next_batch(1)).await.unwrap().unwrap_err();
    assert!(ended.in_full().contains("unknown delivery tag"), "{ended}");
    assert_eq!(session.watch().ended().await.in_full(), ended.in_full());
}

#[tokio::test]
async fn a_cut_connection_ends_the_session_everywhere() {
    let rabbitmq = rabbitmq().await;
    let proxy = Proxy::start(&rabbitmq.addr()).await;
    let config = config(&url_at(&proxy.addr(), "guest", "guest", "/"));
    let session = open(&config).await;
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(10).await.unwrap();
    let mut publisher = session.publisher().await.unwrap();
    proxy.cut().await;
    tokio::time::timeout(SOON, lane.next_batch(1)).await.unwrap().unwrap_err();
    tokio::time::timeout(SOON, session.watch().ended()).await.unwrap();
    let lost = publisher.publish(&message("", &config.queue, b"{}")).await.unwrap_err();
    assert!(matches!(lost, PublishError::Ended(_)), "{lost:?}");
    drop(session);
    // Once more, on another session.
    publish(&open(&config).await, &config, "k", b"{}").await;
}

#[tokio::test]
async fn a_silent_broker_is_noticed_within_30_s() {
    let rabbitmq = rabbitmq().await;
    let proxy = Proxy::start(&rabbitmq.addr()).await;
    let config = config(&url_at(&proxy.addr(), "guest", "guest", "/"));
    let session = open(&config).await;
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(10).await.unwrap();
    proxy.stall();
    tokio::time::timeout(Duration::from_secs(30), lane.next_batch(1))
        .await
        .expect("noticed")
        .unwrap_err();
}

#[tokio::test]
async fn a_deleted_queue_ends_the_session() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(10).await.unwrap();
    other(rabbitmq)
        .await
        .queue_delete(config.queue.as_str().into(), Default::default())
        .await
        .unwrap();
    let ended = tokio::time::timeout(SOON, lane.next_batch(1)).await.unwrap().unwrap_err();
    assert!(ended.in_full().contains(&config.queue), "{ended}");
}

#[tokio::test]
async fn a_dropped_session_leaves_no_connection_behind() {
    let rabbitmq = rabbitmq().await;
    let proxy = Proxy::start(&rabbitmq.addr()).await;
    let config = config(&url_at(&proxy.addr(), "guest", "guest", "/"));
    let session = open(&config).await;
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(10).await.unwrap();
    assert_eq!(proxy.connections(), 2);
    drop(session);
    tokio::time::timeout(SOON, lane.next_batch(1)).await.unwrap().unwrap_err();
    wait_until(SOON, "both connections are gone", async || proxy.connections() == 0).await;
}

#[tokio::test]
async fn wrong_credentials_are_refused_and_an_absent_broker_is_unreachable() {
    let rabbitmq = rabbitmq().await;
    for url in [
        rabbitmq.url_as("guest", "wrong-password", "/"),
        rabbitmq.url_as("guest", "guest", "no-such-vhost"),
    ] {
        let error = Session::open(&config(&url), &keys(&[]), &Signer::default(), Start::First)
            .await
            .unwrap_err();
        assert!(matches!(error, BrokerError::Refused(_)) && error.is_final(), "{error:?}");
        assert!(!error.in_full().contains("wrong-password"), "{error}");
    }
    let nobody = url_at(&format!("127.0.0.1:{}", port::free()), "guest", "guest", "/");
    let error = Session::open(&config(&nobody), &keys(&[]), &Signer::default(), Start::First)
        .await
        .unwrap_err();
    assert!(matches!(error, BrokerError::Unreachable(_)) && !error.is_final(), "{error:?}");
    // The nodes of a cluster, in turn.
    let mut both = config(&nobody);
    both.urls.push(SecretUrl::new(rabbitmq.url().parse().unwrap()));
    open(&both).await;
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let rabbitmq = rabbitmq().await;
    let proxy = Proxy::start(&rabbitmq.addr()).await;
    proxy.stall();
    let silent = config(&url_at(&proxy.addr(), "guest", "guest", "/"));
    let error = tokio::time::timeout(
        Duration::from_secs(15),
        Session::open(&silent, &keys(&[]), &Signer::default(), Start::First),
    )
    .await
    .unwrap()
    .unwrap_err();
    assert!(matches!(error, BrokerError::Unreachable(_)), "{error:?}");
    // If the socket were still open, the handshake would now succeed.
    proxy.resume().await;
    wait_until(SOON, "the connection is closed", async || proxy.connections() == 0).await;
}

#[tokio::test]
async fn a_blocked_publisher_says_so_and_acks_go_on() {
    let own = RabbitMq::start().await;
    let config = config(&own.url());
    let session = open(&config).await;
    let watch = session.watch();
    publish_many(&session, &config.exchange, 2).await;
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(10).await.unwrap();
    let mut publisher = session.publisher().await.unwrap();
    let first = next(&mut lane).await;
    own.set_memory_limit(0.000001).await;
    // The broker blocks a connection when it publishes during the alarm.
    let mut waiting = session.publisher().await.unwrap();
    let queue = config.queue.clone();
    let held = tokio::spawn(async move { waiting.publish(&message("", &queue, b"held")).await });
    wait_until(SOON, "the broker blocks us", async || watch.is_blocked()).await;
    let refused = publisher.publish(&message("", &config.queue, b"{}")).await.unwrap_err();
    assert!(matches!(refused, PublishError::Blocked), "{refused:?}");
    lane.ack_one(first.tag()).unwrap();
    let second = next(&mut lane).await;
    lane.ack_one(second.tag()).unwrap();
    // A command has a person who waits, so it gives up. A session does not, however long the alarm
    // lasts.
    let mut outside = Publisher::connect(&config).await.unwrap();
    let dead = format!("{}.dead", config.queue);
    let given_up =
        tokio::time::timeout(Duration::from_secs(40), outside.publish(&message("", &dead, b"{}")))
            .await
            .unwrap();
    assert!(matches!(given_up, Err(PublishError::Ended(_))), "{given_up:?}");
    own.set_memory_limit(0.4).await;
    tokio::time::timeout(SOON, publisher.unblocked()).await.unwrap();
    held.await.unwrap().unwrap();
    assert_eq!(next(&mut lane).await.body(), b"held");
    wait_for(SOON, "not blocked", async || (!watch.is_blocked()).then_some(())).await;
}

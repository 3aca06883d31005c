//! The module `broker` against a real RabbitMQ.
//!
//! In reading order: `topology` for objects, `failures` for lanes and their end, `copies` for
//! republished messages.
//!
//! Deliberately absent: Redis and the worker's lanes.

mod copies;
mod failures;
mod topology;

use std::time::Duration;

use lapin::options::{BasicGetOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, ExchangeKind};
use unstale::broker::{Delivery, Lane, Session, Signer, Start};
use unstale::config::{AmqpConfig, DeclarePolicy, SecretUrl, TlsConfig};
use unstale::event::OwnedMessage;

use crate::support::{RabbitMq, unique, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// Returns a worker's configuration, with names of its own.
pub(crate) fn config(url: &str) -> AmqpConfig {
    AmqpConfig {
        urls: vec![SecretUrl::new(url.parse().unwrap())],
        tls: TlsConfig::default(),
        exchange: unique("events"),
        queue: unique("q"),
        bind: vec![],
        declare: DeclarePolicy::All,
        prefetch: 100,
        backlog_prefetch: 100,
        retry_delays: vec![Duration::from_millis(200), Duration::from_secs(600)],
        history: None,
    }
}

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|&key| key.to_owned()).collect()
}

pub(crate) async fn open(config: &AmqpConfig) -> Session {
    Session::open(config, &keys(&["#"]), &Signer::default(), Start::First).await.unwrap()
}

/// Opens a plain channel, as another program has it.
pub(crate) async fn other(rabbitmq: &RabbitMq) -> Channel {
    rabbitmq.connection().await.create_channel().await.unwrap()
}

pub(crate) async fn depth(channel: &Channel, queue: &str) -> u32 {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel
        .queue_declare(queue.into(), options, FieldTable::default())
        .await
        .unwrap()
        .message_count()
}

/// Takes a message from a queue.
async fn take(channel: &Channel, queue: &str) -> lapin::message::Delivery {
    let got = wait_for(SOON, "a message in the queue", async || {
        channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap()
    })
    .await;
    got.delivery
}

async fn publish(session: &Session, config: &AmqpConfig, routing_key: &str, body: &[u8]) {
    let mut publisher = session.publisher().await.unwrap();
    publisher.publish(&message(&config.exchange, routing_key, body)).await.unwrap();
}

pub(crate) fn message(exchange: &str, routing_key: &str, body: &[u8]) -> OwnedMessage {
    OwnedMessage {
        exchange: exchange.into(),
        routing_key: routing_key.into(),
        body: body.into(),
        ..OwnedMessage::default()
    }
}

pub(crate) async fn next(lane: &mut Lane) -> Delivery {
    let batch =
        tokio::time::timeout(SOON, lane.next_batch(1)).await.expect("a delivery comes").unwrap();
    batch.into_iter().next().unwrap()
}

async fn declare_queue(channel: &Channel, name: &str, arguments: FieldTable) {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.into(), options, arguments).await.unwrap();
}

async fn declare_exchange(channel: &Channel, name: &str) {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel
        .exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default())
        .await
        .unwrap();
}

fn with_headers(headers: FieldTable) -> BasicProperties {
    BasicProperties::default().with_headers(headers)
}

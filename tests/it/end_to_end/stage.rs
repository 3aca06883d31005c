//! Stage of a test: a registry, a Redis, names of its own on a broker, and another program's AMQP
//! client.
//!
//! Deliberately absent: code of ours, except the worker.

use std::time::Duration;

use futures_util::future::BoxFuture;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ExchangeKind};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use unstale::broker::Signer;

use crate::support::{self, RabbitMq, Redis, Worker, unique, wait_for, wait_until};

/// Maximum time for anything on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Stage {
    pub(crate) redis: Redis,
    pub(crate) queue: String,
    pub(crate) exchange: String,
    pub(crate) schemas: TempDir,
    amqp_url: String,
    client: Connection,
    channel: Channel,
}

/// Message in a dead-letter queue.
pub(crate) struct DeadLetter {
    pub(crate) body: Vec<u8>,
    pub(crate) headers: FieldTable,
}

impl DeadLetter {
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        match self.headers.inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            AMQPValue::ShortString(text) => Some(text.to_string()),
            AMQPValue::LongInt(number) => Some(number.to_string()),
            AMQPValue::LongLongInt(number) => Some(number.to_string()),
            AMQPValue::LongUInt(number) => Some(number.to_string()),
            other => Some(format!("{other:?}")),
        }
    }
}

impl Stage {
    /// Sets up a stage on the shared broker.
    pub(crate) async fn new(files: &[(&str, &str)]) -> Self {
        let broker = support::rabbitmq().await;
        Self::on(&broker.url(), files).await
    }

    /// Sets up a stage on a broker of the test's own.
    pub(crate) async fn on_broker(broker: &RabbitMq, files: &[(&str, &str)]) -> Self {
        Self::on(&broker.url(), files).await
    }

    async fn on(amqp_url: &str, files: &[(&str, &str)]) -> Self {
        Self::with(amqp_url, Redis::start().await, files).await
    }

    /// Sets up a stage with a Redis of the test's own, such as one whose data survives a kill.
    pub(crate) async fn with(amqp_url: &str, redis: Redis, files: &[(&str, &str)]) -> Self {
        let schemas = tempfile::tempdir().unwrap();
        let client = support::rabbitmq::connect(amqp_url).await.unwrap();
        let channel = confirming(&client).await;
        let stage = Self {
            redis,
            queue: unique("queue"),
            exchange: unique("events"),
            schemas,
            amqp_url: amqp_url.to_owned(),
            client,
            channel,
        };
        for (name, text) in files {
            stage.write_schema(name, text);
        }
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = stage.channel.exchange_declare(
            stage.exchange.as_str().into(),
            ExchangeKind::Topic,
            options,
            FieldTable::default(),
        );
        declared.await.unwrap();
        stage
    }

    pub(crate) fn amqp_url(&self) -> &str {
        &self.amqp_url
    }

    pub(crate) fn write_schema(&self, name: &str, text: &str) {
        std::fs::write(self.schemas.path().join(name), text).unwrap();
    }

    /// Returns the settings with which a command reaches the broker under this stage's names.
    pub(crate) fn broker_settings(&self) -> [(&str, &str); 3] {
        [
            ("UNSTALE_AMQP_URL", &self.amqp_url),
            ("UNSTALE_EXCHANGE", &self.exchange),
            ("UNSTALE_QUEUE", &self.queue),
        ]
    }

    /// Opens a new connection of the other program, after the broker was away.
    pub(crate) async fn reconnect(&mut self) {
        self.client = support::rabbitmq::connect(&self.amqp_url).await.unwrap();
        self.channel = confirming(&self.client).await;
    }

    /// Reconnects as [`reconnect`](Self::reconnect) does, while the broker may still be away.
    pub(crate) async fn try_reconnect(&mut self) -> bool {
        let Ok(client) = support::rabbitmq::connect(&self.amqp_url).await else { return false };
        let Ok(channel) = client.create_channel().await else { return false };
        if channel.confirm_select(ConfirmSelectOptions::default()).await.is_err() {
            return false;
        }
        (self.client, self.channel) = (client, channel);
        true
    }

    /// Opens a channel as [`new_channel`](Self::new_channel) does, while an earlier channel may
    /// just have ended.
    pub(crate) async fn try_channel(&self) -> Option<Channel> {
        self.client.create_channel().await.ok()
    }

    /// Opens a channel of the other program.
    pub(crate) async fn new_channel(&self) -> Channel {
        self.client.create_channel().await.unwrap()
    }

    /// Starts a worker and waits until it is ready. Later settings win.
    pub(crate) async fn worker(&self, settings: &[(&str, &str)]) -> Worker {
        let mut worker = self.start_worker(settings);
        worker.wait_ready().await;
        worker
    }

    /// Starts a worker without waiting.
    pub(crate) fn start_worker(&self, settings: &[(&str, &str)]) -> Worker {
        self.with_settings(settings, Worker::start)
    }

    /// Starts a worker that may not override permissions of files, and waits until it is ready.
    pub(crate) async fn worker_without_override(&self, settings: &[(&str, &str)]) -> Worker {
        let mut worker = self.with_settings(settings, Worker::start_without_override);
        worker.wait_ready().await;
        worker
    }

    /// Starts a worker without waiting, and does not read its log. The worker stalls once it has
    /// logged some 64 KiB.
    pub(crate) fn start_unread_worker(&self, settings: &[(&str, &str)]) -> Worker {
        self.with_settings(settings, Worker::start_unread)
    }

    fn with_settings(
        &self,
        settings: &[(&str, &str)],
        start: impl FnOnce(&[(&str, &str)]) -> Worker,
    ) -> Worker {
        let redis_url = self.redis.url();
        let schemas = self.schemas.path().to_str().unwrap();
        let mut all = vec![
            ("UNSTALE_AMQP_URL", self.amqp_url.as_str()),
            ("UNSTALE_REDIS_URL", &redis_url),
            ("UNSTALE_SCHEMAS", schemas),
            ("UNSTALE_EXCHANGE", &self.exchange),
            ("UNSTALE_QUEUE", &self.queue),
        ];
        all.extend_from_slice(settings);
        start(&all)
    }

    /// Returns a signer with the secret of this stage's workers.
    pub(crate) async fn signer(&self) -> Signer {
        let mut redis = self.connection().await;
        let _: Option<String> = redis::cmd("SET")
            .arg("unstale:secret")
            .arg(unique("secret-of-a-test"))
            .arg("NX")
            .query_async(&mut redis)
            .await
            .unwrap();
        let secret: String = redis.get("unstale:secret").await.unwrap();
        Signer::with_secret(&secret)
    }

    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        self.redis.connection().await
    }

    pub(crate) async fn set(&self, key: &str, value: &str) {
        let _: () = self.connection().await.set(key, value).await.unwrap();
    }

    pub(crate) async fn get(&self, key: &str) -> Option<String> {
        self.connection().await.get(key).await.unwrap()
    }

    pub(crate) async fn exists(&self, key: &str) -> bool {
        self.connection().await.exists(key).await.unwrap()
    }

    pub(crate) async fn wait_gone(&self, key: &str) {
        wait_until(SOON, &format!("{key} is gone"), async || !self.exists(key).await).await;
    }

    /// Publishes and waits for the confirm; panics if no queue took the message.
    pub(crate) async fn publish(&self, routing_key: &str, body: &str) {
        self.publish_with(routing_key, BasicProperties::default(), body.as_bytes()).await;
    }

    pub(crate) async fn publish_with(
        &self,
        routing_key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) {
        let confirm = self.send(&self.exchange, routing_key, properties, body).await;
        assert!(
            matches!(confirm.await.unwrap(), Confirmation::Ack(None)),
            "{routing_key} was not taken"
        );
    }

    /// Publishes without waiting for the confirm.
    pub(crate) async fn send(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> BoxFuture<'static, lapin::Result<Confirmation>> {
        self.try_send(exchange, routing_key, properties, body).await.unwrap()
    }

    /// Publishes as [`send`](Self::send) does, while the broker may be away.
    pub(crate) async fn try_send(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> lapin::Result<BoxFuture<'static, lapin::Result<Confirmation>>> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = properties.with_delivery_mode(2);
        Ok(Box::pin(
            self.channel
                .basic_publish(exchange.into(), routing_key.into(), options, body, properties)
                .await?,
        ))
    }

    /// Returns the messages ready in a queue of ours: `""`, `".slow"`, `".dead"`…
    ///
    /// Returns 0 if there is no such queue.
    pub(crate) async fn ready(&self, suffix: &str) -> u32 {
        // Earlier channels may have ended with missing queues, and this one may learn of it.
        let channel =
            wait_for(SOON, "a channel opens", async || self.client.create_channel().await.ok())
                .await;
        let queue = format!("{}{suffix}", self.queue);
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let Ok(declared) =
            channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await
        else {
            return 0;
        };
        let count = declared.message_count();
        channel.close(200, "".into()).await.unwrap();
        count
    }

    /// Returns the messages ready in that queue, and its consumers.
    ///
    /// Returns `None` while the broker gives no answer, or has no such queue.
    pub(crate) async fn look(&self, queue: &str) -> Option<(u32, u32)> {
        let channel = self.client.create_channel().await.ok()?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared =
            channel.queue_declare(queue.into(), options, FieldTable::default()).await.ok()?;
        channel.close(200, "".into()).await.ok()?;
        Some((declared.message_count(), declared.consumer_count()))
    }

    /// Returns whether the queue exists.
    pub(crate) async fn exists_queue(&self, queue: &str) -> bool {
        let channel = self.client.create_channel().await.unwrap();
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.into(), options, FieldTable::default()).await.is_ok()
    }

    /// Returns the number of a queue's consumers.
    pub(crate) async fn consumers(&self, queue: &str) -> u32 {
        let channel = self.client.create_channel().await.unwrap();
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared =
            channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap();
        let count = declared.consumer_count();
        channel.close(200, "".into()).await.unwrap();
        count
    }

    /// Returns the highest `x-delivery-count` among the ready messages of a queue, and requeues
    /// them.
    pub(crate) async fn highest_delivery_count(&self, queue: &str) -> i64 {
        let channel = self.client.create_channel().await.unwrap();
        let mut highest = 0;
        while let Some(got) =
            channel.basic_get(queue.into(), BasicGetOptions { no_ack: false }).await.unwrap()
        {
            let headers = got.delivery.properties.headers().clone().unwrap_or_default();
            if let Some(AMQPValue::LongLongInt(count)) = headers.inner().get("x-delivery-count") {
                highest = highest.max(*count);
            }
        }
        channel.close(200, "".into()).await.unwrap();
        highest
    }

    /// Waits until the dead-letter queue holds that many messages, and takes them.
    pub(crate) async fn dead_letters(&self, count: u32) -> Vec<DeadLetter> {
        wait_until(SOON, &format!("{count} dead letters"), async || {
            self.ready(".dead").await >= count
        })
        .await;
        let queue = format!("{}.dead", self.queue);
        let mut letters = Vec::new();
        while let Some(got) = self
            .channel
            .basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true })
            .await
            .unwrap()
        {
            let headers = got.delivery.properties.headers().clone().unwrap_or_default();
            letters.push(DeadLetter { body: got.delivery.data, headers });
        }
        letters
    }

    /// Waits until every queue except the dead-letter queue is empty and no worker has anything in
    /// flight.
    pub(crate) async fn wait_settled(&self, workers: &[&Worker]) {
        wait_until(SOON, "the queues are empty", async || self.is_settled(workers).await).await;
    }

    /// Returns whether every queue except the dead-letter queue is empty and no worker has anything
    /// in flight.
    pub(crate) async fn is_settled(&self, workers: &[&Worker]) -> bool {
        for suffix in ["", ".slow", ".retry.50ms", ".retry.100ms", ".retry.200ms", ".retry.1s"] {
            if self.ready(suffix).await > 0 {
                return false;
            }
        }
        for worker in workers {
            if worker.metrics().await.sum("unstale_in_flight", &[]) > 0.0 {
                return false;
            }
        }
        true
    }
}

async fn confirming(client: &Connection) -> Channel {
    let channel = client.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    channel
}

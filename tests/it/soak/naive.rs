//! Control: a worker as a developer writes it in an afternoon.
//!
//! It acknowledges an event, then applies it, one event at a time. After an error of Redis it takes
//! the next event.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio_util::task::AbortOnDropHandle;

use super::application::{Event, Thing};
use crate::end_to_end::stage::Stage;
use crate::support;

/// Naive worker. Dropping it kills it between any two steps.
#[derive(Debug)]
pub(super) struct Naive {
    did: Arc<Did>,
    _task: AbortOnDropHandle<()>,
}

impl Naive {
    pub(super) fn start(amqp_url: String, redis_url: String, queue: String) -> Self {
        let did = Arc::new(Did::default());
        let task = tokio::spawn(run(amqp_url, redis_url, queue, Arc::clone(&did)));
        Self { did, _task: AbortOnDropHandle::new(task) }
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.did.busy.load(Ordering::Relaxed)
    }

    /// Returns the number of events that it has taken.
    pub(super) fn taken(&self) -> u64 {
        self.did.taken.load(Ordering::Relaxed)
    }
}

/// Progress that is visible from outside.
#[derive(Debug, Default)]
struct Did {
    busy: AtomicBool,
    taken: AtomicU64,
}

/// Declares the control's queue: durable and replicated as ours, and bound to every event.
pub(super) async fn declare(stage: &Stage, queue: &str) {
    let channel = stage.new_channel().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, arguments).await.unwrap();
    let (exchange, options) = (stage.exchange.as_str().into(), QueueBindOptions::default());
    channel
        .queue_bind(queue.into(), exchange, "#".into(), options, FieldTable::default())
        .await
        .unwrap();
}

async fn run(amqp_url: String, redis_url: String, queue: String, did: Arc<Did>) {
    loop {
        // Even a naive worker connects again.
        let _ended = serve(&amqp_url, &redis_url, &queue, &did).await;
        did.busy.store(false, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn serve(
    amqp_url: &str,
    redis_url: &str,
    queue: &str,
    did: &Did,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let url = format!("{amqp_url}?heartbeat=5");
    let connection = support::rabbitmq::connect(&url).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(100, BasicQosOptions { global: false }).await?;
    let mut consumer = channel
        .basic_consume(
            queue.into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let client = redis::Client::open(redis_url)?;
    let mut redis = None;
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery?;
        did.busy.store(true, Ordering::Relaxed);
        did.taken.fetch_add(1, Ordering::Relaxed);
        delivery.acker.ack(BasicAckOptions::default()).await?;
        if redis.is_none() {
            redis = client.get_multiplexed_async_connection().await.ok();
        }
        let done = match &mut redis {
            Some(connection) => apply(connection, Event::read(&delivery.data)).await.is_ok(),
            None => false,
        };
        if !done {
            redis = None;
        }
        did.busy.store(false, Ordering::Relaxed);
    }
    Ok(())
}

async fn apply(redis: &mut MultiplexedConnection, event: Event) -> redis::RedisResult<()> {
    let id = event.id;
    let mut pipe = redis::pipe();
    match event.thing {
        Thing::Item => pipe.del(format!("item:{id}")),
        Thing::Group => pipe.del(members(redis, format!("cache_tag:group:{id}")).await?),
        Thing::Crowd => pipe.del(members(redis, format!("cache_tag:crowd:{id}")).await?),
        // Readers treat an absent value as 1.
        Thing::Counter => pipe.set_nx(format!("counter:{id}"), 1).incr(format!("counter:{id}"), 1),
        Thing::Price => pipe.set(format!("price:{id}"), event.rev),
        Thing::Page => pipe.del(format!("page:{id}")),
    };
    pipe.del(format!("pending:{}", event.n));
    pipe.query_async(redis).await
}

/// Returns the members of a tag, and its set.
async fn members(
    redis: &mut MultiplexedConnection,
    set: String,
) -> redis::RedisResult<Vec<String>> {
    let mut keys: Vec<String> = redis.smembers(&set).await?;
    keys.push(set);
    Ok(keys)
}

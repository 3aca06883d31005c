//! Undeliverable messages: the connection ends whenever the broker delivers one.
//!
//! RabbitMQ 4 accepts messages over AMQP 1.0 that it cannot convert for an AMQP 0-9-1 consumer. It
//! then ends the consumer's connection (`INTERNAL_ERROR`), and delivers the message again to the
//! next consumer. Each delivery counts towards the queue's delivery limit. Messages that `lapin`
//! cannot parse have the same effect.

use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use lapin::options::{BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::sync::watch;
use tokio::time::timeout;

use super::convert::short;
use super::failure::{BrokerError, SessionEnded};
use super::link::{EndSignal, Link, answered};
use super::names::Names;
use crate::config::AmqpConfig;

/// Maximum time after the end of a connection until its cause is known.
const CAUSE_WITHIN: Duration = Duration::from_millis(200);

/// Look at the heads of the main and the slow queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heads {
    /// Queue whose first message cannot be delivered; `None` if both can be consumed.
    pub undeliverable_in: Option<String>,
    /// Number of dead letters before that; `None` if the broker does not report it.
    pub dead_letters: Option<u32>,
}

impl Heads {
    /// Asks the broker for the first message of each queue, without a consumer, and requeues it.
    /// With `only`, it asks for that of one queue.
    ///
    /// Each counts as a delivery of that message alone: up to RabbitMQ 4.2, also the requeued one.
    /// So a caller that looks again names the queue. This has a connection of its own, which costs
    /// less than a session.
    ///
    /// # Errors
    /// [`BrokerError`]
    pub async fn look(config: &AmqpConfig, only: Option<&str>) -> Result<Self, BrokerError> {
        let names = Names::new(&config.queue, &config.retry_delays);
        let signal = EndSignal::new();
        let link = connect(config, &signal).await?;
        let mut heads =
            Self { undeliverable_in: None, dead_letters: count(&link, &names.dead).await };
        let queues = [&names.main, &names.slow];
        for queue in queues.into_iter().filter(|queue| only.is_none_or(|only| only == *queue)) {
            let channel = link.channel().await?;
            match get(&channel, queue, false, &signal).await {
                Ok(None) => {}
                Ok(Some(number)) => {
                    let options = BasicNackOptions { requeue: true, multiple: false };
                    answered(channel.basic_nack(number, options)).await?;
                }
                Err(ended) if ended.by_undeliverable_message() => {
                    heads.undeliverable_in = Some(queue.clone());
                    return Ok(heads);
                }
                Err(ended) => return Err(ended.into()),
            }
        }
        // The broker reads the requeue before the connection ends.
        link.close().await;
        Ok(heads)
    }
}

/// Connects without a limit to what is read ahead: messages come one at a time.
pub(super) async fn connect(config: &AmqpConfig, signal: &EndSignal) -> Result<Link, BrokerError> {
    let blocked = Arc::new(watch::Sender::new(false));
    Link::connect(config, " undeliverable", signal, &blocked).await
}

/// Takes the first message of a queue without a consumer. Returns its delivery tag; `None` if the
/// queue is empty. With `no_ack`, the broker removes the message before it delivers it.
///
/// # Errors
/// When the connection ends: [`SessionEnded::by_undeliverable_message`] says whether the message
/// ended it.
pub(super) async fn get(
    channel: &Channel,
    queue: &str,
    no_ack: bool,
    signal: &EndSignal,
) -> Result<Option<u64>, SessionEnded> {
    let queue = short(queue).ok_or_else(|| SessionEnded::new("the queue's name is too long"))?;
    match answered(channel.basic_get(queue, BasicGetOptions { no_ack })).await {
        Ok(got) => Ok(got.map(|message| message.delivery.delivery_tag)),
        Err(ended) if ended.by_undeliverable_message() => Err(ended),
        Err(ended) => Err(cause_of(ended, signal.subscribe()).await),
    }
}

/// Returns the cause of the end of a connection. A channel may report only a consequence of it.
pub(super) async fn cause_of(
    ended: SessionEnded,
    mut causes: watch::Receiver<Option<SessionEnded>>,
) -> SessionEnded {
    let is_known = |cause: &Option<SessionEnded>| {
        cause.as_ref().is_some_and(SessionEnded::by_undeliverable_message)
    };
    match timeout(CAUSE_WITHIN, causes.wait_for(is_known)).await {
        Ok(Ok(cause)) => cause.clone().unwrap_or(ended),
        _ => ended,
    }
}

/// Returns the number of ready messages; `None` if the broker does not report it.
pub(super) async fn count(link: &Link, queue: &str) -> Option<u32> {
    let channel = link.channel().await.ok()?;
    let options =
        QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    let declared =
        answered(channel.queue_declare(short(queue)?, options, FieldTable::default())).await;
    Some(declared.ok()?.message_count())
}

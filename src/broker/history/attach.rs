//! Consumers of the history, each on a channel of its own, and the broker's refusals of them.

use futures_util::{FutureExt, StreamExt};
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tokio::time::timeout;

use super::super::consume::consume;
use super::super::convert::{long, short};
use super::super::failure::{BrokerError, HistoryProblem};
use super::super::link::{ANSWER_TIMEOUT, Link, answered, no_answer};
use super::super::refusal::{AmqpError, Refusal};
use super::super::reply_text::{Precondition, precondition_failed};
use crate::causes::Cause;

/// Consumer argument that sets where to attach. Each delivery has a header of the same name with
/// its offset.
pub(super) const STREAM_OFFSET: &str = "x-stream-offset";

/// Consumer and its channel.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) channel: Channel,
    pub(super) consumer: Consumer,
}

/// Outcome of attaching at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attached {
    /// A message came.
    At(u64),
    /// Nothing is there yet.
    Nothing,
    /// The broker failed.
    Unreadable,
}

/// Begins to consume, on a channel of its own.
///
/// With another consumer of the stream on the same channel, RabbitMQ 3.10 may send messages before
/// it announces the new consumer. Those messages are lost.
pub(super) async fn attach(
    link: &Link,
    queue: &str,
    prefetch: u16,
    offset: AMQPValue,
) -> Result<Reading, BrokerError> {
    let Some(name) = short(queue) else {
        let cause = format!("UNSTALE_QUEUE makes a name that is too long: {queue}");
        return Err(BrokerError::Settings(cause.into()));
    };
    let channel = link.channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert(STREAM_OFFSET.into(), offset);
    let started = timeout(ANSWER_TIMEOUT, consume(&channel, 1, name, prefetch, arguments)).await;
    let consumer = started.map_err(|_| silent())?.map_err(|error| refused(queue, error))?;
    Ok(Reading { channel, consumer })
}

/// Returns the offset of the next delivery, if one has arrived.
pub(super) fn given(consumer: &mut Consumer, queue: &str) -> Result<Option<u64>, BrokerError> {
    match consumer.next().now_or_never() {
        None => Ok(None),
        Some(Some(Ok(delivery))) => {
            let offset = delivery
                .properties
                .headers()
                .as_ref()
                .and_then(|headers| headers.inner().get(STREAM_OFFSET))
                .and_then(offset);
            offset.map(Some).ok_or_else(|| not_a_stream(queue))
        }
        Some(Some(Err(error))) => Err(refused(queue, error)),
        Some(None) => Err(BrokerError::Unreachable(cancelled(queue).into())),
    }
}

/// Refuses a node without a replica of the stream, which cannot be read there.
///
/// The reader finds all other problems.
pub(super) async fn has_replica(link: &Link, queue: &str) -> Result<(), BrokerError> {
    let Some(name) = short(queue) else { return Ok(()) };
    let channel = link.channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert(STREAM_OFFSET.into(), long("next"));
    let started = timeout(ANSWER_TIMEOUT, consume(&channel, 1, name, 1, arguments)).await;
    match started.map_err(|_| silent())? {
        // A failed close changes nothing.
        Ok(_) => drop(answered(channel.close(200, "bye".into())).await),
        Err(error) => match Refusal::from(error) {
            Refusal::Differs(error)
                if precondition_failed(error.text()) == Precondition::NoReplica =>
            {
                return Err(BrokerError::Unreachable(Cause::new(NoReplica(error))));
            }
            _ => {}
        },
    }
    Ok(())
}

/// Refusal of a node without a replica.
#[derive(Debug, thiserror::Error)]
#[error(
    "the node cannot serve the history: name a node that has a replica in UNSTALE_AMQP_URL, or give this one a replica (rabbitmq-streams add_replica)"
)]
struct NoReplica(#[source] AmqpError);

/// Returns whether the broker counts messages in the stream; false if the user may not look.
///
/// The broker counts them some seconds late.
pub(super) async fn counts_any(link: &Link, queue: &str) -> Result<bool, BrokerError> {
    let Some(name) = short(queue) else { return Ok(false) };
    let channel = link.channel().await?;
    let options =
        QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    let asked =
        timeout(ANSWER_TIMEOUT, channel.queue_declare(name, options, FieldTable::default())).await;
    match asked.map_err(|_| silent())? {
        Ok(declared) => {
            // A failed close changes nothing.
            drop(answered(channel.close(200, "bye".into())).await);
            Ok(declared.message_count() > 0)
        }
        Err(error) => match Refusal::from(error) {
            Refusal::Forbidden(_) if link.is_connected() => Ok(false),
            refusal => Err(explained(queue, refusal)),
        },
    }
}

pub(super) fn refused(queue: &str, error: lapin::Error) -> BrokerError {
    explained(queue, Refusal::from(error))
}

fn explained(queue: &str, refusal: Refusal) -> BrokerError {
    let problem = |problem: HistoryProblem, error: AmqpError| BrokerError::History {
        problem,
        queue: queue.to_owned(),
        cause: error.into(),
    };
    match refusal {
        Refusal::Missing(error) => problem(HistoryProblem::Missing, error),
        Refusal::Forbidden(error) => problem(HistoryProblem::Forbidden, error),
        Refusal::Differs(error)
            if precondition_failed(error.text()) == Precondition::NotAStream =>
        {
            not_a_stream(queue)
        }
        Refusal::Passing(error) if error.is_unserved() => problem(HistoryProblem::Broken, error),
        // In a cluster: the node has no replica, or not yet. Another node of the list may have one.
        Refusal::Differs(error)
        | Refusal::Locked(error)
        | Refusal::AtLimit(error)
        | Refusal::Unsupported(error)
        | Refusal::Passing(error) => BrokerError::Unreachable(error.into()),
    }
}

pub(super) fn not_a_stream(queue: &str) -> BrokerError {
    let cause = "a queue of another type has that name".into();
    BrokerError::History { problem: HistoryProblem::NotAStream, queue: queue.to_owned(), cause }
}

pub(super) fn cancelled(queue: &str) -> String {
    format!("the broker cancelled the consumer of `{queue}`: the stream was deleted or has moved")
}

fn silent() -> BrokerError {
    BrokerError::Unreachable(no_answer(ANSWER_TIMEOUT))
}

pub(super) fn long_long(offset: u64) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX))
}

pub(super) fn offset(value: &AMQPValue) -> Option<u64> {
    match value {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        AMQPValue::LongInt(offset) => u64::try_from(*offset).ok(),
        AMQPValue::LongUInt(offset) => Some(u64::from(*offset)),
        _ => None,
    }
}

//! The mark of a queue or stream: an exchange that the broker deletes together with the queue.
//!
//! AMQP does not show that a queue was deleted and declared again. But when the broker deletes a
//! queue, it removes the queue's bindings. When it removes the last binding of an auto-delete
//! exchange, it deletes the exchange. The mark is such an exchange. It is durable, has the name of
//! the queue, and only the queue is bound to it. No client can publish to it.

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::types::{FieldTable, ShortString};
use tokio::time::timeout;

use super::convert::short;
use super::failure::BrokerError;
use super::link::{ANSWER_TIMEOUT, Link, no_answer};
use super::refusal::Refusal;

/// Returns whether the mark exists. Returns `None` if the broker refuses to show it.
///
/// # Errors
/// When the connection is over.
pub(super) async fn exists(link: &Link, queue: &str) -> Result<Option<bool>, BrokerError> {
    let Some(name) = short(queue) else { return Ok(None) };
    Ok(match declare(link, name, true).await? {
        Ok(()) => Some(true),
        Err(Refusal::Missing(_)) => Some(false),
        Err(_) => None,
    })
}

/// Declares the mark and binds it to the queue. Returns false if the broker refuses, or if another
/// exchange has that name.
///
/// # Errors
/// When the connection is over.
pub(super) async fn create(link: &Link, queue: &str) -> Result<bool, BrokerError> {
    let Some(name) = short(queue) else { return Ok(false) };
    Ok(declare(link, name, false).await?.is_ok() && bind(link, queue).await?)
}

/// Binds the mark to the queue again: a worker may have died between declaring and binding it.
/// Returns false if the mark or the queue is missing, or the broker refuses.
///
/// # Errors
/// When the connection is over.
pub(super) async fn bind(link: &Link, queue: &str) -> Result<bool, BrokerError> {
    let Some(name) = short(queue) else { return Ok(false) };
    let channel = link.channel().await?;
    let options = QueueBindOptions::default();
    let bound = channel.queue_bind(name.clone(), name, "".into(), options, FieldTable::default());
    let bound = answer(bound).await?.is_ok();
    if bound {
        let _ = answer(channel.close(200, "bye".into())).await?;
    }
    Ok(bound)
}

async fn declare(
    link: &Link,
    name: ShortString,
    passive: bool,
) -> Result<Result<(), Refusal>, BrokerError> {
    let channel = link.channel().await?;
    let options = ExchangeDeclareOptions {
        passive,
        durable: true,
        auto_delete: true,
        internal: true,
        ..ExchangeDeclareOptions::default()
    };
    let declared =
        channel.exchange_declare(name, ExchangeKind::Fanout, options, FieldTable::default());
    let declared = answer(declared).await?;
    if declared.is_ok() {
        // A refusal closes the channel.
        let _ = answer(channel.close(200, "bye".into())).await?;
    }
    Ok(declared)
}

async fn answer<T>(
    asked: impl Future<Output = lapin::Result<T>>,
) -> Result<Result<T, Refusal>, BrokerError> {
    let answer = timeout(ANSWER_TIMEOUT, asked)
        .await
        .map_err(|_| BrokerError::Unreachable(no_answer(ANSWER_TIMEOUT)))?;
    match answer.map_err(Refusal::from) {
        Err(Refusal::Passing(error)) => Err(BrokerError::Unreachable(error.into())),
        answer => Ok(answer),
    }
}

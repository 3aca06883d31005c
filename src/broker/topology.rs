//! Objects of the contract: found, declared and bound, or reported as missing.
//!
//! This module never deletes or changes an object.

mod objects;

use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use super::convert::short;
use super::deletion::{DeletionSeen, Depth};
use super::failure::BrokerError;
use super::link::Link;
use super::names::Names;
use super::queue_specs::{Kind, history_spec, queue_specs};
use super::refusal::Refusal;
use crate::config::{AmqpConfig, DeclarePolicy, HistoryConfig};
use objects::Objects;

pub(super) use objects::{Declared, Ensured};

/// Finds or declares the exchange and every queue except the history, and binds the main queue to
/// `routing_keys`.
///
/// Notes in `seen`, also after an error, each deleted object that it declared again. `is_first`:
/// the first session found no history, so a missing object may never have existed.
///
/// # Errors
/// [`BrokerError::Topology`] with all problems; [`BrokerError::Unreachable`].
pub(super) async fn ensure(
    link: &Link,
    config: &AmqpConfig,
    names: &Names,
    routing_keys: &[String],
    depth: Depth,
    (seen, is_first): (&DeletionSeen, bool),
) -> Result<Ensured, BrokerError> {
    let mut broker = Objects::new(link, config.declare, depth, seen);
    broker.is_first = is_first;
    broker.exchange(&config.exchange, routing_keys).await?;
    for spec in queue_specs(names) {
        let (is_step, before) = (spec.kind == Kind::Retry, broker.problems.len());
        broker.queue(spec).await?;
        if is_step {
            broker.ensured.of_steps.extend(broker.problems.drain(before..));
        }
    }
    // A missing queue cannot be bound. Reporting both would repeat the problem.
    if broker.problems.is_empty() {
        broker.bind(&names.main, &config.exchange, routing_keys).await?;
    }
    broker.ensured()
}

/// Finds or declares the history, and binds it to `routing_keys`.
///
/// A history that is broken at the broker may end the connection.
///
/// # Errors
/// As for [`ensure`].
pub(super) async fn ensure_history(
    link: &Link,
    config: &AmqpConfig,
    (names, history): (&Names, HistoryConfig),
    routing_keys: &[String],
    (depth, seen): (Depth, &DeletionSeen),
    answers_within: Duration,
) -> Result<Ensured, BrokerError> {
    let mut broker = Objects::new(link, config.declare, depth, seen);
    broker.answers_within = answers_within;
    broker.queue(history_spec(names, history)).await?;
    if broker.problems.is_empty() {
        broker.bind(&names.history, &config.exchange, routing_keys).await?;
    }
    broker.ensured()
}

/// Returns whether no queue has that name.
///
/// # Errors
/// [`BrokerError::Unreachable`]
pub(super) async fn is_missing(link: &Link, queue: &str) -> Result<bool, BrokerError> {
    let Some(name) = short(queue) else { return Ok(true) };
    let seen = DeletionSeen::default();
    let mut broker = Objects::new(link, DeclarePolicy::None, Depth::Existence, &seen);
    let options =
        QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    let found = broker
        .ask(async |channel| {
            channel.queue_declare(name.clone(), options, FieldTable::default()).await.map(drop)
        })
        .await?;
    Ok(matches!(found, Err(Refusal::Missing(_))))
}

/// Binds a queue to more routing keys.
///
/// # Errors
/// As for [`ensure`].
pub(super) async fn bind(
    link: &Link,
    config: &AmqpConfig,
    queue: &str,
    routing_keys: &[String],
) -> Result<(), BrokerError> {
    let seen = DeletionSeen::default();
    let mut broker = Objects::new(link, config.declare, Depth::Existence, &seen);
    broker.bind(queue, &config.exchange, routing_keys).await?;
    broker.ensured().map(drop)
}

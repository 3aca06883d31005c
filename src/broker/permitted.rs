//! Whether the user may do what a worker does later: asked before anything is consumed or healed.
//!
//! `UNSTALE_DECLARE=none` declares nothing, so nothing else would refuse a user before the first
//! retry message, with its event in flight.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use tokio::sync::watch;
use tokio::time::timeout;

use super::consume::consume;
use super::convert::{long, short};
use super::failure::{BrokerError, GRANT, Refusal, TopologyProblem};
use super::link::{EndSignal, Link};
use super::names::Names;
use crate::config::AmqpConfig;

/// Maximum time for one answer. A broker that says nothing, as in a memory alarm, has refused
/// nothing: the worker goes on.
const PATIENCE: Duration = Duration::from_secs(2);

/// Finds out whether the user may publish to our queues and consume the main and the slow queue.
/// Publishes and consumes nothing.
///
/// It uses a connection of its own: in an alarm RabbitMQ reads nothing more from a connection that
/// has published, and the session's must open their channels then.
///
/// # Errors
/// [`BrokerError::Topology`] with what is refused; [`BrokerError::Unreachable`].
pub(super) async fn check(config: &AmqpConfig, names: &Names) -> Result<(), BrokerError> {
    let blocked = Arc::new(watch::Sender::new(false));
    let link = Link::connect(config, " permissions", &EndSignal::new(), &blocked).await?;
    let mut problems = Vec::new();
    for queue in [&names.main, &names.slow] {
        problems.extend(refused_read(&link, queue).await?);
    }
    // Last, since nothing may follow it in an alarm.
    if let Some(words) = refused_publish(&link, names).await? {
        problems.push(problem("the default exchange".to_owned(), words));
    }
    if problems.is_empty() { Ok(()) } else { Err(BrokerError::Topology(problems)) }
}

fn problem(object: String, what: String) -> TopologyProblem {
    TopologyProblem { object, what, advice: GRANT.to_owned() }
}

/// Publishes a message that no queue can take: the broker checks the permission before it looks for
/// a queue.
async fn refused_publish(link: &Link, names: &Names) -> Result<Option<String>, BrokerError> {
    let Some(nowhere) = short(&format!("{}.~nowhere", names.main)) else { return Ok(None) };
    let channel = link.channel().await?;
    let published = async {
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        channel
            .basic_publish("".into(), nowhere, options, b"", BasicProperties::default())
            .await?
            .await
            .map(drop)
    };
    Ok(timeout(PATIENCE, published).await.ok().and_then(forbidden))
}

/// Returns the problem where the user may not consume a queue. Nothing is consumed: it asks for a
/// consumer that the broker must refuse, and the broker checks the permission before the arguments.
pub(super) async fn refused_read(
    link: &Link,
    name: &str,
) -> Result<Option<TopologyProblem>, BrokerError> {
    let Some(queue) = short(name) else { return Ok(None) };
    let channel: Channel = link.channel().await?;
    let mut impossible = FieldTable::default();
    impossible.insert("x-priority".into(), long("a permission check: no number"));
    let answer = timeout(PATIENCE, consume(&channel, 1, queue, 1, impossible)).await;
    Ok(answer
        .ok()
        .and_then(|answer| forbidden(answer.map(drop)))
        .map(|words| problem(format!("queue `{name}`"), words)))
}

/// Any other refusal says nothing of permissions.
fn forbidden(answer: lapin::Result<()>) -> Option<String> {
    match answer.as_ref().map_err(Refusal::from) {
        Err(Refusal::Forbidden(words)) => Some(words),
        _ => None,
    }
}

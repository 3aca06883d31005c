//! Permission check for all that a worker does later, before it consumes or heals anything.
//!
//! `UNSTALE_DECLARE=none` declares nothing. Without this check, a missing permission would show
//! only at the first retry message, with its event in flight.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use tokio::sync::watch;
use tokio::time::timeout;

use super::consume::consume;
use super::convert::{long, short};
use super::failure::{BrokerError, ContractObject, GRANT, TopologyProblem};
use super::link::{EndSignal, Link};
use super::names::Names;
use super::refusal::{AmqpError, Refusal};
use crate::config::AmqpConfig;

/// Maximum time for one answer.
///
/// A broker that does not answer, as in a memory alarm, has refused nothing, so the worker goes on.
const PATIENCE: Duration = Duration::from_secs(2);

/// Checks that the user may publish to our queues and consume the main and the slow queue.
///
/// The check publishes and consumes nothing. It uses a connection of its own, because in an alarm
/// RabbitMQ reads nothing more from a connection that has published. The session must still open
/// its channels then.
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
    // Last: in an alarm, RabbitMQ reads nothing that follows a publish.
    if let Some(error) = refused_publish(&link, names).await? {
        problems.push(problem(ContractObject::Exchange(String::new()), error));
    }
    if problems.is_empty() { Ok(()) } else { Err(BrokerError::Topology(problems)) }
}

fn problem(object: ContractObject, error: AmqpError) -> TopologyProblem {
    TopologyProblem { object, cause: error.into(), advice: GRANT.into() }
}

/// Publishes a message that no queue can take.
///
/// The broker checks the permission before it looks for a queue.
async fn refused_publish(link: &Link, names: &Names) -> Result<Option<AmqpError>, BrokerError> {
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

/// Returns the problem if the user may not consume a queue.
///
/// This consumes nothing: it asks for a consumer that the broker must refuse. The broker checks the
/// permission before the arguments.
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
        .map(|error| problem(ContractObject::Queue(name.to_owned()), error)))
}

/// Returns the broker's refusal if a permission is missing.
///
/// Any other refusal does not concern permissions.
fn forbidden(answer: lapin::Result<()>) -> Option<AmqpError> {
    match answer.map_err(Refusal::from) {
        Err(Refusal::Forbidden(error)) => Some(error),
        _ => None,
    }
}

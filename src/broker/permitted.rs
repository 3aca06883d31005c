//! Whether the user may do what a worker does later: asked before anything is consumed or healed.
//!
//! `UNSTALE_DECLARE=none` declares nothing, so nothing else would refuse a user before the first retry
//! message, with its event in flight.

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use tokio::sync::watch;
use tokio::time::timeout;

use super::consume::consume;
use super::convert::{long, short};
use super::failure::{BrokerError, Refusal, TopologyProblem};
use super::link::{ANSWER_TIMEOUT, Link};
use super::names::Names;

const ADVICE: &str = "grant the permission: docs/OPERATIONS.md lists them";

/// Finds out whether the user may publish to our queues and consume the main and the slow queue. Publishes and consumes nothing.
///
/// # Errors
/// [`BrokerError::Topology`] with what is refused; [`BrokerError::Unreachable`].
pub(super) async fn check(consume: &Link, publish: &Link, blocked: &watch::Receiver<bool>, names: &Names) -> Result<(), BrokerError> {
    let mut problems = Vec::new();
    if let Some(words) = refused_publish(publish, blocked.clone(), names).await? {
        problems.push(problem("the default exchange".to_owned(), words));
    }
    for queue in [&names.main, &names.slow] {
        if let Some(words) = refused_read(consume, queue).await? {
            problems.push(problem(format!("queue `{queue}`"), words));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(BrokerError::Topology(problems)) }
}

fn problem(object: String, what: String) -> TopologyProblem {
    TopologyProblem { object, what, advice: ADVICE.to_owned() }
}

/// Publishes a message that no queue can take: the broker checks the permission before it looks for a queue.
async fn refused_publish(link: &Link, mut blocked: watch::Receiver<bool>, names: &Names) -> Result<Option<String>, BrokerError> {
    let Some(nowhere) = short(&format!("{}.~nowhere", names.main)) else { return Ok(None) };
    let channel = link.channel().await?;
    let published = async {
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        channel.basic_publish("".into(), nowhere, options, b"", BasicProperties::default()).await?.await.map(drop)
    };
    let answer = tokio::select! {
        answer = timeout(ANSWER_TIMEOUT, published) => answer,
        // An alarm of the broker: it takes nothing now, and says nothing either.
        Ok(_) = blocked.wait_for(|blocked| *blocked) => return Ok(None),
    };
    forbidden(&channel, answer).await
}

/// Asks for a consumer that the broker must refuse: it checks the permission before the arguments.
async fn refused_read(link: &Link, queue: &str) -> Result<Option<String>, BrokerError> {
    let Some(queue) = short(queue) else { return Ok(None) };
    let channel = link.channel().await?;
    let mut impossible = FieldTable::default();
    impossible.insert("x-priority".into(), long("a permission check: no number"));
    let answer = timeout(ANSWER_TIMEOUT, consume(&channel, 1, queue, 1, impossible)).await;
    forbidden(&channel, answer.map(|answer| answer.map(drop))).await
}

/// Any other refusal says nothing of permissions.
async fn forbidden<E>(channel: &Channel, answer: Result<lapin::Result<()>, E>) -> Result<Option<String>, BrokerError> {
    let Ok(answer) = answer else {
        return Err(BrokerError::Unreachable(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())));
    };
    if channel.status().connected() {
        // A refusal to close is no news. Should a consumer have begun, this ends it.
        let _ = timeout(ANSWER_TIMEOUT, channel.close(200, "bye".into())).await;
    }
    match answer.as_ref().map_err(Refusal::from) {
        Err(Refusal::Forbidden(words)) => Ok(Some(words)),
        _ => Ok(None),
    }
}

//! Counts the messages of a queue, and explains a refusal.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::time::timeout;

use super::super::convert::short;
use super::super::failure::{BrokerError, ContractObject, GRANT, SessionEnded, TopologyProblem};
use super::super::link::{ANSWER_TIMEOUT, Link, answered, no_answer};
use super::super::refusal::{AmqpError, Refusal};
use crate::causes::Cause;

pub(super) async fn ready(link: &Link, queue: &str) -> Result<u32, SessionEnded> {
    count(link, queue).await.map_err(|error| SessionEnded::new(Cause::new(error)))
}

/// Returns the number of messages in a queue; a missing queue is a named refusal.
pub(super) async fn count(link: &Link, queue: &str) -> Result<u32, BrokerError> {
    count_or_refusal(link, queue).await?.map_err(|refusal| explained(queue, refusal))
}

pub(super) async fn count_or_refusal(
    link: &Link,
    queue: &str,
) -> Result<Result<u32, Refusal>, BrokerError> {
    let name = short(queue).ok_or_else(|| {
        BrokerError::Settings(
            format!("UNSTALE_QUEUE makes a name that is too long: {queue}").into(),
        )
    })?;
    let channel = link.channel().await?;
    let options =
        QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    let asked =
        timeout(ANSWER_TIMEOUT, channel.queue_declare(name, options, FieldTable::default())).await;
    let declared = asked.map_err(|_| BrokerError::Unreachable(no_answer(ANSWER_TIMEOUT)))?;
    match declared {
        Ok(declared) => {
            let count = declared.message_count();
            answered(channel.close(200, "bye".into())).await?;
            Ok(Ok(count))
        }
        Err(error) => Ok(Err(Refusal::from(error))),
    }
}

/// Returns the error of a refusal to show a queue.
pub(super) fn explained(queue: &str, refusal: Refusal) -> BrokerError {
    let problem = |error: AmqpError, advice: &'static str| {
        BrokerError::Topology(vec![TopologyProblem {
            object: ContractObject::Queue(queue.to_owned()),
            cause: error.into(),
            advice: advice.into(),
        }])
    };
    match refusal {
        Refusal::Missing(error) => problem(
            error,
            "workers declare it when they start: start one with `unstale run`, or look at UNSTALE_QUEUE and at the virtual host in UNSTALE_AMQP_URL",
        ),
        Refusal::Forbidden(error) => problem(error, GRANT),
        Refusal::Locked(error) => {
            problem(error, "another program declared it as exclusive: close that connection")
        }
        Refusal::Differs(error)
        | Refusal::AtLimit(error)
        | Refusal::Unsupported(error)
        | Refusal::Passing(error) => BrokerError::Unreachable(error.into()),
    }
}

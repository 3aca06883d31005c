//! State of the queues, read without any change: AMQP alone, no management plugin.
//!
//! This module has a connection of its own; `look` uses that of a session.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::sync::watch;
use tokio::time::timeout;

use super::convert::short;
use super::failure::BrokerError;
use super::link::{ANSWER_TIMEOUT, EndSignal, Link, answered, no_answer};
use super::names::Names;
use super::queue_mark;
use super::refusal::{AmqpError, Refusal};
use crate::config::AmqpConfig;

/// State of a queue.
#[derive(Debug, Clone)]
pub enum QueueState {
    /// The queue exists.
    Stands {
        /// Messages that wait; those in flight are not included.
        ready: u32,
        /// Number of consumers.
        consumers: u32,
    },
    /// No queue has that name.
    Missing,
    /// The broker does not report the state, for this reason.
    Unknown(AmqpError),
}

/// Looks at queues, on a connection of its own.
#[derive(Debug)]
pub struct Inspector {
    link: Link,
    names: Names,
    node: String,
}

impl Inspector {
    /// Connects to the node that answers first, so that a node without an answer does not hide the
    /// others.
    ///
    /// # Errors
    /// [`BrokerError`]: one failure of a node, final ones first.
    pub async fn connect(config: &AmqpConfig) -> Result<Self, BrokerError> {
        let mut dialled: FuturesUnordered<_> = config
            .urls
            .iter()
            .map(|url| async move {
                let one = AmqpConfig { urls: vec![url.clone()], ..config.clone() };
                let blocked = Arc::new(watch::Sender::new(false));
                let link = Link::connect(&one, " status", &EndSignal::new(), &blocked).await?;
                Ok(Self {
                    link,
                    names: Names::new(&one.queue, &one.retry_delays),
                    node: url.to_string(),
                })
            })
            .collect();
        let mut failures: Vec<BrokerError> = Vec::new();
        while let Some(outcome) = dialled.next().await {
            match outcome {
                Ok(inspector) => return Ok(inspector),
                Err(failure) => failures.push(failure),
            }
        }
        // A refusal explains more than a node that is away.
        let worst = failures.iter().position(BrokerError::is_final).unwrap_or(0);
        Err(if failures.is_empty() {
            BrokerError::Unreachable("no node is named".into())
        } else {
            failures.swap_remove(worst)
        })
    }

    /// Returns the broker's cluster name and virtual host; `None` if the broker does not send the
    /// name.
    pub fn broker(&self) -> Option<String> {
        self.link.broker()
    }

    /// Returns the names of the queues.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Returns the URL of the node that answered, without its password.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Returns the state of a queue.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn queue(&self, name: &str) -> Result<QueueState, BrokerError> {
        let Some(name) = short(name) else { return Ok(QueueState::Missing) };
        let channel = self.link.channel().await?;
        let options =
            QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let asked =
            timeout(ANSWER_TIMEOUT, channel.queue_declare(name, options, FieldTable::default()))
                .await;
        match asked.map_err(|_| BrokerError::Unreachable(no_answer(ANSWER_TIMEOUT)))? {
            Ok(declared) => {
                let state = QueueState::Stands {
                    ready: declared.message_count(),
                    consumers: declared.consumer_count(),
                };
                answered(channel.close(200, "bye".into())).await?;
                Ok(state)
            }
            Err(error) => match Refusal::from(error) {
                Refusal::Missing(_) => Ok(QueueState::Missing),
                // This includes a queue whose node is down, while the connection is open.
                refusal if self.link.is_connected() => Ok(QueueState::Unknown(refusal.into())),
                refusal => Err(BrokerError::Unreachable(AmqpError::from(refusal).into())),
            },
        }
    }

    /// Returns whether the mark of the history exists, which the broker deletes with the history;
    /// `None` if the broker does not show it.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn history_mark_exists(&self) -> Result<Option<bool>, BrokerError> {
        queue_mark::exists(&self.link, &self.names.history).await
    }

    /// Closes the connection cleanly.
    pub async fn close(self) {
        self.link.close().await;
    }
}

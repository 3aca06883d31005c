//! How the queues stand, asked without changing anything: AMQP alone, no management plugin.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::sync::watch;
use tokio::time::timeout;

use super::convert::short;
use super::failure::{BrokerError, Refusal};
use super::link::{ANSWER_TIMEOUT, EndSignal, Link, answered};
use super::names::Names;
use crate::config::AmqpConfig;

/// How a queue stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueState {
    /// It is there.
    Stands {
        /// Messages that wait; those in a consumer's hand are not among them.
        ready: u32,
        /// How many consume it.
        consumers: u32,
    },
    /// There is none of that name.
    Missing,
    /// The broker does not tell: its words.
    Unknown(String),
}

/// Looks at queues, on a connection of its own.
#[derive(Debug)]
pub struct Inspector {
    link: Link,
    names: Names,
    node: String,
}

impl Inspector {
    /// Connects to whichever node answers first: one that is silent must not hide the others.
    ///
    /// # Errors
    /// [`BrokerError`], what each node came to.
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
        // A refusal says more than a node that is away.
        let worst = failures.iter().position(BrokerError::is_final).unwrap_or(0);
        Err(if failures.is_empty() {
            BrokerError::Unreachable("no node is named".into())
        } else {
            failures.swap_remove(worst)
        })
    }

    /// The broker, by its cluster's name and the virtual host; `None` where it does not tell.
    pub fn broker(&self) -> Option<String> {
        self.link.broker()
    }

    /// The names of the queues.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The URL of the node that answered, without its password.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// How a queue stands.
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
        match asked.map_err(|_| {
            BrokerError::Unreachable(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))
        })? {
            Ok(declared) => {
                let state = QueueState::Stands {
                    ready: declared.message_count(),
                    consumers: declared.consumer_count(),
                };
                answered(channel.close(200, "bye".into())).await?;
                Ok(state)
            }
            Err(error) => match Refusal::from(&error) {
                Refusal::Missing(_) => Ok(QueueState::Missing),
                // Also a queue whose node is down: the connection stands.
                Refusal::Forbidden(words)
                | Refusal::Differs(words)
                | Refusal::Unsupported(words)
                | Refusal::Passing(words)
                    if self.link.is_connected() =>
                {
                    Ok(QueueState::Unknown(words))
                }
                Refusal::Forbidden(words)
                | Refusal::Differs(words)
                | Refusal::Unsupported(words)
                | Refusal::Passing(words) => Err(BrokerError::Unreachable(words)),
            },
        }
    }

    /// Says goodbye.
    pub async fn close(self) {
        self.link.close().await;
    }
}

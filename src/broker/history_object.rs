//! The history as an object of the broker, on a connection of its own.
//!
//! Declaring or binding a broken stream ends the connection. That must not end the session.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use super::deletion::{DeletionSeen, Depth};
use super::failure::{BrokerError, TopologyProblem};
use super::link::{EndSignal, Link, no_answer};
use super::names::Names;
use super::queue_mark;
use super::topology::{self, Declared, Ensured};
use crate::causes::Explain;
use crate::config::{AmqpConfig, DeclarePolicy, HistoryConfig};

/// Maximum time for one question about the history. A session does not wait longer for a broken
/// one, which answers none.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Declares and binds the history.
#[derive(Debug)]
pub(super) struct HistoryObject {
    config: AmqpConfig,
    history: HistoryConfig,
    names: Names,
    link: Mutex<Option<Link>>,
}

/// Reason why the history cannot be used.
#[derive(Debug)]
pub(super) enum HistoryFault {
    /// The settings or the permissions do not fit. The first session ever, which declares the main
    /// queue, then refuses to begin.
    Settings(Vec<TopologyProblem>),
    /// The history is missing, and this worker does not declare it.
    Missing(Vec<TopologyProblem>),
    /// The broker cannot serve it.
    Broken(BrokerError),
}

impl HistoryFault {
    /// Returns whether the history is missing.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
    }

    /// Returns the description for the operator.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Settings(problems) | Self::Missing(problems) => {
                problems.iter().map(Explain::in_full).collect::<Vec<_>>().join("; ")
            }
            Self::Broken(error) => error.in_full(),
        }
    }
}

impl HistoryObject {
    pub(super) fn new(config: &AmqpConfig, names: &Names) -> Option<Self> {
        config.history.map(|history| Self {
            config: config.clone(),
            history,
            names: names.clone(),
            link: Mutex::new(None),
        })
    }

    /// Finds or declares the stream, and binds it.
    pub(super) async fn ensure(
        &self,
        routing_keys: &[String],
        depth: Depth,
        seen: &DeletionSeen,
    ) -> Result<Ensured, HistoryFault> {
        self.ask(routing_keys, (depth, seen)).await.map_err(|error| match error {
            BrokerError::Topology(problems)
                if problems.iter().all(TopologyProblem::is_missing_queue) =>
            {
                HistoryFault::Missing(problems)
            }
            BrokerError::Topology(problems) => HistoryFault::Settings(problems),
            other => HistoryFault::Broken(other),
        })
    }

    /// Returns whether the stream is missing. If the broker does not answer, the stream counts as
    /// present.
    pub(super) async fn is_missing(&self) -> bool {
        let looked = timeout(ANSWER_TIMEOUT, async {
            let mut kept = self.link.lock().await;
            let link = self.link(&mut kept).await?;
            let missing = topology::is_missing(&link, &self.names.history).await?;
            *kept = Some(link);
            Ok::<bool, BrokerError>(missing)
        });
        matches!(looked.await, Ok(Ok(true)))
    }

    /// Returns whether the mark exists; `None` if the broker does not show it.
    pub(super) async fn mark_exists(&self) -> Result<Option<bool>, BrokerError> {
        self.ask_mark(async |link| queue_mark::exists(link, &self.names.history).await).await
    }

    /// Binds the mark to the history again. Returns whether it is bound, as far as this worker may
    /// bind.
    pub(super) async fn bind_mark(&self) -> Result<bool, BrokerError> {
        if self.config.declare == DeclarePolicy::None {
            return Ok(true);
        }
        self.ask_mark(async |link| queue_mark::bind(link, &self.names.history).await).await
    }

    /// Declares and binds the mark. Returns false if this worker declares nothing, or the broker
    /// refuses.
    pub(super) async fn create_mark(&self) -> Result<bool, BrokerError> {
        if self.config.declare == DeclarePolicy::None {
            return Ok(false);
        }
        self.ask_mark(async |link| queue_mark::create(link, &self.names.history).await).await
    }

    async fn ask_mark<T>(
        &self,
        question: impl AsyncFnOnce(&Link) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        let mut kept = self.link.lock().await;
        let link = self.link(&mut kept).await?;
        let answer = question(&link).await?;
        *kept = Some(link);
        Ok(answer)
    }

    async fn ask(
        &self,
        routing_keys: &[String],
        looking: (Depth, &DeletionSeen),
    ) -> Result<Ensured, BrokerError> {
        let no_answer = |_| BrokerError::Unreachable(no_answer(ANSWER_TIMEOUT));
        let mut kept = timeout(ANSWER_TIMEOUT, self.link.lock()).await.map_err(no_answer)?;
        let linking = timeout(ANSWER_TIMEOUT, self.link(&mut kept)).await;
        let link = linking.map_err(no_answer)??;
        let ensured = topology::ensure_history(
            &link,
            &self.config,
            (&self.names, self.history),
            routing_keys,
            looking,
            ANSWER_TIMEOUT,
        )
        .await;
        // After a refusal the state of the connection is unknown.
        if ensured.is_ok() {
            *kept = Some(link);
        }
        ensured
    }

    async fn link(&self, kept: &mut Option<Link>) -> Result<Link, BrokerError> {
        match kept.take().filter(Link::is_connected) {
            Some(link) => Ok(link),
            None => {
                let blocked = Arc::new(watch::Sender::new(false));
                Link::connect(&self.config, " history objects", &EndSignal::new(), &blocked).await
            }
        }
    }

    pub(super) async fn close(self) {
        if let Some(link) = self.link.into_inner() {
            link.close().await;
        }
    }
}

/// Returns the names of the declared objects.
pub(super) fn in_words(declared: &[Declared]) -> impl Iterator<Item = String> {
    declared.iter().map(|declared| declared.object.to_string())
}

//! The objects of a running session: checks them, declares missing ones, and binds routing keys.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use super::super::deletion::Depth;
use super::super::failure::BrokerError;
use super::super::history_object::in_words;
use super::super::names::Names;
use super::super::{queue_mark, topology};
use super::Session;
use crate::causes::Explain;
use crate::config::DeclarePolicy;

/// Findings and actions of [`Session::mend`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mended {
    /// Objects that were missing and are declared again, such as ``queue `unstale.dead` ``.
    pub declared: Vec<String>,
    /// Objects that are missing or differ, and that the session could not fix.
    pub problems: Vec<String>,
    /// The history is missing, and this worker does not declare it.
    pub history_is_missing: bool,
    /// Reason why the history cannot be used.
    pub history_fault: Option<String>,
}

/// Outcome of [`Session::bind`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebound {
    /// Routing keys that are newly bound.
    pub added: Vec<String>,
    /// Routing keys bound earlier in this session that are no longer needed.
    ///
    /// They stay bound because another worker may still need them. `UNSTALE_UNKNOWN` decides about
    /// events that no rule file knows.
    pub left_bound: Vec<String>,
}

impl Session {
    /// Checks every object, declares the missing ones, and binds the queues again.
    ///
    /// The session cannot see a removed binding, so it always binds again. If events may have gone
    /// to the history alone, [`deletion_seen`](Self::deletion_seen) shows it, even after an error.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`]. The watch reports the end of a session too.
    pub async fn mend(&self) -> Result<Mended, BrokerError> {
        let keys: Vec<String> =
            self.bound.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        let mut mended = Mended::default();
        match topology::ensure(
            &self.consume,
            &self.config,
            &self.names,
            &keys,
            Depth::Existence,
            (&self.seen, false),
        )
        .await
        {
            Ok(ensured) => {
                mended.declared.extend(in_words(&ensured.declared));
                mended.problems = ensured.of_steps.iter().map(Explain::in_full).collect();
            }
            Err(BrokerError::Topology(problems)) => {
                mended.problems = problems.iter().map(Explain::in_full).collect()
            }
            Err(error) => return Err(error),
        }
        if let Some(history) = &self.history {
            match history.ensure(&keys, Depth::Existence, &self.seen).await {
                Ok(ensured) => mended.declared.extend(in_words(&ensured.declared)),
                Err(fault) => {
                    mended.history_is_missing = fault.is_missing();
                    mended.history_fault = Some(fault.words());
                }
            }
        }
        Ok(mended)
    }

    /// Returns whether the mark of the history exists, which the broker deletes with the history.
    ///
    /// `None`: there is no history, or the broker does not show it.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`]
    pub async fn history_mark_exists(&self) -> Result<Option<bool>, BrokerError> {
        match &self.history {
            Some(history) => history.mark_exists().await,
            None => Ok(None),
        }
    }

    /// Binds the mark to the history again. Returns whether it is bound, as far as this worker may
    /// bind.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`]
    pub async fn bind_history_mark(&self) -> Result<bool, BrokerError> {
        match &self.history {
            Some(history) => history.bind_mark().await,
            None => Ok(false),
        }
    }

    /// Makes the mark of the history. Returns false if this worker declares nothing, or the broker
    /// refuses.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`]
    pub async fn create_history_mark(&self) -> Result<bool, BrokerError> {
        match &self.history {
            Some(history) => history.create_mark().await,
            None => Ok(false),
        }
    }

    /// Returns the queues that have a mark: those that hold events which no consumer may miss.
    ///
    /// A mark has the name of its queue, which the exchange of the events may have too.
    pub fn marked_queues(&self) -> impl Iterator<Item = &str> {
        let Names { main, slow, retry, .. } = &self.names;
        let retry = retry.iter().map(|(_, name)| name);
        [main, slow]
            .into_iter()
            .chain(retry)
            .map(String::as_str)
            .filter(|queue| *queue != self.config.exchange)
    }

    /// Returns whether the mark of a queue exists, which the broker deletes with the queue.
    ///
    /// `None`: the broker does not show it.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`]
    pub async fn queue_mark_exists(&self, queue: &str) -> Result<Option<bool>, BrokerError> {
        queue_mark::exists(&self.consume, queue).await
    }

    /// Makes the mark of a queue, or binds it again. Returns false if this worker declares nothing,
    /// or the broker refuses.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`]
    pub async fn make_queue_mark(&self, queue: &str) -> Result<bool, BrokerError> {
        if self.config.declare == DeclarePolicy::None {
            return Ok(false);
        }
        queue_mark::create(&self.consume, queue).await
    }

    /// Binds the additional routing keys of a changed registry. Removes no binding.
    ///
    /// # Errors
    /// [`BrokerError`], as for [`open`](Self::open).
    pub async fn bind(&self, routing_keys: &[String]) -> Result<Rebound, BrokerError> {
        let wanted: BTreeSet<String> =
            routing_keys.iter().chain(&self.config.bind).cloned().collect();
        let bound = || self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let added: Vec<String> = wanted.difference(&bound()).cloned().collect();
        topology::bind(&self.consume, &self.config, &self.names.main, &added).await?;
        if let Some(history) = &self.history
            && let Err(fault) = history.ensure(&added, Depth::Existence, &self.seen).await
        {
            tracing::warn!(
                cause = fault.words(),
                "the history is not bound to the new routing keys yet"
            );
        }
        bound().extend(added.iter().cloned());
        let left_bound = bound().difference(&wanted).cloned().collect();
        Ok(Rebound { added, left_bound })
    }
}

//! Count of the messages in all queues, beside the end of the history.
//!
//! The main queue and the history are bound to the same routing keys, so each event adds one
//! message to both. While no worker consumes, their difference stays the same, unless events go to
//! the history alone or messages vanish. Retry messages and replayed dead letters only move from
//! one queue to another. The records of replays are in the history alone, and count for nothing.

use std::time::Duration;

use tokio::time::sleep;

use super::failure::BrokerError;
use super::history::History;
use super::inspect::{Inspector, QueueState};
use super::names::Names;
use crate::config::AmqpConfig;

/// Number of looks, and the time between two of them.
///
/// Events that arrive between two looks blur both. A message that moves from one queue to another
/// at that time is in neither.
const LOOKS_MAX: u32 = 3;
const INTERVAL: Duration = Duration::from_millis(150);

/// Maximum number of messages of the history that are read at once.
const MESSAGES_AT_ONCE: usize = 1_000;

/// Queues and history, on connections of their own.
#[derive(Debug)]
pub struct Census {
    inspector: Inspector,
    history: History,
    /// Queues of retry steps that are not ours. They may be missing.
    other_retries: Vec<String>,
}

/// Result of a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Offsets of the history minus messages in queues.
    pub surplus: i64,
    /// Offset after the newest one of the history.
    pub end: u64,
}

impl Census {
    /// Connects. Messages may wait in the queues of `other_steps` too.
    ///
    /// # Errors
    /// [`BrokerError`]
    pub async fn connect(
        config: &AmqpConfig,
        other_steps: &[Duration],
    ) -> Result<Self, BrokerError> {
        let others = Names::new(&config.queue, other_steps);
        Ok(Self {
            other_retries: others.retry.into_iter().map(|(_, name)| name).collect(),
            inspector: Inspector::connect(config).await?,
            history: History::connect(config).await?,
        })
    }

    /// Counts all messages, for comparison with a later count. No worker may consume any more.
    ///
    /// The surplus is too high by the number of events that arrived during the count.
    ///
    /// # Errors
    /// [`BrokerError`]: also if a queue or the history is missing.
    pub async fn count(&mut self) -> Result<Count, BrokerError> {
        let mut before = None;
        let mut counted: Option<Count> = None;
        for _ in 0..LOOKS_MAX {
            let held = self.held().await?;
            let end = self.end().await?;
            let count = Count { surplus: surplus(end, held), end };
            counted =
                Some(counted.map_or(count, |least| {
                    if count.surplus < least.surplus { count } else { least }
                }));
            // Finding a stream empty takes long, and no event arrives in it.
            if end == 0 || before == Some(end) {
                // Deliveries of a connection that was just closed may still be on their way back.
                sleep(INTERVAL).await;
                if self.held().await? == held {
                    break;
                }
            }
            before = Some(end);
        }
        counted.ok_or_else(|| BrokerError::Unreachable("nothing was counted".into()))
    }

    /// Returns the number of events missing from the queues since that count.
    ///
    /// The result is 0 if all are there. It is at least 1 if the history was declared again. No
    /// worker may have consumed since.
    ///
    /// # Errors
    /// As for [`count`](Self::count).
    pub async fn missing_since(&mut self, count: Count) -> Result<u64, BrokerError> {
        let (mut missing, mut end) = (u64::MAX, 0);
        for look in 0..LOOKS_MAX {
            if look > 0 {
                sleep(INTERVAL).await;
            }
            end = self.end().await?;
            missing = missing.min(missing_at(count, end, self.held().await?));
            if missing == 0 {
                break;
            }
        }
        self.without_records(missing, count.end, end).await
    }

    /// Returns the number of events missing from the main queue, if every event from that offset on
    /// may be unapplied.
    ///
    /// The result is 0 if the main queue holds as many. It is at least 1 if the history was
    /// declared again. No worker may consume.
    ///
    /// Messages published to the queue itself hide as many missing events.
    ///
    /// # Errors
    /// As for [`count`](Self::count).
    pub async fn missing_from(&mut self, offset: u64) -> Result<u64, BrokerError> {
        let (mut missing, mut end) = (u64::MAX, 0);
        for look in 0..LOOKS_MAX {
            if look > 0 {
                sleep(INTERVAL).await;
            }
            end = self.end().await?;
            let ready = self.ready(&self.inspector.names().main).await?;
            missing = missing.min(missing_behind(offset, end, ready));
            if missing == 0 {
                break;
            }
        }
        self.without_records(missing, offset, end).await
    }

    /// Returns how many of the missing events are not records of replays. It reads the history only
    /// while all of them may be.
    async fn without_records(
        &mut self,
        missing: u64,
        from: u64,
        end: u64,
    ) -> Result<u64, BrokerError> {
        if missing == 0 || end < from {
            return Ok(missing);
        }
        let (mut at, mut records) = (from, 0);
        self.history.read_from(from);
        while records < missing && records + end.saturating_sub(at) >= missing {
            for (offset, delivery) in self.history.next_batch(MESSAGES_AT_ONCE).await? {
                // Only records of replays come by the default exchange.
                records += u64::from(offset < end && delivery.exchange().is_empty());
                at = offset + 1;
            }
        }
        self.history.pause();
        Ok(if records >= missing { 0 } else { missing })
    }

    /// Closes the connections.
    pub async fn close(self) {
        self.history.close().await;
        self.inspector.close().await;
    }

    async fn end(&mut self) -> Result<u64, BrokerError> {
        Ok(self.history.survey(&[]).await?.end)
    }

    async fn ready(&self, name: &str) -> Result<u32, BrokerError> {
        match self.inspector.queue(name).await? {
            QueueState::Stands { ready, .. } => Ok(ready),
            QueueState::Missing => {
                Err(BrokerError::Unreachable(format!("queue `{name}` is missing").into()))
            }
            QueueState::Unknown(error) => Err(BrokerError::Unreachable(error.into())),
        }
    }

    /// Counts the messages of all queues.
    ///
    /// The order of the queues is the order in which messages move on. So a moving message is
    /// counted twice rather than not at all.
    async fn held(&self) -> Result<u64, BrokerError> {
        let names = self.inspector.names();
        let retries = names.retry.iter().map(|(_, name)| name);
        let mut held = 0;
        for name in &self.other_retries {
            if let QueueState::Stands { ready, .. } = self.inspector.queue(name).await? {
                held += u64::from(ready);
            }
        }
        for name in retries.chain([&names.slow, &names.main, &names.dead]) {
            held += u64::from(self.ready(name).await?);
        }
        Ok(held)
    }
}

fn surplus(end: u64, held: u64) -> i64 {
    i64::try_from(end).unwrap_or(i64::MAX).saturating_sub_unsigned(held)
}

fn missing_at(before: Count, end: u64, held: u64) -> u64 {
    let missing = u64::try_from(surplus(end, held).saturating_sub(before.surplus)).unwrap_or(0);
    // A history that ends earlier was declared again, and shows nothing of earlier events.
    missing.max(u64::from(end < before.end))
}

fn missing_behind(offset: u64, end: u64, ready: u32) -> u64 {
    match end.checked_sub(offset) {
        Some(unapplied) => unapplied.saturating_sub(ready.into()),
        // A history that ends earlier was declared again.
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_missing_where_fewer_wait_than_may_be_unapplied() {
        for (offset, end, ready, missing, what) in [
            (100, 100, 0, 0, "nothing came"),
            (100, 120, 20, 0, "all that came waits"),
            (100, 120, 30, 0, "somebody published to the queue itself"),
            (100, 120, 19, 1, "one is gone, or was applied before the workers died"),
            (100, 120, 0, 20, "another queue"),
            (100, 0, 0, 1, "another history"),
        ] {
            assert_eq!(missing_behind(offset, end, ready), missing, "{what}");
        }
    }

    #[test]
    fn events_are_missing_where_the_history_grew_by_more_than_the_queues() {
        // 3 messages were left, for example dead letters.
        let before = Count { surplus: surplus(100, 3), end: 100 };
        for (end, held, missing, what) in [
            (100, 3, 0, "nothing happened"),
            (120, 23, 0, "20 events wait"),
            (120, 3, 20, "20 events went to the history alone"),
            (120, 0, 23, "and what waited is gone"),
            (100, 2, 1, "one message is gone"),
            (100, 7, 0, "somebody published to the queue itself"),
            (0, 3, 1, "another history"),
            (20, 0, 1, "another history, and another queue"),
        ] {
            assert_eq!(missing_at(before, end, held), missing, "{what}");
        }
    }
}

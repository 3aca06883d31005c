//! How many messages the queues hold, beside where the history ends.
//!
//! Main queue and history are bound to the same routing keys: each event adds one message to
//! either. So while nobody consumes, the difference of the two stays as it is, unless events go to
//! the history alone or messages vanish. Retry messages and letters that are replayed only move
//! from one queue to another.

use std::time::Duration;

use tokio::time::sleep;

use super::failure::BrokerError;
use super::history::History;
use super::inspect::{Inspector, QueueState};
use crate::config::AmqpConfig;

/// How often, and how far apart, both are looked at. What comes between two looks blurs each of
/// them, and what is on its way from one queue to another is in neither.
const LOOKS_MAX: u32 = 3;
const INTERVAL: Duration = Duration::from_millis(150);

/// The queues and the history, on connections of their own.
#[derive(Debug)]
pub struct Census {
    inspector: Inspector,
    history: History,
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Offsets of the history less messages in queues.
    pub surplus: i64,
    /// The offset behind the history.
    pub end: u64,
}

impl Census {
    /// Connects.
    ///
    /// # Errors
    /// [`BrokerError`]
    pub async fn connect(config: &AmqpConfig) -> Result<Self, BrokerError> {
        Ok(Self {
            inspector: Inspector::connect(config).await?,
            history: History::connect(config).await?,
        })
    }

    /// Counts what there is, to be compared with a later count. Nobody may consume any more. The
    /// surplus is too great by as many events as came during the count.
    ///
    /// # Errors
    /// [`BrokerError`]: also where a queue or the history is missing.
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
            // To find a stream empty takes long, and nothing comes to it.
            if end == 0 || before == Some(end) {
                // Deliveries of a connection that has just been closed may be on their way back.
                sleep(INTERVAL).await;
                if self.held().await? == held {
                    break;
                }
            }
            before = Some(end);
        }
        counted.ok_or_else(|| BrokerError::Unreachable("nothing was counted".into()))
    }

    /// Returns how many events are missing from the queues since that count: 0 where all are there,
    /// and 1 at least where the history is another one. Nobody may have consumed since.
    ///
    /// # Errors
    /// As for [`count`](Self::count).
    pub async fn missing_since(&mut self, count: Count) -> Result<u64, BrokerError> {
        let mut missing = u64::MAX;
        for look in 0..LOOKS_MAX {
            if look > 0 {
                sleep(INTERVAL).await;
            }
            let end = self.end().await?;
            missing = missing.min(missing_at(count, end, self.held().await?));
            if missing == 0 {
                break;
            }
        }
        Ok(missing)
    }

    /// Closes the connections.
    pub async fn close(self) {
        self.history.close().await;
        self.inspector.close().await;
    }

    async fn end(&mut self) -> Result<u64, BrokerError> {
        Ok(self.history.survey(&[]).await?.end)
    }

    /// Counts the messages of all queues. They are asked in the order in which messages go on: what
    /// moves meanwhile is rather counted twice than not at all.
    async fn held(&self) -> Result<u64, BrokerError> {
        let names = self.inspector.names();
        let retries = names.retry.iter().map(|(_, name)| name);
        let mut held = 0;
        for name in retries.chain([&names.slow, &names.main, &names.dead]) {
            match self.inspector.queue(name).await? {
                QueueState::Stands { ready, .. } => held += u64::from(ready),
                QueueState::Missing => {
                    return Err(BrokerError::Unreachable(format!("queue `{name}` is missing")));
                }
                QueueState::Unknown(words) => return Err(BrokerError::Unreachable(words)),
            }
        }
        Ok(held)
    }
}

fn surplus(end: u64, held: u64) -> i64 {
    i64::try_from(end).unwrap_or(i64::MAX).saturating_sub_unsigned(held)
}

fn missing_at(before: Count, end: u64, held: u64) -> u64 {
    let missing = u64::try_from(surplus(end, held).saturating_sub(before.surplus)).unwrap_or(0);
    // A history that ends earlier was declared anew: it says nothing of what came before.
    missing.max(u64::from(end < before.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_missing_where_the_history_grew_by_more_than_the_queues() {
        // 3 messages were left: dead letters, say.
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

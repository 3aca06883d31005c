//! What became of an effect, of an event, of a message.

use std::time::Duration;

use crate::reason::Reason;

/// Which effect of which event of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// The event's place in the batch.
    pub event: u32,
    /// The effect's place in the event's resolution.
    pub position: u32,
}

/// What became of an effect that is not simply done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EffectOutcome {
    /// One round trip cannot finish it: the slow lane goes on.
    Slow,
    /// It may succeed later.
    Retry {
        /// Rules and codes, never payload values.
        message: String,
        /// Not before then, where the other side said so.
        after: Option<Duration>,
    },
    /// Nothing was tried, since the other side is known to be in trouble: that costs no attempt.
    NotTried {
        /// Rules and codes, never payload values.
        message: String,
        /// Not before then.
        after: Duration,
    },
    /// It never will.
    Dead {
        /// What the dead letter says.
        reason: Reason,
        /// Rules and codes, never payload values.
        message: String,
    },
}

/// What became of an event: the label `outcome` of `unstale_events_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventOutcome {
    /// All of it took hold.
    Applied,
    /// Some of it goes on in the slow lane, the rest took hold.
    Slow,
    /// Some of it is tried again later, the rest took hold or goes on.
    Retried,
    /// Some of it stands in the dead-letter queue, whatever became of the rest.
    Dead,
    /// Its entry is retired.
    Retired,
    /// No entry knows it, and `UNSTALE_UNKNOWN` is `drop`.
    Dropped,
    /// A message that means nothing, on purpose.
    Tombstone,
}

impl EventOutcome {
    /// Every outcome.
    pub const ALL: [Self; 7] = [
        Self::Applied,
        Self::Slow,
        Self::Retried,
        Self::Dead,
        Self::Retired,
        Self::Dropped,
        Self::Tombstone,
    ];

    /// The name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Slow => "slow",
            Self::Retried => "retried",
            Self::Dead => "dead",
            Self::Retired => "retired",
            Self::Dropped => "dropped",
            Self::Tombstone => "tombstone",
        }
    }
}

//! Outcomes of effects and of events.

use std::time::Duration;

use crate::reason::Reason;

/// Identifies an effect within a batch of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EffectRef {
    /// The event's index in the batch.
    pub event: u32,
    /// The effect's index in the event's resolution.
    pub position: u32,
}

/// Outcome of an effect that is not applied yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EffectOutcome {
    /// One round trip cannot finish it. It continues in the slow lane.
    Slow,
    /// A later attempt may succeed.
    Retry {
        /// Rules and codes, never payload values.
        message: String,
        /// Minimum delay, if the other side named one.
        after: Option<Duration>,
    },
    /// Nothing was tried, since the other side is known to fail. It does not count as an attempt.
    NotTried {
        /// Rules and codes, never payload values.
        message: String,
        /// Minimum delay.
        after: Duration,
    },
    /// No later attempt can succeed.
    Dead {
        /// The reason of the dead letter.
        reason: Reason,
        /// Rules and codes, never payload values.
        message: String,
        /// Redis refuses the command because of our user's rights, or does not have it. An operator
        /// can permit it later.
        may_be_permitted: bool,
    },
}

/// Outcome of an event: the label `outcome` of `unstale_events_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventOutcome {
    /// All effects are applied.
    Applied,
    /// Some effects continue in the slow lane. The others are applied.
    Slow,
    /// Some effects are retried later. The others are applied or continue in the slow lane.
    Retried,
    /// Some effects are in the dead-letter queue, regardless of the others.
    Dead,
    /// Its event definition is retired.
    Retired,
    /// No event definition matches it, and `UNSTALE_UNKNOWN` is `drop`.
    Dropped,
    /// A tombstone, which has no effect.
    Tombstone,
}

impl EventOutcome {
    /// All outcomes.
    pub const ALL: [Self; 7] = [
        Self::Applied,
        Self::Slow,
        Self::Retried,
        Self::Dead,
        Self::Retired,
        Self::Dropped,
        Self::Tombstone,
    ];

    /// Returns the name in metrics.
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

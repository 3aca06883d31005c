//! Findings that an operator has acknowledged: `status` then shows them as notes.

use super::super::Cache;
use super::super::failure::CommandError;
use super::Checkpoints;

/// Prefix of the field of an acknowledged finding.
const ACKNOWLEDGED: &str = "acknowledged:";

/// A finding that can be acknowledged. A later one of the same kind counts as new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledged {
    /// Lost events, by the time when a worker noticed them.
    LostEvents,
    /// The record of a heal, by the time when the heal began.
    Heal,
}

impl Acknowledged {
    fn field(self) -> String {
        let kind = match self {
            Self::LostEvents => "lost",
            Self::Heal => "heal",
        };
        [ACKNOWLEDGED, kind].concat()
    }
}

impl Checkpoints {
    /// Returns the time of the last finding of that kind that an operator acknowledged, in
    /// milliseconds since the Unix epoch.
    pub fn acknowledged_ms(&self, finding: Acknowledged) -> Option<u64> {
        self.values(&finding.field()).filter_map(|at| at.parse().ok()).max()
    }
}

impl Cache {
    /// Stores that an operator has acknowledged the finding of that time.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn acknowledge(&self, finding: Acknowledged, at_ms: u64) -> Result<(), CommandError> {
        let (field, at_ms) = (finding.field(), at_ms.to_string());
        self.ask_all(|_| {
            self.context
                .checkpoint_hashes
                .iter()
                .map(|hash| super::arguments("HSET", &[hash, &field, &at_ms]))
                .collect()
        })
        .await
        .map(drop)
    }
}

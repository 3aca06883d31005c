//! Events that may be lost: no queue holds them, and the history from which they had to be applied
//! does not hold them either.

use serde::{Deserialize, Serialize};

use super::super::Cache;
use super::super::failure::CommandError;
use super::{Acknowledged, Checkpoints, FieldChange, millis};

/// Field of the span of lost events.
const LOST: &str = "lost";

/// Time for which the span is shown.
const SHOWN: std::time::Duration = std::time::Duration::from_secs(86_400);

/// Span of time from which events may be lost. Times are milliseconds since the Unix epoch. The
/// span itself is by the worker's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostEvents {
    /// All events before it are applied.
    pub from_ms: u64,
    /// All events after it are in a queue or in the history.
    pub until_ms: u64,
    /// When a worker noticed it, by Redis' clock.
    pub noticed_ms: u64,
}

impl LostEvents {
    /// Returns the span that contains both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            from_ms: self.from_ms.min(other.from_ms),
            until_ms: self.until_ms.max(other.until_ms),
            noticed_ms: self.noticed_ms.max(other.noticed_ms),
        }
    }

    /// Returns the span as noticed now, by Redis' clock, and after any acknowledgement. The clocks
    /// of workers differ, and an acknowledgement covers only what was noticed before it.
    #[must_use]
    pub fn noticed_at(self, marks: &Checkpoints) -> Self {
        let acknowledged_ms = marks.acknowledged_ms(Acknowledged::LostEvents);
        let after = acknowledged_ms.map_or(0, |at_ms| at_ms.saturating_add(1));
        Self { noticed_ms: marks.now_ms.max(after), ..self }
    }

    fn change(self) -> FieldChange {
        FieldChange::set(LOST, serde_json::to_string(&self).unwrap_or_default())
    }
}

impl Checkpoints {
    /// Returns the span from which events may be lost, if a worker noticed it in the last day.
    pub fn lost(&self) -> Option<LostEvents> {
        let spans = self.values(LOST).filter_map(|text| serde_json::from_str(text).ok());
        spans
            .filter(|lost: &LostEvents| {
                self.now_ms.saturating_sub(lost.noticed_ms) <= millis(SHOWN)
            })
            .reduce(LostEvents::and)
    }

    /// Returns that span unless an operator has acknowledged it.
    pub fn unacknowledged_lost(&self) -> Option<LostEvents> {
        let acknowledged_ms = self.acknowledged_ms(Acknowledged::LostEvents);
        self.lost().filter(|lost| acknowledged_ms < Some(lost.noticed_ms))
    }

    /// Returns the change that adds a span from which events may be lost.
    pub fn note_lost(&self, lost: LostEvents) -> FieldChange {
        let lost = lost.noticed_at(self);
        self.unacknowledged_lost().map_or(lost, |before| before.and(lost)).change()
    }
}

impl Cache {
    /// Stores a span from which events may be lost, unless `marks` already contain it.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn note_lost(
        &self,
        marks: &Checkpoints,
        lost: LostEvents,
    ) -> Result<(), CommandError> {
        let held = marks.unacknowledged_lost();
        let both = held.map_or(lost, |before| before.and(lost));
        if held == Some(both) {
            return Ok(());
        }
        let FieldChange { field, text, .. } = both.change();
        let text = text.unwrap_or_default();
        self.ask_all(|_| {
            self.context
                .checkpoint_hashes
                .iter()
                .map(|hash| super::arguments("HSET", &[hash, &field, &text]))
                .collect()
        })
        .await
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_lost_events_are_joined_and_shown_for_a_day() {
        let lost = |from_ms, until_ms, noticed_ms| LostEvents { from_ms, until_ms, noticed_ms };
        let marks = |now_ms, lost: LostEvents| {
            let text = lost.change().text.unwrap();
            Checkpoints::of(now_ms, String::new(), vec![(LOST.to_owned(), text)])
        };
        assert_eq!(Checkpoints::default().lost(), None);
        let day_ms = millis(SHOWN);
        assert_eq!(marks(9 + day_ms, lost(5, 7, 9)).lost(), Some(lost(5, 7, 9)));
        assert_eq!(marks(10 + day_ms, lost(5, 7, 9)).lost(), None);
        assert_eq!(marks(10, lost(5, 7, 9)).note_lost(lost(6, 8, 10)), lost(5, 8, 10).change());
    }

    #[test]
    fn a_later_loss_does_not_include_what_was_acknowledged() {
        let lost = |from_ms, until_ms, noticed_ms| LostEvents { from_ms, until_ms, noticed_ms };
        let marks = |acknowledged_ms: u64| {
            let held = lost(5, 7, 9).change().text.unwrap();
            let acknowledged = ("acknowledged:lost".to_owned(), acknowledged_ms.to_string());
            Checkpoints::of(10, String::new(), vec![(LOST.to_owned(), held), acknowledged])
        };
        assert_eq!(marks(8).unacknowledged_lost(), Some(lost(5, 7, 9)), "an earlier one");
        assert_eq!(marks(9).unacknowledged_lost(), None);
        assert_eq!(marks(9).lost(), Some(lost(5, 7, 9)));
        assert_eq!(marks(9).note_lost(lost(6, 8, 10)), lost(6, 8, 10).change());
        let by_a_clock_behind = lost(6, 8, 3);
        assert_eq!(marks(9).note_lost(by_a_clock_behind), lost(6, 8, 10).change());
        assert_eq!(marks(20).note_lost(by_a_clock_behind), lost(6, 8, 21).change());
    }
}

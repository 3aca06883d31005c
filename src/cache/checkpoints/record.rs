//! The record of the last heal.

use serde::{Deserialize, Serialize};

use super::FieldChange;

/// The last heal that was done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealRecord {
    /// When it began, by Redis' clock; milliseconds since the Unix epoch.
    pub began_ms: u64,
    /// When it ended, in the same unit.
    pub ended_ms: u64,
    /// Time from which on the history was applied again, by the worker's clock.
    pub from_ms: u64,
    /// Number of heals so far.
    pub count: u64,
    /// True if all of it was read and applied.
    pub complete: bool,
    /// Details that workers of earlier versions neither write nor read.
    pub details: HealDetails,
}

/// Further details of a heal's record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HealDetails {
    /// When the heal of these details began.
    pub began_ms: u64,
    /// Offset from which on the history was applied again.
    pub from_offset: Option<u64>,
    /// Offsets that were skipped: they killed workers, or could not be resolved in time.
    pub passed_over: Vec<u64>,
    /// Set if the history could not be read: the heal is owed, or was done later.
    pub owed: Option<Owed>,
}

/// State of a heal that could not be done when it was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owed {
    /// It is still to be done.
    Due,
    /// It was done in full.
    Paid,
}

impl HealRecord {
    /// Reads a field `heal`.
    pub(super) fn read(text: &str) -> Option<Self> {
        let parts: Vec<u64> =
            text.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        let [began_ms, ended_ms, from_ms, count, complete] = parts[..] else { return None };
        Some(Self {
            began_ms,
            ended_ms,
            from_ms,
            count,
            complete: complete == 1,
            details: HealDetails::default(),
        })
    }
}

impl HealDetails {
    pub(super) fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Returns the change that stores these details in the record.
    pub fn note(&self) -> FieldChange {
        FieldChange::set("heal:details", self.text())
    }

    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

//! Heals that could not be done when they were due, and heals beside live workers.
//!
//! Both are safe at any time, since a replay never makes a value staler.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::super::failure::CommandError;
use super::super::script::{HEAL_BESIDE, HEAL_BESIDE_END};
use super::super::{Cache, lifetime};
use super::{Checkpoints, FieldChange, HEAL_LOCK, HealFrom, HealTurn, read_answer};
use crate::causes::Cause;

/// Prefix of the field of a heal that a worker owes.
const OWED: &str = "owed:";

/// A heal that could not be done when it was due.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OwedHeal {
    /// Place in the history where it begins.
    pub from: HealFrom,
    /// Reason for the delay, and what an operator can do about it.
    pub cause: String,
    /// Time since when it is owed, by the worker's clock; milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Number that separates the owed heals of one process.
    #[serde(skip)]
    number: u64,
}

impl OwedHeal {
    /// Returns an owed heal with a number of its own, which replaces no other one in Redis.
    pub fn new(from: HealFrom, cause: impl Into<String>, since_ms: u64) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Self { from, cause: cause.into(), since_ms, number: NUMBER.fetch_add(1, Ordering::Relaxed) }
    }

    /// Returns the field that holds it: the same one at each try.
    fn field(&self, worker: &str) -> String {
        format!("{OWED}{worker}:{}:{}", self.since_ms, self.number)
    }
}

/// All heals that are owed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwedHeals {
    /// The fields as they were read. A payment removes these and no newer ones.
    fields: Vec<(String, String)>,
    /// A heal that covers all; `None` if none is owed.
    pub all: Option<OwedHeal>,
}

impl OwedHeals {
    /// Returns the changes that remove the owed heals.
    pub fn paid(&self) -> Vec<FieldChange> {
        self.fields.iter().map(|(field, text)| FieldChange::remove(field, text)).collect()
    }
}

impl Checkpoints {
    /// Returns the heals that are owed.
    pub fn owed(&self) -> OwedHeals {
        let fields = self
            .hashes
            .iter()
            .flat_map(|hash| &hash.fields)
            .filter(|(field, _)| field.starts_with(OWED));
        let mut owed = OwedHeals::default();
        for (field, text) in fields {
            if owed.fields.iter().any(|(known, said)| known == field && said == text) {
                continue;
            }
            owed.fields.push((field.clone(), text.clone()));
            let Ok(one) = serde_json::from_str::<OwedHeal>(text) else { continue };
            owed.all = Some(match owed.all.take() {
                None => one,
                Some(all) if all.since_ms <= one.since_ms => {
                    OwedHeal { from: all.from.earlier(one.from), ..all }
                }
                Some(all) => OwedHeal { from: all.from.earlier(one.from), ..one },
            });
        }
        owed
    }
}

impl Cache {
    /// Stores an owed heal in each of a cluster's hashes: a primary that loses writes during the
    /// heal owes it again. Earlier owed heals stay. The same one stored twice is one.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn owe_heal(&self, owed: &OwedHeal) -> Result<(), CommandError> {
        let field = owed.field(self.id());
        let text =
            serde_json::to_string(owed).map_err(|error| CommandError::Failed(Cause::new(error)))?;
        self.ask_all(|_| {
            self.checkpoint_hashes
                .iter()
                .map(|hash| super::arguments("HSET", &[hash, &field, &text]))
                .collect()
        })
        .await
        .map(drop)
    }

    /// Asks for the turn to heal beside live workers.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn take_heal_beside(&self) -> Result<HealTurn, CommandError> {
        let take = |place: usize| {
            let mut command = self.checkpoint_call(&HEAL_BESIDE, place);
            command.arg(self.id()).arg(lifetime::millis(HEAL_LOCK));
            command
        };
        let (first, _) = self.ask_all(|_| vec![take(0)]).await?;
        let first = first.first().map_or_else(|| Err(super::unexpected()), read_answer)?;
        if first.0 != 1 {
            return Ok(HealTurn::Anothers);
        }
        // The locks of the other hashes are not needed, but their fields and the identities of
        // their servers are.
        let (others, _) =
            self.ask_all(|_| (1..self.checkpoint_hashes.len()).map(take).collect()).await?;
        let others = others.iter().map(read_answer).collect::<Result<Vec<_>, _>>()?;
        Ok(HealTurn::Ours(Checkpoints::together(
            std::iter::once(first).chain(others).map(|(_, checkpoints)| checkpoints),
        )))
    }

    /// Ends our heal beside live workers, and makes the changes that note it.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn end_heal_beside(&self, changes: &[FieldChange]) -> Result<(), CommandError> {
        let end = |place: usize| {
            let mut command = self.checkpoint_call(&HEAL_BESIDE_END, place);
            command.arg(self.id());
            FieldChange::add_to(changes, &mut command);
            command
        };
        self.ask_all(|_| (0..self.checkpoint_hashes.len()).map(end).collect()).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owed_heals_begin_at_the_earliest_place_with_the_first_cause() {
        let owed = |offset, cause: &str, since_ms| OwedHeal {
            from: HealFrom { offset: Some(offset), time: None },
            cause: cause.into(),
            since_ms,
            number: 0,
        };
        let text = |owed: &OwedHeal| serde_json::to_string(owed).unwrap();
        let (one, other) = (owed(9, "the second", 2), owed(11, "the first", 1));
        let fields = vec![
            ("owed:a".to_owned(), text(&one)),
            ("owed:b".to_owned(), text(&other)),
            ("a".to_owned(), "1:2:3".to_owned()),
        ];
        let checkpoints = Checkpoints::of(1, String::new(), fields.clone());
        let both = Checkpoints::together([checkpoints.clone(), checkpoints].into_iter()).owed();
        assert_eq!(both.all, Some(owed(9, "the first", 1)));
        assert_eq!(
            both.fields,
            fields[..2],
            "each once, though each of a cluster's hashes has them"
        );
        assert_eq!(Checkpoints::default().owed().all, None);
    }
}

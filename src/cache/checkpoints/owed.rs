//! Heals that could not be done when they were due, and heals beside live workers.
//!
//! Both are safe at any time, since a replay never makes a value staler.

use std::sync::atomic::{AtomicU64, Ordering};

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::failure::CommandError;
use super::super::script::{HEAL_BESIDE, HEAL_BESIDE_END};
use super::super::{Cache, lifetime};
use super::progress::HEAL_LOCK;
use super::refused::RefusedEffects;
use super::rules::later_end;
use super::{Checkpoints, FieldChange, HealFrom, HealTurn, millis, read_answer};
use crate::causes::Cause;

/// Prefix of the field of a heal that a worker owes.
const OWED: &str = "owed:";

/// Time before effects that Redis refused are tried again. It doubles with each try.
const REFUSED_AGAIN: Duration = Duration::from_secs(15);

/// Maximum time between two tries of effects that Redis refuses.
const REFUSED_AGAIN_MAX: Duration = Duration::from_secs(5 * 60);

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
    /// Effects that Redis refused, which alone are owed; `None` if the whole heal is owed.
    pub refused: Option<RefusedEffects>,
    /// Offset after everything that is owed; `None` for the end of the history.
    pub end_offset: Option<u64>,
    /// Digest of the registry that resolved the refused effects.
    pub digest: String,
    /// Number of tries at which Redis refused effects.
    tries: u32,
    /// Time before which it is not tried again, by Redis' clock; milliseconds since the Unix epoch.
    not_before_ms: u64,
    /// Number that separates the owed heals of one process.
    #[serde(skip)]
    number: u64,
}

impl OwedHeal {
    /// Returns an owed heal with a number of its own, which replaces no other one in Redis.
    pub fn new(from: HealFrom, cause: impl Into<String>, since_ms: u64) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self { from, cause: cause.into(), since_ms, number, ..Self::default() }
    }

    /// Returns the owed rest of a heal before `end_offset`: the effects that Redis refused.
    /// `before` is that rest after the try before. The first of its tries was at `since_ms`.
    pub fn of_refused(
        refused: RefusedEffects,
        (end_offset, digest): (u64, &str),
        before: Option<&Self>,
        since_ms: u64,
        now_ms: u64,
    ) -> Self {
        let tries = before.map_or(0, |before| before.tries);
        let wait = REFUSED_AGAIN.saturating_mul(1 << tries.min(16)).min(REFUSED_AGAIN_MAX);
        let from = HealFrom { offset: Some(refused.first_offset), time: None };
        Self {
            refused: Some(refused.clone()),
            end_offset: Some(end_offset),
            digest: digest.to_owned(),
            tries: tries + 1,
            not_before_ms: now_ms.saturating_add(millis(wait)),
            ..Self::new(
                from,
                refused.to_string(),
                before.map_or(since_ms, |before| before.since_ms),
            )
        }
    }

    /// Returns the names of the rules whose effects are owed. Empty if all are, or if the registry
    /// of that digest has other rules.
    pub fn only_rules(&self, digest: &str) -> Vec<String> {
        let refused = self.refused.as_ref().filter(|_| self.digest == digest);
        refused.map(RefusedEffects::rules).unwrap_or_default()
    }

    /// Returns true if it may be tried now.
    pub fn is_due(&self, now_ms: u64) -> bool {
        self.not_before_ms <= now_ms
    }

    /// Returns a heal that includes both.
    fn join(self, other: Self) -> Self {
        let (first, later) =
            if self.since_ms <= other.since_ms { (self, other) } else { (other, self) };
        let is_same = first.digest == later.digest;
        Self {
            from: first.from.earlier(later.from),
            refused: first.refused.zip(later.refused).map(|(one, other)| {
                if is_same { one.join(other) } else { one.join(other).by_all() }
            }),
            end_offset: later_end(first.end_offset, later.end_offset),
            tries: first.tries.min(later.tries),
            not_before_ms: first.not_before_ms.min(later.not_before_ms),
            cause: first.cause,
            since_ms: first.since_ms,
            digest: first.digest,
            number: first.number,
        }
    }

    /// Returns the change that stores it.
    pub fn note(&self, worker: &str) -> FieldChange {
        FieldChange::set(self.field(worker), serde_json::to_string(self).unwrap_or_default())
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
    /// A heal that includes all owed heals; `None` if none is owed.
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
                Some(all) => all.join(one),
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
            self.context
                .checkpoint_hashes
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
            self.ask_all(|_| (1..self.context.checkpoint_hashes.len()).map(take).collect()).await?;
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
        self.ask_all(|_| (0..self.context.checkpoint_hashes.len()).map(end).collect())
            .await
            .map(drop)
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
            ..OwedHeal::default()
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

    fn refused(offset: u64, rule: &str) -> RefusedEffects {
        let mut refused = RefusedEffects::default();
        refused.add(offset, rule, "UNLINK: NOPERM");
        refused
    }

    #[test]
    fn refused_effects_are_tried_again_at_growing_intervals() {
        let mut owed = OwedHeal::of_refused(refused(7, "a"), (9, "d"), None, 5, 1_000);
        let mut waits = vec![owed.not_before_ms - 1_000];
        for _ in 0..40 {
            owed = OwedHeal::of_refused(refused(7, "a"), (9, "d"), Some(&owed), 77, 1_000);
            waits.push(owed.not_before_ms - 1_000);
        }
        assert_eq!(waits[..6], [15_000, 30_000, 60_000, 120_000, 240_000, 300_000]);
        assert_eq!((waits[40], owed.since_ms), (300_000, 5));
        assert!(!owed.is_due(1_001) && owed.is_due(301_000));
        assert_eq!(owed.cause, "Redis refused 1 effect, the first at offset 7: UNLINK: NOPERM");
    }

    #[test]
    fn only_rules_whose_effects_were_refused_are_applied_again() {
        let of = |rule, digest| OwedHeal::of_refused(refused(7, rule), (9, digest), None, 5, 0);
        assert_eq!(of("a", "d").only_rules("d"), ["a"]);
        assert!(of("a", "d").only_rules("other").is_empty(), "other rules may have other names");
        assert_eq!(of("a", "d").join(of("b", "d")).only_rules("d"), ["a", "b"]);
        assert!(of("a", "d").join(of("b", "e")).only_rules("d").is_empty());
        let whole = OwedHeal::new(HealFrom::default(), "a queue was deleted", 6);
        let all = of("a", "d").join(whole);
        assert_eq!((all.only_rules("d").len(), all.end_offset, all.is_due(0)), (0, None, true));
    }
}

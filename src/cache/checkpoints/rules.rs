//! The rules by which the history was applied again.
//!
//! A worker heals by its own rules, and not what only the rules of other workers invalidate. So the
//! checkpoints store for a day by which rules each heal was done. A worker with other rules heals
//! again.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Checkpoints, HealFrom, millis};

/// Prefix of the field of a heal that is done: `healed:<when, in milliseconds>:<worker>`.
const HEALED: &str = "healed:";

/// Time for which a worker with other rules heals again.
const KEPT: Duration = Duration::from_secs(86_400);

/// Time within which heals by the same rules share a field.
const TOGETHER: Duration = Duration::from_secs(3_600);

/// Maximum number of fields. Beyond it, the two oldest share one.
const FIELDS_MAX: usize = 16;

/// A heal that is done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct Healed {
    /// Offset of the history from which on it was applied again.
    from_offset: u64,
    /// Offset after all that was applied again; `None` if it is not known.
    end_offset: Option<u64>,
    /// When the heal ended, by Redis' clock; milliseconds since the Unix epoch.
    ended_ms: u64,
    /// Digests of the registries by whose rules it was done.
    digests: BTreeSet<String>,
}

/// A field with a heal that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HealedField<'m> {
    field: &'m str,
    text: &'m str,
    began_ms: u64,
    healed: Healed,
}

/// A change of a field of the checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldChange {
    pub(super) field: String,
    /// Text that the field must hold; `None` accepts any.
    pub(super) held: Option<String>,
    /// New text; `None` removes the field.
    pub(super) text: Option<String>,
}

impl FieldChange {
    pub(super) fn remove(field: &str, held: &str) -> Self {
        Self { field: field.to_owned(), held: Some(held.to_owned()), text: None }
    }

    pub(super) fn set(field: impl Into<String>, text: String) -> Self {
        Self { field: field.into(), held: None, text: Some(text) }
    }

    /// Adds the arguments of `change` in `lua/checkpoint.lua`.
    pub(super) fn add_to(changes: &[Self], command: &mut redis::Cmd) {
        for Self { field, held, text } in changes {
            command
                .arg(field)
                .arg(held.as_deref().unwrap_or_default())
                .arg(text.as_deref().unwrap_or_default());
        }
    }
}

/// Heals that were done only by other rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unhealed {
    /// Place in the history where to begin.
    pub from: HealFrom,
    /// Offset after all that can have been lost; `None` if it is not known.
    pub end_offset: Option<u64>,
    /// Changes that note these heals as done.
    pub changes: Vec<FieldChange>,
}

/// Returns the greater of two ends; `None` if one is not known.
pub(super) fn later_end(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.zip(other).map(|(one, other)| one.max(other))
}

impl Healed {
    fn is_forgotten(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.ended_ms) > millis(KEPT)
    }

    fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Checkpoints {
    /// Returns the heals that no worker with the rules of that digest has done.
    pub fn unhealed_by(&self, digest: &str) -> Option<Unhealed> {
        let mut entries = self.healed();
        entries.retain(|entry| {
            !entry.healed.is_forgotten(self.now_ms) && !entry.healed.digests.contains(digest)
        });
        let from_offset = entries.iter().map(|entry| entry.healed.from_offset).min()?;
        let end_offset =
            entries.iter().map(|entry| entry.healed.end_offset).reduce(later_end).flatten();
        let change = |HealedField { field, text, mut healed, .. }: HealedField<'_>| {
            healed.digests.insert(digest.to_owned());
            FieldChange {
                field: field.to_owned(),
                held: Some(text.to_owned()),
                text: Some(healed.text()),
            }
        };
        let from = HealFrom { offset: Some(from_offset), time: None };
        Some(Unhealed { from, end_offset, changes: entries.into_iter().map(change).collect() })
    }

    /// Returns the digests of the registries by whose rules every heal of the last day was done.
    /// Without any heal, returns none.
    pub fn healed_by(&self) -> Vec<String> {
        let entries =
            self.healed().into_iter().filter(|entry| !entry.healed.is_forgotten(self.now_ms));
        let by_all = entries
            .map(|entry| entry.healed.digests)
            .reduce(|all, digests| all.intersection(&digests).cloned().collect());
        by_all.map(|digests| digests.into_iter().collect()).unwrap_or_default()
    }

    /// Returns the changes that note a heal of the history between those offsets by the rules of
    /// that digest. The heal ended `took` after these checkpoints were read.
    pub fn note_heal(
        &self,
        worker: &str,
        (from_offset, end_offset): (u64, u64),
        digest: &str,
        took: Duration,
    ) -> Vec<FieldChange> {
        let ended_ms = self.now_ms.saturating_add(millis(took));
        let mut healed = Healed {
            from_offset,
            end_offset: Some(end_offset),
            ended_ms,
            digests: BTreeSet::from([digest.to_owned()]),
        };
        let mut began_ms = ended_ms;
        let mut changes = Vec::new();
        let mut kept = Vec::new();
        for entry in self.healed() {
            let is_together = entry.healed.digests == healed.digests
                && ended_ms.abs_diff(entry.began_ms) < millis(TOGETHER);
            if !entry.healed.is_forgotten(ended_ms)
                && !is_together
                && entry.healed.from_offset < from_offset
            {
                kept.push(entry);
                continue;
            }
            changes.push(FieldChange::remove(entry.field, entry.text));
            if is_together {
                healed.from_offset = healed.from_offset.min(entry.healed.from_offset);
                healed.end_offset = later_end(healed.end_offset, entry.healed.end_offset);
                began_ms = began_ms.min(entry.began_ms);
            }
        }
        if kept.len() >= FIELDS_MAX {
            kept.sort_by_key(|entry| entry.began_ms);
            let both = Healed {
                from_offset: kept[0].healed.from_offset.min(kept[1].healed.from_offset),
                end_offset: later_end(kept[0].healed.end_offset, kept[1].healed.end_offset),
                ended_ms: kept[0].healed.ended_ms.max(kept[1].healed.ended_ms),
                digests: kept[0]
                    .healed
                    .digests
                    .intersection(&kept[1].healed.digests)
                    .cloned()
                    .collect(),
            };
            changes
                .extend(kept[..2].iter().map(|entry| FieldChange::remove(entry.field, entry.text)));
            changes.push(FieldChange::set(
                format!("{HEALED}{}:{worker}", kept[1].began_ms),
                both.text(),
            ));
        }
        changes.push(FieldChange::set(format!("{HEALED}{began_ms}:{worker}"), healed.text()));
        changes
    }

    /// Reads the fields of heals that are done. A field that several hashes of a cluster share
    /// counts once.
    fn healed(&self) -> Vec<HealedField<'_>> {
        let mut entries: Vec<HealedField<'_>> = Vec::new();
        for (field, text) in self.hashes.iter().flat_map(|hash| &hash.fields) {
            let Some(began) = field.strip_prefix(HEALED) else { continue };
            if entries.iter().any(|entry| entry.field == field && entry.text == text) {
                continue;
            }
            let began_ms = began.split(':').next().and_then(|began| began.parse().ok());
            if let (Some(began_ms), Ok(healed)) = (began_ms, serde_json::from_str(text)) {
                entries.push(HealedField { field, text, began_ms, healed });
            }
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    /// Fields, as scripts change them.
    #[derive(Debug, Default)]
    struct Fields(BTreeMap<String, String>);

    impl Fields {
        fn at(&self, now_ms: u64) -> Checkpoints {
            Checkpoints::of(now_ms, String::new(), self.0.clone().into_iter().collect())
        }

        fn change(&mut self, changes: Vec<FieldChange>) {
            for FieldChange { field, held, text } in changes {
                if held.is_some() && self.0.get(&field) != held.as_ref() {
                    continue;
                }
                match text {
                    Some(text) => drop(self.0.insert(field, text)),
                    None => drop(self.0.remove(&field)),
                }
            }
        }

        fn heal(&mut self, now_ms: u64, from_offset: u64, digest: &str) {
            self.change(self.at(now_ms).note_heal(
                "w",
                (from_offset, from_offset + 100),
                digest,
                Duration::ZERO,
            ));
        }

        fn owes(&self, now_ms: u64, digest: &str) -> Option<u64> {
            self.at(now_ms).unhealed_by(digest)?.from.offset
        }

        fn owes_before(&self, now_ms: u64, digest: &str) -> Option<u64> {
            self.at(now_ms).unhealed_by(digest)?.end_offset
        }

        fn pay(&mut self, now_ms: u64, digest: &str) {
            self.change(self.at(now_ms).unhealed_by(digest).unwrap().changes);
        }
    }

    #[test]
    fn a_worker_with_other_rules_owes_a_heal_for_a_day_until_it_is_done() {
        let mut fields = Fields::default();
        assert_eq!((fields.owes(1, "b"), fields.at(1).healed_by()), (None, vec![]));
        fields.heal(1_000, 7, "a");
        assert_eq!((fields.owes(2_000, "a"), fields.owes(2_000, "b")), (None, Some(7)));
        assert_eq!(fields.owes(24 * HOUR_MS, "b"), Some(7));
        assert_eq!(fields.owes(25 * HOUR_MS, "b"), None);
        fields.pay(3_000, "b");
        assert_eq!((fields.owes(4_000, "b"), fields.owes(4_000, "c")), (None, Some(7)));
        assert_eq!(fields.at(4_000).healed_by(), ["a", "b"]);
    }

    #[test]
    fn a_later_heal_forgets_no_earlier_one() {
        let mut fields = Fields::default();
        fields.heal(1_000, 7, "a");
        fields.pay(1_000, "b");
        fields.heal(2_000, 90, "a");
        assert_eq!((fields.owes(3_000, "b"), fields.owes(3_000, "c")), (Some(90), Some(7)));
        fields.pay(3_000, "b");
        assert_eq!((fields.owes(3_000, "b"), fields.owes(3_000, "c")), (None, Some(7)));
        // A heal that reaches further back replaces all others.
        fields.heal(4_000, 5, "c");
        assert_eq!(
            (fields.0.len(), fields.owes(4_000, "b"), fields.owes(4_000, "a")),
            (1, Some(5), Some(5))
        );
    }

    #[test]
    fn heals_by_the_same_rules_share_a_field_and_fields_are_bounded() {
        let mut fields = Fields::default();
        for heal in 0..100 {
            fields.heal(1_000 + heal, 7 + heal, "a");
        }
        assert_eq!((fields.0.len(), fields.owes(2_000, "b")), (1, Some(7)));
        for heal in 0..60 {
            let now_ms = 10_000 + heal * HOUR_MS / 4;
            fields.heal(now_ms, 200 + heal, &format!("rules {heal}"));
            assert!(fields.0.len() <= FIELDS_MAX + 1, "{}", fields.0.len());
            assert_eq!(fields.owes(now_ms, "b"), Some(7), "nothing is forgotten");
        }
        fields.heal(100 * HOUR_MS, 500, "a");
        assert_eq!(fields.0.len(), 1, "what is older than a day is removed");
    }

    #[test]
    fn only_the_range_that_can_have_been_lost_is_healed_again() {
        let mut fields = Fields::default();
        fields.heal(1_000, 7, "a");
        assert_eq!(fields.owes_before(2_000, "b"), Some(107));
        fields.heal(2_000, 90, "a");
        assert_eq!(
            (fields.owes(3_000, "b"), fields.owes_before(3_000, "b")),
            (Some(7), Some(190)),
            "both share a field"
        );
        fields.heal(3_000, 200, "c");
        assert_eq!(
            (fields.owes_before(4_000, "b"), fields.owes_before(4_000, "c")),
            (Some(300), Some(190))
        );
        for heal in 0..FIELDS_MAX as u64 {
            fields.heal(4_000 + heal, 300 + heal, &format!("rules {heal}"));
        }
        assert_eq!(fields.owes_before(5_000, "b"), Some(400 + FIELDS_MAX as u64 - 1));
        // Another version stores no end of its heal.
        let text = r#"{"from_offset":7,"ended_ms":1000,"digests":["a"]}"#;
        fields.change(vec![FieldChange::set(format!("{HEALED}1000:v"), text.to_owned())]);
        assert_eq!((fields.owes(5_000, "b"), fields.owes_before(5_000, "b")), (Some(7), None));
    }

    #[test]
    fn a_field_that_changed_meanwhile_is_left_as_it_is() {
        let mut fields = Fields::default();
        fields.heal(1_000, 7, "a");
        let paid_by_b = fields.at(1_000).unhealed_by("b").unwrap().changes;
        fields.pay(1_000, "c");
        fields.change(paid_by_b);
        assert_eq!(
            (fields.owes(1_000, "c"), fields.owes(1_000, "b")),
            (None, Some(7)),
            "it is done again, and not forgotten"
        );
    }
}

//! The metrics of one registry, which count an event without a look-up.

use prometheus_client::metrics::counter::Counter;

use crate::plan::EventOutcome;
use crate::registry::{Matched, RuleId};

/// The handles of one registry, which count events without a look-up.
#[derive(Debug)]
pub struct RegistryMetrics {
    pub(super) definitions: Vec<DefinitionMetrics>,
    pub(super) unknown: DefinitionMetrics,
    pub(super) rules: Vec<RuleMetrics>,
}

#[derive(Debug)]
pub(super) struct DefinitionMetrics {
    /// In the order of [`EventOutcome::ALL`], which is that of the variants.
    pub(super) outcomes: [Counter; EventOutcome::ALL.len()],
    pub(super) violations: Counter,
}

#[derive(Debug)]
pub(super) struct RuleMetrics {
    pub(super) effects: Counter,
    pub(super) hits: Counter,
    pub(super) misses: Counter,
}

impl RegistryMetrics {
    /// Counts an event that was handled.
    pub fn event(&self, matched: Matched, outcome: EventOutcome) {
        self.definition(matched).outcomes[outcome as usize].inc();
    }

    /// Counts event definitions with `validate: warn` whose schema a payload violates.
    pub fn violations(&self, matched: Matched, definitions: u32) {
        self.definition(matched).violations.inc_by(u64::from(definitions));
    }

    /// Counts applied effects of a rule.
    pub fn effects(&self, rule: RuleId, count: u64) {
        if let Some(rule) = self.rules.get(rule.0 as usize) {
            rule.effects.inc_by(count);
        }
    }

    /// Counts keys of a rule that existed, and keys that did not.
    pub fn keys(&self, rule: RuleId, hits: u64, misses: u64) {
        if let Some(rule) = self.rules.get(rule.0 as usize) {
            rule.hits.inc_by(hits);
            rule.misses.inc_by(misses);
        }
    }

    fn definition(&self, matched: Matched) -> &DefinitionMetrics {
        match matched {
            Matched::Definition(index) | Matched::Retired(index) => {
                self.definitions.get(index as usize).unwrap_or(&self.unknown)
            }
            Matched::Unknown => &self.unknown,
        }
    }
}

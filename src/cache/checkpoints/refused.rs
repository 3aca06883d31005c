//! The effects of a heal that Redis refused, and that may be permitted later.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Maximum number of rules that are listed. With more, all rules count.
const RULES_MAX: usize = 64;

/// Effects that Redis refused, because it does not permit them to the worker's user.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusedEffects {
    /// Number of effects.
    pub count: u64,
    /// Offset from which on the effects follow.
    pub first_offset: u64,
    /// Redis' answer to one of them, with the command.
    pub cause: String,
    /// Names of their rules.
    rules: BTreeSet<String>,
    /// True if the effects of all rules must be applied again.
    is_by_all: bool,
}

impl RefusedEffects {
    /// Adds an effect.
    pub fn add(&mut self, offset: u64, rule: &str, cause: &str) {
        if self.count == 0 {
            (self.first_offset, self.cause) = (offset, cause.to_owned());
        }
        self.count += 1;
        self.first_offset = self.first_offset.min(offset);
        if !self.rules.contains(rule) {
            self.rules.insert(rule.to_owned());
            self.is_by_all |= self.rules.len() > RULES_MAX;
        }
        if self.is_by_all {
            self.rules.clear();
        }
    }

    /// Returns the effects of both.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        if self.count == 0 {
            return other;
        }
        if other.count > 0 {
            self.count += other.count;
            self.first_offset = self.first_offset.min(other.first_offset);
            self.rules.extend(other.rules);
            self.is_by_all |= other.is_by_all || self.rules.len() > RULES_MAX;
        }
        if self.is_by_all { self.by_all() } else { self }
    }

    /// Returns them without the names of their rules.
    #[must_use]
    pub(super) fn by_all(mut self) -> Self {
        self.is_by_all = true;
        self.rules.clear();
        self
    }

    /// Returns the names of their rules in order; empty for all rules.
    pub(super) fn rules(&self) -> Vec<String> {
        self.rules.iter().cloned().collect()
    }
}

impl fmt::Display for RefusedEffects {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, first_offset, cause, .. } = self;
        let noun = if *count == 1 { "effect" } else { "effects" };
        write!(
            formatter,
            "Redis refused {count} {noun}, the first at offset {first_offset}: {cause}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_rules_count_as_all() {
        let mut refused = RefusedEffects::default();
        for rule in 0..RULES_MAX {
            refused.add(9, &rule.to_string(), "SET: NOPERM");
        }
        assert_eq!(refused.rules().len(), RULES_MAX);
        refused.add(7, "one more", "UNLINK: NOPERM");
        refused.add(8, "0", "UNLINK: NOPERM");
        assert_eq!((refused.count, refused.first_offset), (RULES_MAX as u64 + 2, 7));
        assert_eq!((refused.cause.as_str(), refused.rules().len()), ("SET: NOPERM", 0));
    }
}

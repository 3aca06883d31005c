//! Sample keys of the rules, for checking Redis permissions at the start.

use super::effect::{RuleId, Verb};
use super::model::Registry;
use super::template::{Piece, Template};

impl Registry {
    /// Returns sample keys, each with its rule.
    ///
    /// Placeholders are replaced by `1`. A tag gives the key of its set. Targets without any text
    /// before their first placeholder are left out.
    pub fn sample_keys(&self) -> Vec<(RuleId, String)> {
        let rules = self
            .definitions
            .iter()
            .filter(|definition| !definition.retired)
            .flat_map(|definition| &definition.rules);
        rules
            .flat_map(|rule| {
                let prefix = if rule.body.verb() == Verb::InvalidateTags {
                    &self.tag_prefix
                } else {
                    &rule.key_prefix
                };
                rule.targets
                    .iter()
                    .filter_map(move |target| sample(prefix, target))
                    .map(move |key| (rule.id, key))
            })
            .collect()
    }
}

fn sample(prefix: &str, target: &Template) -> Option<String> {
    if prefix.is_empty() && target.first_literal().is_empty() {
        return None;
    }
    let pieces = target
        .pieces
        .iter()
        .map(|piece| if let Piece::Literal(text) = piece { &**text } else { "1" });
    Some(std::iter::once(prefix).chain(pieces).collect())
}

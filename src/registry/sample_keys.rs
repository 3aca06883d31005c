//! Keys such as the rules name, for asking Redis beforehand whether it would let us touch them.

use super::effect::{RuleId, Verb};
use super::model::Registry;
use super::template::{Piece, Template};

impl Registry {
    /// Returns keys such as the rules name, each with its rule: placeholders are filled with `1`. A
    /// target that begins with a placeholder is left out where nothing stands before it. For a tag
    /// it is the key of its set.
    pub fn sample_keys(&self) -> Vec<(RuleId, String)> {
        let rules =
            self.entries.iter().filter(|entry| !entry.retired).flat_map(|entry| &entry.rules);
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

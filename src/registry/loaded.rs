//! A loaded registry, with accessors that the worker uses.

use super::diagnostic::{Diagnostic, nearest};
use super::effect::Verb;
use super::example::{self, Example, WORK_OF_ALL_EXAMPLES};
use super::key_shape::KeyShape;
use super::model::{EventDefinition, Loader, Registry, RuleName};

/// A registry, with its warnings and examples.
#[derive(Debug)]
pub struct LoadedRegistry {
    /// The registry.
    pub registry: Registry,
    /// Parts that are legal and probably wrong.
    pub warnings: Vec<Diagnostic>,
    /// Examples for [`run_examples`](super::run_examples).
    pub examples: Vec<Example>,
    /// `UNSTALE_KEY_PREFIX`, which precedes every key and which examples omit.
    pub(super) key_prefix: String,
}

impl Registry {
    /// Returns the digest; see [`Registry::digest`](field@Registry::digest).
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the routing keys to bind, without duplicates, in byte order.
    pub fn routing_keys(&self) -> &[String] {
        &self.routing_keys
    }

    /// Returns the name of each rule, by [`RuleId`](super::RuleId).
    pub fn rules(&self) -> &[RuleName] {
        &self.rules
    }

    /// Returns the event definitions, in the order in which their effects are added together.
    pub fn definitions(&self) -> &[EventDefinition] {
        &self.definitions
    }

    /// Returns the event type that the user most likely meant by an unknown one.
    pub fn nearest_type(&self, event_type: &str) -> Option<String> {
        let types = self
            .definitions
            .iter()
            .map(|definition| definition.name.as_str())
            .filter(|name| !name.contains(['*', '#']));
        nearest(event_type, types).map(str::to_owned)
    }

    /// Returns whether some rule asks for a second delete (`again`).
    pub fn has_second_deletes(&self) -> bool {
        self.definitions.iter().any(|definition| {
            !definition.retired && definition.rules.iter().any(|rule| rule.again.is_some())
        })
    }

    /// Returns the names of the rules that may have asked for the second delete of that target. A
    /// changed registry may have none.
    pub fn rules_of_second_delete(&self, verb: Verb, target: &str) -> Vec<&str> {
        let rules = self.definitions.iter().flat_map(|definition| &definition.rules);
        let may_ask = rules.filter(|rule| {
            let prefix = if verb == Verb::InvalidateTags { "" } else { &rule.key_prefix };
            let has_shape = |template| KeyShape::of_key(prefix, template).includes(target);
            rule.again.is_some() && rule.body.verb() == verb && rule.targets.iter().any(has_shape)
        });
        may_ask
            .filter_map(|rule| self.rules.get(rule.id.0 as usize))
            .map(|rule| rule.name.as_str())
            .collect()
    }

    /// Returns the loaders, by [`LoaderId`](super::LoaderId).
    pub fn loaders(&self) -> &[Loader] {
        &self.loaders
    }
}

/// Runs the examples of a registry and returns those that fail.
///
/// Stops at the example with which the work of all examples exceeds its limit.
pub fn run_examples(loaded: &LoadedRegistry) -> Vec<Diagnostic> {
    run_within(loaded, WORK_OF_ALL_EXAMPLES)
}

pub(super) fn run_within(loaded: &LoadedRegistry, work: u64) -> Vec<Diagnostic> {
    example::run_within(&loaded.registry, &loaded.examples, &loaded.key_prefix, work)
}

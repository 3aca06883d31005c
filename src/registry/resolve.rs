//! Resolves one event to its effects on the cache.
//!
//! This file finds the definitions of an event and applies their limits. `target` applies one rule.

mod target;

use super::budget::Budget;
use super::data_schema::Verdict;
use super::effect::{Effect, Failure, Matched, Resolution, RuleId};
use super::explain::{Explanation, NoObserver, Observer};
use super::lets::Lets;
use super::model::{EventDefinition, Registry, Validate};
use super::places::Places;
use super::render::Stop;
use super::scope::{EventScope, Scope};
use crate::event::{Event, Json};
use crate::printable::printable;
use crate::reason::Reason;

impl Registry {
    /// Returns the effects of the event, within the full budget of an event of that size.
    pub fn resolve(&self, event: &Event<'_>) -> Resolution {
        self.resolve_within(event, &Budget::for_bytes(event.bytes()))
    }

    /// Returns the effects of the event, as far as the budget allows.
    ///
    /// If the budget runs out, the resolution has no effects, and a failure that names the rule and
    /// the resource. The caller may check [`Budget::is_spent`] and retry with more.
    pub fn resolve_within(&self, event: &Event<'_>, budget: &Budget) -> Resolution {
        self.run(event, budget, &mut NoObserver)
    }

    /// Returns whether a message of that type without a body is an event.
    ///
    /// It is one if rules know the type, unless Debezium publishes tombstones for it as a table.
    pub fn knows_bodiless(&self, event_type: &str) -> bool {
        let is_known = self.by_name.contains_key(event_type)
            || self.patterns.iter().any(|(pattern, _)| pattern.matches(event_type));
        is_known && !self.tables.iter().any(|table| table.matches(event_type))
    }

    /// Returns the effects of the event, with notes on rules that had none.
    pub fn explain(&self, event: &Event<'_>) -> Explanation {
        let mut notes = Vec::new();
        let resolution = self.run(event, &Budget::for_bytes(event.bytes()), &mut notes);
        Explanation { resolution, notes }
    }

    /// Returns the effects of the event through one definition, whatever the event's type. Examples
    /// use it.
    pub fn resolve_definition(
        &self,
        definition: u32,
        event: &Event<'_>,
        budget: &Budget,
    ) -> Resolution {
        let Some(found) = self.definitions.get(definition as usize) else {
            return Resolution::default();
        };
        if found.retired {
            return Resolution { matched: Matched::Retired(definition), ..Resolution::default() };
        }
        let scope = EventScope::new(event, budget);
        let mut observer = NoObserver;
        let mut run = Run::new(self, &scope, &mut observer);
        run.entry(found);
        run.finish(Matched::Definition(definition))
    }

    fn run<O: Observer>(&self, event: &Event<'_>, budget: &Budget, observer: &mut O) -> Resolution {
        let exact = self.by_name.get(&*event.event_type).map_or(&[][..], Vec::as_slice);
        let is_retired = |definition: u32| {
            self.definitions.get(definition as usize).is_some_and(|definition| definition.retired)
        };
        if let Some(&retired) = exact.iter().find(|&&definition| is_retired(definition)) {
            return Resolution { matched: Matched::Retired(retired), ..Resolution::default() };
        }
        let patterns = self
            .patterns
            .iter()
            .filter(|(pattern, _)| pattern.matches(&event.event_type))
            .map(|(_, definition)| *definition);
        let scope = EventScope::new(event, budget);
        let mut run = Run::new(self, &scope, observer);
        let mut matched = Matched::Unknown;
        for index in exact.iter().copied().chain(patterns) {
            let Some(definition) = self.definitions.get(index as usize) else { continue };
            if definition.retired {
                if matched == Matched::Unknown {
                    matched = Matched::Retired(index);
                }
                continue;
            }
            if !matches!(matched, Matched::Definition(_)) {
                matched = Matched::Definition(index);
            }
            if !run.is_over {
                run.entry(definition);
            }
        }
        run.finish(matched)
    }
}

fn position(effects: usize) -> u32 {
    u32::try_from(effects).unwrap_or(u32::MAX)
}

struct Run<'r, 'e, O> {
    registry: &'r Registry,
    event: &'r EventScope<'e>,
    observer: &'r mut O,
    effects: Vec<Effect>,
    failure: Option<Failure>,
    violations: u32,
    /// Number of tags to which the effects add their keys. They count as targets.
    tags: usize,
    /// Maximum number of targets, of the event or of the definition.
    limit: usize,
    /// The rule that is being resolved.
    rule: Option<RuleId>,
    /// The event exceeds a limit, and no further rule is resolved.
    is_over: bool,
}

impl<'r, 'e, O: Observer> Run<'r, 'e, O> {
    fn new(registry: &'r Registry, event: &'r EventScope<'e>, observer: &'r mut O) -> Self {
        Self {
            registry,
            event,
            observer,
            effects: Vec::new(),
            failure: None,
            violations: 0,
            tags: 0,
            limit: registry.max_keys_per_event,
            rule: None,
            is_over: false,
        }
    }

    fn finish(self, matched: Matched) -> Resolution {
        Resolution {
            matched,
            effects: self.effects,
            failure: self.failure,
            violations: self.violations,
        }
    }

    fn fail(&mut self, reason: Reason, message: impl FnOnce() -> String) {
        if self.failure.is_none() {
            self.failure = Some(Failure {
                reason,
                message: printable(&message()).into_owned(),
                at: position(self.effects.len()),
            });
        }
    }

    fn entry(&mut self, definition: &'r EventDefinition) {
        self.rule = None;
        let violation = self.violation(definition);
        if self.is_spent() {
            return self.spent(definition);
        }
        if let Some(message) = violation {
            match definition.validate {
                Validate::Warn => self.violations += 1,
                Validate::Enforce => {
                    return self.fail(Reason::InvalidData, || {
                        format!("{}#{}: {message}", definition.file, definition.name)
                    });
                }
            }
        }
        let (before, tags_before) = (self.effects.len(), self.tags);
        let failed_before = self.failure.is_some();
        let event_limit = self.registry.max_keys_per_event;
        let definition_limit = definition
            .max_keys
            .map_or(usize::MAX, |most| (before + tags_before).saturating_add(most));
        self.limit = event_limit.min(definition_limit);
        let lets = Lets::new(&definition.lets);
        let stop = match self.rules(definition, &lets) {
            Ok(()) if !self.is_spent() => return,
            Ok(()) => Stop::Spent,
            Err(stop) => stop,
        };
        if stop == Stop::Spent {
            return self.spent(definition);
        }
        if !failed_before {
            self.failure = None;
        }
        if definition_limit <= event_limit {
            self.effects.truncate(before);
            self.tags = tags_before;
            let most = definition.max_keys.unwrap_or_default();
            self.fail(Reason::BlastRadius, || {
                format!(
                    "{}#{}: more than max_keys {most} targets",
                    definition.file, definition.name
                )
            });
        } else {
            let message = format!(
                "{}#{}: more than UNSTALE_MAX_KEYS_PER_EVENT {event_limit} targets",
                definition.file, definition.name
            );
            self.give_up(Reason::BlastRadius, message);
        }
    }

    fn is_spent(&self) -> bool {
        self.event.budget.is_spent()
    }

    /// Removes every effect: an event beyond a limit has none.
    fn give_up(&mut self, reason: Reason, message: String) {
        self.effects.clear();
        self.failure = Some(Failure { reason, message: printable(&message).into_owned(), at: 0 });
        self.is_over = true;
    }

    /// Records which rule spent the event's budget.
    fn spent(&mut self, definition: &EventDefinition) {
        let rule = self.rule.and_then(|rule| self.registry.rules.get(rule.0 as usize));
        let place = rule.map_or_else(
            || format!("{}#{}: `data`", definition.file, definition.name),
            |rule| rule.name.clone(),
        );
        let (reason, message) = self.event.budget.complaint(&place, rule.is_none());
        self.give_up(reason, message);
    }

    /// Returns the violation of the payload, if any. With `validate: warn` the text is empty.
    fn violation(&self, definition: &EventDefinition) -> Option<String> {
        let schema = definition.schema.as_ref()?;
        let (data, members) = self.event.payload();
        match schema.verdict(data, members, self.event.budget) {
            // The caller checks the budget.
            Verdict::Valid | Verdict::Spent => None,
            Verdict::Invalid if definition.validate == Validate::Warn => Some(String::new()),
            Verdict::Invalid => Some(schema.violation(data, members)),
        }
    }

    fn rules(&mut self, definition: &'r EventDefinition, lets: &Lets<'_>) -> Result<(), Stop> {
        for rule in &definition.rules {
            self.rule = Some(rule.id);
            let places = Places::default();
            let scope = Scope { event: self.event, lets, item: None, places: &places };
            let Some(each) = &rule.each else {
                self.rule(definition, rule, &scope, None)?;
                continue;
            };
            let items = each.json(&scope);
            if self.is_spent() {
                return Err(Stop::Spent);
            }
            let items = match items {
                Ok(items) => items,
                Err(fault) => {
                    self.unresolvable(rule, None, || format!("`each` failed: {}", fault.message));
                    continue;
                }
            };
            let items = Json::trusted(&items);
            if items.kind() != crate::event::json::JsonKind::Array {
                self.unresolvable(rule, None, || "`each` is not a list".to_owned());
                continue;
            }
            let places = Places::default();
            let scope = Scope { event: self.event, lets, item: None, places: &places };
            for (at, item) in scope.elements(items)?.iter().enumerate() {
                self.event.budget.work(4)?;
                let scope = Scope { item: Some(item), ..scope };
                self.rule(definition, rule, &scope, Some(at))?;
            }
        }
        Ok(())
    }
}

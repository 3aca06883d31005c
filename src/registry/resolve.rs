//! One event → what it does to the cache.

use super::budget::Budget;
use super::data_schema::Verdict;
use super::effect::{Action, Effect, Failure, Matched, Resolution, RuleId, Version, Warm, Write};
use super::explain::{Explanation, Nobody, Observer};
use super::model::{Encoding, Entry, Registry, Rule, RuleBody, Validate};
use super::moments::{Unordered, expiry_of, version_of};
use super::places::Places;
use super::render::{Miss, Stop};
use super::reserved::{Refused, check_name};
use super::scope::{Binding, EventScope, Lets, Scope};
use super::template::Template;
use crate::event::{Event, Json};
use crate::printable::printable;
use crate::reason::Reason;

/// Units of work for a target, beside what its template reads.
const TARGET: u64 = 16;

impl Registry {
    /// Returns what the event does, within the full budget of an event of that size.
    pub fn resolve(&self, event: &Event<'_>) -> Resolution {
        self.resolve_within(event, &Budget::for_bytes(event.bytes()))
    }

    /// Returns what the event does, as far as the budget allows.
    ///
    /// When the budget runs out the resolution has no effects, and a failure that names the rule
    /// and what ran out. The caller may ask [`Budget::is_spent`], discard it, and try again with
    /// more.
    pub fn resolve_within(&self, event: &Event<'_>, budget: &Budget) -> Resolution {
        self.run(event, budget, &mut Nobody)
    }

    /// Whether a message of that type and without a body is an event: rules know the type, and it
    /// is no table that Debezium publishes tombstones for.
    pub fn knows_bodiless(&self, event_type: &str) -> bool {
        let is_known = self.by_name.contains_key(event_type)
            || self.patterns.iter().any(|(pattern, _)| pattern.matches(event_type));
        is_known && !self.tables.iter().any(|table| table.matches(event_type))
    }

    /// What the event does, and why not more.
    pub fn explain(&self, event: &Event<'_>) -> Explanation {
        let mut notes = Vec::new();
        let resolution = self.run(event, &Budget::for_bytes(event.bytes()), &mut notes);
        Explanation { resolution, notes }
    }

    /// What one entry makes of the event within a budget, whatever the event's type: what an
    /// example of that entry expects.
    pub fn resolve_entry(&self, entry: u32, event: &Event<'_>, budget: &Budget) -> Resolution {
        let Some(found) = self.entries.get(entry as usize) else { return Resolution::default() };
        if found.retired {
            return Resolution { matched: Matched::Retired(entry), ..Resolution::default() };
        }
        let scope = EventScope::new(event, budget);
        let mut nobody = Nobody;
        let mut run = Run::new(self, &scope, &mut nobody);
        run.entry(found);
        run.finish(Matched::Entry(entry))
    }

    fn run<O: Observer>(&self, event: &Event<'_>, budget: &Budget, observer: &mut O) -> Resolution {
        let exact = self.by_name.get(&*event.event_type).map_or(&[][..], Vec::as_slice);
        let is_retired =
            |entry: u32| self.entries.get(entry as usize).is_some_and(|entry| entry.retired);
        if let Some(&retired) = exact.iter().find(|&&entry| is_retired(entry)) {
            return Resolution { matched: Matched::Retired(retired), ..Resolution::default() };
        }
        let patterns = self
            .patterns
            .iter()
            .filter(|(pattern, _)| pattern.matches(&event.event_type))
            .map(|(_, entry)| *entry);
        let scope = EventScope::new(event, budget);
        let mut run = Run::new(self, &scope, observer);
        let mut matched = Matched::Unknown;
        for index in exact.iter().copied().chain(patterns) {
            let Some(entry) = self.entries.get(index as usize) else { continue };
            if entry.retired {
                if matched == Matched::Unknown {
                    matched = Matched::Retired(index);
                }
                continue;
            }
            if !matches!(matched, Matched::Entry(_)) {
                matched = Matched::Entry(index);
            }
            if !run.is_over {
                run.entry(entry);
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
    /// Tags that the effects add their keys to: they count as targets.
    tags: usize,
    /// Most targets: of the event, or of the entry.
    limit: usize,
    /// The rule that is resolved.
    rule: Option<RuleId>,
    /// The event is over one of its limits: nothing more is resolved.
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

    fn entry(&mut self, entry: &'r Entry) {
        self.rule = None;
        let violation = self.violation(entry);
        if self.is_spent() {
            return self.spent(entry);
        }
        if let Some(message) = violation {
            match entry.validate {
                Validate::Warn => self.violations += 1,
                Validate::Enforce => {
                    return self.fail(Reason::InvalidData, || {
                        format!("{}#{}: {message}", entry.file, entry.name)
                    });
                }
            }
        }
        let (before, tags_before) = (self.effects.len(), self.tags);
        let failed_before = self.failure.is_some();
        let event_limit = self.registry.max_keys_per_event;
        let entry_limit =
            entry.max_keys.map_or(usize::MAX, |most| (before + tags_before).saturating_add(most));
        self.limit = event_limit.min(entry_limit);
        let lets = Lets::new(&entry.lets);
        let stop = match self.rules(entry, &lets) {
            Ok(()) if !self.is_spent() => return,
            Ok(()) => Stop::Spent,
            Err(stop) => stop,
        };
        if stop == Stop::Spent {
            return self.spent(entry);
        }
        if !failed_before {
            self.failure = None;
        }
        if entry_limit <= event_limit {
            self.effects.truncate(before);
            self.tags = tags_before;
            let most = entry.max_keys.unwrap_or_default();
            self.fail(Reason::BlastRadius, || {
                format!("{}#{}: more than max_keys {most} targets", entry.file, entry.name)
            });
        } else {
            let message = format!(
                "{}#{}: more than UNSTALE_MAX_KEYS_PER_EVENT {event_limit} targets",
                entry.file, entry.name
            );
            self.give_up(Reason::BlastRadius, message);
        }
    }

    fn is_spent(&self) -> bool {
        self.event.budget.is_spent()
    }

    /// Takes every effect back: of such an event nothing is applied.
    fn give_up(&mut self, reason: Reason, message: String) {
        self.effects.clear();
        self.failure = Some(Failure { reason, message: printable(&message).into_owned(), at: 0 });
        self.is_over = true;
    }

    /// Says which rule spent the event's budget.
    fn spent(&mut self, entry: &Entry) {
        let rule = self.rule.and_then(|rule| self.registry.rules.get(rule.0 as usize));
        let place = rule.map_or_else(
            || format!("{}#{}: `data`", entry.file, entry.name),
            |rule| rule.name.clone(),
        );
        let (reason, message) = self.event.budget.complaint(&place, rule.is_none());
        self.give_up(reason, message);
    }

    /// Returns what the payload violates, if it does. With `validate: warn` it is not named.
    fn violation(&self, entry: &Entry) -> Option<String> {
        let schema = entry.schema.as_ref()?;
        let (data, members) = self.event.payload();
        match schema.verdict(data, members, self.event.budget) {
            // The caller asks the budget whether it is spent.
            Verdict::Valid | Verdict::Spent => None,
            Verdict::Invalid if entry.validate == Validate::Warn => Some(String::new()),
            Verdict::Invalid => Some(schema.violation(data, members)),
        }
    }

    fn rules(&mut self, entry: &'r Entry, lets: &Lets<'_>) -> Result<(), Stop> {
        for rule in &entry.rules {
            self.rule = Some(rule.id);
            let places = Places::default();
            let scope = Scope { event: self.event, lets, item: None, places: &places };
            let Some(each) = &rule.each else {
                self.rule(entry, rule, &scope, None)?;
                continue;
            };
            let items = scope.json(each);
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
                self.unresolvable(rule, None, || "`each` is no list".to_owned());
                continue;
            }
            let places = Places::default();
            let scope = Scope { event: self.event, lets, item: None, places: &places };
            for (at, item) in scope.elements(items)?.iter().enumerate() {
                self.event.budget.work(4)?;
                let scope = Scope { item: Some(item), ..scope };
                self.rule(entry, rule, &scope, Some(at))?;
            }
        }
        Ok(())
    }

    fn unresolvable(&mut self, rule: &Rule, item: Option<usize>, message: impl Fn() -> String) {
        self.observer.note(rule, self.effects.len(), item, &message);
        let names = &self.registry.rules;
        self.fail(Reason::Unresolvable, || match names.get(rule.id.0 as usize) {
            Some(name) => format!("{}: {}", name.name, message()),
            None => message(),
        });
    }

    fn rule(
        &mut self,
        entry: &'r Entry,
        rule: &'r Rule,
        scope: &Scope<'_, '_>,
        item: Option<usize>,
    ) -> Result<(), Stop> {
        let mut in_doubt = false;
        if let Some(when) = &rule.when {
            let answer = scope.condition(when);
            if self.is_spent() {
                return Err(Stop::Spent);
            }
            match answer {
                Ok(true) => {}
                Ok(false) => {
                    self.observer.note(rule, self.effects.len(), item, || {
                        format!("`when` said no: {}", when.text())
                    });
                    return Ok(());
                }
                Err(fault) => {
                    in_doubt = true;
                    if fault.is_absence {
                        let message = || {
                            format!(
                                "`when` had no answer ({}), so the safe side holds: {}",
                                fault.message,
                                when.text()
                            )
                        };
                        self.observer.note(rule, self.effects.len(), item, message);
                    } else {
                        self.unresolvable(rule, item, || {
                            format!("`when` failed: {}", fault.message)
                        });
                    }
                }
            }
        }
        let prefix =
            if matches!(rule.body, RuleBody::InvalidateTags) { "" } else { &rule.key_prefix };
        for target in &rule.targets {
            if !target.paths().any(super::path::Path::fans_out) {
                self.target(entry, rule, scope, item, target, &[], prefix, in_doubt)?;
                continue;
            }
            target.expand(scope, &mut Vec::new(), &mut |expanded| match expanded {
                Ok(bindings) => {
                    self.target(entry, rule, scope, item, target, bindings, prefix, in_doubt)
                }
                Err(_) if self.is_spent() => Err(Stop::Spent),
                Err(miss) => {
                    self.missed(rule, item, "target", miss);
                    Ok(())
                }
            })?;
        }
        Ok(())
    }

    fn missed(&mut self, rule: &Rule, item: Option<usize>, what: &str, miss: Miss) {
        match miss {
            Miss::Dropped => self.observer.note(rule, self.effects.len(), item, || {
                format!("{what}: an optional value is absent, so it is dropped")
            }),
            Miss::Unresolvable(message) => {
                self.unresolvable(rule, item, || format!("{what}: {message}"))
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what stays the same within a rule, and one target"
    )]
    fn target(
        &mut self,
        entry: &Entry,
        rule: &Rule,
        scope: &Scope<'_, '_>,
        item: Option<usize>,
        template: &Template,
        bindings: &[Binding<'_>],
        prefix: &str,
        in_doubt: bool,
    ) -> Result<(), Stop> {
        self.event.budget.work(TARGET)?;
        let mut target = String::with_capacity(prefix.len() + 40);
        target.push_str(prefix);
        let rendered = template.render(scope, bindings, &mut target);
        if self.is_spent() {
            return Err(Stop::Spent);
        }
        if let Err(miss) = rendered {
            self.missed(rule, item, "target", miss);
            return Ok(());
        }
        self.event.budget.bytes(prefix.len())?;
        let is_tag = matches!(rule.body, RuleBody::InvalidateTags);
        if let Err(refused) = check_name(&target, is_tag, &self.registry.tag_prefix) {
            self.refused(rule, item, "target", refused);
            return Ok(());
        }
        let (version, in_doubt) = match self.version(entry, rule, scope, item, bindings, &target) {
            Ok(version) => (version, in_doubt),
            Err(Unordered) => (None, true),
        };
        let action = self.action(rule, scope, item, bindings, in_doubt)?;
        if self.is_spent() {
            return Err(Stop::Spent);
        }
        let Some(action) = action else { return Ok(()) };
        self.effects.push(Effect {
            rule: rule.id,
            target,
            action,
            version: version.map(Box::new),
            again: rule.again,
        });
        if self.effects.len() + self.tags > self.limit { Err(Stop::TooMany) } else { Ok(()) }
    }

    fn refused(&mut self, rule: &Rule, item: Option<usize>, part: &str, refused: Refused) {
        let message = || format!("{part}: {}", refused.what);
        self.observer.note(rule, self.effects.len(), item, message);
        let names = &self.registry.rules;
        self.fail(refused.reason, || match names.get(rule.id.0 as usize) {
            Some(name) => format!("{}: {}", name.name, message()),
            None => message(),
        });
    }

    /// The place of a target's effect among those of its entity, where it has one.
    ///
    /// # Errors
    /// It cannot be told: what is in doubt is deleted.
    fn version(
        &mut self,
        entry: &Entry,
        rule: &Rule,
        scope: &Scope<'_, '_>,
        item: Option<usize>,
        bindings: &[Binding<'_>],
        target: &str,
    ) -> Result<Option<Version>, Unordered> {
        let of = match &rule.body {
            RuleBody::Write { version, .. } => version.as_ref().or(entry.version.as_ref()),
            _ if self.is_written(rule, target) => entry.version.as_ref(),
            _ => None,
        };
        let Some(of) = of else { return Ok(None) };
        // A time is read, a family is written.
        let _ = self.event.budget.work(32);
        let is_write = matches!(rule.body, RuleBody::Write { .. });
        let message = match version_of(of, position(self.effects.len() + 1), scope, bindings) {
            Ok(version) => return Ok(Some(version)),
            // A deletion needs no order to take hold, and `{rev?}` says that there may be none.
            Err(Miss::Dropped) if !is_write => return Ok(None),
            Err(Miss::Dropped) => "an optional value is absent".to_owned(),
            Err(Miss::Unresolvable(message)) => message,
        };
        self.unresolvable(rule, item, || format!("version: {message}"));
        if !is_write {
            return Ok(None);
        }
        self.observer.note(rule, self.effects.len(), item, || "write becomes delete".to_owned());
        Err(Unordered)
    }

    /// Whether a versioned rule writes that key.
    fn is_written(&self, rule: &Rule, target: &str) -> bool {
        // Where the budget is spent the effect is not used.
        let can_ask = rule.written.is_empty()
            || self.event.budget.work((rule.written.len() * (4 + target.len() / 4)) as u64).is_ok();
        can_ask && rule.written.iter().any(|shape| shape.includes(target))
    }

    /// What is done with a target; `None` drops it.
    fn action(
        &mut self,
        rule: &Rule,
        scope: &Scope<'_, '_>,
        item: Option<usize>,
        bindings: &[Binding<'_>],
        in_doubt: bool,
    ) -> Result<Option<Action>, Stop> {
        let (what, filled) = match &rule.body {
            RuleBody::Delete => return Ok(Some(Action::Delete)),
            RuleBody::InvalidateTags => return Ok(Some(Action::InvalidateTag)),
            RuleBody::BumpVersion => return Ok(Some(Action::BumpVersion)),
            RuleBody::Expire(expiry) => {
                let miss = match expiry_of(expiry, scope, bindings) {
                    Ok(expiry) => return Ok(Some(Action::Expire(expiry))),
                    Err(miss) => miss,
                };
                let is_dropped = matches!(miss, Miss::Dropped);
                self.missed(rule, item, "at", miss);
                if is_dropped {
                    return Ok(None);
                }
                self.observer
                    .note(rule, self.effects.len(), item, || "expire becomes delete".to_owned());
                return Ok(Some(Action::Delete));
            }
            RuleBody::Write { .. } | RuleBody::Warm { .. } if in_doubt => {
                return Ok(Some(Action::Delete));
            }
            RuleBody::Write { value, encoding, expiry, tags, version: _ } => {
                let mut write = || {
                    let mut text = String::new();
                    match encoding {
                        Encoding::Json => value.render_json(scope, bindings, &mut text),
                        Encoding::Raw => value.render_raw(scope, bindings, &mut text),
                    }
                    .map_err(|miss| ("value", miss.into()))?;
                    Ok(Action::Write(Box::new(Write {
                        value: text,
                        expiry: expiry_of(expiry, scope, bindings)
                            .map_err(|miss| ("at", miss.into()))?,
                        tags: self.tags_of(tags, scope, bindings).map_err(|miss| ("tags", miss))?,
                    })))
                };
                ("write", write())
            }
            RuleBody::Warm { loader, url, expiry, tags, stale, only } => {
                let mut warm = || {
                    let base = self
                        .registry
                        .loaders
                        .get(loader.0 as usize)
                        .map_or("", |loader| &loader.url);
                    Ok(Action::Warm(Box::new(Warm {
                        loader: *loader,
                        url: url
                            .render(base, scope, bindings)
                            .map_err(|miss| ("from", miss.into()))?,
                        expiry: expiry_of(expiry, scope, bindings)
                            .map_err(|miss| ("at", miss.into()))?,
                        tags: self.tags_of(tags, scope, bindings).map_err(|miss| ("tags", miss))?,
                        stale: *stale,
                        only: *only,
                    })))
                };
                ("warm", warm())
            }
        };
        let (part, unfilled) = match filled {
            Ok(action) => return Ok(Some(action)),
            Err(unfilled) => unfilled,
        };
        match unfilled {
            Unfilled::Stopped(stop) => return Err(stop),
            Unfilled::Missed(miss) => self.missed(rule, item, part, miss),
            Unfilled::Refused(refused) => self.refused(rule, item, part, refused),
        }
        self.observer.note(rule, self.effects.len(), item, || format!("{what} becomes delete"));
        Ok(Some(Action::Delete))
    }

    /// The tags of one key. Each counts as a target.
    fn tags_of(
        &mut self,
        tags: &[Template],
        scope: &Scope<'_, '_>,
        bindings: &[Binding<'_>],
    ) -> Result<Vec<String>, Unfilled> {
        let mut names = Vec::with_capacity(tags.len());
        let left = self.limit.saturating_sub(self.effects.len() + self.tags);
        for template in tags {
            let mut unfilled = None;
            let expanded = template.expand(scope, &mut bindings.to_vec(), &mut |expanded| {
                self.event.budget.work(TARGET)?;
                let mut name = String::new();
                match expanded.and_then(|bindings| template.render(scope, bindings, &mut name)) {
                    Ok(()) => match check_name(&name, true, &self.registry.tag_prefix) {
                        Ok(()) => names.push(name),
                        Err(refused) => unfilled = Some(Unfilled::Refused(refused)),
                    },
                    Err(Miss::Dropped) => {}
                    Err(unresolvable) => unfilled = Some(unresolvable.into()),
                }
                if names.len() > left { Err(Stop::TooMany) } else { Ok(()) }
            });
            expanded.map_err(Unfilled::Stopped)?;
            if let Some(unfilled) = unfilled {
                return Err(unfilled);
            }
        }
        self.tags += names.len();
        Ok(names)
    }
}

/// Why a part of an effect has no value.
enum Unfilled {
    Missed(Miss),
    Refused(Refused),
    Stopped(Stop),
}

impl From<Miss> for Unfilled {
    fn from(miss: Miss) -> Self {
        Self::Missed(miss)
    }
}

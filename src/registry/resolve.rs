//! One event → what it does to the cache.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::budget::Budget;
use super::compile::family_of;
use super::effect::{Action, Effect, Expiry, Failure, Matched, Resolution, RuleId, Version, Warm, Write};
use super::model::{Encoding, Entry, ExpiryRule, Family, Registry, Rule, RuleBody, Validate, VersionRule};
use super::render::{Miss, TooMany};
use super::scope::{Arrays, Binding, EventScope, Lets, Scope};
use super::template::Template;
use crate::event::{Event, Json};
use crate::reason::Reason;

/// The most that the values written for one event may take: a whole payload in each of many keys would be more than a worker has.
const MAX_VALUE_BYTES: usize = 64 * 1024 * 1024;

/// What an event does, and why it does not do the rest: what `plan` shows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Explanation {
    /// What would be applied.
    pub resolution: Resolution,
    /// Why rules had no or other effects, in order.
    pub notes: Vec<Note>,
}

/// Why a rule had no effect, or another one than its verb says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The rule.
    pub rule: RuleId,
    /// How many effects of the resolution stand before it (before a limit took them away).
    pub at: u32,
    /// The element of `each`, from 0.
    pub item: Option<usize>,
    /// Paths and rules, never payload values.
    pub message: String,
}

/// Who is told why. The worker's does nothing, and costs nothing.
trait Observer {
    fn note(&mut self, rule: &Rule, at: usize, item: Option<usize>, message: impl FnOnce() -> String);
}

struct Nobody;

impl Observer for Nobody {
    fn note(&mut self, _: &Rule, _: usize, _: Option<usize>, _: impl FnOnce() -> String) {}
}

impl Observer for Vec<Note> {
    fn note(&mut self, rule: &Rule, at: usize, item: Option<usize>, message: impl FnOnce() -> String) {
        self.push(Note { rule: rule.id, at: position(at), item, message: message() });
    }
}

impl Registry {
    /// Returns what the event does, within the full budget of an event.
    pub fn resolve(&self, event: &Event<'_>) -> Resolution {
        self.resolve_within(event, &Budget::for_event())
    }

    /// Returns what the event does, as far as the budget allows.
    ///
    /// When the budget runs out the resolution has no effects, and a failure that names the rule and what ran out. The caller may ask
    /// [`Budget::is_spent`], discard it, and try again with more.
    pub fn resolve_within(&self, event: &Event<'_>, _budget: &Budget) -> Resolution {
        self.run(event, &mut Nobody)
    }

    /// What the event does, and why not more.
    pub fn explain(&self, event: &Event<'_>) -> Explanation {
        let mut notes = Vec::new();
        let resolution = self.run(event, &mut notes);
        Explanation { resolution, notes }
    }

    /// What one entry makes of the event, whatever the event's type: what an example of that entry expects.
    pub fn resolve_entry(&self, entry: u32, event: &Event<'_>) -> Resolution {
        let Some(found) = self.entries.get(entry as usize) else { return Resolution::default() };
        if found.retired {
            return Resolution { matched: Matched::Retired(entry), ..Resolution::default() };
        }
        let scope = EventScope::new(event);
        let mut nobody = Nobody;
        let mut run = Run::new(self, &scope, &mut nobody);
        run.entry(found);
        run.finish(Matched::Entry(entry))
    }

    fn run<O: Observer>(&self, event: &Event<'_>, observer: &mut O) -> Resolution {
        let exact = self.by_name.get(&*event.event_type).map_or(&[][..], Vec::as_slice);
        let is_retired = |entry: u32| self.entries.get(entry as usize).is_some_and(|entry| entry.retired);
        if let Some(&retired) = exact.iter().find(|&&entry| is_retired(entry)) {
            return Resolution { matched: Matched::Retired(retired), ..Resolution::default() };
        }
        let patterns = self.patterns.iter().filter(|(pattern, _)| pattern.matches(&event.event_type)).map(|(_, entry)| *entry);
        let scope = EventScope::new(event);
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
            if !run.is_over_limit {
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
    /// More effects than this are too many: of the event, or of the entry at hand.
    limit: usize,
    /// Of values written.
    value_bytes: usize,
    is_over_limit: bool,
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
            limit: registry.max_keys_per_event,
            value_bytes: 0,
            is_over_limit: false,
        }
    }

    fn finish(self, matched: Matched) -> Resolution {
        Resolution { matched, effects: self.effects, failure: self.failure, violations: self.violations }
    }

    fn fail(&mut self, reason: Reason, message: impl FnOnce() -> String) {
        if self.failure.is_none() {
            self.failure = Some(Failure { reason, message: message(), at: position(self.effects.len()) });
        }
    }

    fn entry(&mut self, entry: &'r Entry) {
        if let Some(message) = self.violation(entry) {
            match entry.validate {
                Validate::Warn => self.violations += 1,
                Validate::Enforce => return self.fail(Reason::InvalidData, || format!("{}#{}: {message}", entry.file, entry.name)),
            }
        }
        let before = self.effects.len();
        let failed_before = self.failure.is_some();
        let event_limit = self.registry.max_keys_per_event;
        let entry_limit = entry.max_keys.map_or(usize::MAX, |most| before.saturating_add(most));
        self.limit = event_limit.min(entry_limit);
        let lets = Lets::new(&entry.lets);
        if self.rules(entry, &lets).is_ok() {
            return;
        }
        if !failed_before {
            self.failure = None;
        }
        if self.effects.len() > entry_limit {
            self.effects.truncate(before);
            let most = entry.max_keys.unwrap_or_default();
            self.fail(Reason::BlastRadius, || format!("{}#{}: more than max_keys {most} targets", entry.file, entry.name));
        } else {
            self.effects.clear();
            let message = format!("{}#{}: more than UNSTALE_MAX_KEYS_PER_EVENT {event_limit} targets", entry.file, entry.name);
            self.failure = Some(Failure { reason: Reason::BlastRadius, message, at: 0 });
            self.is_over_limit = true;
        }
    }

    /// Where the payload violates the entry's schema.
    fn violation(&mut self, entry: &Entry) -> Option<String> {
        let schema = entry.schema.as_ref()?;
        let data = self.event.payload();
        if schema.is_valid(data) {
            return None;
        }
        let Some(error) = schema.iter_errors(data).next() else { return Some("the payload violates its schema".to_owned()) };
        let mut message = format!("the payload at `{}` violates `{}`", error.instance_path(), error.schema_path());
        if let jsonschema::error::ValidationErrorKind::Required { property } = error.kind() {
            let _ = write!(message, ": {property} is missing");
        }
        Some(message)
    }

    fn rules(&mut self, entry: &'r Entry, lets: &Lets<'_>) -> Result<(), TooMany> {
        for rule in &entry.rules {
            let arrays = Arrays::default();
            let scope = Scope { event: self.event, lets, item: None, arrays: &arrays };
            let Some(each) = &rule.each else {
                self.rule(entry, rule, &scope, None)?;
                continue;
            };
            let items = match scope.json(each) {
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
            for (at, item) in items.elements().into_iter().enumerate() {
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

    fn rule(&mut self, entry: &'r Entry, rule: &'r Rule, scope: &Scope<'_, '_>, item: Option<usize>) -> Result<(), TooMany> {
        let mut in_doubt = false;
        if let Some(when) = &rule.when {
            match scope.condition(when) {
                Ok(true) => {}
                Ok(false) => {
                    self.observer.note(rule, self.effects.len(), item, || format!("`when` said no: {}", when.text()));
                    return Ok(());
                }
                Err(fault) => {
                    in_doubt = true;
                    if fault.is_absence {
                        let message = || format!("`when` had no answer ({}), so the safe side holds: {}", fault.message, when.text());
                        self.observer.note(rule, self.effects.len(), item, message);
                    } else {
                        self.unresolvable(rule, item, || format!("`when` failed: {}", fault.message));
                    }
                }
            }
        }
        let prefix = if matches!(rule.body, RuleBody::InvalidateTags) { "" } else { &rule.key_prefix };
        for target in &rule.targets {
            if !target.paths().any(super::path::Path::fans_out) {
                self.target(entry, rule, scope, item, target, &[], prefix, in_doubt)?;
                continue;
            }
            target.expand(scope, &mut Vec::new(), &mut |expanded| match expanded {
                Ok(bindings) => self.target(entry, rule, scope, item, target, bindings, prefix, in_doubt),
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
            Miss::Dropped => {
                self.observer.note(rule, self.effects.len(), item, || format!("{what}: an optional value is absent, so it is dropped"))
            }
            Miss::Unresolvable(message) => self.unresolvable(rule, item, || format!("{what}: {message}")),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what stays the same within a rule, and one target")]
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
    ) -> Result<(), TooMany> {
        if !self.event.may_fill() {
            return Err(TooMany);
        }
        let mut target = String::with_capacity(prefix.len() + 40);
        target.push_str(prefix);
        if let Err(miss) = template.render(scope, bindings, &mut target) {
            self.missed(rule, item, "target", miss);
            return Ok(());
        }
        let (version, in_doubt) = match self.version(entry, rule, scope, item, bindings, &target) {
            Ok(version) => (version, in_doubt),
            Err(Unordered) => (None, true),
        };
        let Some(action) = self.action(rule, scope, item, bindings, in_doubt) else { return Ok(()) };
        self.effects.push(Effect { rule: rule.id, target, action, version: version.map(Box::new), again: rule.again });
        if self.effects.len() > self.limit { Err(TooMany) } else { Ok(()) }
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
            _ if rule.written.iter().any(|shape| shape.includes(target)) => entry.version.as_ref(),
            _ => None,
        };
        let Some(of) = of else { return Ok(None) };
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

    /// What is done with a target; `None` drops it.
    fn action(
        &mut self,
        rule: &Rule,
        scope: &Scope<'_, '_>,
        item: Option<usize>,
        bindings: &[Binding<'_>],
        in_doubt: bool,
    ) -> Option<Action> {
        let (what, filled) = match &rule.body {
            RuleBody::Delete => return Some(Action::Delete),
            RuleBody::InvalidateTags => return Some(Action::InvalidateTag),
            RuleBody::BumpVersion => return Some(Action::BumpVersion),
            RuleBody::Expire(expiry) => {
                return match expiry_of(expiry, scope, bindings) {
                    Ok(expiry) => Some(Action::Expire(expiry)),
                    Err(miss) => {
                        self.missed(rule, item, "at", miss);
                        None
                    }
                };
            }
            RuleBody::Write { .. } | RuleBody::Warm { .. } if in_doubt => return Some(Action::Delete),
            RuleBody::Write { value, encoding, expiry, tags, version: _ } => {
                let write = || {
                    let mut text = String::new();
                    match encoding {
                        Encoding::Json => value.render_json(scope, bindings, &mut text),
                        Encoding::Raw => value.render_raw(scope, bindings, &mut text),
                    }
                    .map_err(|miss| ("value", miss))?;
                    Ok(Action::Write(Box::new(Write {
                        value: text,
                        expiry: expiry_of(expiry, scope, bindings).map_err(|miss| ("at", miss))?,
                        tags: tags_of(tags, scope, bindings, self.limit).map_err(|miss| ("tags", miss))?,
                    })))
                };
                ("write", write())
            }
            RuleBody::Warm { loader, url, expiry, tags, stale, only } => {
                let warm = || {
                    let base = self.registry.loaders.get(loader.0 as usize).map_or("", |loader| &loader.url);
                    Ok(Action::Warm(Box::new(Warm {
                        loader: *loader,
                        url: url.render(base, scope, bindings).map_err(|miss| ("from", miss))?,
                        expiry: expiry_of(expiry, scope, bindings).map_err(|miss| ("at", miss))?,
                        tags: tags_of(tags, scope, bindings, self.limit).map_err(|miss| ("tags", miss))?,
                        stale: *stale,
                        only: *only,
                    })))
                };
                ("warm", warm())
            }
        };
        match filled {
            Ok(Action::Write(write)) if self.value_bytes.saturating_add(write.value.len()) > MAX_VALUE_BYTES => {
                let message =
                    || format!("the values written for one event take more than {MAX_VALUE_BYTES} bytes; this one becomes delete");
                self.unresolvable(rule, item, message);
                Some(Action::Delete)
            }
            Ok(action) => {
                if let Action::Write(write) = &action {
                    self.value_bytes += write.value.len();
                }
                Some(action)
            }
            Err((part, miss)) => {
                self.missed(rule, item, part, miss);
                self.observer.note(rule, self.effects.len(), item, || format!("{what} becomes delete"));
                Some(Action::Delete)
            }
        }
    }
}

fn expiry_of(rule: &ExpiryRule, scope: &Scope<'_, '_>, bindings: &[Binding<'_>]) -> Result<Expiry, Miss> {
    match rule {
        ExpiryRule::After { ttl, jitter } => Ok(Expiry::After { ttl: *ttl, jitter: *jitter }),
        ExpiryRule::Never => Ok(Expiry::Never),
        ExpiryRule::At(template) => {
            let mut text = String::new();
            template.render(scope, bindings, &mut text)?;
            let seconds = || {
                let seconds = text.parse::<i64>().ok().filter(|_| !text.starts_with('+'))?;
                // Milliseconds by mistake would never come: beyond the year 9999 nothing is meant.
                Timestamp::from_second(seconds).ok().map(Timestamp::as_millisecond)
            };
            let moment = || text.parse::<Timestamp>().ok().map(Timestamp::as_millisecond);
            seconds()
                .or_else(moment)
                .map(Expiry::At)
                .ok_or_else(|| Miss::Unresolvable("neither RFC 3339 nor Unix seconds before the year 10000".to_owned()))
        }
    }
}

fn tags_of(tags: &[Template], scope: &Scope<'_, '_>, bindings: &[Binding<'_>], limit: usize) -> Result<Vec<String>, Miss> {
    let mut names = Vec::with_capacity(tags.len());
    for template in tags {
        let (mut miss, mut attempts) = (None, 0);
        let expanded = template.expand(scope, &mut bindings.to_vec(), &mut |expanded| {
            let mut name = String::new();
            attempts += 1;
            match expanded.and_then(|bindings| template.render(scope, bindings, &mut name)) {
                Ok(()) => names.push(name),
                Err(Miss::Dropped) => {}
                Err(unresolvable) => miss = Some(unresolvable),
            }
            if attempts > limit { Err(TooMany) } else { Ok(()) }
        });
        if expanded.is_err() {
            return Err(Miss::Unresolvable("more tags than an event may have targets".to_owned()));
        }
        if let Some(miss) = miss {
            return Err(miss);
        }
    }
    Ok(names)
}

/// A version that a `write` needs cannot be told.
struct Unordered;

fn version_of(rule: &VersionRule, place: u32, scope: &Scope<'_, '_>, bindings: &[Binding<'_>]) -> Result<Version, Miss> {
    let mut text = String::new();
    rule.of.render(scope, bindings, &mut text)?;
    let unusable = || Miss::Unresolvable("neither an integer from 0 to 2^63-1 nor RFC 3339 since 1970".to_owned());
    let digits = if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse::<i64>().map_err(|_| unusable())?.to_string()
    } else {
        let time: Timestamp = text.parse().map_err(|_| unusable())?;
        u128::try_from(time.as_nanosecond()).map_err(|_| unusable())?.to_string()
    };
    let family = match &rule.family {
        Family::EventType => family_of(&scope.event.event.event_type).to_owned(),
        Family::Entity(template) => {
            let mut family = String::new();
            template.render(scope, bindings, &mut family)?;
            family
        }
    };
    Ok(Version { family, digits, event: scope.event.hash(), place })
}

//! Applies one rule to one element of its `each`: its condition, its targets and their actions.

use super::super::effect::{Action, Effect, Version, Warm, Write};
use super::super::explain::Observer;
use super::super::model::{Encoding, EventDefinition, Rule, RuleBody};
use super::super::moments::{Unordered, expiry_of, version_of};
use super::super::path::Path;
use super::super::render::{Miss, Stop};
use super::super::reserved::{Refused, check_name};
use super::super::scope::{Binding, Scope};
use super::super::template::Template;
use super::{Run, position};
use crate::reason::Reason;

/// Units of work for a target, beside what its template reads.
const WORK_PER_TARGET: u64 = 16;

impl<'r, O: Observer> Run<'r, '_, O> {
    pub(super) fn unresolvable(
        &mut self,
        rule: &Rule,
        item: Option<usize>,
        message: impl Fn() -> String,
    ) {
        self.observer.note(rule, self.effects.len(), item, &message);
        let names = &self.registry.rules;
        self.fail(Reason::Unresolvable, || match names.get(rule.id.0 as usize) {
            Some(name) => format!("{}: {}", name.name, message()),
            None => message(),
        });
    }

    pub(super) fn rule(
        &mut self,
        definition: &'r EventDefinition,
        rule: &'r Rule,
        scope: &Scope<'_, '_>,
        item: Option<usize>,
    ) -> Result<(), Stop> {
        let mut in_doubt = false;
        if let Some(when) = &rule.when {
            let answer = when.condition(scope);
            if self.is_spent() {
                return Err(Stop::Spent);
            }
            match answer {
                Ok(true) => {}
                Ok(false) => {
                    self.observer.note(rule, self.effects.len(), item, || {
                        format!("condition is false: {}", when.text())
                    });
                    return Ok(());
                }
                Err(fault) => {
                    in_doubt = true;
                    if fault.is_absence {
                        let message = || {
                            format!(
                                "condition has no answer ({}), so the rule takes the safe side: {}",
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
            if !target.paths().any(Path::fans_out) {
                self.target(definition, rule, scope, item, target, &[], prefix, in_doubt)?;
                continue;
            }
            target.expand(scope, &mut Vec::new(), &mut |expanded| match expanded {
                Ok(bindings) => {
                    self.target(definition, rule, scope, item, target, bindings, prefix, in_doubt)
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
                format!("{what} is dropped: an optional value is absent")
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
        definition: &EventDefinition,
        rule: &Rule,
        scope: &Scope<'_, '_>,
        item: Option<usize>,
        template: &Template,
        bindings: &[Binding<'_>],
        prefix: &str,
        in_doubt: bool,
    ) -> Result<(), Stop> {
        self.event.budget.work(WORK_PER_TARGET)?;
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
        let (version, in_doubt) =
            match self.version(definition, rule, scope, item, bindings, &target) {
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

    /// Returns the position of a target's effect among those of its entity, if it has one.
    ///
    /// # Errors
    /// The position cannot be computed, so the target is deleted.
    fn version(
        &mut self,
        definition: &EventDefinition,
        rule: &Rule,
        scope: &Scope<'_, '_>,
        item: Option<usize>,
        bindings: &[Binding<'_>],
        target: &str,
    ) -> Result<Option<Version>, Unordered> {
        let of = match &rule.body {
            RuleBody::Write { version, .. } => version.as_ref().or(definition.version.as_ref()),
            _ if self.is_written(rule, target) => definition.version.as_ref(),
            _ => None,
        };
        let Some(of) = of else { return Ok(None) };
        // Charges for parsing a time and writing an entity's name.
        let _ = self.event.budget.work(32);
        let is_write = matches!(rule.body, RuleBody::Write { .. });
        let message = match version_of(of, position(self.effects.len() + 1), scope, bindings) {
            Ok(version) => return Ok(Some(version)),
            // A deletion takes effect without a version, and `{rev?}` allows that there is none.
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

    /// Returns whether a versioned rule may write that key.
    fn is_written(&self, rule: &Rule, target: &str) -> bool {
        // The effect is not used if the budget is spent.
        let can_ask = rule.written.is_empty()
            || self.event.budget.work((rule.written.len() * (4 + target.len() / 4)) as u64).is_ok();
        can_ask && rule.written.iter().any(|shape| shape.includes(target))
    }

    /// Returns the action on a target, or `None` if the target is dropped.
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

    /// Returns the tags of one key. Each counts as a target.
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
                self.event.budget.work(WORK_PER_TARGET)?;
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

/// Reason why a part of an effect has no value.
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

//! Warnings about an event definition as a whole: effects that undo or repeat each other, and
//! fields that no rule reads.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::super::code::Code;
use super::super::diagnostic::Report;
use super::super::document::{EffectDocument, EventDocument, Text, Ttl};
use super::super::effect::Verb;
use super::super::path::{Path, PathRoot, PathStep};

/// Fields of the payload that the definition's texts read.
#[derive(Debug, Default)]
pub(in super::super) struct Reads {
    fields: RefCell<HashSet<Box<str>>>,
    /// Some text reads the whole payload.
    is_whole: Cell<bool>,
    /// First field that a key reads.
    key: RefCell<Option<Box<str>>>,
}

impl Reads {
    pub(in super::super) fn note<'p>(&self, paths: impl Iterator<Item = &'p Path>) {
        for path in paths.filter(|path| matches!(path.root(), PathRoot::Data | PathRoot::Previous))
        {
            match path.steps().first() {
                Some(PathStep::Member(name)) => drop(self.fields.borrow_mut().insert(name.clone())),
                _ => self.is_whole.set(true),
            }
        }
    }

    /// Records the fields that the keys of an effect read.
    pub(in super::super) fn note_key<'p>(&self, mut paths: impl Iterator<Item = &'p Path>) {
        let mut key = self.key.borrow_mut();
        if key.is_none() {
            *key = paths
                .find(|path| path.root() == PathRoot::Data && !path.is_raw())
                .map(|path| path.text().into());
        }
    }
}

/// Warns of problems of one definition.
pub(in super::super) fn check_definition(
    name: &Text,
    definition: &EventDocument,
    schema: Option<&Value>,
    reads: &Reads,
    report: &mut Report<'_>,
) {
    check_order(&definition.effects, report);
    check_repetition(&definition.effects, report);
    check_lifetimes(&definition.effects, report);
    check_every_event(name, &definition.effects, report);
    match (schema, &definition.data) {
        (Some(schema), Some(data)) if !definition.effects.is_empty() => {
            check_unread(schema, data, reads, report)
        }
        (None, None) => check_undescribed(name, reads, report),
        _ => {}
    }
}

/// Warns of values that a later effect of the same event removes.
fn check_order(effects: &[EffectDocument], report: &mut Report<'_>) {
    // The first effect that stores each tag and each key.
    let mut stored: HashMap<&str, &EffectDocument> = HashMap::new();
    let mut written: HashMap<&str, &EffectDocument> = HashMap::new();
    for effect in effects {
        for target in &effect.targets {
            let (earlier, first) = match effect.verb {
                Verb::InvalidateTags => (stored.get(&*target.text), "`invalidate_tags`"),
                Verb::Delete => (
                    written.get(&*target.text).filter(|earlier| is_alike(earlier, effect)),
                    "`delete`",
                ),
                _ => continue,
            };
            if let Some(earlier) = earlier {
                report.warn(
                    Code::EffectUndone,
                    target.at,
                    format!(
                        "this removes what the `{}` at line {} stored",
                        earlier.verb, earlier.at.line
                    ),
                    format!(
                        "effects take effect in the order written: put {first} first, or remove it"
                    ),
                );
            }
        }
        for tag in &effect.tags {
            stored.entry(&tag.text).or_insert(effect);
        }
        if matches!(effect.verb, Verb::Write | Verb::Warm) {
            for target in &effect.targets {
                written.entry(&target.text).or_insert(effect);
            }
        }
    }
}

/// Returns whether two effects apply to the same events and elements, with the same key prefix.
fn is_alike(first: &EffectDocument, second: &EffectDocument) -> bool {
    let text = |text: &Option<Text>| text.as_ref().map(|text| text.text.clone());
    let of =
        |effect: &EffectDocument| (text(&effect.each), text(&effect.when), text(&effect.prefix));
    of(first) == of(second)
}

/// Warns of effects with the same verb and target.
fn check_repetition(effects: &[EffectDocument], report: &mut Report<'_>) {
    let mut known: HashMap<(Verb, &str), Vec<&EffectDocument>> = HashMap::new();
    for effect in effects {
        for target in &effect.targets {
            let earlier = known.entry((effect.verb, &target.text)).or_default();
            if let Some(earlier) = earlier.iter().find(|earlier| is_alike(earlier, effect)) {
                report.warn(
                    Code::EffectRepeated,
                    target.at,
                    format!(
                        "`{}` already has this target at line {}",
                        effect.verb, earlier.at.line
                    ),
                    if effect.verb == Verb::BumpVersion {
                        "the counter grows by two: remove one of them"
                    } else {
                        "remove one of them"
                    },
                );
            }
            earlier.push(effect);
        }
    }
}

/// Warns of values that never expire.
fn check_lifetimes(effects: &[EffectDocument], report: &mut Report<'_>) {
    for effect in effects.iter().filter(|effect| effect.verb != Verb::Expire) {
        if let Some(ttl) = effect.ttl.as_ref().filter(|ttl| ttl.value == Ttl::Never) {
            report.warn(
                Code::TtlNever,
                ttl.at,
                "this value never expires: it stays until an event removes it",
                "set a long `ttl`, such as 30d, which limits the harm of a lost event",
            );
        }
    }
}

/// Warns of a tag that every event invalidates.
fn check_every_event(name: &Text, effects: &[EffectDocument], report: &mut Report<'_>) {
    if name.text.split('.').all(|word| word == "#")
        && let Some(effect) = effects
            .iter()
            .find(|effect| effect.verb == Verb::InvalidateTags && effect.when.is_none())
    {
        report.warn(
            Code::EventEvery,
            effect.at,
            format!("`{}` matches every event, so each of them invalidates these tags", name.text),
            "name the events that change the keys of the tags, such as \"product.*\"",
        );
    }
}

/// Warns of fields that the schema declares and no text reads.
fn check_unread(
    schema: &Value,
    data: &super::super::tree::Node,
    reads: &Reads,
    report: &mut Report<'_>,
) {
    // A closed schema must declare every field that may be present.
    let is_closed = ["additionalProperties", "unevaluatedProperties"]
        .iter()
        .any(|keyword| schema[*keyword] == false);
    let Some(properties) =
        schema["properties"].as_object().filter(|_| !reads.is_whole.get() && !is_closed)
    else {
        return;
    };
    let read = reads.fields.borrow();
    let unread: Vec<&str> =
        properties.keys().map(String::as_str).filter(|name| !read.contains(*name)).collect();
    if unread.is_empty() {
        return;
    }
    let names: Vec<String> = unread.iter().take(5).map(|name| format!("`{name}`")).collect();
    let more = unread.len().saturating_sub(5);
    let names =
        names.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() };
    report.warn(
        Code::FieldUnread,
        data.nearest_to(&format!(
            "/properties/{}",
            unread[0].replace('~', "~0").replace('/', "~1")
        ))
        .at,
        format!("`data` declares {names}, and no rule reads it"),
        "use it in a rule, or remove it from `data`",
    );
}

/// Warns of keys that read a field which no schema describes.
fn check_undescribed(name: &Text, reads: &Reads, report: &mut Report<'_>) {
    if let Some(path) = &*reads.key.borrow() {
        report.warn(
            Code::DataMissing,
            name.at,
            format!(
                "`{}` has no `data`, so `{path}` may be any text, and is part of a key",
                name.text
            ),
            "describe it in `data` with a `type`; \
             a string also needs a `pattern`, `format` or `enum`",
        );
    }
}

//! What is legal in a registry and surely wrong.
//!
//! This file checks one text or effect at a time, [`definition`] all that one event definition
//! says.

mod definition;

use std::collections::HashSet;

use serde_json::Value;

use super::data_schema::decoded;
use super::diagnostic::Report;
use super::document::{EffectDocument, Text};
use super::effect::Verb;
use super::model::{Family, Pattern, VersionRule};
use super::path::{Path, Root, Step};
use super::reserved::OWN_PREFIX;
use super::template::Template;

pub(super) use definition::{Reads, check_definition};

/// What a text becomes a part of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A key: what is in it chooses whose value is touched.
    Key,
    /// Another name: a tag, an entity.
    Name,
    /// A value, a URL, a version.
    Other,
    /// An expression: an absent field is provided for.
    Expression,
}

/// Paths into a payload that its schema knows nothing of, does not promise, or leaves free.
pub(super) fn check_paths<'p>(
    text: &Text,
    paths: impl Iterator<Item = &'p Path>,
    schema: Option<&Value>,
    role: Role,
    report: &mut Report<'_>,
) {
    let Some(schema) = schema else { return };
    for path in paths.filter(|path| path.root() == Root::Data && !path.is_optional()) {
        let in_braces = text.text.find(&format!("{{{}", path.text())).map(|brace| brace + 1);
        let at = text.place_of(in_braces.or_else(|| text.text.find(path.text())).unwrap_or(0));
        match look_up(schema, path.steps()) {
            Finding::Undeclared => report.warn(
                at,
                format!("`data` does not declare `{}`", path.text()),
                match role {
                    Role::Expression => "declare it under `properties`, or correct its name",
                    Role::Key | Role::Name | Role::Other => {
                        "declare it under `properties`, correct its name, or write {name?} where it may be absent"
                    }
                },
            ),
            Finding::NotRequired if role != Role::Expression => report.warn(
                at,
                format!("`data` does not require `{}`: without it the effect is unresolvable", path.text()),
                "name it under `required`, or write {name?} where it may be absent",
            ),
            Finding::FreeText if role == Role::Key => report.warn(
                at,
                format!("`{}` is any text, and stands in a key", path.text()),
                "give it a `pattern`, a `format` or an `enum`: a publisher's text should not reach another's key",
            ),
            Finding::NotRequired | Finding::FreeText | Finding::Fine => {}
        }
    }
}

/// Placeholders as other languages write them: `{{id}}` is the literal text `{id}` here, and
/// `${id}` keeps its `$`.
pub(super) fn check_foreign(
    text: &Text,
    has_placeholder: bool,
    schema: Option<&Value>,
    report: &mut Report<'_>,
) {
    if let Some(at) = text.text.find("${") {
        let hint = "a placeholder is {id}, without `$`";
        report.warn(
            text.place_of(at),
            "`$` before a placeholder is a part of the text: user:${id} becomes user:$42",
            hint,
        );
    }
    let Some((before, rest)) = text.text.split_once("{{") else { return };
    let Some((inner, after)) = rest.split_once("}}") else { return };
    let name = inner.trim();
    let is_name = !name.is_empty()
        && name
            .split('.')
            .all(|word| !word.is_empty() && word.chars().all(|c| c == '_' || c.is_alphanumeric()));
    let is_field = || {
        let field = name.split('.').next().unwrap_or_default();
        schema.is_some_and(|schema| schema["properties"].get(field).is_some())
    };
    if is_name && !after.starts_with('}') && (!has_placeholder || is_field()) {
        report.warn(
            text.place_of(before.len()),
            format!("`{{{{{inner}}}}}` is the literal text {{{inner}}}, the same for every event"),
            format!("a placeholder has single braces, {{{name}}}; one within literal braces is {{{{{{{name}}}}}}}"),
        );
    }
}

/// Keys that belong to unstale itself or may be sets of tags, and keys that a publisher may choose
/// whole.
pub(super) fn check_reserved(
    effect: &EffectDocument,
    targets: &[Template],
    prefix: &str,
    tag_prefix: &str,
    schema: Option<&Value>,
    report: &mut Report<'_>,
) {
    if effect.verb == Verb::InvalidateTags {
        return;
    }
    for (text, target) in effect.targets.iter().zip(targets) {
        let begins = [prefix, target.first_literal()].concat();
        if begins.starts_with(OWN_PREFIX) {
            report.error_with_hint(
                text.at,
                format!("this key begins with `{OWN_PREFIX}`, which is kept for the keys of unstale itself"),
                "no rule may reach those: name a key of your own",
            );
        } else if !tag_prefix.is_empty() && begins.starts_with(tag_prefix) {
            report.warn(
                text.at,
                format!("this key begins with `{tag_prefix}` (UNSTALE_TAG_PREFIX): it may be the set of a tag, and is unresolvable"),
                "to delete what a tag names, use `invalidate_tags`",
            );
        } else if let (true, Some(path)) = (begins.is_empty(), target.paths().next())
            && (schema.is_none() || path.root() == Root::Event)
            && path.root() != Root::Let
        {
            report.warn(
                text.at,
                format!("the key begins with `{}`, which may be any text: the publisher chooses which keys the rule reaches", path.text()),
                "put a literal before it, such as product:{id}; or bound the field in `data` with a `pattern` or an `enum`",
            );
        }
    }
}

/// Names that no reader finds, and placeholders whose values run into each other.
pub(super) fn check_name(
    text: &Text,
    template: &Template,
    schema: Option<&Value>,
    report: &mut Report<'_>,
) {
    if let Some(byte) = text.text.find('*') {
        report.warn(
            text.place_of(byte),
            "`*` is a part of this name: no rule reaches names by a pattern",
            "name each key, or put the keys under a tag",
        );
    }
    for (first, second) in template.neighbours() {
        if !first.is_raw() && !is_bounded(first, schema) {
            report.warn(
                text.place_of(text.text.find(first.text()).unwrap_or(0)),
                format!(
                    "nothing is between `{}` and `{}`: 1 and 23 give the name that 12 and 3 give",
                    first.text(),
                    second.text()
                ),
                format!(
                    "put a text between them, such as {{{}}}:{{{}}}",
                    first.text(),
                    second.text()
                ),
            );
        }
    }
}

/// Formats whose texts have a form that no delimiter breaks.
const NARROW_FORMATS: [&str; 8] =
    ["uuid", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname"];

/// Whether the rules say which texts a field may hold.
pub(super) fn is_bounded(path: &Path, schema: Option<&Value>) -> bool {
    let Some(schema) = schema.filter(|_| path.root() == Root::Data) else { return false };
    let Ok((known, _)) = schemas_at(schema, path.steps()) else { return false };
    known.iter().any(|schema| {
        let format = schema["format"].as_str();
        ["pattern", "enum", "const"].iter().any(|keyword| schema.get(keyword).is_some())
            || format.is_some_and(|format| NARROW_FORMATS.contains(&format))
    })
}

enum Finding {
    Fine,
    Undeclared,
    NotRequired,
    FreeText,
}

/// How far references and `allOf` are followed.
const MAX_FOLLOWED: usize = 32;

fn look_up(root: &Value, steps: &[Step]) -> Finding {
    let (known, is_required) = match schemas_at(root, steps) {
        Ok(found) => found,
        Err(finding) => return finding,
    };
    if !is_required {
        return Finding::NotRequired;
    }
    let is_text = known.iter().any(|schema| match &schema["type"] {
        Value::Array(types) => types.iter().any(|name| name == "string"),
        name => name == "string",
    });
    let is_bounded = known.iter().any(|schema| {
        ["pattern", "format", "enum", "const"].iter().any(|keyword| schema.get(keyword).is_some())
    });
    if is_text && !is_bounded { Finding::FreeText } else { Finding::Fine }
}

/// Returns the schemas of what a path leads to, and whether it is always there.
fn schemas_at<'v>(root: &'v Value, steps: &[Step]) -> Result<(Vec<&'v Value>, bool), Finding> {
    let mut schemas = vec![root];
    let mut is_required = true;
    for step in steps {
        let Some(known) = all_of(root, &schemas) else { return Err(Finding::Fine) };
        let next: Vec<&Value> = match step {
            Step::Member(name) => {
                is_required &= known.iter().any(|schema| {
                    schema["required"]
                        .as_array()
                        .is_some_and(|names| names.iter().any(|known| known.as_str() == Some(name)))
                });
                known.iter().filter_map(|schema| schema.get("properties")?.get(&**name)).collect()
            }
            Step::Index(_) | Step::Each => {
                let items: Vec<&Value> =
                    known.iter().filter_map(|schema| schema.get("items")).collect();
                if items.is_empty() {
                    return Err(Finding::Fine);
                }
                items
            }
        };
        if next.is_empty() {
            return Err(Finding::Undeclared);
        }
        schemas = next;
    }
    match all_of(root, &schemas) {
        Some(known) => Ok((known, is_required)),
        // Where the field may be absent that is found first.
        None if is_required => Err(Finding::Fine),
        None => Err(Finding::NotRequired),
    }
}

/// The schemas and all that they refer to; `None` where what holds depends on the value.
fn all_of<'v>(root: &'v Value, schemas: &[&'v Value]) -> Option<Vec<&'v Value>> {
    let mut known = schemas.to_vec();
    let mut at = 0;
    while let Some(&schema) = known.get(at) {
        let depends =
            ["anyOf", "oneOf", "if", "$dynamicRef", "patternProperties", "dependentSchemas"];
        if schema
            .as_object()
            .is_none_or(|schema| depends.iter().any(|keyword| schema.contains_key(*keyword)))
            || at > MAX_FOLLOWED
        {
            return None;
        }
        if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            known.push(root.pointer(&decoded(target.strip_prefix('#')?))?);
        }
        known.extend(schema.get("allOf").and_then(Value::as_array).into_iter().flatten());
        at += 1;
    }
    Some(known)
}

/// A write that an older event may undo, or whose version orders what the key does not name.
/// `version`: `Some(None)` where it does not compile.
pub(super) fn check_version(
    effect: &EffectDocument,
    version: Option<Option<&VersionRule>>,
    targets: &[Template],
    report: &mut Report<'_>,
) {
    if effect.verb != Verb::Write {
        return;
    }
    let Some(version) = version else {
        return report.warn(
            effect.at,
            "this `write` has no `version`: of two events that arrive out of order, the older may win",
            "give the event a `version`, such as \"{rev}\" or \"{updated_at}\"; or `delete` the key instead",
        );
    };
    let entity = version.and_then(|version| match &version.family {
        Family::Entity(entity) => Some(entity),
        Family::EventType => None,
    });
    match entity {
        Some(entity) if entity.has_placeholder() => {
            let names_it = |target: &Template| target.paths().any(|path| entity.paths().any(|of_entity| path.reads_as(of_entity)));
            if !targets.iter().all(names_it) {
                report.warn(
                    effect.at,
                    "this versioned `write` has a key with no placeholder of its entity: entities overwrite each other in any order",
                    "versions order the writes of one entity: put its id into the key, or `delete` the key instead",
                );
            }
        }
        None if !targets.iter().all(Template::has_placeholder) => report.warn(
            effect.at,
            "this versioned `write` has the same key for every entity",
            "versions order the writes of one entity: put its id into the key; if there is but one, say so: version: {of: \"{rev}\", entity: site}",
        ),
        _ => {}
    }
}

/// An entry whose event another file has retired.
pub(super) fn warn_of_retired(name: &Text, report: &mut Report<'_>) {
    report.warn(
        name.at,
        format!("`{}` is retired in another file: nothing here is ever done", name.text),
        "remove one of the two",
    );
}

/// A routing key that binds an event which another entry calls retired.
pub(super) fn check_bind(
    text: &Text,
    entry: &str,
    retired: &HashSet<String>,
    report: &mut Report<'_>,
) {
    let bound = if Pattern::is_pattern(&text.text) {
        let pattern = Pattern::parse(&text.text);
        retired.iter().filter(|name| *name != entry && pattern.matches(name)).min()
    } else {
        retired.get(&text.text).filter(|name| *name != entry)
    };
    if let Some(name) = bound {
        report.warn(
            text.at,
            format!("this binds `{name}`, which is retired"),
            "a narrower pattern spares the workers messages that nobody needs",
        );
    }
}

//! Warnings: parts of a registry that are legal and probably wrong.
//!
//! This file checks one text or effect at a time. [`definition`] checks an event definition as a
//! whole.

mod definition;

use std::collections::HashSet;

use serde_json::Value;

use super::code::Code;
use super::data_schema::decoded;
use super::diagnostic::Report;
use super::document::{EffectDocument, Text};
use super::effect::Verb;
use super::model::{Family, Pattern, VersionRule};
use super::path::{Path, PathRoot, PathStep};
use super::reserved::OWN_PREFIX;
use super::template::Template;

pub(super) use definition::{Reads, check_definition};

/// Use of a text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A key, whose parts choose the value that is changed.
    Key,
    /// Another name: a tag or an entity.
    Name,
    /// A value, a URL or a version.
    Other,
    /// An expression, which may handle an absent field.
    Expression,
}

/// Warns of paths that the schema does not declare, does not require, or does not restrict.
pub(super) fn check_paths<'p>(
    text: &Text,
    paths: impl Iterator<Item = &'p Path>,
    schema: Option<&Value>,
    role: Role,
    in_each: bool,
    report: &mut Report<'_>,
) {
    let Some(schema) = schema else { return };
    for path in paths.filter(|path| path.root() == PathRoot::Data) {
        let in_braces = text.text.find(&format!("{{{}", path.text())).map(|brace| brace + 1);
        let at = text.place_of(in_braces.or_else(|| text.text.find(path.text())).unwrap_or(0));
        if matches!(role, Role::Key | Role::Name)
            && let Some(compound) = compound_at(schema, path.steps())
        {
            let name = path.text();
            report.error_with_help(
                Code::FieldCompound,
                at,
                format!("`{name}` is an {compound} in `data`, which cannot be part of a name"),
                if compound == "array" {
                    format!("write {{{name}[]}} for one name of each element")
                } else {
                    format!("name one of its fields, such as {{{name}.id}}")
                },
            );
            continue;
        }
        if path.is_optional() {
            continue;
        }
        match look_up(schema, path.steps()) {
            Finding::Undeclared => report.warn(
                Code::FieldUndeclared,
                at,
                format!("`data` does not declare `{}`", path.text()),
                help_undeclared(path, role, in_each),
            ),
            Finding::NotRequired if role != Role::Expression => report.warn(
                Code::FieldOptional,
                at,
                format!(
                    "`data` does not require `{}`: without it the effect is unresolvable",
                    path.text()
                ),
                "name it under `required`, or write {name?} if it may be absent",
            ),
            Finding::FreeText if role == Role::Key => report.warn(
                Code::KeyFreeText,
                at,
                format!("`{}` may be any text, and is part of a key", path.text()),
                "give it a `pattern`, a `format` or an `enum`, so that it reaches no other keys",
            ),
            Finding::NotRequired | Finding::FreeText | Finding::Fine => {}
        }
    }
}

/// Returns how to correct a path that the schema does not declare. In a rule with `each`, the path
/// may mean a field of the element.
fn help_undeclared(path: &Path, role: Role, in_each: bool) -> String {
    let field = path.text().strip_prefix("data.").unwrap_or(path.text());
    let is_expression = role == Role::Expression;
    let element = match (in_each, is_expression) {
        (false, _) => String::new(),
        (true, true) => format!("write item.{field} for a field of the element, "),
        (true, false) => format!("write {{item.{field}}} for a field of the element, "),
    };
    let correct = if is_expression {
        "declare it under `properties`, or correct its name"
    } else {
        "declare it under `properties`, correct its name, or write {name?} if it may be absent"
    };
    element + correct
}

/// Warns of placeholders of other languages. Here `{{id}}` is the literal text `{id}`, and `${id}`
/// keeps its `$`.
pub(super) fn check_foreign(
    text: &Text,
    has_placeholder: bool,
    schema: Option<&Value>,
    report: &mut Report<'_>,
) {
    if let Some(at) = text.text.find("${") {
        let help = "a placeholder is {id}, without `$`";
        report.warn(
            Code::ForeignSyntax,
            text.place_of(at),
            "`$` before a placeholder is part of the text: user:${id} becomes user:$42",
            help,
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
            Code::ForeignSyntax,
            text.place_of(before.len()),
            format!("`{{{{{inner}}}}}` is the literal text {{{inner}}}, the same for every event"),
            format!(
                "a placeholder has single braces, {{{name}}}; \
                 one within literal braces is {{{{{{{name}}}}}}}"
            ),
        );
    }
}

/// Reports keys that are reserved, may be sets of tags, or may be chosen entirely by the publisher.
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
            report.error_with_help(
                Code::KeyOwn,
                text.at,
                format!("this key begins with `{OWN_PREFIX}`, which is reserved for unstale"),
                "choose another name for the key",
            );
        } else if !tag_prefix.is_empty() && begins.starts_with(tag_prefix) {
            report.warn(
                Code::KeyOfTag,
                text.at,
                format!(
                    "this key begins with `{tag_prefix}` (UNSTALE_TAG_PREFIX), \
                     so it may be the set of a tag, and is unresolvable"
                ),
                "use `invalidate_tags` to delete the keys of a tag",
            );
        } else if let (true, Some(path)) = (begins.is_empty(), target.paths().next())
            && (schema.is_none() || path.root() == PathRoot::Event)
            && path.root() != PathRoot::Let
        {
            report.warn(Code::KeyFreeText,
                text.at,
                format!(
                    "the key begins with `{}`, which may be any text: the publisher chooses the keys",
                    path.text()
                ),
                "put a literal before it, such as product:{id}, or limit the field in `data`",
            );
        }
    }
}

/// Warns of names that no reader uses, and of placeholders that nothing separates.
pub(super) fn check_name(
    text: &Text,
    template: &Template,
    schema: Option<&Value>,
    report: &mut Report<'_>,
) {
    if let Some(byte) = text.text.find('*') {
        report.warn(
            Code::KeyWildcard,
            text.place_of(byte),
            "`*` is part of this name: names are not patterns",
            "name each key, or put the keys under a tag",
        );
    }
    for (first, second) in template.adjacent_placeholders() {
        if !first.is_raw() && !is_bounded(first, schema) {
            report.warn(
                Code::KeyAmbiguous,
                text.place_of(text.text.find(first.text()).unwrap_or(0)),
                format!(
                    "nothing separates `{}` and `{}`: 1 and 23 give the same name as 12 and 3",
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

/// Formats whose texts contain no delimiter.
const NARROW_FORMATS: [&str; 8] =
    ["uuid", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname"];

/// Returns whether the schema restricts the texts of a field.
pub(super) fn is_bounded(path: &Path, schema: Option<&Value>) -> bool {
    let Some(schema) = schema.filter(|_| path.root() == PathRoot::Data) else { return false };
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

/// Returns the type of a path's value, if the schema says that it is always an array or an object.
fn compound_at<'v>(root: &'v Value, steps: &[PathStep]) -> Option<&'v str> {
    let (known, _) = schemas_at(root, steps).ok()?;
    let mut types = known.iter().filter_map(|schema| schema["type"].as_str());
    types.find(|name| ["array", "object"].contains(name))
}

/// Maximum number of references and `allOf` that are followed.
const MAX_FOLLOWED: usize = 32;

fn look_up(root: &Value, steps: &[PathStep]) -> Finding {
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

/// Returns the schemas of a path's value, and whether the value is always present.
fn schemas_at<'v>(root: &'v Value, steps: &[PathStep]) -> Result<(Vec<&'v Value>, bool), Finding> {
    let mut schemas = vec![root];
    let mut is_required = true;
    for step in steps {
        let Some(known) = all_of(root, &schemas) else { return Err(Finding::Fine) };
        let next: Vec<&Value> = match step {
            PathStep::Member(name) => {
                is_required &= known.iter().any(|schema| {
                    schema["required"]
                        .as_array()
                        .is_some_and(|names| names.iter().any(|known| known.as_str() == Some(name)))
                });
                known.iter().filter_map(|schema| schema.get("properties")?.get(&**name)).collect()
            }
            PathStep::Index(_) | PathStep::Each => {
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
        // An optional field is reported first.
        None if is_required => Err(Finding::Fine),
        None => Err(Finding::NotRequired),
    }
}

/// Returns the schemas and all that they refer to, or `None` if the schemas depend on the value.
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

/// Warns of a write that an older event may overwrite, or whose key does not name its entity.
///
/// `version` is `Some(None)` if it does not compile.
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
            Code::WriteUnversioned,
            effect.at,
            "this `write` has no `version`: an older event that arrives later overwrites it",
            "add a `version`, such as \"{rev}\" or \"{updated_at}\", or `delete` the key instead",
        );
    };
    let entity = version.and_then(|version| match &version.family {
        Family::Entity(entity) => Some(entity),
        Family::EventType => None,
    });
    match entity {
        Some(entity) if entity.has_placeholder() => {
            let names_it = |target: &Template| {
                target.paths().any(|path| entity.paths().any(|of_entity| path.reads_as(of_entity)))
            };
            if !targets.iter().all(names_it) {
                report.warn(
                    Code::WriteEntity,
                    effect.at,
                    "this versioned `write` has a key without its entity: \
                     entities overwrite each other",
                    "put the entity's id into the key, or `delete` the key instead",
                );
            }
        }
        None if !targets.iter().all(Template::has_placeholder) => report.warn(
            Code::WriteEntity,
            effect.at,
            "this versioned `write` has the same key for every entity",
            "put the entity's id into the key; for a single one: {of: \"{rev}\", entity: site}",
        ),
        _ => {}
    }
}

/// Warns of a definition whose event another file retires.
pub(super) fn warn_of_retired(name: &Text, report: &mut Report<'_>) {
    report.warn(
        Code::EventRetired,
        name.at,
        format!("`{}` is retired in another file: its rules here never run", name.text),
        "remove one of the two",
    );
}

/// Warns of a routing key that binds an event which another definition retires.
pub(super) fn check_bind(
    text: &Text,
    definition: &str,
    retired: &HashSet<String>,
    report: &mut Report<'_>,
) {
    let bound = if Pattern::is_pattern(&text.text) {
        let pattern = Pattern::parse(&text.text);
        retired.iter().filter(|name| *name != definition && pattern.matches(name)).min()
    } else {
        retired.get(&text.text).filter(|name| *name != definition)
    };
    if let Some(name) = bound {
        report.warn(
            Code::EventRetired,
            text.at,
            format!("this binds `{name}`, which is retired"),
            "use a narrower pattern, so that workers do not receive its messages",
        );
    }
}

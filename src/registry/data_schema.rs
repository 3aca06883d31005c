//! An entry's `data`: JSON Schema 2020-12, compiled.

use jsonschema::{Draft, Validator};
use serde_json::Value;

use super::diagnostic::{Report, nearest};
use super::payload_json::PayloadJson;
use super::tree::{Content, Node, ScalarKind};

/// A compiled schema, and its text with every reference inside it.
pub(super) struct DataSchema {
    pub(super) validator: Validator<PayloadJson>,
    pub(super) json: Value,
}

/// Compiles a schema. References may point into the schema itself, or from the root of its file.
pub(super) fn compile(node: &Node, file_root: &Node, report: &mut Report<'_>) -> Option<DataSchema> {
    let problems = report.problems.len();
    check_references(node, node, file_root, report);
    let mut json = node.to_json();
    for error in jsonschema::draft202012::meta::validator().iter_errors(&json) {
        let place = node.nearest_to(error.instance_path().as_str()).at;
        if error.instance_path().as_str().ends_with("/type") {
            let hint = "types are null, boolean, object, array, number, integer and string, or a list of them";
            report.error_with_hint(place, format!("not a JSON Schema: {} is no type", error.instance()), hint);
        } else {
            report.error(place, format!("not a JSON Schema: {error}"));
        }
    }
    if report.problems.len() > problems {
        return None;
    }
    check_keywords(node, report);
    let own = json.clone();
    let mut borrowed = Vec::new();
    take_in(&mut json, &own, &file_root.to_json(), &mut borrowed);
    if !borrowed.is_empty()
        && let Some(schema) = json.as_object_mut()
        && let Some(definitions) = schema.entry("$defs").or_insert_with(|| Value::Object(serde_json::Map::new())).as_object_mut()
    {
        definitions.extend(borrowed.into_iter().enumerate().map(|(at, (_, schema))| (borrowed_name(at), schema)));
    }
    let built = jsonschema::options_for::<PayloadJson>()
        .with_draft(Draft::Draft202012)
        .should_validate_formats(true)
        .should_ignore_unknown_formats(false)
        .offline()
        .build(&json);
    match built {
        Ok(validator) => Some(DataSchema { validator, json }),
        Err(error) => {
            let pointer =
                [error.instance_path().as_str(), error.schema_path().as_str()].into_iter().max_by_key(|path| path.len()).unwrap_or("");
            let error = error.to_string();
            // What follows speaks of the library's settings.
            let error = error.split(". Adjust configuration").next().unwrap_or_default();
            report.error(node.nearest_to(pointer).at, format!("not a JSON Schema: {error}"));
            None
        }
    }
}

/// References that leave the file, or point at nothing; and schemas of another draft.
fn check_references(node: &Node, schema: &Node, file_root: &Node, report: &mut Report<'_>) {
    match &node.content {
        Content::Scalar(_) => {}
        Content::Array(items) => items.iter().for_each(|item| check_references(item, schema, file_root, report)),
        Content::Object(members) => {
            for member in members {
                let text = member.value.as_scalar().filter(|scalar| scalar.kind == ScalarKind::Text).map(|scalar| scalar.text.as_str());
                match (member.key.as_str(), text) {
                    ("const" | "enum" | "default" | "examples", _) => {}
                    ("$ref" | "$dynamicRef", Some(target)) => match target.strip_prefix('#') {
                        None => report.error_with_hint(
                            member.value.at,
                            format!("`{target}` leaves this file"),
                            "a `$ref` stays within the file: \"#/$defs/name\" of this schema, or \"#/x-name\" of the file",
                        ),
                        Some(pointer) if pointer.starts_with('/') => {
                            let pointer = decoded(pointer);
                            if schema.to_json().pointer(&pointer).is_none() && file_root.to_json().pointer(&pointer).is_none() {
                                report.error(member.value.at, format!("`{target}` points at nothing, in this schema and in this file"));
                            }
                        }
                        Some(_) => {}
                    },
                    ("$schema", Some(draft)) if draft.trim_end_matches('#') != "https://json-schema.org/draft/2020-12/schema" => {
                        report.error_with_hint(
                            member.value.at,
                            "`data` is JSON Schema 2020-12",
                            "remove `$schema`, and check the schema against that draft",
                        );
                    }
                    _ => check_references(&member.value, schema, file_root, report),
                }
            }
        }
    }
}

/// The keywords of a schema object that are misspelt most; JSON Schema itself ignores what it does not know.
const KEYWORDS: [&str; 40] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "items",
    "prefixItems",
    "contains",
    "enum",
    "const",
    "format",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "unevaluatedProperties",
];

fn check_keywords(node: &Node, report: &mut Report<'_>) {
    let Content::Object(members) = &node.content else { return };
    for member in members {
        match member.key.as_str() {
            "properties" | "patternProperties" | "$defs" => {
                if let Content::Object(schemas) = &member.value.content {
                    schemas.iter().for_each(|schema| check_keywords(&schema.value, report));
                }
            }
            "items" | "additionalProperties" | "not" | "if" | "then" | "else" => check_keywords(&member.value, report),
            "allOf" | "anyOf" | "oneOf" | "prefixItems" => {
                if let Content::Array(schemas) = &member.value.content {
                    schemas.iter().for_each(|schema| check_keywords(schema, report));
                }
            }
            key if KEYWORDS.contains(&key) || key.starts_with("x-") => {}
            key => {
                if let Some(meant) = nearest(key, KEYWORDS).filter(|_| key.len() > 2) {
                    report.warn(member.key_at, format!("JSON Schema knows no `{key}`, and ignores it"), format!("did you mean `{meant}`?"));
                }
            }
        }
    }
}

/// Points references from the root of the file at copies within the schema.
fn take_in(schema: &mut Value, own: &Value, file: &Value, borrowed: &mut Vec<(String, Value)>) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| take_in(item, own, file, borrowed)),
        Value::Object(members) => {
            for (key, value) in members.iter_mut() {
                match value.as_str().and_then(|target| target.strip_prefix('#')).filter(|pointer| pointer.starts_with('/')) {
                    Some(pointer) if key == "$ref" && own.pointer(&decoded(pointer)).is_none() => {
                        let place = match borrowed.iter().position(|(known, _)| known == pointer) {
                            Some(place) => place,
                            None => {
                                let pointer = pointer.to_owned();
                                let mut copy = file.pointer(&decoded(&pointer)).cloned().unwrap_or_default();
                                borrowed.push((pointer, Value::Null));
                                let place = borrowed.len() - 1;
                                take_in(&mut copy, own, file, borrowed);
                                borrowed[place].1 = copy;
                                place
                            }
                        };
                        *value = format!("#/$defs/{}", borrowed_name(place)).into();
                    }
                    _ => take_in(value, own, file, borrowed),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn borrowed_name(place: usize) -> String {
    format!("unstale-file-{place}")
}

/// A JSON pointer in a URI fragment is percent-encoded (RFC 6901, section 6).
pub(super) fn decoded(fragment: &str) -> String {
    percent_encoding::percent_decode_str(fragment).decode_utf8_lossy().into_owned()
}

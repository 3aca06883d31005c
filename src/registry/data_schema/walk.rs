//! Finds the schemas within a schema (JSON Schema 2020-12, core, section 10).

use serde_json::{Map, Value};

/// Kind of value that a keyword has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// Data of the user. A `$ref` in it is not a reference.
    Data,
    /// A schema, or a list of schemas. Unknown keywords count too, because a `$ref` may point into
    /// them.
    Schemas,
    /// Schemas by name.
    NamedSchemas,
}

pub(super) fn holds(keyword: &str) -> Holds {
    match keyword {
        "const" | "enum" | "default" | "examples" | "required" | "type" | "dependentRequired" => {
            Holds::Data
        }
        "properties" | "patternProperties" | "dependentSchemas" | "$defs" | "definitions" => {
            Holds::NamedSchemas
        }
        _ => Holds::Schemas,
    }
}

/// Returns whether the schemas of a keyword apply to the value itself, rather than to a part of it.
pub(super) fn is_in_place(keyword: &str) -> bool {
    matches!(
        keyword,
        "allOf" | "anyOf" | "oneOf" | "not" | "if" | "then" | "else" | "dependentSchemas"
    )
}

/// Calls `visit` for each schema that is an object, from the outside in.
pub(super) fn each<'v>(value: &'v Value, visit: &mut impl FnMut(&'v Map<String, Value>)) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| each(item, visit)),
        Value::Object(schema) => {
            visit(schema);
            schema.iter().for_each(|(keyword, value)| {
                each_of(keyword, value, &mut |value| each(value, visit))
            });
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Calls `visit` for each schema that a keyword holds.
pub(super) fn each_of<'v>(keyword: &str, value: &'v Value, visit: &mut impl FnMut(&'v Value)) {
    match holds(keyword) {
        Holds::Data => {}
        Holds::Schemas => match value {
            Value::Array(items) => items.iter().for_each(visit),
            _ => visit(value),
        },
        Holds::NamedSchemas => value.as_object().into_iter().flat_map(Map::values).for_each(visit),
    }
}

/// Calls `visit` for each schema that is an object, from the inside out.
pub(super) fn each_mut(value: &mut Value, visit: &mut impl FnMut(&mut Map<String, Value>)) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| each_mut(item, visit)),
        Value::Object(schema) => {
            for (keyword, value) in schema.iter_mut() {
                match holds(keyword) {
                    Holds::Data => {}
                    Holds::Schemas => each_mut(value, visit),
                    Holds::NamedSchemas => value
                        .as_object_mut()
                        .into_iter()
                        .flat_map(Map::values_mut)
                        .for_each(|value| each_mut(value, visit)),
                }
            }
            visit(schema);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

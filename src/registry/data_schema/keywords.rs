//! What is legal in a schema and surely not meant: misspelt keywords, which JSON Schema ignores, and patterns that may take long.

use super::super::diagnostic::{Report, nearest};
use super::super::tree::{Content, Node, ScalarKind};
use super::pattern::Patterns;
use super::walk::{Holds, holds};

/// The keywords of a schema object that are misspelt most, and those that are near them.
const KEYWORDS: [&str; 48] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "items",
    "prefixItems",
    "contains",
    "minContains",
    "maxContains",
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
    "unevaluatedItems",
    "dependentRequired",
    "dependentSchemas",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
];

/// Warns of the keywords of a schema and of those within it.
pub(super) fn check(node: &Node, patterns: &mut Patterns, report: &mut Report<'_>) {
    let Content::Object(members) = &node.content else { return };
    for member in members.iter() {
        let key = member.key.as_str();
        let is_known = KEYWORDS.contains(&key);
        if !is_known
            && !key.starts_with("x-")
            && let Some(meant) = nearest(key, KEYWORDS).filter(|_| key.len() > 2)
        {
            report.warn(member.key_at, format!("JSON Schema knows no `{key}`, and ignores it"), format!("did you mean `{meant}`?"));
        }
        if key == "pattern"
            && let Some(pattern) = member.value.as_scalar().filter(|scalar| scalar.kind == ScalarKind::Text)
            && !members.iter().any(|member| member.key == "maxLength")
            && patterns.backtracks(&pattern.text)
        {
            report.warn(
                member.value.at,
                "this `pattern` has look-around or a back-reference: the cost of a match grows with the square of the text's length",
                "give the text a `maxLength`, or write the pattern without them: a match that is too long dead-letters the event",
            );
        }
        let is_applied = is_known || key == "$defs";
        match (holds(key), &member.value.content) {
            (Holds::NamedSchemas, Content::Object(named)) if is_applied => {
                named.iter().for_each(|named| check(&named.value, patterns, report));
            }
            (Holds::Schemas, Content::Array(schemas)) if is_applied => schemas.iter().for_each(|schema| check(schema, patterns, report)),
            (Holds::Schemas, Content::Object(_)) if is_applied => check(&member.value, patterns, report),
            _ => {}
        }
    }
}

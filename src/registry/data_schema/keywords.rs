//! Reports parts of a schema that are legal and probably wrong: misspelt keywords, rounded numbers
//! and slow patterns.

use super::super::code::Code;
use super::super::decimal::Decimal;
use super::super::diagnostic::{Pos, Report, nearest};
use super::super::tree::{Content, Member, Node, ScalarKind};
use super::pattern::Patterns;
use super::walk::{Holds, holds};

/// Keywords that are often misspelt, and those that resemble them.
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

/// Keywords whose numbers are compared with numbers of payloads.
const NUMERIC: [&str; 7] =
    ["const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];

/// Reports numbers that lose digits: a fraction, or an integer beyond 64 bits, becomes a double.
fn check_numbers(node: &Node, report: &mut Report<'_>) {
    match &node.content {
        Content::Array(items) => items.iter().for_each(|item| check_numbers(item, report)),
        Content::Object(members) => {
            members.iter().for_each(|member| check_numbers(&member.value, report))
        }
        Content::Scalar(scalar) => {
            let Some(written) = scalar.number_text() else { return };
            let kept = scalar.to_json().as_number().map(ToString::to_string);
            match kept {
                Some(kept) if Decimal::of(&kept) == Decimal::of(&written) => {}
                Some(kept) => report.warn(
                    Code::SchemaNumber,
                    node.at,
                    format!("this number has too many digits: payloads are compared with {kept}"),
                    "write a number with at most 17 digits, or an integer of at most 64 bits",
                ),
                None => report.error(
                    Code::SchemaNumber,
                    node.at,
                    "this number is too large: a schema holds numbers up to 1.8e308",
                ),
            }
        }
    }
}

/// Reports patterns that do not compile, unless another problem is reported at the same place.
fn check_patterns(member: &Member, patterns: &mut Patterns, report: &mut Report<'_>) {
    let mut check = |pattern: &str, at: Pos, report: &mut Report<'_>| {
        let is_known = report
            .problems
            .iter()
            .rev()
            .take(32)
            .any(|problem| (problem.line, problem.column) == (at.line, at.column));
        if patterns.is_broken(pattern) && !is_known {
            let help = "write it as in JavaScript, without `\\k<name>`, `[^]`, `\\Z` and large repetitions";
            report.error_with_help(
                Code::SchemaInvalid,
                at,
                "not a JSON Schema: the pattern is not a regular expression, or is too large",
                help,
            );
        }
    };
    match (member.key.as_str(), &member.value.content) {
        ("pattern", Content::Scalar(scalar)) if scalar.kind == ScalarKind::Text => {
            check(&scalar.text, member.value.at, report)
        }
        ("patternProperties", Content::Object(named)) => {
            named.iter().for_each(|named| check(&named.key, named.key_at, report))
        }
        _ => {}
    }
}

/// Warns of the keywords of a schema and of the schemas within it.
pub(super) fn check(node: &Node, patterns: &mut Patterns, report: &mut Report<'_>) {
    let Content::Object(members) = &node.content else { return };
    for member in members.iter() {
        let key = member.key.as_str();
        let is_known = KEYWORDS.contains(&key);
        if !is_known
            && !key.starts_with("x-")
            && let Some(meant) = nearest(key, KEYWORDS).filter(|_| key.len() > 2)
        {
            report.warn(
                Code::SchemaKeyword,
                member.key_at,
                format!("JSON Schema has no keyword `{key}`, and ignores it"),
                format!("did you mean `{meant}`?"),
            );
        }
        check_patterns(member, patterns, report);
        if NUMERIC.contains(&key) {
            check_numbers(&member.value, report);
        }
        if key == "pattern"
            && let Some(pattern) =
                member.value.as_scalar().filter(|scalar| scalar.kind == ScalarKind::Text)
            && !members.iter().any(|member| member.key == "maxLength")
            && patterns.backtracks(&pattern.text)
        {
            report.warn(Code::SchemaPattern,
                member.value.at,
                "this `pattern` has look-around or a back-reference: long texts are slow to match",
                "add a `maxLength`, or remove them: a match that takes too long dead-letters the event",
            );
        }
        let is_applied = is_known || key == "$defs";
        match (holds(key), &member.value.content) {
            (Holds::NamedSchemas, Content::Object(named)) if is_applied => {
                named.iter().for_each(|named| check(&named.value, patterns, report));
            }
            (Holds::Schemas, Content::Array(schemas)) if is_applied => {
                schemas.iter().for_each(|schema| check(schema, patterns, report))
            }
            (Holds::Schemas, Content::Object(_)) if is_applied => {
                check(&member.value, patterns, report)
            }
            _ => {}
        }
    }
}

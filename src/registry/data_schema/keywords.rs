//! What is legal in a schema and surely not meant: misspelt keywords, which JSON Schema ignores,
//! and patterns that may take long.

use super::super::decimal::Decimal;
use super::super::diagnostic::{Pos, Report, nearest};
use super::super::tree::{Content, Member, Node, ScalarKind};
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

/// Keywords whose numbers are compared with those of payloads.
const NUMERIC: [&str; 7] =
    ["const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];

/// Reports numbers with more digits than are kept: integers beyond 64 bits, and fractions, have the
/// digits of a double.
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
                    node.at,
                    format!("this number has more digits than a schema keeps: {kept} is what payloads are compared with"),
                    "write a number with at most 17 digits, or an integer of at most 64 bits",
                ),
                None => report.error(node.at, "this number is beyond what a schema holds: at most some 1.8e308"),
            }
        }
    }
}

/// Reports patterns that do not compile, where no other problem is reported at the same place.
fn check_patterns(member: &Member, patterns: &mut Patterns, report: &mut Report<'_>) {
    let mut check = |pattern: &str, at: Pos, report: &mut Report<'_>| {
        let is_known = report
            .problems
            .iter()
            .rev()
            .take(32)
            .any(|problem| (problem.line, problem.column) == (at.line, at.column));
        if patterns.is_broken(pattern) && !is_known {
            let hint = "JavaScript's regular expressions, without `\\k<name>`, `[^]` and `\\Z`; repetitions of at most some thousand states";
            report.error_with_hint(
                at,
                "not a JSON Schema: this is no regular expression, or becomes too large",
                hint,
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
            report.warn(
                member.key_at,
                format!("JSON Schema knows no `{key}`, and ignores it"),
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

//! Keywords that compare numbers: `const`, `enum`, the bounds and `multipleOf`.
//!
//! The library compares doubles. The keywords of this file compare every digit.

use std::cmp::Ordering;

use jsonschema::json::Node as _;
use jsonschema::{Keyword, ValidationError, ValidationOptions};
use serde_json::Value;

use super::super::decimal::{Decimal, Divisor};
use super::super::payload_json::{PayloadJson, PayloadNode};
use super::walk;

/// Prefix of our own keywords. The rest of the name is the keyword that it replaces.
pub(super) const OWN_PREFIX: &str = "unstale-";

const NAMES: [&str; 7] =
    ["const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];

/// Replaces each keyword that compares numbers by our own.
pub(super) fn replace(schema: &mut Value) {
    walk::each_mut(schema, &mut |schema| {
        for name in NAMES {
            if schema.get(name).is_some_and(has_number)
                && let Some(value) = schema.remove(name)
            {
                // The value is stored as text, so that nothing looks for schemas in it.
                schema.insert(format!("{OWN_PREFIX}{name}"), value.to_string().into());
            }
        }
    });
}

fn has_number(value: &Value) -> bool {
    match value {
        Value::Number(_) => true,
        Value::Array(items) => items.iter().any(has_number),
        Value::Object(members) => members.values().any(has_number),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

/// Registers our keywords with the library.
pub(super) fn register<'i, R>(
    options: ValidationOptions<'i, R, PayloadJson>,
) -> ValidationOptions<'i, R, PayloadJson> {
    NAMES.into_iter().fold(options, |options, name| {
        options.with_keyword(format!("{OWN_PREFIX}{name}"), move |_, value, _| {
            let rule = value.as_str().and_then(|text| NumberRule::of(name, text));
            let rule =
                rule.ok_or_else(|| ValidationError::custom("this keyword is unstale's own"))?;
            Ok(Box::new(rule))
        })
    })
}

/// Condition on a value.
enum NumberRule {
    /// The value equals one of these.
    OneOf(Vec<Value>),
    /// The comparison with the limit has one of these results.
    Bound {
        limit: Box<str>,
        accepts: [Ordering; 2],
    },
    MultipleOf(Divisor),
}

impl NumberRule {
    fn of(name: &str, text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let bound = |accepts| {
            value.as_number().map(|limit| Self::Bound { limit: limit.to_string().into(), accepts })
        };
        match (name, &value) {
            ("const", _) => Some(Self::OneOf(vec![value])),
            ("enum", Value::Array(options)) => Some(Self::OneOf(options.clone())),
            ("minimum", _) => bound([Ordering::Greater, Ordering::Equal]),
            ("maximum", _) => bound([Ordering::Less, Ordering::Equal]),
            ("exclusiveMinimum", _) => bound([Ordering::Greater; 2]),
            ("exclusiveMaximum", _) => bound([Ordering::Less; 2]),
            ("multipleOf", Value::Number(of)) => {
                Divisor::of(Decimal::of(&of.to_string())).map(Self::MultipleOf)
            }
            _ => None,
        }
    }
}

impl<'i> Keyword<'i, PayloadJson> for NumberRule {
    fn validate(&self, node: PayloadNode<'i>) -> Result<(), ValidationError<'i>> {
        if Keyword::is_valid(self, node) {
            return Ok(());
        }
        Err(ValidationError::custom("the number is another one"))
    }

    fn is_valid(&self, node: PayloadNode<'i>) -> bool {
        match self {
            Self::OneOf(options) => options.iter().any(|option| node.equals_value(option)),
            Self::Bound { limit, accepts } => {
                let Some(number) = node.number_text() else { return true };
                node.charge_keyword(4 + number.len() as u64 / 4);
                let order = match (number.parse::<i64>(), limit.parse::<i64>()) {
                    (Ok(number), Ok(limit)) => number.cmp(&limit),
                    _ => Decimal::of(number).cmp(&Decimal::of(limit)),
                };
                accepts.contains(&order)
            }
            Self::MultipleOf(divisor) => {
                let Some(number) = node.number_text() else { return true };
                node.charge_keyword(16 + 4 * number.len() as u64);
                Decimal::of(number).is_multiple_of(*divisor)
            }
        }
    }
}

/// Returns a place in a schema with the keywords as the user wrote them.
pub(super) fn as_written(schema_path: &str) -> String {
    match schema_path.rsplit_once('/') {
        Some((before, last)) => {
            format!("{before}/{}", last.strip_prefix(OWN_PREFIX).unwrap_or(last))
        }
        None => schema_path.to_owned(),
    }
}

//! Equality of JSON values and `uniqueItems`, without trees. Numbers are compared by value, members
//! in any order.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::RandomState;
use serde_json::{Number, Value};

use super::super::decimal::Decimal;
use super::duplicates::last_of_each;
use crate::event::Json;
use crate::event::json::{JsonKind, MemberList};

/// Function that charges units of work before the work is done.
type Charge<'c> = &'c dyn Fn(u64);

/// Returns whether a value of a payload equals a value of a schema.
pub(super) fn equals_value(json: Json<'_>, expected: &Value, charge: Charge<'_>) -> bool {
    charge(1);
    match expected {
        Value::Null => json.is_null(),
        Value::Bool(expected) => json.as_bool() == Some(*expected),
        Value::String(expected) => same_text(json, expected, charge),
        Value::Number(expected) => json.as_number().is_some_and(|number| {
            charge(number.len() as u64 / 4);
            is_number(number, expected)
        }),
        Value::Array(expected) => {
            if json.kind() != JsonKind::Array {
                return false;
            }
            charge(json.text().len() as u64 / 8);
            let elements = json.elements();
            elements.len() == expected.len()
                && elements
                    .iter()
                    .zip(expected)
                    .all(|(json, expected)| equals_value(*json, expected, charge))
        }
        Value::Object(expected) => {
            if json.kind() != JsonKind::Object {
                return false;
            }
            let members = members(json, charge);
            members.len() == expected.len()
                && members.iter().all(|(name, json)| {
                    expected
                        .get(&**name)
                        .is_some_and(|expected| equals_value(*json, expected, charge))
                })
        }
    }
}

/// Returns whether the text of a number equals a number of a schema.
fn is_number(text: &str, expected: &Number) -> bool {
    match (text.parse::<i64>(), expected.as_i64()) {
        (Ok(number), Some(expected)) => number == expected,
        _ => Decimal::of(text) == Decimal::of(&expected.to_string()),
    }
}

/// Returns whether no two elements are equal.
pub(super) fn is_unique(elements: &[Json<'_>], charge: Charge<'_>) -> bool {
    if elements.len() < 2 {
        return true;
    }
    let random = RandomState::default();
    charge(4 * elements.len() as u64);
    let mut hashes: Vec<(u64, usize)> =
        elements.iter().enumerate().map(|(at, json)| (hash(*json, &random, charge), at)).collect();
    hashes.sort_unstable();
    let alike = hashes.chunk_by(|(first, _), (second, _)| first == second);
    for alike in alike.filter(|alike| alike.len() > 1) {
        for (place, (_, first)) in alike.iter().enumerate() {
            if alike[..place]
                .iter()
                .any(|(_, second)| is_same(elements[*first], elements[*second], charge))
            {
                return false;
            }
        }
    }
    true
}

/// Returns a hash of the value. Equal values have equal hashes.
fn hash(json: Json<'_>, random: &RandomState, charge: Charge<'_>) -> u64 {
    charge(1 + json.text().len() as u64 / 4);
    let mut hasher = random.build_hasher();
    hasher.write_u8(json.kind() as u8);
    match json.kind() {
        JsonKind::Null | JsonKind::Bool => hasher.write(json.text().as_bytes()),
        JsonKind::Number => Decimal::of(json.text()).hash_into(&mut hasher),
        JsonKind::String => hasher.write(json.as_str().unwrap_or_default().as_bytes()),
        JsonKind::Array => json
            .elements()
            .into_iter()
            .for_each(|element| hasher.write_u64(hash(element, random, charge))),
        JsonKind::Object => {
            let all = last_of_each(json.members()).iter().fold(0, |all, (name, value)| {
                let mut member = random.build_hasher();
                member.write(name.as_bytes());
                member.write_u64(hash(*value, random, charge));
                all ^ member.finish()
            });
            hasher.write_u64(all);
        }
    }
    hasher.finish()
}

fn is_same(first: Json<'_>, second: Json<'_>, charge: Charge<'_>) -> bool {
    charge(1);
    if first.kind() != second.kind() {
        return false;
    }
    match first.kind() {
        JsonKind::Null => true,
        JsonKind::Bool => first.text() == second.text(),
        JsonKind::Number => {
            charge((first.text().len() + second.text().len()) as u64 / 4);
            Decimal::of(first.text()) == Decimal::of(second.text())
        }
        JsonKind::String => first.as_str().is_some_and(|text| same_text(second, &text, charge)),
        JsonKind::Array => {
            charge((first.text().len() + second.text().len()) as u64 / 8);
            let (first, second) = (first.elements(), second.elements());
            first.len() == second.len()
                && first.iter().zip(&second).all(|(first, second)| is_same(*first, *second, charge))
        }
        JsonKind::Object => {
            let (mut first, mut second) = (members(first, charge), members(second, charge));
            first.sort_unstable_by(|(first, _), (second, _)| first.cmp(second));
            second.sort_unstable_by(|(first, _), (second, _)| first.cmp(second));
            first.len() == second.len()
                && first.iter().zip(&second).all(|((name, first), (other, second))| {
                    name == other && is_same(*first, *second, charge)
                })
        }
    }
}

fn same_text(json: Json<'_>, expected: &str, charge: Charge<'_>) -> bool {
    // An escape takes more bytes than its character, at most six for one.
    let bytes = json.text().len().saturating_sub(2);
    if json.kind() != JsonKind::String
        || bytes < expected.len()
        || bytes > expected.len().saturating_mul(6)
    {
        return false;
    }
    charge(bytes as u64 / 16);
    json.as_str().is_some_and(|text| text == expected)
}

fn members<'a>(json: Json<'a>, charge: Charge<'_>) -> MemberList<'a> {
    charge(json.text().len() as u64 / 4);
    last_of_each(json.members())
}

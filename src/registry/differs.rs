//! Compares the payload with the state before, for `changed(…)`.

use foldhash::HashMap;

use super::budget::{Budget, Spent};
use super::number::integer_digits;
use super::path::PathStep;
use crate::event::Json;
use crate::event::json::JsonKind;

/// Returns whether two values differ at a path.
pub(super) fn differs(
    now: Json<'_>,
    before: Json<'_>,
    steps: &[PathStep],
    budget: &Budget,
) -> Result<bool, Spent> {
    let (mut at_now, mut at_before) = (Vec::new(), Vec::new());
    collect(Some(now), steps, &mut at_now, budget)?;
    collect(Some(before), steps, &mut at_before, budget)?;
    if at_now.len() != at_before.len() {
        return Ok(true);
    }
    for (now, before) in at_now.into_iter().zip(at_before) {
        if !same(now, before, budget)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Adds every value at a path, in order.
fn collect<'e>(
    json: Option<Json<'e>>,
    steps: &[PathStep],
    found: &mut Vec<Option<Json<'e>>>,
    budget: &Budget,
) -> Result<(), Spent> {
    let ([step, rest @ ..], Some(json)) = (steps, json) else {
        budget.work(1)?;
        budget.bytes(size_of::<Option<Json<'_>>>())?;
        found.push(if steps.is_empty() { json } else { None });
        return Ok(());
    };
    budget.work(4 + json.text().len() as u64 / 4)?;
    match step {
        PathStep::Member(name) => collect(json.get(name), rest, found, budget),
        PathStep::Index(at) => collect(json.elements().get(*at).copied(), rest, found, budget),
        PathStep::Each if json.kind() == JsonKind::Array => json
            .elements()
            .into_iter()
            .try_for_each(|element| collect(Some(element), rest, found, budget)),
        PathStep::Each => collect(None, &steps[..1], found, budget),
    }
}

/// Returns whether two values are the same.
///
/// Absent and null are the same. Objects have no order. `7` and `7.0` are the same number.
fn same(a: Option<Json<'_>>, b: Option<Json<'_>>, budget: &Budget) -> Result<bool, Spent> {
    let (a, b) = match (a.filter(|json| !json.is_null()), b.filter(|json| !json.is_null())) {
        (None, None) => return Ok(true),
        (Some(a), Some(b)) => (a, b),
        _ => return Ok(false),
    };
    budget.work(2 + a.text().len().min(b.text().len()) as u64 / 64)?;
    if a.text() == b.text() {
        return Ok(true);
    }
    if a.kind() != b.kind() {
        return Ok(false);
    }
    budget.work((a.text().len() + b.text().len()) as u64 / 4)?;
    same_values(a, b, budget)
}

fn same_values(a: Json<'_>, b: Json<'_>, budget: &Budget) -> Result<bool, Spent> {
    Ok(match a.kind() {
        JsonKind::Number => {
            match (integer_digits(a.text()), integer_digits(b.text())) {
                (Some(a), Some(b)) => a == b,
                (None, None) => a.text().parse::<f64>().ok().is_some_and(|number| {
                    b.text().parse::<f64>() == Ok(number) && number.is_finite()
                }),
                _ => false,
            }
        }
        JsonKind::String => a.as_str() == b.as_str(),
        JsonKind::Array => {
            let (a, b) = (a.elements(), b.elements());
            if a.len() != b.len() {
                return Ok(false);
            }
            for (a, b) in a.into_iter().zip(b) {
                if !same(Some(a), Some(b), budget)? {
                    return Ok(false);
                }
            }
            true
        }
        JsonKind::Object => {
            let (a, b) = (a.members(), b.members());
            budget.work(8 * (a.len() + b.len()) as u64)?;
            // The last member of a name counts.
            let of_b: HashMap<&str, Json<'_>> =
                b.iter().map(|(name, value)| (&**name, *value)).collect();
            let of_a: HashMap<&str, Json<'_>> =
                a.iter().map(|(name, value)| (&**name, *value)).collect();
            for (name, value) in &of_a {
                if !same(Some(*value), of_b.get(name).copied(), budget)? {
                    return Ok(false);
                }
            }
            for (name, value) in &of_b {
                if !of_a.contains_key(name) && !same(None, Some(*value), budget)? {
                    return Ok(false);
                }
            }
            true
        }
        JsonKind::Null | JsonKind::Bool => false,
    })
}

//! Operators and functions over values of common types, with CEL's interpreter for all others.

use std::cmp::Ordering;
use std::rc::Rc;

use cel::{Context, Value as CelValue};
use memchr::memmem;

use super::ENV;
use super::evaluate::{Answer, ELEMENT_BYTES, Evaluator, WORK_PER_CALL, is_key};
use super::node::{Call, OPERANDS, Operation};
use super::value::Value;
use crate::event::json::JsonKind;
use crate::registry::fault::Fault;

impl<'v> Evaluator<'v, '_, '_> {
    /// Computes an operation if its operands have common types.
    pub(super) fn operate(
        &self,
        operation: &Operation,
        operands: &[Value<'v>],
    ) -> Result<Option<Value<'v>>, Fault> {
        let int = |answer: Option<i64>| Ok(answer.map(Value::Int));
        match (operation, operands) {
            (Operation::Not, [Value::Bool(bool)]) => Ok(Some(Value::Bool(!bool))),
            (Operation::Same, [value]) => Ok(Some(value.clone())),
            (Operation::Add, [Value::Int(a), Value::Int(b)]) => int(a.checked_add(*b)),
            (Operation::Subtract, [Value::Int(a), Value::Int(b)]) => int(a.checked_sub(*b)),
            (Operation::Multiply, [Value::Int(a), Value::Int(b)]) => int(a.checked_mul(*b)),
            (Operation::Remainder, [Value::Int(a), Value::Int(b)]) => int(a.checked_rem(*b)),
            (Operation::Add, [a, b]) if a.is_list() => self.append(a, b),
            (Operation::Add, [a, b]) => {
                let (Some(a), Some(b)) = (a.as_text(), b.as_text()) else { return Ok(None) };
                self.budget.work(8)?;
                self.budget.bytes(16 + a.len() + b.len())?;
                Ok(Some(Value::Text([a, b].concat().into())))
            }
            (Operation::Less, [a, b]) => self.compare(a, b, Ordering::is_lt),
            (Operation::LessEquals, [a, b]) => self.compare(a, b, Ordering::is_le),
            (Operation::Greater, [a, b]) => self.compare(a, b, Ordering::is_gt),
            (Operation::GreaterEquals, [a, b]) => self.compare(a, b, Ordering::is_ge),
            (Operation::In, [a, b]) => self.is_in(a, b),
            (Operation::Index, [of, at]) => self.index(of, at),
            (Operation::Size, [of]) => self.size(of),
            (Operation::Contains | Operation::StartsWith | Operation::EndsWith, [a, b]) => {
                let (Some(a), Some(b)) = (a.as_text(), b.as_text()) else { return Ok(None) };
                Ok(Some(Value::Bool(match operation {
                    Operation::Contains => {
                        self.budget.work(8 + (a.len() + b.len()) as u64 / 4)?;
                        memmem::find(a.as_bytes(), b.as_bytes()).is_some()
                    }
                    _ if b.len() > a.len() => false,
                    other => {
                        self.budget.work(b.len() as u64 / 64)?;
                        if matches!(other, Operation::StartsWith) {
                            a.starts_with(b)
                        } else {
                            a.ends_with(b)
                        }
                    }
                })))
            }
            (Operation::Matches(pattern), [text, ..]) => {
                let Some(text) = text.as_text() else { return Ok(None) };
                self.budget.work(pattern.work(text.len()))?;
                Ok(Some(Value::Bool(pattern.is_match(text))))
            }
            (Operation::Cel { work_per_byte }, operands) => {
                self.budget.work(
                    operands.iter().map(Value::length).sum::<usize>() as u64 * work_per_byte,
                )?;
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    fn compare(
        &self,
        a: &Value<'v>,
        b: &Value<'v>,
        is: fn(Ordering) -> bool,
    ) -> Result<Option<Value<'v>>, Fault> {
        let order = match (a.as_text(), b.as_text()) {
            (Some(a), Some(b)) => {
                self.budget.work(a.len().min(b.len()) as u64 / 64)?;
                Some(a.cmp(b))
            }
            _ => a.compare_numbers(b),
        };
        Ok(order.map(|order| Value::Bool(is(order))))
    }

    fn append(&self, a: &Value<'v>, b: &Value<'v>) -> Result<Option<Value<'v>>, Fault> {
        let (Some(a), Some(b)) = (self.items(a)?, self.items(b)?) else { return Ok(None) };
        let mut list = Vec::new();
        for items in [a, b] {
            self.budget.work(items.len() as u64)?;
            self.budget.bytes(items.len() * ELEMENT_BYTES)?;
            list.reserve(items.len());
            for at in 0..items.len() {
                list.extend(items.get(at, self.budget)?);
            }
        }
        Ok(Some(Value::List(Rc::new(list))))
    }

    fn is_in(&self, value: &Value<'v>, of: &Value<'v>) -> Result<Option<Value<'v>>, Fault> {
        let is_in = match of {
            Value::Json(json) if json.kind() == JsonKind::Object => match value.as_text() {
                Some(name) => self.scope.member(*json, name)?.is_some(),
                None if is_map_key(value) => false,
                None => return Ok(None),
            },
            Value::Map(entries) if is_map_key(value) => {
                self.position(entries, value, false)?.is_some()
            }
            _ if of.is_list() => {
                let Some(items) = self.items(of)? else { return Ok(None) };
                let mut found = false;
                for at in 0..items.len() {
                    self.budget.work(1)?;
                    let Some(item) = items.get(at, self.budget)? else { break };
                    if self.equal(&item, value)? {
                        found = true;
                        break;
                    }
                }
                found
            }
            _ => return Ok(None),
        };
        Ok(Some(Value::Bool(is_in)))
    }

    fn index(&self, of: &Value<'v>, at: &Value<'v>) -> Result<Option<Value<'v>>, Fault> {
        match of {
            Value::AbsentPrevious => Err(Fault::absence("a field is absent")),
            Value::Json(json) if json.kind() == JsonKind::Object && is_map_key(at) => {
                let found = at.as_text().map_or(Ok(None), |name| self.scope.member(*json, name))?;
                found.map_or_else(
                    || Err(Fault::absence("a field is absent")),
                    |json| self.json(json).map(Some),
                )
            }
            Value::Map(entries) if is_map_key(at) => {
                let found = self.position(entries, at, false)?;
                found.map_or_else(
                    || Err(Fault::absence("a field is absent")),
                    |at| Ok(Some(entries[at].1.clone())),
                )
            }
            _ if of.is_list() => {
                let Some(place) = place(at) else { return Ok(None) };
                let Some(items) = self.items(of)? else { return Ok(None) };
                let found = place.map_or(Ok(None), |place| items.get(place, self.budget))?;
                found.map_or_else(
                    || Err(Fault::absence("an index is out of range")),
                    |value| Ok(Some(value)),
                )
            }
            _ => Ok(None),
        }
    }

    fn size(&self, of: &Value<'v>) -> Result<Option<Value<'v>>, Fault> {
        let size = match of {
            Value::Json(json) if json.kind() == JsonKind::Object => self.members(*json)?.len(),
            Value::Map(entries) => entries.len(),
            _ if of.is_list() => self.items(of)?.map_or(0, |items| items.len()),
            _ => {
                let Some(text) = of.as_text() else { return Ok(None) };
                self.budget.work(text.len() as u64 / 8)?;
                text.chars().count()
            }
        };
        Ok(Some(Value::Int(i64::try_from(size).unwrap_or(i64::MAX))))
    }

    /// Calls CEL's interpreter.
    pub(super) fn call(&self, call: &Call, operands: &[Value<'v>]) -> Answer<'v> {
        let bytes = operands.iter().map(Value::length).sum::<usize>();
        self.budget.work(WORK_PER_CALL + bytes as u64 / 4)?;
        self.budget.bytes(32)?;
        if let ([value], Some(function)) = (operands, call.function())
            && value.is_inexact()
            && ["string", "int", "uint"].contains(&function)
        {
            return Err(Fault::inexact(function));
        }
        let mut context = Context::with_env(ENV.clone());
        for (name, value) in OPERANDS.iter().zip(operands) {
            context.add_variable_as_val(*name, value.to_cel());
        }
        match CelValue::resolve_val(&call.template, &context) {
            Ok(value) => {
                let value = Value::of_cel(value.as_ref()).ok_or_else(Fault::of_types)?;
                self.budget.bytes(value.length())?;
                Ok(value)
            }
            Err(error) => Err(Fault::of_cel(&error)),
        }
    }
}

/// Returns whether a map may be asked for the value. A double counts as the integer that it equals.
fn is_map_key(value: &Value<'_>) -> bool {
    is_key(value) || matches!(value, Value::Double(_))
}

/// Returns the position of an index: `None` if it is not an index, `Some(None)` if no list has it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "only a double that is that integer exactly is one"
)]
fn place(index: &Value<'_>) -> Option<Option<usize>> {
    match index {
        Value::Int(int) => Some(usize::try_from(*int).ok()),
        Value::UInt(uint) => Some(usize::try_from(*uint).ok()),
        Value::Double(double) if *double > i64::MIN as f64 && *double < i64::MAX as f64 => {
            let int = *double as i64;
            (int as f64 == *double).then(|| usize::try_from(int).ok())
        }
        _ => None,
    }
}

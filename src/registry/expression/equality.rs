//! Equality of values, as CEL defines it, within the event's budget.

use std::cmp::Ordering;

use super::evaluate::{Evaluator, FEW, WORK_PER_CALL};
use super::value::Value;
use crate::event::Json;
use crate::registry::fault::Fault;

impl<'v> Evaluator<'v, '_, '_> {
    pub(super) fn equal(&self, a: &Value<'v>, b: &Value<'v>) -> Result<bool, Fault> {
        self.budget.work(1)?;
        Ok(match (a, b) {
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Other(a), Value::Other(b)) => {
                self.budget.work(WORK_PER_CALL)?;
                a.equals(b.as_ref())
            }
            _ if a.is_null() => b.is_null(),
            (Value::Json(a), Value::Json(b))
                if a.text().len() == b.text().len() && self.is_same_text(*a, *b)? =>
            {
                true
            }
            _ if a.is_list() && b.is_list() => self.equal_lists(a, b)?,
            _ if a.is_map() && b.is_map() => self.equal_maps(a, b)?,
            _ => match (a.as_text(), b.as_text()) {
                (Some(a), Some(b)) => {
                    self.budget.work(a.len().min(b.len()) as u64 / 64)?;
                    a == b
                }
                (None, None) => a.compare_numbers(b) == Some(Ordering::Equal),
                _ => false,
            },
        })
    }

    fn is_same_text(&self, a: Json<'_>, b: Json<'_>) -> Result<bool, Fault> {
        self.budget.work(a.text().len() as u64 / 64)?;
        Ok(a.text() == b.text())
    }

    fn equal_lists(&self, a: &Value<'v>, b: &Value<'v>) -> Result<bool, Fault> {
        let (Some(a), Some(b)) = (self.items(a)?, self.items(b)?) else { return Ok(false) };
        if a.len() != b.len() {
            return Ok(false);
        }
        for at in 0..a.len() {
            self.budget.work(1)?;
            let (Some(a), Some(b)) = (a.get(at, self.budget)?, b.get(at, self.budget)?) else {
                return Ok(false);
            };
            if !self.equal(&a, &b)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn equal_maps(&self, a: &Value<'v>, b: &Value<'v>) -> Result<bool, Fault> {
        let (a, b) = (self.entries(a)?, self.entries(b)?);
        if a.len() != b.len() {
            return Ok(false);
        }
        let mut by_name = foldhash::HashMap::<&str, &Value<'v>>::default();
        if b.len() > FEW {
            by_name.extend(b.iter().filter_map(|(key, value)| Some((key.as_text()?, value))));
        }
        for (key, value) in &a {
            let other = match key.as_text() {
                Some(name) if b.len() > FEW => by_name.get(name).copied(),
                _ => self.position(&b, key, false)?.map(|at| &b[at].1),
            };
            if !other.map_or(Ok(false), |other| self.equal(value, other))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn entries(&self, of: &Value<'v>) -> Result<Vec<(Value<'v>, Value<'v>)>, Fault> {
        match of {
            Value::Json(json) => {
                let members = self.members(*json)?;
                members.into_iter().map(|(name, json)| Ok((name, self.json(json)?))).collect()
            }
            Value::Map(entries) => {
                self.budget.work(8 * entries.len() as u64)?;
                Ok(entries.to_vec())
            }
            _ => Ok(Vec::new()),
        }
    }
}

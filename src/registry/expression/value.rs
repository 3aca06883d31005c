//! Values with which an expression computes.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write as _;
use std::rc::Rc;

use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelDuration, CelInt, CelList, CelMap, CelNull, CelString,
    CelTimestamp, CelType, CelUInt,
};
use cel::common::value::Val;

use crate::event::Json;
use crate::event::json::{JsonKind, write_string};
use crate::registry::budget::{Budget, Spent};
use crate::registry::fault::Fault;

/// A value. Cloning is cheap, because long values are shared.
#[derive(Clone)]
pub(in crate::registry) enum Value<'v> {
    Null,
    /// `previous` if the publisher gave none. It equals null and has no fields.
    AbsentPrevious,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Double(f64),
    Borrowed(&'v str),
    Text(Rc<str>),
    /// An array or an object of the event, of a `let` or of an item.
    Json(Json<'v>),
    List(Rc<Vec<Value<'v>>>),
    /// A map written in the expression. Its keys are bool, int, uint or text, and each occurs once.
    Map(Rc<Vec<(Value<'v>, Value<'v>)>>),
    /// A value that only CEL's functions read: bytes, a timestamp, a duration or a type.
    Other(Rc<dyn Val>),
}

impl<'v> Value<'v> {
    /// Reads a JSON value.
    ///
    /// An integer is an `int`, or a `uint` if it is too large for that. Any other number is a
    /// `double`.
    pub(in crate::registry) fn of(json: Json<'v>, budget: &Budget) -> Result<Self, Spent> {
        Ok(match json.kind() {
            JsonKind::Null => Self::Null,
            JsonKind::Bool => Self::Bool(json.as_bool().unwrap_or_default()),
            JsonKind::Array | JsonKind::Object => Self::Json(json),
            JsonKind::String => {
                budget.work(json.text().len() as u64 / 16)?;
                match json.as_str().unwrap_or_default() {
                    Cow::Borrowed(text) => Self::Borrowed(text),
                    Cow::Owned(text) => {
                        budget.work(8 + text.len() as u64)?;
                        budget.bytes(16 + text.len())?;
                        Self::Text(text.into())
                    }
                }
            }
            JsonKind::Number => {
                let text = json.text();
                budget.work(text.len() as u64 / 8)?;
                if let Ok(int) = text.parse() {
                    Self::Int(int)
                } else if let Ok(uint) = text.parse() {
                    Self::UInt(uint)
                } else {
                    Self::Double(text.parse::<f64>().unwrap_or_default().clamp(f64::MIN, f64::MAX))
                }
            }
        })
    }

    /// Returns whether the value is a double that does not identify an integer, and would make a
    /// wrong key.
    pub(super) fn is_inexact(&self) -> bool {
        matches!(self, Self::Double(double) if double.abs() >= 9_007_199_254_740_992.0)
    }

    /// Returns the value as JSON.
    ///
    /// # Errors
    /// The value has a type that JSON lacks, or the budget is spent.
    pub(in crate::registry) fn to_json(&self, budget: &Budget) -> Result<String, Fault> {
        let mut out = String::new();
        self.write_json(budget, &mut out)?;
        Ok(out)
    }

    fn write_json(&self, budget: &Budget, out: &mut String) -> Result<(), Fault> {
        budget.work(2)?;
        budget.bytes(4)?;
        match self {
            Self::Null | Self::AbsentPrevious => out.push_str("null"),
            Self::Bool(bool) => out.push_str(if *bool { "true" } else { "false" }),
            Self::Int(int) => push(int, budget, out)?,
            Self::UInt(uint) => push(uint, budget, out)?,
            Self::Double(_) if self.is_inexact() => {
                return Err(Fault::no_json("a double beyond 2^53, which is not exact"));
            }
            Self::Double(double) => {
                let number = serde_json::Number::from_f64(*double)
                    .ok_or_else(|| Fault::no_json("a double that is not a number"))?;
                push(&number, budget, out)?;
            }
            Self::Borrowed(text) => push_text(text, budget, out)?,
            Self::Text(text) => push_text(text, budget, out)?,
            Self::Json(json) => {
                budget.bytes(json.text().len())?;
                out.push_str(json.text());
            }
            Self::List(list) => {
                out.push('[');
                for (at, element) in list.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    element.write_json(budget, out)?;
                }
                out.push(']');
            }
            Self::Map(entries) => write_map(entries, budget, out)?,
            Self::Other(value) => {
                return Err(Fault::no_json(&format!("a {}", value.get_type().name())));
            }
        }
        Ok(())
    }

    /// Reads a value that a function of CEL returned. These are never lists or maps.
    pub(super) fn of_cel(value: &dyn Val) -> Option<Self> {
        Some(if let Some(text) = value.downcast_ref::<CelString>() {
            Self::Text(text.inner().into())
        } else if let Some(int) = value.downcast_ref::<CelInt>() {
            Self::Int(*int.inner())
        } else if let Some(uint) = value.downcast_ref::<CelUInt>() {
            Self::UInt(*uint.inner())
        } else if let Some(double) = value.downcast_ref::<CelDouble>() {
            Self::Double(*double.inner())
        } else if let Some(bool) = value.downcast_ref::<CelBool>() {
            Self::Bool(*bool.inner())
        } else if value.downcast_ref::<CelNull>().is_some() {
            Self::Null
        } else if value.downcast_ref::<CelList>().is_some()
            || value.downcast_ref::<CelMap>().is_some()
        {
            return None;
        } else {
            Self::Other(owned(value)?)
        })
    }

    /// Returns the value for a function of CEL. Lists and maps become empty ones, because only
    /// their type matters.
    pub(super) fn to_cel(&self) -> Box<dyn Val + '_> {
        match self {
            Self::Null | Self::AbsentPrevious => Box::new(CelNull),
            Self::Bool(bool) => Box::new(CelBool::from(*bool)),
            Self::Int(int) => Box::new(CelInt::from(*int)),
            Self::UInt(uint) => Box::new(CelUInt::from(*uint)),
            Self::Double(double) => Box::new(CelDouble::from(*double)),
            Self::Borrowed(text) => Box::new(CelString::from(*text)),
            Self::Text(text) => Box::new(CelString::from(&**text)),
            Self::Json(json) if json.kind() == JsonKind::Array => {
                Box::new(CelList::from(Vec::new()))
            }
            Self::List(_) => Box::new(CelList::from(Vec::new())),
            Self::Json(_) | Self::Map(_) => {
                Box::new(CelMap::from(std::collections::HashMap::new()))
            }
            Self::Other(value) => value.clone_as_boxed(),
        }
    }

    /// Returns CEL's name of the type.
    pub(super) fn type_name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Null | Self::AbsentPrevious => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::UInt(_) => "uint",
            Self::Double(_) => "double",
            Self::Borrowed(_) | Self::Text(_) => "string",
            Self::Json(json) if json.kind() == JsonKind::Array => "list",
            Self::List(_) => "list",
            Self::Json(_) | Self::Map(_) => "map",
            Self::Other(value) => return Cow::Owned(value.get_type().name().to_owned()),
        })
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Null | Self::AbsentPrevious)
    }

    pub(super) fn is_list(&self) -> bool {
        match self {
            Self::List(_) => true,
            Self::Json(json) => json.kind() == JsonKind::Array,
            _ => false,
        }
    }

    pub(super) fn is_map(&self) -> bool {
        match self {
            Self::Map(_) => true,
            Self::Json(json) => json.kind() == JsonKind::Object,
            _ => false,
        }
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Borrowed(text) => Some(text),
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the number of bytes that a function of CEL reads.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Borrowed(text) => text.len(),
            Self::Text(text) => text.len(),
            Self::Other(value) => {
                value.downcast_ref::<CelBytes>().map_or(16, |bytes| bytes.inner().len())
            }
            _ => 16,
        }
    }

    /// Compares two numbers as CEL does. Returns `None` for NaN and for values that are not
    /// numbers.
    pub(super) fn compare_numbers(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::UInt(a), Self::UInt(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::UInt(b)) => {
                Some(u64::try_from(*a).map_or(Ordering::Less, |a| a.cmp(b)))
            }
            (Self::UInt(a), Self::Int(b)) => {
                Some(u64::try_from(*b).map_or(Ordering::Greater, |b| a.cmp(&b)))
            }
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(b),
            _ => self.as_double()?.partial_cmp(&other.as_double()?),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "CEL compares integers with doubles as doubles")]
    fn as_double(&self) -> Option<f64> {
        match self {
            Self::Int(int) => Some(*int as f64),
            Self::UInt(uint) => Some(*uint as f64),
            Self::Double(double) => Some(*double),
            _ => None,
        }
    }
}

fn write_map(
    entries: &[(Value<'_>, Value<'_>)],
    budget: &Budget,
    out: &mut String,
) -> Result<(), Fault> {
    let mut members = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        members.push((
            key.as_text().ok_or_else(|| Fault::no_json("a map with keys that are not strings"))?,
            value,
        ));
    }
    // CEL's maps have no order.
    members.sort_unstable_by_key(|(name, _)| *name);
    out.push('{');
    for (at, (name, value)) in members.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        push_text(name, budget, out)?;
        out.push(':');
        value.write_json(budget, out)?;
    }
    out.push('}');
    Ok(())
}

fn push(number: &impl std::fmt::Display, budget: &Budget, out: &mut String) -> Result<(), Spent> {
    budget.work(4)?;
    budget.bytes(20)?;
    // Writing to a string does not fail.
    let _ = write!(out, "{number}");
    Ok(())
}

fn push_text(text: &str, budget: &Budget, out: &mut String) -> Result<(), Spent> {
    budget.work(text.len() as u64 / 8)?;
    let escapes = text.bytes().filter(|byte| *byte < 0x20 || matches!(byte, b'"' | b'\\')).count();
    budget.bytes(text.len() + 5 * escapes)?;
    write_string(text, out);
    Ok(())
}

/// Copies a value of CEL that borrows nothing.
fn owned(value: &dyn Val) -> Option<Rc<dyn Val>> {
    if let Some(bytes) = value.downcast_ref::<CelBytes>() {
        return Some(Rc::new(CelBytes::from(bytes.inner().to_vec())));
    }
    if let Some(time) = value.downcast_ref::<CelTimestamp>() {
        return Some(Rc::new(time.clone()));
    }
    if let Some(duration) = value.downcast_ref::<CelDuration>() {
        return Some(Rc::new(*duration));
    }
    Some(Rc::new(value.downcast_ref::<CelType>()?.clone()))
}

//! A payload in the form that the JSON Schema library reads: in place, without a tree, and within
//! the event's budget.
//!
//! The last member of a name counts, as everywhere. `meter` charges the budget for each access, and
//! ends a validation that exceeds it. `compare` implements equality and `uniqueItems`.

mod compare;
mod duplicates;
mod meter;

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::rc::Rc;

use jsonschema::JsonType;
use jsonschema::json::{Array, JsonNumber, Node, NodeIdentity, Object};
use serde_json::{Number, Value};

use super::decimal::Decimal;
use crate::event::Json;
use crate::event::json::{JsonKind, MemberList};

use duplicates::{has_one_of_each, last_of_each};

pub(super) use meter::{
    Costs, Meter, NAME_BACKTRACK_LIMIT, WORK_PER_BACKTRACKING_MATCH, backtracking_units,
};

/// Marker type of the representation; see [`jsonschema::json`].
#[derive(Debug)]
pub(super) struct PayloadJson;

/// A value of a payload, with the meter that its accesses charge.
#[derive(Debug, Clone, Copy)]
pub(super) struct PayloadNode<'a> {
    value: PayloadValue<'a>,
    meter: Option<&'a Meter<'a>>,
}

#[derive(Debug, Clone, Copy)]
enum PayloadValue<'a> {
    /// An object whose members are already known, one of each name.
    Known(Json<'a>, &'a [(Cow<'a, str>, Json<'a>)]),
    /// Any other value.
    Value(Json<'a>),
    /// A member's name, which `propertyNames` validates as a value.
    Name(&'a str),
}

impl<'a> PayloadNode<'a> {
    /// Returns a value that is read within a budget. `members` are those of an object.
    pub(super) fn of(
        json: Json<'a>,
        members: &'a [(Cow<'a, str>, Json<'a>)],
        meter: &'a Meter<'a>,
    ) -> Self {
        let is_known = json.kind() == JsonKind::Object && has_one_of_each(members);
        let value =
            if is_known { PayloadValue::Known(json, members) } else { PayloadValue::Value(json) };
        Self { value, meter: Some(meter) }
    }

    fn json(self) -> Option<Json<'a>> {
        match self.value {
            PayloadValue::Known(json, _) | PayloadValue::Value(json) => Some(json),
            PayloadValue::Name(_) => None,
        }
    }

    /// Charges for an access before it is made.
    #[inline]
    fn charge(self, units: u64) {
        if let Some(meter) = self.meter {
            meter.charge(units);
        }
    }

    /// Returns the same value without a meter, for accesses that are paid already.
    pub(super) fn unmetered(self) -> Self {
        Self { meter: None, ..self }
    }

    /// Returns the length of a text as published, in bytes, or `None` for other values.
    pub(super) fn text_bytes(self) -> Option<u64> {
        match self.value {
            PayloadValue::Name(name) => Some(name.len() as u64),
            PayloadValue::Known(json, _) | PayloadValue::Value(json) => {
                (json.kind() == JsonKind::String).then_some(json.text().len() as u64)
            }
        }
    }

    /// Returns the text of a number, or `None` for other values.
    pub(super) fn number_text(self) -> Option<&'a str> {
        self.json().and_then(Json::as_number)
    }

    /// Charges for the work of one of our own keywords.
    pub(super) fn charge_keyword(self, units: u64) {
        self.charge(units);
    }

    /// Ends the validation, because matching a pattern takes too long.
    pub(super) fn give_up(self) {
        self.charge(u64::MAX);
    }
}

impl jsonschema::json::Json for PayloadJson {
    type Node<'a> = PayloadNode<'a>;
    type PreparedKey = String;
    type StringBuffer = ();

    const ACYCLIC: bool = true;

    fn prepare_key(key: &str) -> String {
        key.to_owned()
    }

    fn with_string_node<T>((): &mut (), string: &str, f: impl FnOnce(PayloadNode<'_>) -> T) -> T {
        f(PayloadNode { value: PayloadValue::Name(string), meter: None })
    }
}

impl<'a> Node<'a, PayloadJson> for PayloadNode<'a> {
    type Object = Members<'a>;
    type Array = Elements<'a>;
    type Number = PayloadNumber<'a>;

    fn as_object(&self) -> Option<Members<'a>> {
        let list = match self.value {
            PayloadValue::Known(_, members) => {
                self.charge(1);
                List::Known(members)
            }
            PayloadValue::Value(json) if json.kind() == JsonKind::Object => {
                self.charge(1 + json.text().len() as u64 / 4);
                List::Own(Rc::new(last_of_each(json.members())))
            }
            PayloadValue::Value(_) | PayloadValue::Name(_) => {
                self.charge(1);
                return None;
            }
        };
        if let Some(meter) = self.meter {
            meter.check_stack();
        }
        Some(Members { list, meter: self.meter })
    }

    fn as_array(&self) -> Option<Elements<'a>> {
        let Some(json) = self.json().filter(|json| json.kind() == JsonKind::Array) else {
            self.charge(1);
            return None;
        };
        self.charge(1 + json.text().len() as u64 / 8);
        if let Some(meter) = self.meter {
            meter.check_stack();
        }
        Some(Elements { all: json.elements().into(), next: 0, meter: self.meter })
    }

    fn as_string(&self) -> Option<Cow<'a, str>> {
        let units = |text: &str| {
            1 + text.len() as u64 * self.meter.map_or(0, |meter| meter.costs.sixteenths_per_byte)
                / 16
        };
        match self.value {
            PayloadValue::Value(json) => {
                self.charge(if json.kind() == JsonKind::String { units(json.text()) } else { 1 });
                json.as_str()
            }
            PayloadValue::Name(name) => {
                self.charge(units(name));
                Some(Cow::Borrowed(name))
            }
            PayloadValue::Known(..) => {
                self.charge(1);
                None
            }
        }
    }

    fn string_length(&self) -> Option<u64> {
        self.charge(1 + self.text_bytes().unwrap_or_default() / 16);
        let chars = |text: &str| text.chars().count() as u64;
        match self.value {
            PayloadValue::Value(json) => json.as_str().map(|text| chars(&text)),
            PayloadValue::Name(name) => Some(chars(name)),
            PayloadValue::Known(..) => None,
        }
    }

    fn as_number(&self) -> Option<PayloadNumber<'a>> {
        let number = self.json().and_then(Json::as_number);
        self.charge(4 + number.map_or(0, str::len) as u64 / 4);
        number.map(PayloadNumber)
    }

    fn as_boolean(&self) -> Option<bool> {
        self.charge(1);
        self.json()?.as_bool()
    }

    fn is_null(&self) -> bool {
        self.charge(1);
        self.json().is_some_and(Json::is_null)
    }

    fn is_number(&self) -> bool {
        self.json_type() == JsonType::Number
    }

    fn json_type(&self) -> JsonType {
        self.charge(1);
        self.json().map_or(JsonType::String, |json| match json.kind() {
            JsonKind::Null => JsonType::Null,
            JsonKind::Bool => JsonType::Boolean,
            JsonKind::Number => JsonType::Number,
            JsonKind::String => JsonType::String,
            JsonKind::Array => JsonType::Array,
            JsonKind::Object => JsonType::Object,
        })
    }

    fn equals_value(&self, expected: &Value) -> bool {
        match self.json() {
            Some(json) => compare::equals_value(json, expected, &|units| self.charge(units)),
            None => self.as_string().is_some_and(|name| expected.as_str() == Some(&name)),
        }
    }

    /// Returns null. The library asks for a tree only for its errors, which show no values here.
    fn to_value(&self) -> Cow<'a, Value> {
        if let Some(meter) = self.meter {
            meter.fails_at(self.json());
        }
        Cow::Owned(Value::Null)
    }

    fn identity(&self) -> Option<NodeIdentity> {
        self.charge(1);
        // Each value begins at a byte of its own. A name begins at a byte where no value does.
        Some(match self.value {
            PayloadValue::Known(json, _) | PayloadValue::Value(json) => {
                NodeIdentity::new(json.text().as_ptr().addr())
            }
            PayloadValue::Name(name) => NodeIdentity::tagged(name.as_ptr().addr(), 1),
        })
    }
}

/// An object's members, one of each name.
#[derive(Debug, Clone)]
pub(super) struct Members<'a> {
    list: List<'a>,
    meter: Option<&'a Meter<'a>>,
}

#[derive(Debug, Clone)]
enum List<'a> {
    /// Members that the caller has parsed.
    Known(&'a [(Cow<'a, str>, Json<'a>)]),
    /// Members that are parsed here.
    Own(Rc<MemberList<'a>>),
}

impl<'a> Members<'a> {
    fn all(&self) -> &[(Cow<'a, str>, Json<'a>)] {
        match &self.list {
            List::Known(members) => members,
            List::Own(members) => members,
        }
    }

    /// Charges for a member's name, and for the patterns that it is matched with.
    fn charge_name(&self, name: &str) {
        if let Some(meter) = self.meter {
            meter.charge(meter.costs.of_name(name));
        }
    }
}

impl<'a> Object<'a, PayloadJson> for Members<'a> {
    type Node = PayloadNode<'a>;
    type MemberName = Cow<'a, str>;
    type MembersIter = MembersIter<'a>;

    fn len(&self) -> usize {
        self.all().len()
    }

    fn get(&self, key: &String) -> Option<PayloadNode<'a>> {
        let all = self.all();
        let found = all.iter().position(|(name, _)| name == key);
        if let Some(meter) = self.meter {
            meter.charge(meter.costs.child + found.unwrap_or(all.len()) as u64 / 4);
        }
        found.map(|at| PayloadNode { value: PayloadValue::Value(all[at].1), meter: self.meter })
    }

    fn members(&self) -> MembersIter<'a> {
        MembersIter { members: self.clone(), next: 0 }
    }

    fn try_for_each_name_node<B>(
        &self,
        (): &mut (),
        mut f: impl FnMut(PayloadNode<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        for (name, _) in self.all() {
            self.charge_name(name);
            f(PayloadNode { value: PayloadValue::Name(name), meter: self.meter })?;
        }
        ControlFlow::Continue(())
    }
}

/// Iterator over members.
#[derive(Debug)]
pub(super) struct MembersIter<'a> {
    members: Members<'a>,
    next: usize,
}

impl<'a> Iterator for MembersIter<'a> {
    type Item = (Cow<'a, str>, PayloadNode<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = self.members.all().get(self.next)?;
        self.members.charge_name(name);
        self.next += 1;
        Some((
            name.clone(),
            PayloadNode { value: PayloadValue::Value(*value), meter: self.members.meter },
        ))
    }
}

/// Elements of an array, and the position of the iterator.
#[derive(Debug, Clone)]
pub(super) struct Elements<'a> {
    all: Rc<[Json<'a>]>,
    next: usize,
    meter: Option<&'a Meter<'a>>,
}

impl<'a> Array<'a, PayloadJson> for Elements<'a> {
    type Node = PayloadNode<'a>;
    type ElementsIter = Self;

    fn len(&self) -> usize {
        self.all.len()
    }

    fn elements(&self) -> Self {
        self.clone()
    }

    fn is_unique(&self) -> bool {
        compare::is_unique(&self.all, &|units| {
            if let Some(meter) = self.meter {
                meter.charge(units);
            }
        })
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = PayloadNode<'a>;

    fn next(&mut self) -> Option<PayloadNode<'a>> {
        let element = self.all.get(self.next)?;
        if let Some(meter) = self.meter {
            meter.charge(meter.costs.child);
        }
        self.next += 1;
        Some(PayloadNode { value: PayloadValue::Value(*element), meter: self.meter })
    }
}

/// Text of a number. A number beyond a double's range counts as the largest double, as in
/// [`Json::to_value`].
#[derive(Debug, Clone, Copy)]
pub(super) struct PayloadNumber<'a>(&'a str);

impl JsonNumber for PayloadNumber<'_> {
    fn as_u64(&self) -> Option<u64> {
        self.0.parse().ok()
    }

    fn as_i64(&self) -> Option<i64> {
        self.0.parse().ok()
    }

    fn as_f64(&self) -> Option<f64> {
        self.0.parse::<f64>().ok().map(|number| number.clamp(f64::MIN, f64::MAX))
    }

    fn as_str(&self) -> Cow<'_, str> {
        Cow::Borrowed(self.0)
    }

    fn to_number(&self) -> Cow<'_, Number> {
        let number = serde_json::from_str(self.0).ok().or_else(|| Number::from_f64(self.as_f64()?));
        Cow::Owned(number.unwrap_or_else(|| 0.into()))
    }

    fn is_integer(&self) -> bool {
        self.is_written_as_integer() || Decimal::of(self.0).is_integer()
    }

    fn is_written_as_integer(&self) -> bool {
        !self.0.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E'))
    }
}

#[cfg(test)]
mod tests;

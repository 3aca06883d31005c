//! Computes an expression for one event, within the event's budget.
//!
//! Fields, loops, lists, comparisons and common operators are computed here, over the text of the
//! event. CEL's own interpreter computes everything else.

use std::cmp::Ordering;
use std::rc::Rc;

use super::node::{Call, Loop, LoopKind, Node};
use super::value::Value;
use crate::event::Json;
use crate::event::json::JsonKind;
use crate::registry::budget::Budget;
use crate::registry::fault::Fault;
use crate::registry::places::Elements;
use crate::registry::scope::Scope;

/// Units of work for a call of CEL's own interpreter.
pub(super) const WORK_PER_CALL: u64 = 64;

/// Size of one element of a list, in bytes.
pub(super) const ELEMENT_BYTES: usize = size_of::<Value<'_>>();

/// Maximum number of members of an object without an index of their names.
pub(super) const FEW: usize = 8;

pub(super) type Answer<'v> = Result<Value<'v>, Fault>;

/// Computes an expression.
pub(super) struct Evaluator<'v, 's, 'e> {
    pub(super) scope: &'v Scope<'s, 'e>,
    pub(super) budget: &'v Budget,
    /// Values of the loops' variables, from the outermost loop on.
    pub(super) variables: Vec<Value<'v>>,
}

/// Reason why a value is not a condition.
enum NotBool {
    /// The value has this type.
    Type(String),
    Fault(Fault),
}

impl From<NotBool> for Fault {
    fn from(not_bool: NotBool) -> Self {
        match not_bool {
            NotBool::Type(name) if name == "null_type" => Self::absence("a value is null"),
            NotBool::Type(_) => Self::of_types(),
            NotBool::Fault(fault) => fault,
        }
    }
}

impl<'v> Evaluator<'v, '_, '_> {
    pub(super) fn node(&mut self, node: &'v Node) -> Answer<'v> {
        self.budget.work(1)?;
        match node {
            Node::Literal(literal) => Ok(literal.value(self.budget)?),
            Node::Data => self.json(self.scope.event.data),
            Node::Previous => self
                .scope
                .event
                .previous()
                .map_or(Ok(Value::AbsentPrevious), |json| self.json(json)),
            Node::Item => self
                .scope
                .item
                .map_or_else(|| Err(Fault::new("there is no item")), |json| self.json(json)),
            Node::Event(field) => {
                let found = self.scope.event_field(*field);
                found.map_or_else(
                    || Err(Fault::absence(format!("`event.{}` is absent", field.as_str()))),
                    |found| Ok(found.value(self.budget)?),
                )
            }
            Node::HasEvent(field) => Ok(Value::Bool(self.scope.event_field(*field).is_some())),
            Node::Attribute { name, is_test: true } => {
                Ok(Value::Bool(self.scope.attribute(name)?.is_some()))
            }
            Node::Attribute { name, is_test: false } => {
                let found = self.scope.attribute(name)?;
                found.map_or_else(
                    || Err(Fault::absence(format!("`event.{name}` is absent"))),
                    |text| Ok(Value::Borrowed(text)),
                )
            }
            Node::Let(at) => {
                let json = self.scope.lets.value(*at, self.scope.event)?;
                self.json(json)
            }
            Node::Unset => Err(Fault::new("a variable (`vars`) has no value")),
            Node::Changed(path) => Ok(Value::Bool(self.scope.event.changed(path)?)),
            Node::Variable(at) => self.variables.get(*at).cloned().ok_or_else(Fault::of_types),
            Node::Select { of, field, text, is_test, call } => {
                let of = self.node(of)?;
                self.select(of, (field, text), *is_test, call)
            }
            Node::And(sides) => self.connect(sides, false),
            Node::Or(sides) => self.connect(sides, true),
            Node::If(parts) => {
                let [condition, yes, no] = &**parts;
                if self.boolean(condition)? { self.node(yes) } else { self.node(no) }
            }
            Node::Equal { sides, is_negated } => {
                let (a, b) = (self.node(&sides[0])?, self.node(&sides[1])?);
                Ok(Value::Bool(self.equal(&a, &b)? != *is_negated))
            }
            Node::List(elements) => {
                self.budget.bytes(48 + elements.len() * ELEMENT_BYTES)?;
                let elements: Result<Vec<_>, _> =
                    elements.iter().map(|element| self.node(element)).collect();
                Ok(Value::List(Rc::new(elements?)))
            }
            Node::Map(entries) => self.map(entries),
            Node::Loop(r#loop) => self.repeat(r#loop),
            Node::Call { does, args, call } => {
                let mut values = smallvec::SmallVec::<[Value<'v>; 2]>::new();
                // CEL computes the target last.
                let (target, others) = args.split_at(usize::from(call.is_member));
                for arg in others {
                    values.push(self.node(arg)?);
                }
                for target in target {
                    values.insert(0, self.node(target)?);
                }
                match self.operate(does, &values)? {
                    Some(value) => Ok(value),
                    None => self.call(call, &values),
                }
            }
        }
    }

    pub(super) fn json(&self, json: Json<'v>) -> Answer<'v> {
        Ok(Value::of(json, self.budget)?)
    }

    fn boolean(&mut self, node: &'v Node) -> Result<bool, NotBool> {
        match self.node(node) {
            Ok(Value::Bool(bool)) => Ok(bool),
            Ok(other) => Err(NotBool::Type(other.type_name().into_owned())),
            Err(fault) => Err(NotBool::Fault(fault)),
        }
    }

    /// Computes `&&`, or `||` if `decides` is true. One deciding side is enough, even if the other
    /// fails.
    fn connect(&mut self, sides: &'v [Node; 2], decides: bool) -> Answer<'v> {
        let left = self.boolean(&sides[0]);
        if matches!(left, Ok(bool) if bool == decides) {
            return Ok(Value::Bool(decides));
        }
        if self.budget.is_spent() {
            return Err(left.err().map_or_else(Fault::of_types, Fault::from));
        }
        self.right_side(left, &sides[1], decides)
    }

    fn right_side(
        &mut self,
        left: Result<bool, NotBool>,
        right: &'v Node,
        decides: bool,
    ) -> Answer<'v> {
        let right = self.node(right)?;
        let operator = if decides { "_||_" } else { "_&&_" };
        match (left, &right) {
            (Ok(_), Value::Bool(right)) => Ok(Value::Bool(*right)),
            (Err(_), Value::Bool(right)) if *right == decides => Ok(Value::Bool(decides)),
            (Err(NotBool::Type(left)), right) => {
                Err(Fault::no_overload(operator, &[&left, &right.type_name()]))
            }
            (Err(NotBool::Fault(fault)), _) => Err(fault),
            (Ok(_), right) => Err(Fault::no_overload(operator, &["bool", &right.type_name()])),
        }
    }

    fn select(
        &self,
        of: Value<'v>,
        (field, text): (&str, &str),
        is_test: bool,
        call: &Call,
    ) -> Answer<'v> {
        let absent = || Fault::absent(text);
        let found = match &of {
            Value::AbsentPrevious => None,
            Value::Json(json) if json.kind() == JsonKind::Object => {
                self.scope.member(*json, field)?
            }
            Value::Map(entries) => {
                self.budget.work(entries.len() as u64)?;
                let found = entries
                    .iter()
                    .find(|(key, _)| key.as_text() == Some(field))
                    .map(|(_, value)| value);
                return match (found, is_test) {
                    (found, true) => Ok(Value::Bool(found.is_some())),
                    (Some(value), false) => Ok(value.clone()),
                    (None, false) => Err(absent()),
                };
            }
            _ => return self.call(call, &[of]),
        };
        match found {
            found if is_test => Ok(Value::Bool(found.is_some())),
            Some(json) => self.json(json),
            None => Err(absent()),
        }
    }

    fn map(&mut self, entries: &'v [(Node, Node)]) -> Answer<'v> {
        self.budget.bytes(48 + 2 * ELEMENT_BYTES * entries.len())?;
        let mut map: Vec<(Value<'v>, Value<'v>)> = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let key = self.node(key)?;
            if !is_key(&key) {
                return Err(Fault::of_types());
            }
            let value = self.node(value)?;
            match self.position(&map, &key, true)? {
                Some(at) => map[at].1 = value,
                None => map.push((key, value)),
            }
        }
        Ok(Value::Map(Rc::new(map)))
    }

    /// Returns the index of a key. With `exactly`, an `int` does not equal a `uint`.
    pub(super) fn position(
        &self,
        map: &[(Value<'v>, Value<'v>)],
        key: &Value<'v>,
        exactly: bool,
    ) -> Result<Option<usize>, Fault> {
        self.budget.work(map.len() as u64)?;
        Ok(map.iter().position(|(known, _)| match (known, key) {
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(_), Value::UInt(_)) | (Value::UInt(_), Value::Int(_)) if exactly => false,
            _ => match (known.as_text(), key.as_text()) {
                (Some(a), Some(b)) => a == b,
                (None, None) => known.compare_numbers(key) == Some(Ordering::Equal),
                _ => false,
            },
        }))
    }

    fn repeat(&mut self, r#loop: &'v Loop) -> Answer<'v> {
        let over = self.node(&r#loop.over)?;
        let Some(items) = self.items(&over)? else {
            return Err(NotBool::Type(over.type_name().into_owned()).into());
        };
        let place = self.variables.len();
        let answer = self.rounds(&r#loop.kind, &items);
        self.variables.truncate(place);
        answer
    }

    fn rounds(&mut self, kind: &'v LoopKind, items: &Items<'v>) -> Answer<'v> {
        let place = self.variables.len();
        self.variables.push(Value::Null);
        let (mut list, mut count, mut pending) = (Vec::new(), 0_u64, None);
        for at in 0..items.len() {
            self.budget.work(2)?;
            let Some(item) = items.get(at, self.budget)? else { break };
            self.variables[place] = item;
            match kind {
                LoopKind::All(body) | LoopKind::Exists(body) => {
                    let decides = matches!(kind, LoopKind::Exists(_));
                    match self.right_side(Ok(!decides), body, decides) {
                        Ok(Value::Bool(bool)) if bool == decides => {
                            return Ok(Value::Bool(decides));
                        }
                        Ok(_) => {}
                        Err(fault) if self.budget.is_spent() => return Err(fault),
                        // A later element may decide.
                        Err(fault) => {
                            self.budget.work(16)?;
                            pending = Some(fault);
                        }
                    }
                }
                LoopKind::ExistsOne(body) => count += u64::from(self.boolean(body)?),
                LoopKind::Map { filter, to } => {
                    if let Some(filter) = filter
                        && !self.boolean(filter)?
                    {
                        continue;
                    }
                    // A list that grows has room for twice its elements.
                    self.budget.bytes(2 * ELEMENT_BYTES)?;
                    list.push(self.node(to)?);
                }
            }
        }
        if let Some(fault) = pending {
            return Err(fault);
        }
        Ok(match kind {
            LoopKind::All(_) => Value::Bool(true),
            LoopKind::Exists(_) => Value::Bool(false),
            LoopKind::ExistsOne(_) => Value::Bool(count == 1),
            LoopKind::Map { .. } => Value::List(Rc::new(list)),
        })
    }

    /// Returns what a loop iterates over: elements, or a map's keys.
    pub(super) fn items(&self, of: &Value<'v>) -> Result<Option<Items<'v>>, Fault> {
        Ok(Some(match of {
            Value::List(list) => Items::List(list.clone()),
            Value::Json(json) if json.kind() == JsonKind::Array => {
                Items::Json(self.scope.elements(*json)?)
            }
            Value::Json(json) => {
                let names: Vec<_> =
                    self.members(*json)?.into_iter().map(|(name, _)| name).collect();
                self.budget.bytes(names.len() * ELEMENT_BYTES)?;
                Items::List(Rc::new(names))
            }
            Value::Map(entries) => {
                self.budget.bytes(entries.len() * ELEMENT_BYTES)?;
                Items::List(Rc::new(entries.iter().map(|(key, _)| key.clone()).collect()))
            }
            _ => return Ok(None),
        }))
    }

    /// Returns an object's members. The last of several members with one name counts, at its place.
    pub(super) fn members(&self, of: Json<'v>) -> Result<Vec<(Value<'v>, Json<'v>)>, Fault> {
        self.budget.work(8 + of.text().len() as u64 / 2)?;
        let all = of.members();
        if all.len() > FEW {
            self.budget.work(4 * all.len() as u64)?;
            self.budget.bytes(all.len() * (ELEMENT_BYTES + size_of::<Json<'_>>()))?;
        }
        let mut last = foldhash::HashMap::<&str, usize>::default();
        if all.len() > FEW {
            last.extend(all.iter().enumerate().map(|(at, (name, _))| (&**name, at)));
        }
        let is_last = |at: usize, name: &str| match all.len() {
            0..=FEW => !all[at + 1..].iter().any(|(later, _)| later == name),
            _ => last.get(name) == Some(&at),
        };
        let counts: smallvec::SmallVec<[bool; FEW]> =
            all.iter().enumerate().map(|(at, (name, _))| is_last(at, name)).collect();
        let name = |name| match name {
            std::borrow::Cow::Borrowed(name) => Value::Borrowed(name),
            std::borrow::Cow::Owned(name) => Value::Text(name.into()),
        };
        Ok(all
            .into_iter()
            .zip(counts)
            .filter(|(_, counts)| *counts)
            .map(|((of, json), _)| (name(of), json))
            .collect())
    }
}

/// Values that a loop iterates over.
pub(super) enum Items<'v> {
    Json(Elements<'v>),
    List(Rc<Vec<Value<'v>>>),
}

impl<'v> Items<'v> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Json(elements) => elements.len(),
            Self::List(list) => list.len(),
        }
    }

    pub(super) fn get(&self, at: usize, budget: &Budget) -> Result<Option<Value<'v>>, Fault> {
        Ok(match self {
            Self::Json(elements) => match elements.get(at) {
                Some(json) => Some(Value::of(json, budget)?),
                None => None,
            },
            Self::List(list) => list.get(at).cloned(),
        })
    }
}

/// Returns whether the value may be a key of a map in an expression.
pub(super) fn is_key(value: &Value<'_>) -> bool {
    matches!(value, Value::Bool(_) | Value::Int(_) | Value::UInt(_)) || value.as_text().is_some()
}

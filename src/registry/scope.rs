//! What the paths and expressions of an entry read while one event is resolved.

use std::borrow::Cow;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::ops::Range;

use cel::common::ast::Expr;
use cel::common::types::{CelBool, CelInt, CelMap, CelMapKey, CelNull, CelString, CelUInt};
use cel::common::value::Val;
use cel::{Context, ExecutionError, Value};
use sha2::{Digest, Sha256};

use super::cel_value::{AbsentPrevious, Meter, cel_value, write_json};
use super::expression::{ENV, Expression, changed_variable, let_variable};
use super::functions::{METER, STEP};
use super::path::{EventField, Path, Start, Step};
use crate::event::json::{JsonKind, MemberList};
use crate::event::{Event, Json};

/// What a path found.
#[derive(Debug, Clone, Copy)]
pub(super) enum Found<'s> {
    Json(Json<'s>),
    Text(&'s str),
    Integer(u64),
}

/// Why something could not be computed: paths and rules, never values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) message: String,
    /// A missing field, a null or an index out of range: a `when` says nothing of it.
    pub(super) is_absence: bool,
}

impl Fault {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_absence: false }
    }

    fn absence(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_absence: true }
    }
}

enum Level<'e> {
    Object(Vec<(Cow<'e, str>, Json<'e>)>),
    Array(Vec<Json<'e>>),
}

/// One event: each level of its payload is taken apart at most once.
pub(super) struct EventScope<'e> {
    pub(super) event: &'e Event<'e>,
    pub(super) data: Json<'e>,
    previous: Option<Json<'e>>,
    members: OnceCell<MemberList<'e>>,
    /// Deeper levels, by the address of their text.
    levels: RefCell<HashMap<usize, Level<'e>>>,
    lazy: [OnceCell<Box<dyn Val>>; 2],
    /// The answers of `changed(…)`, by the path's address: `each` asks again for every element.
    changed: RefCell<HashMap<usize, bool>>,
    meter: OnceCell<Meter>,
    /// How often templates were filled in, or an array gone through for them.
    fillings: Cell<usize>,
    hash: OnceCell<u64>,
}

/// The most steps that the expressions of one event may take: less than a second. Fewer in tests, whose build takes fifty times as long for each.
const MAX_STEPS: u64 = if cfg!(test) { 10_000 } else { 1_000_000 };

/// How often templates may be filled in for one event: what `{path?}` drops is no target, but takes time.
const MAX_FILLINGS: usize = 1_000_000;

impl<'e> EventScope<'e> {
    pub(super) fn new(event: &'e Event<'e>) -> Self {
        let previous = event.previous().filter(|previous| previous.kind() == JsonKind::Object);
        Self {
            event,
            data: event.data(),
            previous,
            members: OnceCell::new(),
            levels: RefCell::default(),
            lazy: [OnceCell::new(), OnceCell::new()],
            changed: RefCell::default(),
            meter: OnceCell::new(),
            fillings: Cell::new(0),
            hash: OnceCell::new(),
        }
    }

    /// Tells this event from others of the same version, on every worker and after every redelivery alike.
    pub(super) fn hash(&self) -> u64 {
        *self.hash.get_or_init(|| {
            let mut hasher = Sha256::new();
            // An id is its source's own.
            for part in [&*self.event.id, self.event.source.as_deref().unwrap_or_default()] {
                hasher.update((part.len() as u64).to_be_bytes());
                hasher.update(part);
            }
            hasher.finalize().iter().take(8).fold(0, |hash, &byte| hash << 8 | u64::from(byte))
        })
    }

    fn member(&self, of: Json<'e>, name: &str) -> Option<Json<'e>> {
        if of.text().as_ptr() == self.data.text().as_ptr() {
            return last_of(self.members.get_or_init(|| self.data.members()), name);
        }
        self.level(of, |level| match level {
            Level::Object(members) => last_of(members, name),
            Level::Array(_) => None,
        })
    }

    /// Returns the payload, and its members where it has some.
    pub(super) fn payload(&self) -> (Json<'e>, &[(Cow<'e, str>, Json<'e>)]) {
        (self.data, self.members.get_or_init(|| self.data.members()))
    }

    fn level<T>(&self, of: Json<'e>, read: impl FnOnce(&Level<'e>) -> Option<T>) -> Option<T> {
        let mut levels = self.levels.borrow_mut();
        let address = of.text().as_ptr() as usize;
        match of.kind() {
            JsonKind::Object => read(levels.entry(address).or_insert_with(|| Level::Object(of.members().into_vec()))),
            JsonKind::Array => read(levels.entry(address).or_insert_with(|| Level::Array(of.elements()))),
            _ => None,
        }
    }

    fn element(&self, of: Json<'e>, at: usize) -> Option<Json<'e>> {
        self.level(of, |level| match level {
            Level::Array(elements) => elements.get(at).copied(),
            Level::Object(_) => None,
        })
    }

    fn length(&self, of: Json<'e>) -> usize {
        self.level(of, |level| match level {
            Level::Array(elements) => Some(elements.len()),
            Level::Object(_) => None,
        })
        .unwrap_or_default()
    }

    fn root(&self, start: Start) -> Option<Json<'e>> {
        match start {
            Start::Data => Some(self.data),
            Start::Previous => self.previous,
            _ => None,
        }
    }

    fn cel(&self, start: Start, eager: bool) -> Box<dyn Val> {
        let Some(json) = self.root(start) else { return Box::new(AbsentPrevious) };
        if eager {
            return cel_value(json, true);
        }
        self.lazy[usize::from(start == Start::Previous)].get_or_init(|| cel_value(json, false)).clone()
    }

    fn meter(&self) -> &Meter {
        self.meter.get_or_init(|| Meter::of(MAX_STEPS))
    }

    /// Counts one; whether that was still allowed.
    pub(super) fn may_fill(&self) -> bool {
        self.fillings.set(self.fillings.get() + 1);
        self.fillings.get() <= MAX_FILLINGS
    }

    /// Whether the payload and the state before differ at a path; always where there is no state before.
    fn changed(&self, path: &Path) -> bool {
        let Some(previous) = self.previous else { return true };
        let address = std::ptr::from_ref(path) as usize;
        *self.changed.borrow_mut().entry(address).or_insert_with(|| self.differs(previous, path))
    }

    fn differs(&self, previous: Json<'e>, path: &Path) -> bool {
        let (mut now, mut before) = (Vec::new(), Vec::new());
        collect(Some(self.data), path.steps(), &mut now);
        collect(Some(previous), path.steps(), &mut before);
        now.len() != before.len() || now.into_iter().zip(before).any(|(now, before)| !same(now, before))
    }
}

fn last_of<'e>(members: &[(Cow<'e, str>, Json<'e>)], name: &str) -> Option<Json<'e>> {
    members.iter().rev().find(|(known, _)| known == name).map(|(_, value)| *value)
}

/// Every value at a path, in order.
fn collect<'e>(json: Option<Json<'e>>, steps: &[Step], found: &mut Vec<Option<Json<'e>>>) {
    match (steps, json) {
        ([], json) => found.push(json),
        ([Step::Member(name), rest @ ..], Some(json)) => collect(json.get(name), rest, found),
        ([Step::Index(at), rest @ ..], Some(json)) => collect(json.elements().get(*at).copied(), rest, found),
        ([Step::Each, rest @ ..], Some(json)) if json.kind() == JsonKind::Array => {
            json.elements().into_iter().for_each(|element| collect(Some(element), rest, found));
        }
        _ => found.push(None),
    }
}

/// Absent and null are the same; objects have no order; `7` and `7.0` are the same number.
fn same(a: Option<Json<'_>>, b: Option<Json<'_>>) -> bool {
    let (a, b) = match (a.filter(|json| !json.is_null()), b.filter(|json| !json.is_null())) {
        (None, None) => return true,
        (Some(a), Some(b)) => (a, b),
        _ => return false,
    };
    a.text() == b.text() || (a.kind() == b.kind() && same_values(a, b))
}

fn same_values(a: Json<'_>, b: Json<'_>) -> bool {
    match a.kind() {
        JsonKind::Number => match (super::number::integer_digits(a.text()), super::number::integer_digits(b.text())) {
            (Some(a), Some(b)) => a == b,
            (None, None) => a.text().parse::<f64>().ok().is_some_and(|number| b.text().parse::<f64>() == Ok(number) && number.is_finite()),
            _ => false,
        },
        JsonKind::String => a.as_str() == b.as_str(),
        JsonKind::Array => {
            let (a, b) = (a.elements(), b.elements());
            a.len() == b.len() && a.into_iter().zip(b).all(|(a, b)| same(Some(a), Some(b)))
        }
        JsonKind::Object => {
            let (a, b) = (a.members(), b.members());
            a.iter().chain(&b).all(|(name, _)| same(last_of(&a, name), last_of(&b, name)))
        }
        JsonKind::Null | JsonKind::Bool => false,
    }
}

/// The values of an entry's `let`s, each computed when it is first asked for.
pub(super) struct Lets<'s> {
    expressions: &'s [(String, Expression)],
    values: Box<[OnceCell<Result<String, Fault>>]>,
}

impl<'s> Lets<'s> {
    pub(super) fn new(expressions: &'s [(String, Expression)]) -> Self {
        Self { expressions, values: expressions.iter().map(|_| OnceCell::new()).collect() }
    }

    fn value<'a>(&'a self, at: usize, event: &EventScope<'_>) -> Result<Json<'a>, Fault> {
        let (Some((name, expression)), Some(value)) = (self.expressions.get(at), self.values.get(at)) else {
            return Err(Fault::new("a `let` that the entry does not have"));
        };
        let compute = || {
            // A `let` reads earlier ones alone; so there is no circle.
            if expression.lets().iter().any(|&earlier| earlier >= at) {
                return Err(Fault::new(format!("`let.{name}` reads one that does not stand before it")));
            }
            let scope = Scope { event, lets: self, item: None, arrays: &Arrays::default() };
            let failed = |fault: Fault| Fault::new(format!("`let.{name}` failed: {}", fault.message));
            scope.json(expression).map_err(failed)
        };
        value.get_or_init(compute).as_ref().map(|text| Json::trusted(text)).map_err(Clone::clone)
    }
}

/// What a rule reads, for one element of its `each`.
#[derive(Clone, Copy)]
pub(super) struct Scope<'s, 'e> {
    pub(super) event: &'s EventScope<'e>,
    pub(super) lets: &'s Lets<'s>,
    pub(super) item: Option<Json<'s>>,
    pub(super) arrays: &'s Arrays,
}

/// Where the elements of the arrays in `let`s and items stand in their text, by the text's address: for one rule, while those texts live.
#[derive(Default)]
pub(super) struct Arrays(RefCell<HashMap<usize, Box<[Range<usize>]>>>);

impl Arrays {
    fn read<T>(&self, of: Json<'_>, read: impl FnOnce(&[Range<usize>]) -> T) -> T {
        let from = of.text().as_ptr() as usize;
        let place = |element: Json<'_>| {
            let at = element.text().as_ptr() as usize - from;
            at..at + element.text().len()
        };
        read(self.0.borrow_mut().entry(from).or_insert_with(|| of.elements().into_iter().map(place).collect()))
    }

    fn element<'j>(&self, of: Json<'j>, at: usize) -> Option<Json<'j>> {
        if of.kind() != JsonKind::Array {
            return None;
        }
        let place = self.read(of, |places| places.get(at).cloned())?;
        Some(Json::trusted(&of.text()[place]))
    }

    fn length(&self, of: Json<'_>) -> usize {
        self.read(of, <[_]>::len)
    }
}

/// Where in an array a `[]` stands while a template is expanded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Binding<'t> {
    pub(super) start: Start,
    pub(super) steps: &'t [Step],
    pub(super) at: usize,
}

impl<'s, 'e: 's> Scope<'s, 'e> {
    /// What a path leads to; `None` where nothing is.
    ///
    /// # Errors
    /// A `let` that failed; a `[]` that the target does not have.
    pub(super) fn read(&self, path: &Path, bindings: &[Binding<'_>]) -> Result<Option<Found<'s>>, Fault> {
        self.read_steps(path, path.steps(), bindings)
    }

    /// What the first steps of a path lead to.
    pub(super) fn read_steps(&self, path: &Path, steps: &[Step], bindings: &[Binding<'_>]) -> Result<Option<Found<'s>>, Fault> {
        let mut json = match path.start {
            Start::Data | Start::Previous => return Ok(self.read_event(path, steps, bindings)?.map(Found::Json)),
            Start::Event(field) => return Ok(if steps.is_empty() { self.event_field(field) } else { None }),
            Start::Let(at) => self.lets.value(at, self.event)?,
            Start::Item => match self.item {
                Some(item) => item,
                None => return Ok(None),
            },
            Start::Unset => return Ok(None),
        };
        for (at, step) in steps.iter().enumerate() {
            let next = match step {
                Step::Member(name) => json.get(name),
                Step::Index(index) => self.arrays.element(json, *index),
                Step::Each => self.arrays.element(json, place(path, &steps[..=at], bindings)?),
            };
            let Some(next) = next else { return Ok(None) };
            json = next;
        }
        Ok(Some(Found::Json(json)))
    }

    /// How many elements an array has; `None` where there is no array.
    pub(super) fn length(&self, path: &Path, steps: &[Step], bindings: &[Binding<'_>]) -> Result<Option<usize>, Fault> {
        if matches!(path.start, Start::Data | Start::Previous) {
            let array = self.read_event(path, steps, bindings)?.filter(|json| json.kind() == JsonKind::Array);
            return Ok(array.map(|array| self.event.length(array)));
        }
        match self.read_steps(path, steps, bindings)? {
            Some(Found::Json(json)) if json.kind() == JsonKind::Array => Ok(Some(self.arrays.length(json))),
            _ => Ok(None),
        }
    }

    fn read_event(&self, path: &Path, steps: &[Step], bindings: &[Binding<'_>]) -> Result<Option<Json<'e>>, Fault> {
        let Some(mut json) = self.event.root(path.start) else { return Ok(None) };
        for (at, step) in steps.iter().enumerate() {
            let next = match step {
                Step::Member(name) => self.event.member(json, name),
                Step::Index(index) => self.event.element(json, *index),
                Step::Each => self.event.element(json, place(path, &steps[..=at], bindings)?),
            };
            let Some(next) = next else { return Ok(None) };
            json = next;
        }
        Ok(Some(json))
    }

    fn event_field(&self, field: EventField) -> Option<Found<'s>> {
        let event: &'s Event<'_> = self.event.event;
        match field {
            EventField::Id => Some(Found::Text(&event.id)),
            EventField::Type => Some(Found::Text(&event.event_type)),
            EventField::Time => event.time.as_deref().map(Found::Text),
            EventField::Source => event.source.as_deref().map(Found::Text),
            EventField::Subject => event.subject.as_deref().map(Found::Text),
            EventField::Position => event.position.map(Found::Integer),
        }
    }

    /// The answer of a `when`.
    pub(super) fn condition(&self, expression: &Expression) -> Result<bool, Fault> {
        if let Some(path) = &expression.whole {
            return match self.read(path, &[])? {
                Some(Found::Json(json)) if !json.is_null() => {
                    json.as_bool().ok_or_else(|| Fault::new(format!("`{path}` is neither true nor false")))
                }
                _ => Err(Fault::absence(format!("`{path}` is absent or null"))),
            };
        }
        if let (Expr::Ident(_), [path]) = (&expression.ast.expr, &*expression.changed) {
            return Ok(self.event.changed(path));
        }
        self.evaluate(expression, |value| match value.downcast_ref::<CelBool>() {
            Some(answer) => Ok(*answer.inner()),
            None if value.downcast_ref::<CelNull>().is_some() => Err(Fault::absence("the answer is null")),
            None => Err(Fault::new("the answer is neither true nor false")),
        })
    }

    /// The value of a `let` or an `each`, as JSON.
    pub(super) fn json(&self, expression: &Expression) -> Result<String, Fault> {
        if let Some(path) = &expression.whole {
            return match self.read(path, &[])? {
                Some(Found::Json(json)) => Ok(json.text().to_owned()),
                _ => Err(Fault::absence(format!("`{path}` is absent"))),
            };
        }
        let text = self.evaluate(expression, |value| {
            let mut text = String::new();
            write_json(value, &mut text).map_err(|what| Fault::new(format!("the value is {what}: JSON has none")))?;
            Ok(text)
        })?;
        match Json::parse(&text) {
            Ok(_) => Ok(text),
            Err(error) => Err(Fault::new(format!("the value is {error}"))),
        }
    }

    fn evaluate<T>(&self, expression: &Expression, read: impl FnOnce(&dyn Val) -> Result<T, Fault>) -> Result<T, Fault> {
        let uses = &expression.uses;
        self.spend_on_preparation(expression)?;
        let mut context = Context::with_env(ENV.clone());
        if uses.steps {
            context.add_variable_as_val(METER, Box::new(self.event.meter().clone()));
        }
        if uses.data {
            context.add_variable_as_val("data", self.event.cel(Start::Data, uses.map_literals));
        }
        if uses.previous {
            context.add_variable_as_val("previous", self.event.cel(Start::Previous, uses.map_literals));
        }
        if uses.event {
            context.add_variable_as_val("event", Box::new(self.event_value()));
        }
        if let (true, Some(item)) = (uses.item, self.item) {
            context.add_variable_as_val("item", cel_value(item, uses.map_literals));
        }
        let mut failed_let = None;
        for &at in &uses.lets {
            match self.lets.value(at, self.event) {
                Ok(json) => context.add_variable_as_val(let_variable(at), cel_value(json, uses.map_literals)),
                Err(fault) => failed_let = Some(fault),
            }
        }
        for (at, path) in expression.changed.iter().enumerate() {
            context.add_variable_as_val(changed_variable(at), Box::new(CelBool::from(self.event.changed(path))));
        }
        match Value::resolve_val(&expression.ast, &context) {
            Ok(value) => read(value.as_ref()),
            Err(ExecutionError::UndeclaredReference(name)) if name.starts_with("@let") => {
                Err(failed_let.unwrap_or_else(|| Fault::new("a `let` failed")))
            }
            Err(error) => Err(fault_of(&error)),
        }
    }

    /// What is taken apart anew whenever an expression is asked, as it is for every element of an `each`.
    fn spend_on_preparation(&self, expression: &Expression) -> Result<(), Fault> {
        let Some(item) = self.item else { return Ok(()) };
        let uses = &expression.uses;
        let mut bytes = if uses.item { item.text().len() } else { 0 };
        if uses.map_literals {
            bytes += if uses.data { self.event.event.data_text.len() } else { 0 };
            bytes += if uses.previous { self.event.previous.map_or(0, |previous| previous.text().len()) } else { 0 };
        }
        for &at in &uses.lets {
            bytes += self.lets.value(at, self.event).map_or(0, |json| json.text().len());
        }
        if self.event.meter().spend(1 + bytes as u64 / 64) { Ok(()) } else { Err(too_many_steps()) }
    }

    fn event_value(&self) -> CelMap<'static> {
        let fields = EventField::ALL.into_iter().filter_map(|field| {
            let value: Box<dyn Val> = match self.event_field(field)? {
                Found::Text(text) => Box::new(CelString::from(text.to_owned())),
                Found::Integer(integer) => match i64::try_from(integer) {
                    Ok(integer) => Box::new(CelInt::from(integer)),
                    Err(_) => Box::new(CelUInt::from(integer)),
                },
                Found::Json(_) => return None,
            };
            Some((CelMapKey::from(field.as_str().to_owned()), value))
        });
        CelMap::from(fields.collect::<HashMap<_, _>>())
    }
}

/// The element that a `[]` stands for.
fn place(path: &Path, steps: &[Step], bindings: &[Binding<'_>]) -> Result<usize, Fault> {
    let bound = bindings.iter().find(|bound| bound.start == path.start && bound.steps == steps);
    bound.map(|bound| bound.at).ok_or_else(|| Fault::new(format!("`{path}` has a `[]` that its target does not have")))
}

fn too_many_steps() -> Fault {
    Fault::new(format!("the event makes its rules' expressions take more than {MAX_STEPS} steps: fewer elements, or no loop within a loop"))
}

/// An error of CEL's without the values in it.
fn fault_of(error: &ExecutionError) -> Fault {
    let is_null = |value: &Value| matches!(value, Value::Null);
    match error {
        ExecutionError::NoSuchKey(_) => Fault::absence("a field is absent"),
        ExecutionError::IndexOutOfBounds(_) => Fault::absence("an index is out of range"),
        ExecutionError::NoSuchOverload(overload) if overload.argument_types().iter().any(|name| name == "null_type") => {
            Fault::absence(format!("`{}` has no answer for null", overload.function()))
        }
        ExecutionError::NoSuchOverload(overload) => {
            Fault::new(format!("`{}` has no answer for ({})", overload.function(), overload.argument_types().join(", ")))
        }
        ExecutionError::UnsupportedBinaryOperator(operator, a, b) | ExecutionError::Overflow(operator, a, b)
            if is_null(a) || is_null(b) =>
        {
            Fault::absence(format!("`{operator}` has no answer for null"))
        }
        ExecutionError::UnsupportedBinaryOperator(operator, ..) => {
            Fault::new(format!("`{operator}` has no answer for values of these types"))
        }
        ExecutionError::ValuesNotComparable(a, b) if is_null(a) || is_null(b) => Fault::absence("null cannot be compared"),
        ExecutionError::ValuesNotComparable(..) => Fault::new("values of these types cannot be compared"),
        ExecutionError::Overflow(operator, ..) => Fault::new(format!("`{operator}` overflowed")),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => Fault::new("division by zero"),
        ExecutionError::UnexpectedType { got, .. } if got == "null_type" || got == "Null" => Fault::absence("a value is null"),
        ExecutionError::FunctionError { function, .. } if function == STEP => too_many_steps(),
        // Our own functions' messages hold no values; CEL's do.
        ExecutionError::FunctionError { function, message } if function == "date" => Fault::new(format!("`date`: {message}")),
        ExecutionError::FunctionError { function, .. } => Fault::new(format!("`{function}` failed")),
        ExecutionError::UndeclaredReference(name) if **name == "@unset" => Fault::new("a variable (`vars`) has no value"),
        _ => Fault::new("the expression has no answer for values of these types"),
    }
}

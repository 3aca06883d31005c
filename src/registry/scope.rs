//! Values that paths and expressions read while one event is resolved.

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;

use foldhash::fast::FixedState;
use sha2::{Digest, Sha256};

use super::budget::{Budget, Spent};
use super::differs::differs;
use super::expression::Value;
use super::fault::Fault;
use super::path::{EventField, Path, PathStep, Start};
use super::places::{Elements, Places};
use crate::event::json::{JsonKind, MemberList};
use crate::event::{Event, Json};

/// Value that a path leads to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Found<'s> {
    Json(Json<'s>),
    Text(&'s str),
    Integer(u64),
}

impl<'s> Found<'s> {
    /// Returns the value for an expression.
    pub(super) fn value(self, budget: &Budget) -> Result<Value<'s>, Spent> {
        match self {
            Self::Json(json) => Value::of(json, budget),
            Self::Text(text) => Ok(Value::Borrowed(text)),
            Self::Integer(integer) => {
                Ok(i64::try_from(integer).map_or(Value::UInt(integer), Value::Int))
            }
        }
    }
}

/// Maximum number of members of a payload without an index of their names.
const MAX_LISTED_MEMBERS: usize = 32;

/// One event. Each level of its payload is parsed at most once.
pub(super) struct EventScope<'e> {
    pub(super) event: &'e Event<'e>,
    pub(super) budget: &'e Budget,
    pub(super) data: Json<'e>,
    previous: Option<Json<'e>>,
    members: OnceCell<MemberList<'e>>,
    /// Positions of the parts of the payload and of the previous state.
    places: Places,
    /// Results of `changed(…)` by the path's address, because `each` asks again for every element.
    changed: RefCell<HashMap<usize, bool, FixedState>>,
    hash: OnceCell<u64>,
}

impl<'e> EventScope<'e> {
    pub(super) fn new(event: &'e Event<'e>, budget: &'e Budget) -> Self {
        let previous = event.previous().filter(|previous| previous.kind() == JsonKind::Object);
        Self {
            event,
            budget,
            data: event.data(),
            previous,
            members: OnceCell::new(),
            places: Places::default(),
            changed: RefCell::default(),
            hash: OnceCell::new(),
        }
    }

    /// Returns a hash that distinguishes events of the same version. Every worker computes the same
    /// one, also after a redelivery.
    pub(super) fn hash(&self) -> u64 {
        *self.hash.get_or_init(|| {
            let mut hasher = Sha256::new();
            // An id is unique within its source.
            for part in [&*self.event.id, self.event.source.as_deref().unwrap_or_default()] {
                hasher.update((part.len() as u64).to_be_bytes());
                hasher.update(part);
            }
            hasher.finalize().iter().take(8).fold(0, |hash, &byte| hash << 8 | u64::from(byte))
        })
    }

    /// Returns the previous state, if the publisher gave one.
    pub(super) fn previous(&self) -> Option<Json<'e>> {
        self.previous
    }

    /// Returns the payload and its members.
    pub(super) fn payload(&self) -> (Json<'e>, &[(Cow<'e, str>, Json<'e>)]) {
        (self.data, self.members.get_or_init(|| self.data.members()))
    }

    /// Returns whether a value is part of the event's own texts, which live as long as this scope.
    fn owns(&self, json: Json<'_>) -> bool {
        let address = json.text().as_ptr();
        let holds = |whole: Json<'_>| whole.text().as_bytes().as_ptr_range().contains(&address);
        holds(self.data) || self.previous.is_some_and(holds)
    }

    fn root(&self, start: Start) -> Option<Json<'e>> {
        match start {
            Start::Data => Some(self.data),
            Start::Previous => self.previous,
            _ => None,
        }
    }

    fn place(&self, part: Json<'_>) -> std::ops::Range<usize> {
        let from = part.text().as_ptr() as usize - self.data.text().as_ptr() as usize;
        from..from + part.text().len()
    }

    /// Returns whether the payload and the previous state differ at a path. Without a previous
    /// state they do.
    pub(super) fn changed(&self, path: &Path) -> Result<bool, Spent> {
        let Some(previous) = self.previous else { return Ok(true) };
        let address = std::ptr::from_ref(path) as usize;
        if let Some(known) = self.changed.borrow().get(&address) {
            return Ok(*known);
        }
        let answer = differs(self.data, previous, path.steps(), self.budget)?;
        self.changed.borrow_mut().insert(address, answer);
        Ok(answer)
    }
}

fn last_of<'j>(members: &[(Cow<'_, str>, Json<'j>)], name: &str) -> Option<Json<'j>> {
    members.iter().rev().find(|(known, _)| known == name).map(|(_, value)| *value)
}

/// Values of the definition's `let`s. Each is computed when it is first read.
pub(super) trait LetValues {
    /// Returns the value of the `let` at that place.
    fn value<'a>(&'a self, at: usize, event: &EventScope<'_>) -> Result<Json<'a>, Fault>;
}

/// Values that a rule reads, for one element of its `each`.
#[derive(Clone, Copy)]
pub(super) struct Scope<'s, 'e> {
    pub(super) event: &'s EventScope<'e>,
    pub(super) lets: &'s dyn LetValues,
    pub(super) item: Option<Json<'s>>,
    /// Positions of the parts of `let`s and items, for one rule.
    pub(super) places: &'s Places,
}

/// Index of the element that a `[]` selects while a template is expanded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Binding<'t> {
    pub(super) start: Start,
    pub(super) steps: &'t [PathStep],
    pub(super) at: usize,
}

impl<'s, 'e: 's> Scope<'s, 'e> {
    /// Returns the value that a path leads to, or `None` if there is none.
    ///
    /// # Errors
    /// A `let` failed, or a `[]` is not part of the target.
    pub(super) fn read(
        &self,
        path: &Path,
        bindings: &[Binding<'_>],
    ) -> Result<Option<Found<'s>>, Fault> {
        self.read_steps(path, path.steps(), bindings)
    }

    /// Returns the value that the first steps of a path lead to.
    pub(super) fn read_steps(
        &self,
        path: &Path,
        steps: &[PathStep],
        bindings: &[Binding<'_>],
    ) -> Result<Option<Found<'s>>, Fault> {
        let mut json = match path.start {
            Start::Data | Start::Previous => {
                return Ok(self.read_event(path, steps, bindings)?.map(Found::Json));
            }
            Start::Event(field) => {
                return Ok(if steps.is_empty() { self.event_field(field) } else { None });
            }
            Start::Attribute => {
                let [PathStep::Member(name)] = steps else { return Ok(None) };
                return Ok(self.attribute(name)?.map(Found::Text));
            }
            Start::Let(at) => self.lets.value(at, self.event)?,
            Start::Item => match self.item {
                Some(item) => item,
                None => return Ok(None),
            },
            Start::Unset => return Ok(None),
        };
        for (at, step) in steps.iter().enumerate() {
            match self.step(json, step, path, &steps[..=at], bindings)? {
                Some(next) => json = next,
                None => return Ok(None),
            }
        }
        Ok(Some(Found::Json(json)))
    }

    /// Returns the number of elements of an array, or `None` if there is no array.
    pub(super) fn length(
        &self,
        path: &Path,
        steps: &[PathStep],
        bindings: &[Binding<'_>],
    ) -> Result<Option<usize>, Fault> {
        match self.read_steps(path, steps, bindings)? {
            Some(Found::Json(json)) if json.kind() == JsonKind::Array => {
                Ok(Some(self.elements(json)?.len()))
            }
            _ => Ok(None),
        }
    }

    fn read_event(
        &self,
        path: &Path,
        steps: &[PathStep],
        bindings: &[Binding<'_>],
    ) -> Result<Option<Json<'s>>, Fault> {
        let Some(mut json) = self.event.root(path.start) else { return Ok(None) };
        for (at, step) in steps.iter().enumerate() {
            match self.step(json, step, path, &steps[..=at], bindings)? {
                Some(next) => json = next,
                None => return Ok(None),
            }
        }
        Ok(Some(json))
    }

    fn step<'j>(
        &self,
        json: Json<'j>,
        step: &PathStep,
        path: &Path,
        steps: &[PathStep],
        bindings: &[Binding<'_>],
    ) -> Result<Option<Json<'j>>, Fault> {
        Ok(match step {
            PathStep::Member(name) => self.member(json, name)?,
            PathStep::Index(index) => self.elements(json)?.get(*index),
            PathStep::Each => self.elements(json)?.get(place(path, steps, bindings)?),
        })
    }

    /// Returns the last member of that name.
    pub(super) fn member<'j>(&self, of: Json<'j>, name: &str) -> Result<Option<Json<'j>>, Spent> {
        if of.text().as_ptr() == self.event.data.text().as_ptr() {
            let members = self.event.members.get_or_init(|| self.event.data.members());
            if members.len() <= MAX_LISTED_MEMBERS {
                self.event.budget.work(1 + members.len() as u64 / 2)?;
                return Ok(last_of(members, name).map(|json| of.part(self.event.place(json))));
            }
        }
        self.places(of).member(of, name, self.event.budget)
    }

    /// Returns the elements of an array.
    pub(super) fn elements<'j>(&self, of: Json<'j>) -> Result<Elements<'j>, Spent> {
        self.places(of).elements(of, self.event.budget)
    }

    fn places(&self, of: Json<'_>) -> &Places {
        if self.event.owns(of) { &self.event.places } else { self.places }
    }

    pub(super) fn event_field(&self, field: EventField) -> Option<Found<'s>> {
        let event: &'s Event<'_> = self.event.event;
        match field {
            EventField::Id => Some(Found::Text(&event.id)),
            EventField::Type => Some(Found::Text(&event.event_type)),
            EventField::Time => event.time.as_deref().map(Found::Text),
            EventField::Source => event.source.as_deref().map(Found::Text),
            EventField::Subject => event.subject.as_deref().map(Found::Text),
            EventField::Position => event.position.map(Found::Integer),
            EventField::Exchange => Some(Found::Text(&event.exchange)),
            EventField::RoutingKey => Some(Found::Text(&event.routing_key)),
        }
    }

    /// Returns an attribute of the event.
    pub(super) fn attribute(&self, name: &str) -> Result<Option<&'s str>, Spent> {
        let event: &'s Event<'_> = self.event.event;
        self.event.budget.work(1 + event.attributes.len() as u64 / 4)?;
        Ok(event.attribute(name))
    }
}

/// Returns the index of the element that a `[]` selects.
fn place(path: &Path, steps: &[PathStep], bindings: &[Binding<'_>]) -> Result<usize, Fault> {
    let bound = bindings.iter().find(|bound| bound.start == path.start && bound.steps == steps);
    bound
        .map(|bound| bound.at)
        .ok_or_else(|| Fault::new(format!("`{path}` has a `[]` that its target does not have")))
}

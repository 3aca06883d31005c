//! The named expressions (`let`) of a definition, computed on demand.

use std::cell::OnceCell;

use super::expression::Expression;
use super::fault::Fault;
use super::places::Places;
use super::scope::{EventScope, LetValues, Scope};
use crate::event::Json;

/// The definition's `let`s, with the values that were read so far.
pub(super) struct Lets<'s> {
    expressions: &'s [(String, Expression)],
    values: Box<[OnceCell<Result<String, Fault>>]>,
}

impl<'s> Lets<'s> {
    pub(super) fn new(expressions: &'s [(String, Expression)]) -> Self {
        Self { expressions, values: expressions.iter().map(|_| OnceCell::new()).collect() }
    }
}

impl LetValues for Lets<'_> {
    fn value<'a>(&'a self, at: usize, event: &EventScope<'_>) -> Result<Json<'a>, Fault> {
        let (Some((name, expression)), Some(value)) =
            (self.expressions.get(at), self.values.get(at))
        else {
            return Err(Fault::new("a `let` that the definition does not have"));
        };
        let compute = || {
            // A `let` reads earlier ones only, so that there are no cycles.
            if expression.lets().iter().any(|&earlier| earlier >= at) {
                return Err(Fault::new(format!(
                    "`let.{name}` reads one that is not defined before it"
                )));
            }
            let scope = Scope { event, lets: self, item: None, places: &Places::default() };
            let failed =
                |fault: Fault| Fault::new(format!("`let.{name}` failed: {}", fault.message));
            expression.json(&scope).map_err(failed)
        };
        value.get_or_init(compute).as_ref().map(|text| Json::parsed(text)).map_err(Clone::clone)
    }
}

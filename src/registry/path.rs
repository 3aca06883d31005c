//! Paths such as `a.b[0]["first-name"].xs[].sku`, which templates and `changed` read.
//!
//! `parse` reads them from a text.

pub(super) mod parse;

use std::fmt;

use super::code::Code;
use super::diagnostic::is_slip;
use crate::config::Vars;

/// Names that a text may read.
#[derive(Debug, Clone, Copy)]
pub struct KnownNames<'a> {
    /// The definition's `let`s before the text. A `let` may read earlier ones.
    pub lets: &'a [String],
    /// True in a rule with `each`, where `item` exists.
    pub in_each: bool,
    /// Values of `{vars.NAME}`.
    pub vars: &'a Vars,
}

/// Error in a template, a path or an expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TextProblem {
    /// Place in the text, in bytes from 0.
    pub at: usize,
    /// Kind of the problem.
    pub code: Code,
    /// Text of the problem.
    pub message: String,
    /// Way to fix it.
    pub help: Option<String>,
}

impl TextProblem {
    pub(super) fn new(code: Code, at: usize, message: impl Into<String>) -> Self {
        Self { at, code, message: message.into(), help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// First word of a path. Any other word is a field of `data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PathRoot {
    /// The payload.
    Data,
    /// The previous state, if the publisher gave it.
    Previous,
    /// Properties of the event beside its payload.
    Event,
    /// The definition's named expressions.
    Let,
    /// The element of `each`.
    Item,
    /// `UNSTALE_VAR_*`.
    Vars,
}

impl PathRoot {
    /// Every root, in the order of the documentation.
    pub const ALL: [Self; 6] =
        [Self::Data, Self::Previous, Self::Event, Self::Let, Self::Item, Self::Vars];

    /// Returns the word in templates. In expressions, `let` is `lets`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Previous => "previous",
            Self::Event => "event",
            Self::Let => "let",
            Self::Item => "item",
            Self::Vars => "vars",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|root| root.as_str() == name)
    }
}

/// Fields of the root `event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventField {
    /// `event.id`
    Id,
    /// `event.type`
    Type,
    /// `event.time`
    Time,
    /// `event.source`
    Source,
    /// `event.subject`
    Subject,
    /// `event.position`
    Position,
    /// `event.exchange`
    Exchange,
    /// `event.routing_key`
    RoutingKey,
}

impl EventField {
    /// Every field.
    pub const ALL: [Self; 8] = [
        Self::Id,
        Self::Type,
        Self::Time,
        Self::Source,
        Self::Subject,
        Self::Position,
        Self::Exchange,
        Self::RoutingKey,
    ];

    /// Returns the name of the field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Type => "type",
            Self::Time => "time",
            Self::Source => "source",
            Self::Subject => "subject",
            Self::Position => "position",
            Self::Exchange => "exchange",
            Self::RoutingKey => "routing_key",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.as_str() == name)
    }

    /// Returns the field whose name differs by one edit. Any other name is that of an attribute.
    pub(super) fn meant_by(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| is_slip(name, field.as_str()))
    }
}

/// Help text for a misspelt field of the event.
pub(super) const KNOWN_FIELDS: &str = "known: id, type, time, source, subject, position, exchange, routing_key, and attributes of the event";

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathStep {
    /// The member of that name.
    Member(Box<str>),
    /// The element at that place, from 0.
    Index(usize),
    /// Every element.
    Each,
}

/// Start of a path, with what is known of its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Start {
    Data,
    Previous,
    Event(EventField),
    /// An attribute of the event: the first step names it.
    Attribute,
    /// Index of the definition's `let`.
    Let(usize),
    Item,
    /// A variable without a value, which reads nothing.
    Unset,
}

/// A compiled path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    root: PathRoot,
    pub(super) start: Start,
    steps: Box<[PathStep]>,
    optional: bool,
    raw: bool,
    text: Box<str>,
}

impl Path {
    pub(super) fn from_steps(
        root: PathRoot,
        start: Start,
        steps: Vec<PathStep>,
        optional: bool,
    ) -> Self {
        let mut text = root.as_str().to_owned();
        for step in &steps {
            match step {
                PathStep::Member(name) if is_word(name) => text.extend([".", name]),
                PathStep::Member(name) => text.push_str(&format!("[{name:?}]")),
                PathStep::Index(index) => text.push_str(&format!("[{index}]")),
                PathStep::Each => text.push_str("[]"),
            }
        }
        Self { root, start, steps: steps.into(), optional, raw: false, text: text.into() }
    }

    pub(super) fn set_optional(&mut self) {
        self.optional = true;
    }

    /// Returns the root that it reads from.
    pub fn root(&self) -> PathRoot {
        self.root
    }

    /// Returns the steps from the root's value on. For `event`, `let` and `vars`, they follow the
    /// name.
    pub fn steps(&self) -> &[PathStep] {
        &self.steps
    }

    /// Returns whether both paths read the same value.
    pub(super) fn reads_as(&self, other: &Self) -> bool {
        self.start == other.start && self.steps == other.steps
    }

    /// Returns whether it ends in `?`.
    pub fn is_optional(&self) -> bool {
        self.optional
    }

    /// Returns whether it ends in `|raw`: its value may hold the text that follows it.
    pub fn is_raw(&self) -> bool {
        self.raw
    }

    /// Returns the path as written, without `?` and `|raw`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the name in `let.<name>`, `event.<name>` or `vars.<name>`.
    pub fn name(&self) -> Option<&str> {
        match self.root {
            PathRoot::Let | PathRoot::Event | PathRoot::Vars => self.text.split(['.', '[']).nth(1),
            PathRoot::Data | PathRoot::Previous | PathRoot::Item => None,
        }
    }

    /// Returns whether it has a `[]`.
    pub fn fans_out(&self) -> bool {
        self.steps.contains(&PathStep::Each)
    }
}

/// Writes the path as written.
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn is_word(name: &str) -> bool {
    !name.starts_with(char::is_numeric)
        && !name.is_empty()
        && name.chars().all(|c| c == '_' || c.is_alphanumeric())
}

/// Lists the first known names. A file may define thousands, and miss them in thousands of places.
pub(super) fn known(names: &[String]) -> String {
    const SHOWN: usize = 10;
    match names.split_at_checked(SHOWN) {
        _ if names.is_empty() => "no name is defined here".to_owned(),
        Some((shown, more)) if !more.is_empty() => {
            format!("known names are {} and {} more", shown.join(", "), more.len())
        }
        _ => format!("known names are {}", names.join(", ")),
    }
}

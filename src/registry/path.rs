//! Paths: `a.b[0]["first-name"].xs[].sku`, as templates and `changed` read them.

use std::fmt;

use super::diagnostic::is_slip;
use crate::config::Vars;

/// What a text of an entry may name.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// The entry's `let`s that stand before the text (a `let` may read earlier ones).
    pub lets: &'a [String],
    /// Whether the text stands in a rule with `each`: only there is an `item`.
    pub in_each: bool,
    /// What `{vars.NAME}` reads.
    pub vars: &'a Vars,
}

/// What is wrong with a template, a path or an expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TextProblem {
    /// Where in the text, in bytes from 0.
    pub at: usize,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl TextProblem {
    pub(super) fn new(at: usize, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The first word of a path; a word that is none of these reads `data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Root {
    /// The payload.
    Data,
    /// The state before, where the publisher gave it.
    Previous,
    /// What is known of the event beside its payload.
    Event,
    /// The entry's named expressions.
    Let,
    /// The element of `each`.
    Item,
    /// `UNSTALE_VAR_*`.
    Vars,
}

impl Root {
    /// Every root.
    pub const ALL: [Self; 6] =
        [Self::Data, Self::Previous, Self::Event, Self::Let, Self::Item, Self::Vars];

    /// The word in templates; in expressions `let` is `lets`.
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

/// The members of the root `event`.
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
    /// Every member.
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

    /// Its name.
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

    /// Returns the member that a name means which is one slip away from it. Any other name is an
    /// attribute's.
    pub(super) fn meant_by(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| is_slip(name, field.as_str()))
    }
}

/// What a text should have read of the event.
pub(super) const KNOWN_FIELDS: &str = "known: id, type, time, source, subject, position, exchange, routing_key, and attributes of the event";

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// The member of that name.
    Member(Box<str>),
    /// The element at that place, from 0.
    Index(usize),
    /// Every element.
    Each,
}

/// Where a path begins, with what it needs to know of its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Start {
    Data,
    Previous,
    Event(EventField),
    /// An attribute of the event: the first step names it.
    Attribute,
    /// The place among the entry's `let`s.
    Let(usize),
    Item,
    /// A variable without a value: reads nothing.
    Unset,
}

/// A compiled path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    root: Root,
    pub(super) start: Start,
    steps: Box<[Step]>,
    optional: bool,
    raw: bool,
    text: Box<str>,
}

impl Path {
    /// Reads a path without `?`, the text of `{path}` or of `changed("path")`.
    ///
    /// # Errors
    /// What is wrong with its form or its names. A variable must have a value.
    pub fn parse(text: &str, names: &Names<'_>) -> Result<Self, TextProblem> {
        let mut cursor = Cursor { text, at: 0 };
        let path = cursor.path(names)?;
        if cursor.at < text.len() {
            return Err(cursor.unexpected());
        }
        Ok(path)
    }

    pub(super) fn from_steps(root: Root, start: Start, steps: Vec<Step>, optional: bool) -> Self {
        let mut text = root.as_str().to_owned();
        for step in &steps {
            match step {
                Step::Member(name) if is_word(name) => text.extend([".", name]),
                Step::Member(name) => text.push_str(&format!("[{name:?}]")),
                Step::Index(index) => text.push_str(&format!("[{index}]")),
                Step::Each => text.push_str("[]"),
            }
        }
        Self { root, start, steps: steps.into(), optional, raw: false, text: text.into() }
    }

    pub(super) fn set_optional(&mut self) {
        self.optional = true;
    }

    /// What it reads from.
    pub fn root(&self) -> Root {
        self.root
    }

    /// The steps from the root's value: for `event`, `let` and `vars` those after the name.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether the two read the same value.
    pub(super) fn reads_as(&self, other: &Self) -> bool {
        self.start == other.start && self.steps == other.steps
    }

    /// Whether it ends in `?`.
    pub fn is_optional(&self) -> bool {
        self.optional
    }

    /// Whether it ends in `|raw`: its value may hold the text that follows it.
    pub fn is_raw(&self) -> bool {
        self.raw
    }

    /// As written, without `?` and `|raw`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The name in `let.<name>`, `event.<name>` or `vars.<name>`.
    pub fn name(&self) -> Option<&str> {
        match self.root {
            Root::Let | Root::Event | Root::Vars => self.text.split(['.', '[']).nth(1),
            Root::Data | Root::Previous | Root::Item => None,
        }
    }

    /// Whether it has a `[]`.
    pub fn fans_out(&self) -> bool {
        self.steps.contains(&Step::Each)
    }
}

/// As written.
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A place in a text that holds a path.
pub(super) struct Cursor<'t> {
    pub(super) text: &'t str,
    pub(super) at: usize,
}

impl Cursor<'_> {
    pub(super) fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    pub(super) fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    /// Reads a placeholder up to and with its closing brace.
    pub(super) fn placeholder(&mut self, names: &Names<'_>) -> Result<Path, TextProblem> {
        let mut path = self.path(names)?;
        path.optional = self.eat("?");
        path.raw = self.eat("|raw");
        if self.eat("}") {
            return Ok(path);
        }
        if self.at == self.text.len() {
            return Err(TextProblem::new(self.at, "the placeholder has no end")
                .hint("a placeholder is {path}; a literal brace is {{"));
        }
        Err(self.unexpected())
    }

    fn path(&mut self, names: &Names<'_>) -> Result<Path, TextProblem> {
        let from = self.at;
        let word_ends = self.word()?;
        let word = &self.text[from..word_ends];
        let (root, start, mut steps) = match Root::from_name(word) {
            Some(root @ Root::Data) => (root, Start::Data, Vec::new()),
            Some(root @ Root::Previous) => (root, Start::Previous, Vec::new()),
            Some(root @ Root::Item) if names.in_each => (root, Start::Item, Vec::new()),
            Some(Root::Item) => {
                return Err(TextProblem::new(from, "`item` is known only in a rule with `each`")
                    .hint("a field of that name in the payload is {data.item}"));
            }
            Some(root @ (Root::Event | Root::Let | Root::Vars)) => {
                let (start, steps) = self.named(root, from, names)?;
                (root, start, steps)
            }
            None => (Root::Data, Start::Data, vec![Step::Member(word.into())]),
        };
        self.steps(&mut steps)?;
        Ok(Path {
            root,
            start,
            steps: steps.into(),
            optional: false,
            raw: false,
            text: self.text[from..self.at].into(),
        })
    }

    fn named(
        &mut self,
        root: Root,
        from: usize,
        names: &Names<'_>,
    ) -> Result<(Start, Vec<Step>), TextProblem> {
        let word = root.as_str();
        if !self.eat(".") {
            return Err(TextProblem::new(from, format!("`{word}` is a root: a name follows it"))
                .hint(format!(
                    "{{{word}.name}}; a field of that name in the payload is {{data.{word}}}"
                )));
        }
        let name_from = self.at;
        let name_ends = self.word()?;
        let name = &self.text[name_from..name_ends];
        match root {
            Root::Let => {
                let start =
                    names.lets.iter().position(|known| known == name).map(Start::Let).ok_or_else(
                        || {
                            TextProblem::new(
                                name_from,
                                format!("no `let` named `{name}` stands before this"),
                            )
                            .hint(known(names.lets))
                        },
                    )?;
                Ok((start, Vec::new()))
            }
            Root::Vars => Ok((Start::Unset, Vec::new())),
            _ => match (EventField::from_name(name), EventField::meant_by(name)) {
                (Some(field), _) => Ok((Start::Event(field), Vec::new())),
                (None, Some(meant)) => {
                    let message =
                        format!("an event has no `{name}`: did you mean `{}`?", meant.as_str());
                    Err(TextProblem::new(name_from, message)
                        .hint(format!("{KNOWN_FIELDS}; a field of the payload is {{data.event}}")))
                }
                (None, None) => Ok((Start::Attribute, vec![Step::Member(name.into())])),
            },
        }
    }

    /// The end of the word that begins here, which the cursor moves to.
    fn word(&mut self) -> Result<usize, TextProblem> {
        let length = self
            .rest()
            .find(|c: char| !(c == '_' || c.is_alphanumeric()))
            .unwrap_or(self.rest().len());
        if length == 0 || self.rest().starts_with(|c: char| c.is_numeric()) {
            return Err(self.unexpected());
        }
        self.at += length;
        Ok(self.at)
    }

    fn steps(&mut self, steps: &mut Vec<Step>) -> Result<(), TextProblem> {
        loop {
            if self.eat(".") {
                let from = self.at;
                let ends = self.word()?;
                steps.push(Step::Member(self.text[from..ends].into()));
            } else if self.eat("[]") {
                steps.push(Step::Each);
            } else if self.eat("[\"") {
                steps.push(Step::Member(self.quoted()?.into()));
                if !self.eat("]") {
                    return Err(self.unexpected());
                }
            } else if self.eat("[") {
                let digits =
                    self.rest().find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest().len());
                let index = self.rest()[..digits].parse().map_err(|_| self.unexpected())?;
                self.at += digits;
                steps.push(Step::Index(index));
                if !self.eat("]") {
                    return Err(self.unexpected());
                }
            } else {
                return Ok(());
            }
        }
    }

    /// The rest of a quoted name: `\"` and `\\` are its escapes.
    fn quoted(&mut self) -> Result<String, TextProblem> {
        let from = self.at;
        let mut name = String::new();
        let mut chars = self.text[from..].char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.at = from + at + 1;
                    return Ok(name);
                }
                '\\' => match chars.next() {
                    Some((_, escaped @ ('"' | '\\'))) => name.push(escaped),
                    _ => {
                        return Err(TextProblem::new(
                            from + at,
                            "a quoted name knows the escapes \\\" and \\\\ alone",
                        ));
                    }
                },
                c => name.push(c),
            }
        }
        Err(TextProblem::new(from, "the quoted name has no end"))
    }

    fn unexpected(&self) -> TextProblem {
        let hint = "paths are a.b, a[0].b, a[\"first-name\"], xs[], xs[].sku; `?` ends one that may be absent; literal braces are {{ and }}";
        let what = match self.rest().chars().next() {
            Some(c @ ('(' | '|' | '+')) => {
                let what = format!(
                    "`{c}` cannot stand here: a placeholder reads a value, and computes nothing"
                );
                return TextProblem::new(self.at, what)
                    .hint("compute it under `let`, and write {let.name}");
            }
            Some(c) => format!("`{}` cannot stand here in a path", c.escape_debug()),
            None => "the path has no end".to_owned(),
        };
        TextProblem::new(self.at, what).hint(hint)
    }
}

fn is_word(name: &str) -> bool {
    !name.starts_with(char::is_numeric)
        && !name.is_empty()
        && name.chars().all(|c| c == '_' || c.is_alphanumeric())
}

/// Names the first of what is known: a file may define thousands, and refer to none of them in
/// thousands of places.
pub(super) fn known(names: &[String]) -> String {
    const SHOWN: usize = 10;
    match names.split_at_checked(SHOWN) {
        _ if names.is_empty() => "none is known here".to_owned(),
        Some((shown, more)) if !more.is_empty() => {
            format!("known here: {} and {} more", shown.join(", "), more.len())
        }
        _ => format!("known here: {}", names.join(", ")),
    }
}

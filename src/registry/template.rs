//! Templates such as `user:{id}`: parsed when the registry loads, filled for each event by
//! `render`.

use super::code::Code;
use super::path::parse::Cursor;
use super::path::{KnownNames, Path, PathRoot, PathStep, TextProblem};

/// A compiled template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pub(super) pieces: Box<[Piece]>,
    /// For each piece, the text that its value must not hold. Empty for a template that is not a
    /// name.
    ends: Box<[Option<Box<str>>]>,
    unset: Box<[Box<str>]>,
    vars: Box<[Box<str>]>,
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Literal(Box<str>),
    Path(Path),
}

impl Template {
    /// Compiles a text.
    ///
    /// `{vars.X}` is replaced by its value from `names`. A variable without a value stays as
    /// written, and is listed by [`Template::unset_vars`].
    ///
    /// # Errors
    /// The first problem of the text, with its place.
    pub fn parse(text: &str, names: &KnownNames<'_>) -> Result<Self, TextProblem> {
        let mut cursor = Cursor { text, at: 0 };
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let (mut vars, mut unset) = (Vec::new(), Vec::new());
        while cursor.at < text.len() {
            if cursor.eat("{{") {
                literal.push('{');
            } else if cursor.eat("}}") {
                literal.push('}');
            } else if cursor.rest().starts_with('}') {
                return Err(TextProblem::new(Code::TemplateSyntax, cursor.at, "unmatched `}`")
                    .help("a literal brace is }}"));
            } else if cursor.eat("{") {
                let from = cursor.at - 1;
                let path = cursor.placeholder(names)?;
                if path.root() == PathRoot::Vars
                    && !(path.is_optional() && var_value(&path, names).is_none())
                {
                    let name = path.name().unwrap_or_default();
                    if !path.steps().is_empty() {
                        return Err(TextProblem::new(
                            Code::VarInvalid,
                            from,
                            format!("`vars.{name}` is text, and has no fields"),
                        ));
                    }
                    vars.push(name.into());
                    match var_value(&path, names) {
                        Some(value) if value.is_empty() || value.contains(char::is_control) => {
                            return Err(TextProblem::new(
                                Code::VarInvalid,
                                from,
                                format!("UNSTALE_VAR_{name} is empty or holds a control character"),
                            ));
                        }
                        Some(value) => literal.push_str(value),
                        None => {
                            unset.push(name.into());
                            literal.push_str(&text[from..cursor.at]);
                        }
                    }
                    continue;
                }
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(std::mem::take(&mut literal).into()));
                }
                pieces.push(Piece::Path(path));
            } else {
                let plain = cursor.rest().find(['{', '}']).unwrap_or(cursor.rest().len());
                literal.push_str(&cursor.rest()[..plain]);
                cursor.at += plain;
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal.into()));
        }
        Ok(Self {
            pieces: pieces.into(),
            ends: Box::default(),
            unset: unset.into(),
            vars: vars.into(),
        })
    }

    /// Returns the paths that it reads, in order, without variables.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Path(path) => Some(path),
            Piece::Literal(_) => None,
        })
    }

    /// Returns the variables that it names, with or without a value.
    pub fn vars(&self) -> impl Iterator<Item = &str> {
        self.vars.iter().map(|name| &**name)
    }

    /// Returns the variables that have no value. `run` refuses to start, `check` and `plan` warn.
    pub fn unset_vars(&self) -> impl Iterator<Item = &str> {
        self.unset.iter().map(|name| &**name)
    }

    /// Returns whether it reads a value of the event.
    pub fn has_placeholder(&self) -> bool {
        self.paths().next().is_some()
    }

    /// Returns the text if nothing is read from the event. Variables are filled in.
    pub fn as_literal(&self) -> Option<&str> {
        match &*self.pieces {
            [] => Some(""),
            [Piece::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Makes the template a name, for which different values must give different texts.
    ///
    /// A value must not hold the text that follows its placeholder. Exceptions are the last
    /// placeholder and trusted values.
    pub(super) fn end_at_delimiters(&mut self, is_trusted: impl Fn(&Path) -> bool) {
        let last = self
            .pieces
            .iter()
            .rposition(|piece| matches!(piece, Piece::Path(_)))
            .unwrap_or_default();
        let ends = self.pieces.iter().enumerate().map(|(at, piece)| {
            match (piece, self.pieces.get(at + 1)) {
                (Piece::Path(path), Some(Piece::Literal(delimiter)))
                    if at < last && !path.is_raw() && !is_trusted(path) =>
                {
                    Some(delimiter.clone())
                }
                _ => None,
            }
        });
        self.ends = ends.collect();
    }

    /// Returns the text that the value of that piece must not hold.
    pub(super) fn end_of(&self, piece: usize) -> Option<&str> {
        self.ends.get(piece)?.as_deref()
    }

    /// Returns each pair of placeholders with nothing between them.
    pub(super) fn adjacent_placeholders(&self) -> impl Iterator<Item = (&Path, &Path)> {
        self.pieces.windows(2).filter_map(|pair| match pair {
            [Piece::Path(first), Piece::Path(second)] => Some((first, second)),
            _ => None,
        })
    }

    /// Returns the text before the first placeholder.
    pub(super) fn first_literal(&self) -> &str {
        match self.pieces.first() {
            Some(Piece::Literal(text)) => text,
            _ => "",
        }
    }

    /// Returns the path if the template is one placeholder and nothing else.
    pub(super) fn single_path(&self) -> Option<&Path> {
        match &*self.pieces {
            [Piece::Path(path)] => Some(path),
            _ => None,
        }
    }
}

/// Returns the first path with a `[]` that some target lacks.
///
/// A value, URL, time or version of one key must be one value. A tag may have many: one for each
/// element.
pub fn unbound_array<'p>(
    targets: &[Template],
    mut used: impl Iterator<Item = &'p Path>,
) -> Option<&'p Path> {
    let is_in = |target: &Template, path: &Path, end: usize| {
        target.paths().any(|other| {
            other.start == path.start && other.steps().starts_with(&path.steps()[..end])
        })
    };
    used.find(|path| {
        let mut arrays =
            (1..=path.steps().len()).filter(|&end| path.steps()[end - 1] == PathStep::Each);
        arrays.any(|end| !targets.iter().all(|target| is_in(target, path, end)))
    })
}

fn var_value<'n>(path: &Path, names: &KnownNames<'n>) -> Option<&'n str> {
    names.vars.0.get(path.name()?).map(String::as_str)
}

//! Parses paths and placeholders.

use super::super::code::Code;
use super::known;
use super::{EventField, KNOWN_FIELDS, KnownNames, Path, PathRoot, PathStep, Start, TextProblem};

impl Path {
    /// Parses a path without `?`: the text of `{path}` or of `changed("path")`.
    ///
    /// # Errors
    /// A syntax error, or an unknown name. A variable must have a value.
    pub fn parse(text: &str, names: &KnownNames<'_>) -> Result<Self, TextProblem> {
        let mut cursor = Cursor { text, at: 0 };
        let path = cursor.path(names)?;
        if cursor.at < text.len() {
            return Err(cursor.unexpected());
        }
        Ok(path)
    }
}

/// Position in a text that holds a path.
pub(in super::super) struct Cursor<'t> {
    pub(in super::super) text: &'t str,
    pub(in super::super) at: usize,
}

impl Cursor<'_> {
    pub(in super::super) fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    pub(in super::super) fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    /// Reads a placeholder, with its closing brace.
    pub(in super::super) fn placeholder(
        &mut self,
        names: &KnownNames<'_>,
    ) -> Result<Path, TextProblem> {
        let mut path = self.path(names)?;
        path.optional = self.eat("?");
        path.raw = self.eat("|raw");
        if self.eat("}") {
            return Ok(path);
        }
        if self.at == self.text.len() {
            return Err(TextProblem::new(
                Code::TemplateSyntax,
                self.at,
                "the placeholder is not closed",
            )
            .help("a placeholder is {path}; a literal brace is {{"));
        }
        Err(self.unexpected())
    }

    pub(in super::super) fn path(&mut self, names: &KnownNames<'_>) -> Result<Path, TextProblem> {
        let from = self.at;
        let word_ends = self.word()?;
        let word = &self.text[from..word_ends];
        let (root, start, mut steps) = match PathRoot::from_name(word) {
            Some(root @ PathRoot::Data) => (root, Start::Data, Vec::new()),
            Some(root @ PathRoot::Previous) => (root, Start::Previous, Vec::new()),
            Some(root @ PathRoot::Item) if names.in_each => (root, Start::Item, Vec::new()),
            Some(PathRoot::Item) => {
                return Err(TextProblem::new(
                    Code::TemplateName,
                    from,
                    "`item` exists only in a rule with `each`",
                )
                .help("a field of that name in the payload is {data.item}"));
            }
            Some(root @ (PathRoot::Event | PathRoot::Let | PathRoot::Vars)) => {
                let (start, steps) = self.named(root, from, names)?;
                (root, start, steps)
            }
            // Expressions call this root `lets`.
            None if word == "lets" && self.rest().starts_with('.') => {
                self.eat(".");
                let name_from = self.at;
                let name = &self.text[name_from..self.word()?];
                return Err(TextProblem::new(
                    Code::TemplateName,
                    from,
                    "`lets` exists only in expressions",
                )
                .help(format!(
                    "write {{let.{name}}}; a field of that name in the payload is {{data.lets}}"
                )));
            }
            None => (PathRoot::Data, Start::Data, vec![PathStep::Member(word.into())]),
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
        root: PathRoot,
        from: usize,
        names: &KnownNames<'_>,
    ) -> Result<(Start, Vec<PathStep>), TextProblem> {
        let word = root.as_str();
        if !self.eat(".") {
            return Err(TextProblem::new(
                Code::TemplateName,
                from,
                format!("`{word}` needs a name after it"),
            )
            .help(format!(
                "{{{word}.name}}; a field of that name in the payload is {{data.{word}}}"
            )));
        }
        let name_from = self.at;
        let name_ends = self.word()?;
        let name = &self.text[name_from..name_ends];
        match root {
            PathRoot::Let => {
                let start =
                    names.lets.iter().position(|known| known == name).map(Start::Let).ok_or_else(
                        || {
                            TextProblem::new(
                                Code::TemplateName,
                                name_from,
                                format!("no `let` named `{name}` is defined before this"),
                            )
                            .help(known(names.lets))
                        },
                    )?;
                Ok((start, Vec::new()))
            }
            PathRoot::Vars => Ok((Start::Unset, Vec::new())),
            _ => match (EventField::from_name(name), EventField::meant_by(name)) {
                (Some(field), _) => Ok((Start::Event(field), Vec::new())),
                (None, Some(meant)) => {
                    let message =
                        format!("an event has no `{name}`: did you mean `{}`?", meant.as_str());
                    Err(TextProblem::new(Code::TemplateName, name_from, message)
                        .help(format!("{KNOWN_FIELDS}; a field of the payload is {{data.event}}")))
                }
                (None, None) => Ok((Start::Attribute, vec![PathStep::Member(name.into())])),
            },
        }
    }

    /// Moves to the end of the word that begins here, and returns it.
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

    fn steps(&mut self, steps: &mut Vec<PathStep>) -> Result<(), TextProblem> {
        loop {
            if self.eat(".") {
                let from = self.at;
                let ends = self.word()?;
                steps.push(PathStep::Member(self.text[from..ends].into()));
            } else if self.eat("[]") {
                steps.push(PathStep::Each);
            } else if self.eat("[\"") {
                steps.push(PathStep::Member(self.quoted()?.into()));
                if !self.eat("]") {
                    return Err(self.unexpected());
                }
            } else if self.eat("[") {
                let digits =
                    self.rest().find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest().len());
                let index = self.rest()[..digits].parse().map_err(|_| self.unexpected())?;
                self.at += digits;
                steps.push(PathStep::Index(index));
                if !self.eat("]") {
                    return Err(self.unexpected());
                }
            } else {
                return Ok(());
            }
        }
    }

    /// Reads the rest of a quoted name, with the escapes `\"` and `\\`.
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
                            Code::TemplateSyntax,
                            from + at,
                            "a quoted name has only the escapes \\\" and \\\\",
                        ));
                    }
                },
                c => name.push(c),
            }
        }
        Err(TextProblem::new(Code::TemplateSyntax, from, "the quoted name is not closed"))
    }

    pub(in super::super) fn unexpected(&self) -> TextProblem {
        let help = "paths are a.b, a[0].b, a[\"first-name\"], xs[], xs[].sku; `?` ends one that may be absent; literal braces are {{ and }}";
        let what = match self.rest().chars().next() {
            Some(c @ ('(' | '|' | '+')) => {
                let what = format!("unexpected `{c}`: a placeholder only reads a value");
                return TextProblem::new(Code::TemplateSyntax, self.at, what)
                    .help("compute the value under `let`, and read it as {let.name}");
            }
            Some(c) => format!("unexpected `{}` in a path", c.escape_debug()),
            None => "the path ends too early".to_owned(),
        };
        TextProblem::new(Code::TemplateSyntax, self.at, what).help(help)
    }
}

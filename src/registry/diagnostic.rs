//! Problems of schema files: what is wrong, where, and what to do about it.

use std::fmt;

use strsim::osa_distance;

pub(crate) use super::source::{Pos, SourceFile};
use crate::printable::printable;

/// Most errors, and most warnings, that are reported for one file: more of them help nobody, and
/// take memory.
const MAX_PROBLEMS_PER_FILE: usize = 1_000;

/// Most characters of one message: it may quote the file.
const MAX_MESSAGE_CHARS: usize = 1_000;

/// Whether a registry loads in spite of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// It does not.
    Error,
    /// It does, and is surely not what was meant.
    Warning,
}

/// One thing that is wrong with a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, or the directory where the problem is of no one file.
    pub file: String,
    /// 1-based; 0 where the problem has no place in a text.
    pub line: u32,
    /// 1-based, in characters; 0 where the problem has no place in a text.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Whether the registry loads in spite of it.
    pub severity: Severity,
    /// The line that it is in, where that may be shown; of a long line the part around the place.
    pub source_line: Option<String>,
    /// Characters of the line that are left out before `source_line`.
    pub(crate) skipped_chars: u32,
}

impl Problem {
    /// A problem of a whole file or directory.
    pub(crate) fn of_path(path: impl Into<String>, message: impl Into<String>, hint: &str) -> Self {
        Self {
            file: path.into(),
            line: 0,
            column: 0,
            message: message.into(),
            hint: Some(hint.to_owned()).filter(|hint| !hint.is_empty()),
            severity: Severity::Error,
            source_line: None,
            skipped_chars: 0,
        }
    }

    /// A problem at a place.
    pub(crate) fn at(source: &SourceFile, at: Pos, message: impl Into<String>) -> Self {
        let (source_line, skipped_chars) = excerpt(source, at).unzip();
        Self {
            file: source.shown_path.clone(),
            line: at.line,
            column: at.column,
            message: shortened(message.into()),
            hint: None,
            severity: Severity::Error,
            source_line,
            skipped_chars: skipped_chars.unwrap_or_default(),
        }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(shortened(hint.into()));
        self
    }

    /// Makes it one that does not keep the registry from loading.
    pub(crate) fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Returns the variable (`vars`) that has no value, where that is the problem.
    pub(crate) fn missing_var(&self) -> Option<&str> {
        self.message.strip_prefix("`vars.")?.strip_suffix("` has no value")
    }

    /// Takes the line off: it may hold a secret.
    pub(crate) fn without_line(mut self) -> Self {
        self.source_line = None;
        self
    }
}

/// The longest line that is shown whole; of longer ones the part around the place.
const SHOWN_LINE_CHARS: usize = 160;

/// Returns the line of that place, or the part of it around the place, and how many characters are
/// left out before it.
fn excerpt(source: &SourceFile, at: Pos) -> Option<(String, u32)> {
    let line = source.line(at.line)?;
    let is_long = line.len() > 4 * SHOWN_LINE_CHARS || line.chars().count() > SHOWN_LINE_CHARS;
    let skipped = if is_long { at.column.saturating_sub(1).saturating_sub(80) } else { 0 };
    let from = source
        .line_and_byte(Pos { line: at.line, column: skipped + 1 })
        .map_or(0, |(_, byte)| byte);
    // A tab stays one column wide, so that the caret is under its character.
    let shown: String = line[from..]
        .chars()
        .take(SHOWN_LINE_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    Some((shown, skipped))
}

/// Escapes control characters: a message may quote names of a file, and nothing in a file may write
/// to a terminal or forge a line of a log.
fn shortened(message: String) -> String {
    let is_plain = |c: char| !c.is_control() || c == '\n';
    if message.len() <= MAX_MESSAGE_CHARS && message.chars().all(is_plain) {
        return message;
    }
    let mut short = String::with_capacity(MAX_MESSAGE_CHARS);
    for (count, c) in message.chars().enumerate() {
        if count == MAX_MESSAGE_CHARS {
            short.push('…');
            break;
        }
        if is_plain(c) { short.push(c) } else { short.extend(c.escape_default()) }
    }
    short
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A name may hold a line feed.
        f.write_str(&printable(&self.file))?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        let warning = if self.severity == Severity::Warning { "warning: " } else { "" };
        write!(f, ": {warning}{}", self.message)?;
        if let Some(line) = &self.source_line {
            write!(f, "\n{:>5} | {}", self.line, line.trim_end())?;
            let caret = self.column.saturating_sub(self.skipped_chars).max(1);
            write!(f, "\n      | {:>width$}", "^", width = usize::try_from(caret).unwrap_or(1))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n      = {hint}")?;
        }
        Ok(())
    }
}

/// Everything that keeps a registry from loading, or nothing but warnings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects the problems of one file.
#[derive(Debug)]
pub(crate) struct Report<'s> {
    pub(crate) source: &'s SourceFile,
    pub(crate) problems: Vec<Problem>,
    errors: usize,
    warnings: usize,
}

impl<'s> Report<'s> {
    pub(crate) fn new(source: &'s SourceFile) -> Self {
        Self { source, problems: Vec::new(), errors: 0, warnings: 0 }
    }

    pub(crate) fn error(&mut self, at: Pos, message: impl Into<String>) {
        self.push(Problem::at(self.source, at, message));
    }

    pub(crate) fn error_with_hint(
        &mut self,
        at: Pos,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.push(Problem::at(self.source, at, message).hint(hint));
    }

    pub(crate) fn warn(&mut self, at: Pos, message: impl Into<String>, hint: impl Into<String>) {
        self.push(Problem::at(self.source, at, message).hint(hint).warning());
    }

    /// Adds a problem, unless the file has very many of its severity already.
    pub(crate) fn push(&mut self, problem: Problem) {
        let count = match problem.severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        if *count < MAX_PROBLEMS_PER_FILE {
            *count += 1;
            self.problems.push(problem);
        }
    }

    /// Whether there are so many errors that more are not reported.
    pub(crate) fn is_full(&self) -> bool {
        self.errors >= MAX_PROBLEMS_PER_FILE
    }
}

/// The longest name that is compared with those known: the comparison costs the product of both
/// lengths.
const MAX_COMPARED_BYTES: usize = 128;

/// The known name that a person most likely meant.
pub(crate) fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    if name.len() > MAX_COMPARED_BYTES {
        return None;
    }
    let allowed = (name.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|candidate| (osa_distance(&name.to_lowercase(), candidate), candidate))
        .filter(|&(distance, _)| distance <= allowed)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Whether one name is the other with one slip of the fingers.
pub(crate) fn is_slip(name: &str, known: &str) -> bool {
    name.len() <= MAX_COMPARED_BYTES && osa_distance(&name.to_lowercase(), known) <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> SourceFile {
        SourceFile::new("user.yaml", "schemas/user.yaml", text)
    }

    #[test]
    fn a_problem_shows_its_line_and_a_caret() {
        let source = source("events:\n\té: x\n");
        let problem =
            Problem::at(&source, Pos { line: 2, column: 3 }, "no such key").hint("write `e`");
        assert_eq!(
            problem.to_string(),
            "schemas/user.yaml:2:3: no such key\n    2 |  é: x\n      |   ^\n      = write `e`"
        );
        assert!(
            problem
                .warning()
                .to_string()
                .starts_with("schemas/user.yaml:2:3: warning: no such key\n")
        );
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let source = source(&format!("{}x{}", "a".repeat(5_000), "b".repeat(5_000)));
        let shown = Problem::at(&source, Pos { line: 1, column: 5_001 }, "m").to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[1].len() < 200);
        assert_eq!(lines[1].find('x'), lines[2].find('^'));
    }

    #[test]
    fn a_problem_without_a_place_names_its_file() {
        assert_eq!(Problem::of_path("schemas", "is empty", "").to_string(), "schemas: is empty");
    }

    #[test]
    fn the_nearest_name_is_found() {
        let known = ["effects", "examples", "each", "when"];
        for (name, expected) in [
            ("efects", Some("effects")),
            ("Effects", Some("effects")),
            ("wehn", Some("when")),
            ("each_", Some("each")),
            ("zzz", None),
        ] {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
    }
}

//! Diagnostics of rule files: the problem, its place, its code, and a way to fix it.

use std::fmt;

use strsim::osa_distance;

use super::code::Code;
pub(crate) use super::source::{Pos, SourceFile};
use crate::printable::printable;

/// Maximum number of errors, and of warnings, that are reported for one file.
const MAX_PROBLEMS_PER_FILE: usize = 1_000;

/// Maximum length of one message, in characters. A message may quote the file.
const MAX_MESSAGE_CHARS: usize = 1_000;

/// Effect of a problem on loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The registry does not load.
    Error,
    /// The registry loads, and is probably not what was meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One problem of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file, or the directory if the problem is not in one file.
    pub file: String,
    /// Line from 1, or 0 if the problem has no place in a text.
    pub line: u32,
    /// Column from 1, in characters, or 0 if the problem has no place in a text.
    pub column: u32,
    /// Kind of the problem.
    pub code: Code,
    /// Text of the problem.
    pub message: String,
    /// Way to fix it.
    pub help: Option<String>,
    /// Effect on loading.
    pub severity: Severity,
    /// The source line, if it may be shown. A long line is cut around the place.
    pub source_line: Option<String>,
    /// Number of characters that are left out before `source_line`.
    pub(crate) skipped_chars: u32,
    /// Name of the variable that has no value, if that is the problem.
    pub(crate) missing_var: Option<String>,
}

impl Diagnostic {
    /// Returns an error of a whole file or directory.
    pub(crate) fn of_path(
        code: Code,
        path: impl Into<String>,
        message: impl Into<String>,
        help: &str,
    ) -> Self {
        Self {
            file: path.into(),
            line: 0,
            column: 0,
            code,
            message: message.into(),
            help: Some(help.to_owned()).filter(|help| !help.is_empty()),
            severity: Severity::Error,
            source_line: None,
            skipped_chars: 0,
            missing_var: None,
        }
    }

    /// Returns an error at a place.
    pub(crate) fn at(code: Code, source: &SourceFile, at: Pos, message: impl Into<String>) -> Self {
        let (source_line, skipped_chars) = excerpt(source, at).unzip();
        Self {
            file: source.shown_path.clone(),
            line: at.line,
            column: at.column,
            code,
            message: shortened(message.into()),
            help: None,
            severity: Severity::Error,
            source_line,
            skipped_chars: skipped_chars.unwrap_or_default(),
            missing_var: None,
        }
    }

    /// Adds a way to fix the problem.
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(shortened(help.into()));
        self
    }

    /// Names the variable that has no value.
    pub(crate) fn of_missing_var(mut self, name: &str) -> Self {
        self.missing_var = Some(name.to_owned());
        self
    }

    /// Turns the error into a warning.
    pub(crate) fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Returns the variable (`vars`) that has no value, if that is the problem.
    pub(crate) fn missing_var(&self) -> Option<&str> {
        self.missing_var.as_deref()
    }

    /// Removes the source line, because it may hold a secret.
    pub(crate) fn without_line(mut self) -> Self {
        self.source_line = None;
        self
    }
}

/// Maximum length of a line that is shown whole, in characters.
const SHOWN_LINE_CHARS: usize = 160;

/// Returns the line, or the part of it around the place, and how many characters precede that part.
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

/// Cuts a message to its maximum length, and escapes control characters.
///
/// A message may quote names from a file. Nothing in a file may control a terminal or forge a log
/// line.
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

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A name may hold a line feed.
        f.write_str(&printable(&self.file))?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}[{}]: {}", self.severity, self.code, self.message)?;
        if let Some(line) = &self.source_line {
            write!(f, "\n{:>5} | {}", self.line, line.trim_end())?;
            let caret = self.column.saturating_sub(self.skipped_chars).max(1);
            write!(f, "\n      | {:>width$}", "^", width = usize::try_from(caret).unwrap_or(1))?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n      help: {help}")?;
        }
        Ok(())
    }
}

/// All problems of a registry that does not load, or warnings only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl fmt::Display for Diagnostics {
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

impl std::error::Error for Diagnostics {}

/// Collects the problems of one file.
#[derive(Debug)]
pub(crate) struct Report<'s> {
    pub(crate) source: &'s SourceFile,
    pub(crate) problems: Vec<Diagnostic>,
    errors: usize,
    warnings: usize,
}

impl<'s> Report<'s> {
    pub(crate) fn new(source: &'s SourceFile) -> Self {
        Self { source, problems: Vec::new(), errors: 0, warnings: 0 }
    }

    pub(crate) fn error(&mut self, code: Code, at: Pos, message: impl Into<String>) {
        self.push(Diagnostic::at(code, self.source, at, message));
    }

    pub(crate) fn error_with_help(
        &mut self,
        code: Code,
        at: Pos,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.push(Diagnostic::at(code, self.source, at, message).help(help));
    }

    pub(crate) fn warn(
        &mut self,
        code: Code,
        at: Pos,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.push(Diagnostic::at(code, self.source, at, message).help(help).warning());
    }

    /// Adds a problem, unless the file has reached the maximum for its severity.
    pub(crate) fn push(&mut self, problem: Diagnostic) {
        let count = match problem.severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        if *count < MAX_PROBLEMS_PER_FILE {
            *count += 1;
            self.problems.push(problem);
        }
    }

    /// Returns whether the maximum number of errors is reached.
    pub(crate) fn is_full(&self) -> bool {
        self.errors >= MAX_PROBLEMS_PER_FILE
    }
}

/// Maximum length of a name that is compared with known names, in bytes. The comparison takes time
/// in proportion to the product of both lengths.
const MAX_COMPARED_BYTES: usize = 128;

/// Returns the known name that the user most likely meant.
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

/// Returns whether two names differ by at most one edit.
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
    fn a_diagnostic_shows_code_line_and_caret() {
        let source = source("events:\n\té: x\n");
        let problem =
            Diagnostic::at(Code::UnknownKey, &source, Pos { line: 2, column: 3 }, "no such key")
                .help("write `e`");
        assert_eq!(
            problem.to_string(),
            "schemas/user.yaml:2:3: error[rule.unknown-key]: no such key\n    2 |  é: x\n      |   ^\n      help: write `e`"
        );
        assert!(
            problem
                .warning()
                .to_string()
                .starts_with("schemas/user.yaml:2:3: warning[rule.unknown-key]: no such key\n")
        );
    }

    #[test]
    fn a_long_source_line_is_cut_around_the_place() {
        let source = source(&format!("{}x{}", "a".repeat(5_000), "b".repeat(5_000)));
        let shown = Diagnostic::at(Code::UnknownKey, &source, Pos { line: 1, column: 5_001 }, "m")
            .to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[1].len() < 200);
        assert_eq!(lines[1].find('x'), lines[2].find('^'));
    }

    #[test]
    fn a_diagnostic_without_a_place_names_its_file() {
        let problem = Diagnostic::of_path(Code::RegistryEmpty, "schemas", "is empty", "");
        assert_eq!(problem.to_string(), "schemas: error[registry.empty]: is empty");
    }

    #[test]
    fn the_nearest_known_name_is_found() {
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

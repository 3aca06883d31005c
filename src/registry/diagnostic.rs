//! Problems of schema files: what is wrong, where, and what to do about it.

use std::fmt;

/// A place in a file: 1-based, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pos {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Pos {
    /// Where a file begins.
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

/// One schema file.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// The path below the registry's directory, with `/`: what rules are named by.
    pub(crate) path: String,
    /// The path as a person would open it.
    pub(crate) shown_path: String,
    /// What stands in it.
    pub(crate) text: String,
}

impl SourceFile {
    /// A line without its end; `None` beyond the last.
    pub(crate) fn line(&self, line: u32) -> Option<&str> {
        self.text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)
    }

    /// The rest of the line from that place on.
    pub(crate) fn rest_of_line(&self, at: Pos) -> Option<&str> {
        let line = self.line(at.line)?;
        let (start, _) = line.char_indices().nth(usize::try_from(at.column).ok()?.checked_sub(1)?)?;
        Some(&line[start..])
    }
}

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
    /// The line it stands in, where that may be shown.
    pub source_line: Option<String>,
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
        }
    }

    /// A problem at a place.
    pub(crate) fn at(source: &SourceFile, at: Pos, message: impl Into<String>) -> Self {
        Self {
            file: source.shown_path.clone(),
            line: at.line,
            column: at.column,
            message: message.into(),
            hint: None,
            severity: Severity::Error,
            source_line: source.line(at.line).map(str::to_owned),
        }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Makes it one that does not keep the registry from loading.
    pub(crate) fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Takes the line off: it may hold a secret.
    pub(crate) fn without_line(mut self) -> Self {
        self.source_line = None;
        self
    }
}

/// The longest line that is shown whole; of longer ones the part around the place.
const SHOWN_LINE_CHARS: usize = 160;

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        let warning = if self.severity == Severity::Warning { "warning: " } else { "" };
        write!(f, ": {warning}{}", self.message)?;
        if let Some(line) = &self.source_line {
            let column = usize::try_from(self.column).unwrap_or(1).max(1) - 1;
            let is_long = line.chars().count() > SHOWN_LINE_CHARS;
            let skipped = if is_long { column.saturating_sub(SHOWN_LINE_CHARS / 2) } else { 0 };
            // A tab stays one column wide, so that the caret stands under its character.
            let shown: String = line.chars().skip(skipped).take(SHOWN_LINE_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
            write!(f, "\n{:>5} | {}", self.line, shown.trim_end())?;
            write!(f, "\n      | {:>width$}", "^", width = column - skipped + 1)?;
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
}

impl<'s> Report<'s> {
    pub(crate) fn new(source: &'s SourceFile) -> Self {
        Self { source, problems: Vec::new() }
    }

    pub(crate) fn error(&mut self, at: Pos, message: impl Into<String>) {
        self.problems.push(Problem::at(self.source, at, message));
    }

    pub(crate) fn error_with_hint(&mut self, at: Pos, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push(Problem::at(self.source, at, message).hint(hint));
    }

    pub(crate) fn warn(&mut self, at: Pos, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push(Problem::at(self.source, at, message).hint(hint).warning());
    }
}

/// The known name that a person most likely meant.
pub(crate) fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let allowed = (name.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|candidate| (edit_distance(&name.to_lowercase(), candidate), candidate))
        .filter(|&(distance, _)| distance <= allowed)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's, two neighbours that changed places counted as one edit.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> SourceFile {
        SourceFile { path: "user.yaml".into(), shown_path: "schemas/user.yaml".into(), text: text.into() }
    }

    #[test]
    fn a_problem_shows_its_line_and_a_caret() {
        let source = source("events:\n\té: x\n");
        let problem = Problem::at(&source, Pos { line: 2, column: 3 }, "no such key").hint("write `e`");
        assert_eq!(problem.to_string(), "schemas/user.yaml:2:3: no such key\n    2 |  é: x\n      |   ^\n      = write `e`");
        assert!(problem.warning().to_string().starts_with("schemas/user.yaml:2:3: warning: no such key\n"));
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
        for (name, expected) in
            [("efects", Some("effects")), ("Effects", Some("effects")), ("wehn", Some("when")), ("each_", Some("each")), ("zzz", None)]
        {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
    }
}

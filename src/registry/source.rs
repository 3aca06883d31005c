//! The text of a rule file with an index of its lines and columns, so that each look-up takes
//! constant time.

use std::sync::OnceLock;

/// A place in a file. Lines and columns begin at 1, and columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pos {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Pos {
    /// The start of a file.
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

/// One rule file.
#[derive(Debug)]
pub(crate) struct SourceFile {
    /// Path below the registry's directory, with `/`. Names of rules begin with it.
    pub(crate) path: String,
    /// Path that a user would open.
    pub(crate) shown_path: String,
    /// The file's content.
    pub(crate) text: String,
    line_index: OnceLock<LineIndex>,
}

impl SourceFile {
    pub(crate) fn new(
        path: impl Into<String>,
        shown_path: impl Into<String>,
        text: impl Into<String>,
    ) -> Self {
        Self {
            path: path.into(),
            shown_path: shown_path.into(),
            text: text.into(),
            line_index: OnceLock::new(),
        }
    }

    /// Returns a line without its line break, or `None` beyond the last line.
    pub(crate) fn line(&self, line: u32) -> Option<&str> {
        let line = usize::try_from(line).ok()?.checked_sub(1)?;
        let starts = &self.line_index().line_starts;
        let start = starts.get(line)?.byte;
        let end = starts.get(line + 1).map_or(self.text.len(), |next| next.byte);
        let line = &self.text[start..end];
        let line =
            line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
        Some(line)
    }

    /// Returns the number of lines.
    pub(crate) fn line_count(&self) -> usize {
        self.line_index().line_starts.len()
    }

    /// Returns the rest of the line from that place on, or `None` at its end and beyond.
    pub(crate) fn rest_of_line(&self, at: Pos) -> Option<&str> {
        let (line, byte) = self.line_and_byte(at)?;
        line.get(byte..).filter(|rest| !rest.is_empty())
    }

    /// Returns the line, and the byte at which the column begins.
    pub(crate) fn line_and_byte(&self, at: Pos) -> Option<(&str, usize)> {
        let line = self.line(at.line)?;
        let start = *self.line_index().line_starts.get(usize::try_from(at.line).ok()? - 1)?;
        let char_index = start.char + usize::try_from(at.column).ok()?.checked_sub(1)?;
        let byte = self.line_index().byte_of(char_index, &self.text)?.checked_sub(start.byte)?;
        (byte <= line.len()).then_some((line, byte))
    }

    fn line_index(&self) -> &LineIndex {
        self.line_index.get_or_init(|| LineIndex::of(&self.text))
    }
}

/// Index of the lines, and of the byte of every 64th character.
#[derive(Debug)]
struct LineIndex {
    line_starts: Vec<LineStart>,
    /// Byte of every [`CHARS_PER_SAMPLE`]th character. Empty for ASCII, where characters are bytes.
    samples: Vec<usize>,
    is_ascii: bool,
}

#[derive(Debug, Clone, Copy)]
struct LineStart {
    byte: usize,
    /// Number of characters before the line.
    char: usize,
}

const CHARS_PER_SAMPLE: usize = 64;

impl LineIndex {
    fn of(text: &str) -> Self {
        let mut line_starts = Vec::new();
        let mut samples = Vec::new();
        let is_ascii = text.is_ascii();
        let mut is_line_start = true;
        for (char, (byte, c)) in text.char_indices().enumerate() {
            if is_line_start {
                line_starts.push(LineStart { byte, char });
            }
            is_line_start = c == '\n';
            if !is_ascii && char % CHARS_PER_SAMPLE == 0 {
                samples.push(byte);
            }
        }
        Self { line_starts, samples, is_ascii }
    }

    /// Returns the byte at which a character begins. The character after the last begins at the
    /// text's length.
    fn byte_of(&self, char_index: usize, text: &str) -> Option<usize> {
        if self.is_ascii {
            return (char_index <= text.len()).then_some(char_index);
        }
        let sample = *self.samples.get(char_index / CHARS_PER_SAMPLE)?;
        let rest = &text[sample..];
        let ends = rest.char_indices().map(|(byte, _)| byte).chain([rest.len()]);
        ends.take(CHARS_PER_SAMPLE).nth(char_index % CHARS_PER_SAMPLE).map(|byte| sample + byte)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(text: &str) -> SourceFile {
        SourceFile::new("a.yaml", "a.yaml", text)
    }

    proptest! {
        #[test]
        fn the_line_index_agrees_with_a_plain_search(text in "([a-z]{0,80}|[éa🦀]{0,80}|\r?\n|\n){0,12}", line in 0_u32..9, column in 0_u32..90) {
            let source = source(&text);
            let expected = usize::try_from(line).unwrap().checked_sub(1).and_then(|line| text.lines().nth(line));
            prop_assert_eq!(source.line(line), expected);
            prop_assert_eq!(source.line_count(), text.lines().count());
            let column_index = usize::try_from(column).unwrap().checked_sub(1);
            let rest = expected.zip(column_index).and_then(|(line, at)| Some(&line[line.char_indices().nth(at)?.0..]));
            prop_assert_eq!(source.rest_of_line(Pos { line, column }), rest);
        }
    }
}

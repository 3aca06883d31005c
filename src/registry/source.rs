//! A rule file's text, and where its lines and columns are: each look-up takes the same short time,
//! however long file or line.

use std::sync::OnceLock;

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

/// One rule file.
#[derive(Debug)]
pub(crate) struct SourceFile {
    /// The path below the registry's directory, with `/`: what rules are named by.
    pub(crate) path: String,
    /// The path as a person would open it.
    pub(crate) shown_path: String,
    /// The file's content.
    pub(crate) text: String,
    places: OnceLock<Places>,
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
            places: OnceLock::new(),
        }
    }

    /// Returns a line without its end; `None` beyond the last.
    pub(crate) fn line(&self, line: u32) -> Option<&str> {
        let line = usize::try_from(line).ok()?.checked_sub(1)?;
        let starts = &self.places().line_starts;
        let start = starts.get(line)?.byte;
        let end = starts.get(line + 1).map_or(self.text.len(), |next| next.byte);
        let line = &self.text[start..end];
        let line =
            line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
        Some(line)
    }

    /// Returns the number of lines.
    pub(crate) fn line_count(&self) -> usize {
        self.places().line_starts.len()
    }

    /// Returns the rest of the line from that place on; `None` at its end and beyond.
    pub(crate) fn rest_of_line(&self, at: Pos) -> Option<&str> {
        let (line, byte) = self.line_and_byte(at)?;
        line.get(byte..).filter(|rest| !rest.is_empty())
    }

    /// Returns the line, and the byte in it at which that column begins.
    pub(crate) fn line_and_byte(&self, at: Pos) -> Option<(&str, usize)> {
        let line = self.line(at.line)?;
        let start = *self.places().line_starts.get(usize::try_from(at.line).ok()? - 1)?;
        let char_index = start.char + usize::try_from(at.column).ok()?.checked_sub(1)?;
        let byte = self.places().byte_of(char_index, &self.text)?.checked_sub(start.byte)?;
        (byte <= line.len()).then_some((line, byte))
    }

    fn places(&self) -> &Places {
        self.places.get_or_init(|| Places::of(&self.text))
    }
}

/// Where lines begin, and every so many characters the byte of one.
#[derive(Debug)]
struct Places {
    line_starts: Vec<LineStart>,
    /// Bytes of every [`CHARS_PER_MARK`]th character; empty for ASCII, whose characters are its
    /// bytes.
    marks: Vec<usize>,
    is_ascii: bool,
}

#[derive(Debug, Clone, Copy)]
struct LineStart {
    byte: usize,
    /// Characters of the file before it.
    char: usize,
}

const CHARS_PER_MARK: usize = 64;

impl Places {
    fn of(text: &str) -> Self {
        let mut line_starts = Vec::new();
        let mut marks = Vec::new();
        let is_ascii = text.is_ascii();
        let mut is_line_start = true;
        for (char, (byte, c)) in text.char_indices().enumerate() {
            if is_line_start {
                line_starts.push(LineStart { byte, char });
            }
            is_line_start = c == '\n';
            if !is_ascii && char % CHARS_PER_MARK == 0 {
                marks.push(byte);
            }
        }
        Self { line_starts, marks, is_ascii }
    }

    /// Returns the byte at which a character begins; the text's length for the character after the
    /// last.
    fn byte_of(&self, char_index: usize, text: &str) -> Option<usize> {
        if self.is_ascii {
            return (char_index <= text.len()).then_some(char_index);
        }
        let mark = *self.marks.get(char_index / CHARS_PER_MARK)?;
        let rest = &text[mark..];
        let ends = rest.char_indices().map(|(byte, _)| byte).chain([rest.len()]);
        ends.take(CHARS_PER_MARK).nth(char_index % CHARS_PER_MARK).map(|byte| mark + byte)
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
        fn lines_and_columns_are_those_of_a_plain_search(text in "([a-z]{0,80}|[éa🦀]{0,80}|\r?\n|\n){0,12}", line in 0_u32..9, column in 0_u32..90) {
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

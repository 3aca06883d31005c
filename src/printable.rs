//! Escapes foreign text for logs, headers and terminals.
//!
//! A payload, a rule file or a server's answer may hold line breaks, escape sequences of terminals
//! and marks that reorder text. They could forge a log line or hide what is shown. So they are
//! escaped at every such edge.

use std::borrow::Cow;
use std::fmt;

/// Returns the text with every control character and every mark that breaks or reorders lines
/// escaped, such as `\n` and `\u{1b}`.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c, out| out.extend(c.escape_default()))
}

/// Returns [`printable`] text that borrows nothing, such as a cell of a table.
pub(crate) fn shown(text: &str) -> String {
    printable(text).into_owned()
}

/// Escapes like [`printable`], but keeps line feeds, for messages of several lines.
pub(crate) fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c, out| if c == '\n' { out.push(c) } else { out.extend(c.escape_default()) })
}

/// Returns JSON text with the same characters escaped as JSON does it. Outside of its strings JSON
/// has none of them but white space.
pub(crate) fn printable_json(text: &str) -> Cow<'_, str> {
    escaped(text, |c, out| {
        match c {
            '\n' | '\t' => out.push(c),
            '\r' => out.push(' '),
            // None of them is beyond the basic multilingual plane.
            c => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    })
}

fn escaped(text: &str, escape: impl Fn(char, &mut String)) -> Cow<'_, str> {
    if !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_active(c) { escape(c, &mut out) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// Returns whether a terminal or a viewer acts on the character instead of showing it.
///
/// Such characters are the C0, DEL and C1 controls, and the separators of lines and paragraphs. So
/// are the marks, embeddings, overrides and isolates of bidirectional text (Unicode Standard
/// Annex 9, table 1).
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A writer that escapes text like [`printable`].
#[derive(Debug)]
pub(crate) struct Printable<W>(pub W);

impl<W: fmt::Write> fmt::Write for Printable<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_str(&printable(text))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    const ACTIVE: [(char, &str); 12] = [
        ('\n', "\\n"),
        ('\r', "\\r"),
        ('\t', "\\t"),
        ('\0', "\\u{0}"),
        ('\x1b', "\\u{1b}"),
        ('\x7f', "\\u{7f}"),
        ('\u{9b}', "\\u{9b}"),
        ('\u{85}', "\\u{85}"),
        ('\u{2028}', "\\u{2028}"),
        ('\u{202e}', "\\u{202e}"),
        ('\u{2069}', "\\u{2069}"),
        ('\u{61c}', "\\u{61c}"),
    ];

    #[test]
    fn active_characters_are_escaped_and_others_are_kept() {
        for (c, shown) in ACTIVE {
            assert_eq!(printable(&format!("a{c}b")), format!("a{shown}b"));
        }
        for text in ["", "user:42", "żółć 名前 🎉", "می\u{200c}خواهم", r"C:\n"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
        assert_eq!(printable_lines("a\n\x1b[2Jb\r\n"), "a\n\\u{1b}[2Jb\\r\n");
    }

    #[test]
    fn what_is_written_through_it_is_escaped() {
        let mut out = Printable(String::new());
        let text = "a\n\u{202e}";
        write!(out, "{text}").unwrap();
        assert_eq!(out.0, "a\\n\\u{202e}");
    }

    proptest! {
        #[test]
        fn nothing_active_is_left(text in any::<String>()) {
            prop_assert!(!printable(&text).contains(is_active));
            prop_assert!(!printable_lines(&text).contains(|c| c != '\n' && is_active(c)));
        }

        #[test]
        fn json_stays_the_same_value(text in any::<String>()) {
            let json = serde_json::to_string_pretty(&[&text]).unwrap();
            let shown = printable_json(&json);
            prop_assert!(!shown.contains(|c| !matches!(c, '\n' | '\t') && is_active(c)));
            prop_assert_eq!(serde_json::from_str::<Vec<String>>(&shown).unwrap(), vec![text]);
        }
    }
}

//! Colours for output on a terminal.

use std::io::{self, IsTerminal as _};

/// The decision whether output has colours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    /// Decides for stdout: colours if it is a terminal that has them, and `NO_COLOR` is unset or
    /// empty.
    pub(super) fn of_stdout() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let is_dumb = set("TERM").is_some_and(|term| term == "dumb");
        Self(io::stdout().is_terminal() && set("NO_COLOR").is_none() && !is_dumb)
    }

    /// Paints a problem.
    pub(super) fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }

    /// Paints a note.
    pub(super) fn notable(self, text: &str) -> String {
        self.with("33", text)
    }

    /// Paints a good result.
    pub(super) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    /// Paints the head of a table.
    pub(super) fn faint(self, text: &str) -> String {
        self.with("2", text)
    }

    fn with(self, style: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_output_on_a_terminal_has_colours() {
        assert_eq!(Paint(true).bad("x"), "\x1b[1;31mx\x1b[0m");
        assert_eq!(Paint(false).bad("x"), "x");
    }
}

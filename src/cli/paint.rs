//! Colours, where a terminal shows them.

use std::io::{self, IsTerminal as _};

/// Whether to paint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    /// Paints where stdout is a terminal that has colours, and `NO_COLOR` is unset or empty.
    pub(super) fn of_stdout() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let is_dumb = set("TERM").is_some_and(|term| term == "dumb");
        Self(io::stdout().is_terminal() && set("NO_COLOR").is_none() && !is_dumb)
    }

    /// What needs a person.
    pub(super) fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }

    /// What is good to know.
    pub(super) fn notable(self, text: &str) -> String {
        self.with("33", text)
    }

    /// What is as it should be.
    pub(super) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    /// The heads of tables.
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
    fn only_a_terminal_is_painted() {
        assert_eq!(Paint(true).bad("x"), "\x1b[1;31mx\x1b[0m");
        assert_eq!(Paint(false).bad("x"), "x");
    }
}

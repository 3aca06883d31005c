//! Exit codes and errors of commands. The codes are part of the public contract.

use std::borrow::Cow;
use std::fmt;
use std::process::ExitCode;

use crate::causes::{Explain, chain};
use crate::registry::Diagnostics;

/// The exit code of a command. 64, 69, 70 and 75 are those of BSD's `sysexits.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The command succeeded.
    Clean = 0,
    /// The command ran, and its result is negative or not whole.
    No = 1,
    /// The usage, the settings or the rule files are wrong.
    Usage = 64,
    /// A server refused the command, or could not be reached.
    Unavailable = 69,
    /// A bug in this program.
    Internal = 70,
    /// The grace period ran out, or a second signal ended the program.
    Unfinished = 75,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The reason why a command failed, with its exit code. It is printed as `error: …`, then `help:
/// …`.
#[derive(Debug)]
pub struct CliError {
    /// The exit code.
    pub exit: Exit,
    /// The failure and its causes. It may have several lines. If it is empty, nothing is printed.
    pub message: String,
    /// Remedies, one a line.
    pub help: Vec<String>,
    /// Diagnostics that are printed before the error, as they are.
    diagnostics: Option<Diagnostics>,
}

impl CliError {
    /// Returns an error of this exit code.
    ///
    /// The message is a text. An error comes with its causes through [`of`](Self::of) or
    /// [`because`](Self::because).
    pub fn new(exit: Exit, message: impl Into<Cow<'static, str>>) -> Self {
        let message = message.into().into_owned();
        Self { exit, message, help: Vec::new(), diagnostics: None }
    }

    /// Returns the conversion of errors to this exit code: each with its causes and its advice.
    pub fn of<E: Explain>(exit: Exit) -> impl FnOnce(E) -> Self {
        move |error| Self {
            help: error.advice().map(Cow::into_owned).into_iter().collect(),
            ..Self::new(exit, chain(&error).to_string())
        }
    }

    /// Returns an error for wrong usage, settings or rule files.
    pub fn usage(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Returns an error for a server that refused the command, or could not be reached.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Exit::Unavailable, message)
    }

    /// Returns an error for a bug in this program.
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Exit::Internal, message)
    }

    /// Returns an error for a command that stopped before all of its work was done.
    pub fn stopped(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Exit::No, message)
    }

    /// Returns an error for rule files that cannot be used. Their diagnostics are printed first.
    pub fn rule_files(problems: Diagnostics) -> Self {
        let message = match problems.0.len() {
            1 => "the rule files have 1 problem".to_owned(),
            count => format!("the rule files have {count} problems"),
        };
        Self { diagnostics: Some(problems), ..Self::usage(message) }
    }

    /// Adds the error that caused this one, with its causes and its advice.
    #[must_use]
    pub fn because(mut self, error: &impl Explain) -> Self {
        self.message = format!("{}: {}", self.message, chain(error));
        self.help.extend(error.advice().map(Cow::into_owned));
        self
    }

    /// Adds a remedy.
    #[must_use]
    pub fn help(mut self, help: impl fmt::Display) -> Self {
        self.help.push(help.to_string());
        self
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(diagnostics) = &self.diagnostics {
            writeln!(f, "{diagnostics}")?;
        }
        write!(f, "error: {}", self.message)?;
        self.help.iter().try_for_each(|help| write!(f, "\nhelp: {help}"))
    }
}

/// Output that cannot be written. A reader that has gone, as under `| head`, is not an error.
impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::new(Exit::Clean, ""),
            _ => Self::internal("cannot write the output").because(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the server refused us")]
    struct Refused(#[source] io::Error);

    impl Explain for Refused {
        fn advice(&self) -> Option<Cow<'static, str>> {
            Some("check the password".into())
        }
    }

    fn refused() -> Refused {
        Refused(io::Error::other("no such user"))
    }

    #[test]
    fn an_error_is_printed_with_its_causes_then_its_advice() {
        for (error, printed) in [
            (CliError::usage("a text"), "error: a text"),
            (
                CliError::of(Exit::Unavailable)(refused()),
                "error: the server refused us: no such user\nhelp: check the password",
            ),
            (
                CliError::stopped("2 of 3 done").because(&refused()).help("run it again"),
                "error: 2 of 3 done: the server refused us: no such user\nhelp: check the password\nhelp: run it again",
            ),
            (io::Error::other("disk full").into(), "error: cannot write the output: disk full"),
        ] {
            assert_eq!(error.to_string(), printed);
        }
        assert_eq!(CliError::of(Exit::Unavailable)(refused()).exit, Exit::Unavailable);
    }
}

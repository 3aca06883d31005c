//! Exit codes and errors of commands. The codes are part of the public contract.

use std::fmt;
use std::process::ExitCode;

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
    /// The failure and its cause. It may have several lines. If it is empty, nothing is printed.
    pub message: String,
    /// The remedy.
    pub help: Option<String>,
    /// Diagnostics that are printed before the error, as they are.
    diagnostics: Option<Diagnostics>,
}

impl CliError {
    /// Returns an error of this exit code.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string(), help: None, diagnostics: None }
    }

    /// Returns an error for wrong usage, settings or rule files.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Returns an error for a server that refused the command, or could not be reached.
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self::new(Exit::Unavailable, message)
    }

    /// Returns an error for a bug in this program.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Exit::Internal, message)
    }

    /// Returns an error for a command that stopped before all of its work was done.
    pub fn stopped(message: impl fmt::Display) -> Self {
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

    /// Adds a remedy.
    #[must_use]
    pub fn help(mut self, help: impl fmt::Display) -> Self {
        self.help = Some(help.to_string());
        self
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(diagnostics) = &self.diagnostics {
            writeln!(f, "{diagnostics}")?;
        }
        write!(f, "error: {}", self.message)?;
        match &self.help {
            Some(help) => write!(f, "\nhelp: {help}"),
            None => Ok(()),
        }
    }
}

/// Output that cannot be written. A reader that has gone, as under `| head`, is not an error.
impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::new(Exit::Clean, ""),
            _ => Self::internal(format_args!("cannot write the output: {error}")),
        }
    }
}

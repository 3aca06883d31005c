//! Exit codes: part of the contract.

use std::fmt;
use std::process::ExitCode;

/// How a command ended (64, 69, 70 and 75 as in BSD's `sysexits.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Clean = 0,
    /// Done, and the answer is no.
    No = 1,
    /// Bad usage, configuration or registry.
    Usage = 64,
    /// A dependency refused us for good, or could not be reached.
    Unavailable = 69,
    /// A bug of ours.
    Internal = 70,
    /// The grace period ran out, or a second signal came.
    Unfinished = 75,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command could not do its work: one message for a person, and the code that says the same
/// to a program.
#[derive(Debug)]
pub struct CommandError {
    /// The code.
    pub exit: Exit,
    /// What is wrong and what to do; may be of several lines.
    pub message: String,
}

impl CommandError {
    /// Bad usage, configuration or registry.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { exit: Exit::Usage, message: message.to_string() }
    }

    /// A dependency refused us for good, or could not be reached.
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self { exit: Exit::Unavailable, message: message.to_string() }
    }

    /// A bug of ours.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self { exit: Exit::Internal, message: message.to_string() }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Output that cannot be written: where nobody reads any more, as under `| head`, that is no error.
impl From<std::io::Error> for CommandError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self { exit: Exit::Clean, message: String::new() },
            _ => Self::internal(format_args!("cannot write: {error}")),
        }
    }
}

//! The command `unstale completions SHELL`.

use std::io::{self, Write as _};

use clap::{Args, Command};
use clap_complete::Shell;

use super::{CliError, Exit};

/// Print shell completions
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct CompletionsArgs {
    /// The shell to print completions for
    shell: Shell,
}

const EXAMPLES: &str = "\
Examples:

  unstale completions bash > /etc/bash_completion.d/unstale
  unstale completions fish > ~/.config/fish/completions/unstale.fish";

/// Prints completions of a command line.
pub(super) fn run(args: &CompletionsArgs, cli: &mut Command) -> Result<Exit, CliError> {
    // `generate` panics if its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, cli, "unstale", &mut script);
    io::stdout().write_all(&script)?;
    Ok(Exit::Clean)
}

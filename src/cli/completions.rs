//! `unstale completions SHELL`

use std::io::{self, Write as _};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, CommandError, Exit};

/// Print completions for a shell
///
/// For bash: `unstale completions bash > /etc/bash_completion.d/unstale`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell to complete in
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<Exit, CommandError> {
    // `generate` panics where its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "unstale", &mut script);
    io::stdout().write_all(&script)?;
    Ok(Exit::Clean)
}

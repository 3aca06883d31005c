//! The command `unstale tags`, which has the one subcommand `gc`.

mod gc;

use clap::{Args, Subcommand};

use super::configure::configure;
use super::{CliError, Exit};
use crate::config::Scope;

/// Maintain the sets that hold the keys of each tag
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub struct TagsArgs {
    #[command(subcommand)]
    command: TagsCommand,
}

#[derive(Debug, Subcommand)]
enum TagsCommand {
    Gc(gc::GcArgs),
}

pub(super) fn run(args: &TagsArgs) -> Result<Exit, CliError> {
    let config = configure(Scope::All)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::of(Exit::Internal))?;
    let ended = match &args.command {
        TagsCommand::Gc(args) => runtime.block_on(gc::gc(args, &config)),
    };
    // A name lookup that is still running must not delay the exit.
    runtime.shutdown_background();
    ended
}

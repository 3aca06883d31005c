//! `unstale tags gc`

mod gc;

use clap::{Args, Subcommand};

use super::{CommandError, Exit, configure};
use crate::config::Scope;

/// Look after the sets of tags
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

pub(super) fn run(args: &TagsArgs) -> Result<Exit, CommandError> {
    let config = configure(Scope::All)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::internal)?;
    let ended = match &args.command {
        TagsCommand::Gc(args) => runtime.block_on(gc::gc(args, &config)),
    };
    // Nothing is waited for that still looks a name up.
    runtime.shutdown_background();
    ended
}

//! `unstale dlq list|show|replay|drop`

mod browse;
mod canary;
mod drop;
mod list;
mod replay;
mod select;
mod show;
mod text;

use std::future::Future;

use clap::{Args, Subcommand};

use super::{CommandError, Exit, configure};
use crate::config::Scope;

/// Look at dead letters, replay them, or drop them
///
/// What could not be applied stands in the queue `unstale.dead` with its reason. While one of these
/// commands runs, nobody else sees the letters that it has read; they go back when it ends, however
/// it ends.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub struct DlqArgs {
    #[command(subcommand)]
    command: DlqCommand,
}

#[derive(Debug, Subcommand)]
enum DlqCommand {
    List(list::ListArgs),
    Show(show::ShowArgs),
    Replay(replay::ReplayArgs),
    Drop(drop::DropArgs),
}

pub(super) fn run(args: &DlqArgs) -> Result<Exit, CommandError> {
    let config = configure(Scope::All)?;
    match &args.command {
        DlqCommand::List(args) => block_on(list::list(args, &config)),
        DlqCommand::Show(args) => show::run(args, &config),
        DlqCommand::Replay(args) => block_on(replay::replay(args, &config)),
        DlqCommand::Drop(args) => block_on(drop::drop(args, &config)),
    }
}

fn block_on(
    command: impl Future<Output = Result<Exit, CommandError>>,
) -> Result<Exit, CommandError> {
    // The connection must live on while one thread reads letters, or waits for a person.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(CommandError::internal)?;
    let ended = runtime.block_on(command);
    runtime.shutdown_background();
    ended
}

//! The commands `unstale dlq list`, `show`, `replay` and `drop`, one file each.
//!
//! Shared by them: `select` (filters), `browse` (reading the queue), `text` (tables), `canary` (a
//! replay in parts). The work on letters is in `ops::dead_letters`.

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

use super::{CliError, Exit, configure};
use crate::config::Scope;

/// List, show, replay or drop dead letters
///
/// A dead letter is an event that could not be applied. It is in the queue `unstale.dead`, with its
/// reason. While one of these commands runs, other clients do not see the letters that it has read.
/// When the command ends for any reason, the letters are requeued.
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
    Replay(replay::ReplayLettersArgs),
    Drop(drop::DropArgs),
}

pub(super) fn run(args: &DlqArgs) -> Result<Exit, CliError> {
    let config = configure(Scope::All)?;
    match &args.command {
        DlqCommand::List(args) => block_on(list::list(args, &config)),
        DlqCommand::Show(args) => show::run(args, &config),
        DlqCommand::Replay(args) => block_on(replay::replay(args, &config)),
        DlqCommand::Drop(args) => block_on(drop::drop(args, &config)),
    }
}

fn block_on(command: impl Future<Output = Result<Exit, CliError>>) -> Result<Exit, CliError> {
    // The connection must be kept alive while one thread reads letters, or waits for an answer.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(CliError::of(Exit::Internal))?;
    let ended = runtime.block_on(command);
    runtime.shutdown_background();
    ended
}

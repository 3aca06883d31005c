//! The commands `unstale dlq list`, `show`, `replay` and `drop`, one file each.
//!
//! Shared by them: `select` (filters), `browse` (reading the queue), `text` (tables), `canary` (a
//! replay in parts). The work on letters is in `ops::dead_letters`.

mod browse;
mod canary;
mod drop;
mod list;
mod replay;
mod runtime;
mod select;
mod show;
mod text;

use clap::{Args, Subcommand};

use super::configure::configure;
use super::{CliError, Exit};
use crate::config::Scope;

/// List, show, replay or drop dead letters
///
/// A dead letter is an event that could not be applied. It is in the queue `unstale.dead`, with its
/// reason. While one of these commands runs, other clients do not see the dead letters that it has
/// read. When the command ends for any reason, it requeues them.
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
        DlqCommand::List(args) => runtime::block_on(list::list(args, &config)),
        DlqCommand::Show(args) => show::run(args, &config),
        DlqCommand::Replay(args) => runtime::block_on(replay::replay(args, &config)),
        DlqCommand::Drop(args) => runtime::block_on(drop::drop(args, &config)),
    }
}

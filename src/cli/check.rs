//! `unstale check [DIR]`

use std::path::PathBuf;

use clap::Args;

use super::{CommandError, Exit};

/// Checks every schema file of a directory and runs the examples in them. Every problem is told at once, as `file:line:column: message`.
///
///   unstale check
///   unstale check ./schemas && git push
///
/// Exits with 64 where there is a problem or an example fails; warnings alone are 0.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CheckArgs {
    /// The directory; without it, UNSTALE_SCHEMAS
    dir: Option<PathBuf>,
    /// Print the JSON Schema of schema files, which lets editors complete and check them
    #[arg(long, conflicts_with_all = ["dir", "json"])]
    print_schema: bool,
    /// Print the findings as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(_args: &CheckArgs) -> Result<Exit, CommandError> {
    Err(CommandError::internal("not built in yet"))
}

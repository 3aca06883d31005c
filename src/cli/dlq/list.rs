//! `unstale dlq list`

use std::io::{self, BufWriter, Write as _};

use clap::Args;

use super::super::signal::stop_on_signal;
use super::super::{CommandError, Exit};
use super::browse::{browse, close, connect};
use super::select::Selection;
use super::text;
use crate::broker::Signer;
use crate::config::Config;
use crate::ops::dead_letters::{Spool, groups};
use crate::printable::printable_json;

/// List dead letters: by reason and type, then one line each
///
/// Nothing is taken out. The oldest come first. Filters that are given more than once mean any of what they say; different ones must all hold.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ListArgs {
    #[command(flatten)]
    selection: Selection,
    /// Print one JSON object for each, bodies included, in the form that `unstale plan` reads
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:

  unstale dlq list --since 1h
  unstale dlq list --reason loader_refused --type 'product.*'
  unstale dlq list --json | unstale plan";

pub(super) async fn list(args: &ListArgs, config: &Config) -> Result<Exit, CommandError> {
    let stop = stop_on_signal()?;
    let mut letters = connect(config, &Signer::default()).await?;
    let (total, queue) = (letters.total() as usize, letters.names().dead.clone());
    let filter = args.selection.filter();
    let limit = args.selection.limit();
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        let mut spool = Spool::new().map_err(CommandError::usage)?;
        let outcome = browse(&mut letters, config, &filter, &stop, |dead, letter| {
            let line = printable_json(&dead.delivery.to_owned_message().to_line()).into_owned() + "\n";
            Ok(spool.push(letter.time, &line)?)
        });
        let outcome = outcome.await;
        close(letters, outcome).await?;
        spool.write_to(limit, &mut out)?;
        return Ok(Exit::Clean);
    }
    let mut meant = Vec::new();
    let outcome = browse(&mut letters, config, &filter, &stop, |_, letter| {
        meant.push(letter);
        Ok(())
    });
    let outcome = outcome.await;
    close(letters, outcome).await?;
    meant.sort_by_key(|letter| letter.time);
    if filter.is_all() {
        writeln!(out, "{} in `{queue}`", text::letters(meant.len()))?;
    } else {
        writeln!(out, "{} of {} in `{queue}`", meant.len(), text::letters(total))?;
    }
    if !meant.is_empty() {
        writeln!(out)?;
        text::write_groups(&groups(&meant), &mut out)?;
        writeln!(out)?;
        let lines = &meant[..meant.len().min(limit)];
        text::write_lines(lines, &mut out)?;
        if lines.len() < meant.len() {
            writeln!(out, "  and {} more", meant.len() - lines.len())?;
        }
    }
    out.flush()?;
    Ok(Exit::Clean)
}

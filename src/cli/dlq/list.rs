//! `unstale dlq list`

use std::io::{self, BufWriter, Write};

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::super::paint::Paint;
use super::super::signal::stop_on_signal;
use super::super::{CommandError, Exit};
use super::browse::{browse, close, connect, connect_to_retry};
use super::select::{Grouping, Selection};
use super::text;
use crate::broker::{DeadLetter, DeadLetters, Names, Signer};
use crate::config::Config;
use crate::ops::dead_letters::{Filter, GroupBy, Letter, Spool, groups, keep_oldest};
use crate::printable::printable_json;
use crate::quantity::format_duration;

/// List dead letters: counted by reason and type, then one line each
///
/// Nothing is taken out. The oldest come first. Filters that are given more than once mean any of
/// what they say; different ones must all hold.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ListArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    grouping: Grouping,
    /// List what waits on the retry schedule instead: none of it is a dead letter yet
    #[arg(long)]
    waiting: bool,
    /// Print one JSON object for each, bodies included, in the form that `unstale plan` reads
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:

  unstale dlq list --since 1h
  unstale dlq list --reason loader_refused --type 'product.*'
  unstale dlq list --group-by rule,error
  unstale dlq list --waiting
  unstale dlq list --json | unstale plan";

pub(super) async fn list(args: &ListArgs, config: &Config) -> Result<Exit, CommandError> {
    let stop = stop_on_signal()?;
    if args.waiting {
        return list_waiting(args, config, &stop).await;
    }
    let mut letters = connect(config, &Signer::default()).await?;
    let (total, queue) = (letters.total() as usize, letters.queue().to_owned());
    let filter = args.selection.filter();
    if args.json {
        let mut spool = Spool::new().map_err(CommandError::usage)?;
        let outcome = spool_lines(&mut letters, config, &filter, &stop, &mut spool).await;
        close(letters, outcome).await?;
        spool.write_to(args.selection.limit(), &mut BufWriter::new(io::stdout().lock()))?;
        return Ok(Exit::Clean);
    }
    let mut meant = Vec::new();
    let outcome = keep(&mut letters, config, &filter, &stop, &mut meant).await;
    close(letters, outcome).await?;
    let mut out = BufWriter::new(io::stdout().lock());
    if filter.is_all() {
        writeln!(out, "{} in `{queue}`", text::letters(meant.len()))?;
    } else {
        writeln!(out, "{} of {} in `{queue}`", meant.len(), text::letters(total))?;
    }
    let by = args.grouping.by(&GroupBy::DEFAULT);
    write_meant(args, meant, &by, &mut out)
}

/// Lists what waits on the retry schedule, all steps together.
async fn list_waiting(
    args: &ListArgs,
    config: &Config,
    stop: &CancellationToken,
) -> Result<Exit, CommandError> {
    let filter = args.selection.filter();
    let mut spool = Spool::new().map_err(CommandError::usage)?;
    let mut meant = Vec::new();
    let mut steps = Vec::new();
    for (delay, queue) in Names::new(&config.amqp.queue, &config.amqp.retry_delays).retry {
        let Some(mut letters) = connect_to_retry(&queue, config).await? else { continue };
        let before = meant.len();
        let outcome = match args.json {
            true => spool_lines(&mut letters, config, &filter, stop, &mut spool).await,
            false => keep(&mut letters, config, &filter, stop, &mut meant).await,
        };
        close(letters, outcome).await?;
        steps.push(format!("{}: {}", format_duration(delay), meant.len() - before));
    }
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        spool.write_to(args.selection.limit(), &mut out)?;
        return Ok(Exit::Clean);
    }
    let events = if meant.len() == 1 { "event waits" } else { "events wait" };
    writeln!(out, "{} {events} on the retry schedule ({})", meant.len(), steps.join(", "))?;
    let by = args.grouping.by(&[GroupBy::Error, GroupBy::Type]);
    write_meant(args, meant, &by, &mut out)
}

async fn spool_lines(
    letters: &mut DeadLetters,
    config: &Config,
    filter: &Filter,
    stop: &CancellationToken,
    spool: &mut Spool,
) -> Result<(), CommandError> {
    let visit = |dead: &DeadLetter, letter: Letter| {
        let line = with_letter(&letter, &dead.delivery.to_owned_message().to_line());
        Ok(spool.push(letter.time, &(printable_json(&line).into_owned() + "\n"))?)
    };
    browse(letters, config, filter, stop, visit).await
}

async fn keep(
    letters: &mut DeadLetters,
    config: &Config,
    filter: &Filter,
    stop: &CancellationToken,
    meant: &mut Vec<Letter>,
) -> Result<(), CommandError> {
    let visit = |_: &DeadLetter, letter| {
        meant.push(letter);
        Ok(())
    };
    browse(letters, config, filter, stop, visit).await
}

fn write_meant(
    args: &ListArgs,
    mut meant: Vec<Letter>,
    by: &[GroupBy],
    out: &mut impl Write,
) -> Result<Exit, CommandError> {
    if !meant.is_empty() {
        let paint = Paint::of_stdout();
        writeln!(out)?;
        text::write_groups(&groups(&meant, by), paint, out)?;
        writeln!(out)?;
        let all = meant.len();
        keep_oldest(&mut meant, args.selection.limit());
        text::write_lines(&meant, paint, out)?;
        if meant.len() < all {
            writeln!(out, "  and {} more", all - meant.len())?;
        }
    }
    out.flush()?;
    Ok(Exit::Clean)
}

/// Puts what the letter says of itself before a message's members: what the broker dead-lettered
/// has no headers that would say it.
fn with_letter(letter: &Letter, line: &str) -> String {
    format!("{{\"dead_letter\":{},{}", letter.to_json(), line.strip_prefix('{').unwrap_or(line))
}

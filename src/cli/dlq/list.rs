//! The command `unstale dlq list`.

use std::io::{self, BufWriter, Write};

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::super::paint::Paint;
use super::super::signal::stop_on_signal;
use super::super::{CliError, Exit};
use super::browse::{Seen, browse, close, connect, connect_to_retry, exit_after, signer};
use super::select::{Grouping, Selection};
use super::text;
use crate::broker::{DeadLetters, Names, Signer};
use crate::config::Config;
use crate::ops::dead_letters::{Filter, GroupBy, Letter, Spool, groups, keep_oldest};
use crate::printable::printable_json;
use crate::quantity::format_duration;

/// List dead letters: their counts by reason and type, then one line for each
///
/// No dead letter is removed from the queue. The oldest ones come first. A repeated filter matches
/// any of its values. Different filters are combined with AND.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
#[command(mut_arg("group_by", |arg| arg.help(GROUP_BY_HELP)))]
pub(super) struct ListArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    grouping: Grouping,
    /// List the events that wait for a retry instead of the dead letters
    #[arg(long)]
    waiting: bool,
    /// Print one JSON object for each dead letter, with its body, in the form that `unstale plan`
    /// reads
    #[arg(long)]
    json: bool,
}

const GROUP_BY_HELP: &str = "\
Columns by which dead letters are counted, separated by commas; prints only the counts [default: reason,type; with --waiting: error,type]";

const EXAMPLES: &str = "\
Examples:

  unstale dlq list --since 1h
  unstale dlq list --reason loader_refused --type 'product.*'
  unstale dlq list --group-by rule,error
  unstale dlq list --waiting
  unstale dlq list --json | unstale plan";

pub(super) async fn list(args: &ListArgs, config: &Config) -> Result<Exit, CliError> {
    let stop = stop_on_signal()?;
    // Tables show nothing that depends on a signature, so they do not need Redis.
    let signer = if args.json { signer(config).await? } else { Signer::default() };
    if args.waiting {
        return list_waiting(args, config, &signer, &stop).await;
    }
    let mut letters = connect(config, &signer).await?;
    let (total, queue) = (letters.total() as usize, letters.queue().to_owned());
    let filter = args.selection.filter();
    if args.json {
        let mut spool = Spool::new().map_err(CliError::of(Exit::Usage))?;
        let outcome = spool_lines(&mut letters, config, &filter, &stop, &mut spool).await;
        let exit = exit_after(&letters);
        close(letters, outcome).await?;
        spool.write_to(args.selection.limit(), &mut BufWriter::new(io::stdout().lock()))?;
        return Ok(exit);
    }
    let mut selected = Vec::new();
    let outcome = keep(&mut letters, config, &filter, &stop, &mut selected).await;
    let exit = exit_after(&letters);
    close(letters, outcome).await?;
    let mut out = BufWriter::new(io::stdout().lock());
    if filter.is_all() {
        writeln!(out, "{} in `{queue}`", text::letters(selected.len()))?;
    } else {
        writeln!(out, "{} of {} in `{queue}`", selected.len(), text::letters(total))?;
    }
    let by = args.grouping.by(&GroupBy::DEFAULT);
    write_selected(args, selected, &by, &mut out)?;
    Ok(exit)
}

/// Lists the events that wait on the retry schedule, of all its steps together.
async fn list_waiting(
    args: &ListArgs,
    config: &Config,
    signer: &Signer,
    stop: &CancellationToken,
) -> Result<Exit, CliError> {
    let filter = args.selection.filter();
    let mut spool = Spool::new().map_err(CliError::of(Exit::Usage))?;
    let mut selected = Vec::new();
    let (mut steps, mut exit) = (Vec::new(), Exit::Clean);
    for (delay, queue) in Names::new(&config.amqp.queue, &config.amqp.retry_delays).retry {
        let Some(mut letters) = connect_to_retry(&queue, config, signer).await? else { continue };
        let before = selected.len();
        let outcome = match args.json {
            true => spool_lines(&mut letters, config, &filter, stop, &mut spool).await,
            false => keep(&mut letters, config, &filter, stop, &mut selected).await,
        };
        if exit_after(&letters) != Exit::Clean {
            exit = Exit::No;
        }
        close(letters, outcome).await?;
        steps.push(format!("{}: {}", format_duration(delay), selected.len() - before));
    }
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        spool.write_to(args.selection.limit(), &mut out)?;
        return Ok(exit);
    }
    let events = if selected.len() == 1 { "event waits" } else { "events wait" };
    writeln!(out, "{} {events} on the retry schedule ({})", selected.len(), steps.join(", "))?;
    let by = args.grouping.by(&[GroupBy::Error, GroupBy::Type]);
    write_selected(args, selected, &by, &mut out)?;
    Ok(exit)
}

async fn spool_lines(
    letters: &mut DeadLetters,
    config: &Config,
    filter: &Filter,
    stop: &CancellationToken,
    spool: &mut Spool,
) -> Result<(), CliError> {
    let before = spool.len();
    let visit = |seen: Seen<'_>| {
        let Seen::Letter(dead, letter) = seen else {
            spool.truncate(before);
            return Ok(());
        };
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
    selected: &mut Vec<Letter>,
) -> Result<(), CliError> {
    let before = selected.len();
    let visit = |seen: Seen<'_>| {
        match seen {
            Seen::Letter(_, letter) => selected.push(letter),
            Seen::Again => selected.truncate(before),
        }
        Ok(())
    };
    browse(letters, config, filter, stop, visit).await
}

fn write_selected(
    args: &ListArgs,
    mut selected: Vec<Letter>,
    by: &[GroupBy],
    out: &mut impl Write,
) -> Result<(), CliError> {
    let paint = Paint::of_stdout();
    if !selected.is_empty() {
        writeln!(out)?;
        text::write_groups(&groups(&selected, by), paint, out)?;
    }
    if !selected.is_empty() && !args.grouping.is_given() {
        writeln!(out)?;
        let all = selected.len();
        keep_oldest(&mut selected, args.selection.limit());
        text::write_lines(&selected, paint, out)?;
        if selected.len() < all {
            writeln!(out, "  and {} more", all - selected.len())?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Puts the facts about the letter in front of a message's members. A message that the broker
/// dead-lettered has no headers with them.
fn with_letter(letter: &Letter, line: &str) -> String {
    format!("{{\"dead_letter\":{},{}", letter.to_json(), line.strip_prefix('{').unwrap_or(line))
}

//! The command `unstale dlq drop`.

use std::io::{self, IsTerminal as _, Write as _};

use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::super::paint::Paint;
use super::super::signal::stop_on_signal;
use super::super::{CliError, Exit};
use super::browse::{Seen, browse, close, connect, exit_after, progress};
use super::select::{Grouping, Selection};
use super::text;
use crate::broker::{BrokerError, DeadLetters, Signer, Tag};
use crate::config::Config;
use crate::ops::dead_letters::{Filter, GroupBy, groups, keep_oldest};

/// Number of letters that are dropped before progress is shown and a signal is noticed.
const BATCH: usize = 1000;

/// Drop dead letters for good
///
/// Prints which dead letters match, and asks before it drops them. Without a terminal it needs
/// --yes. It drops exactly the dead letters that it counted, and none that arrived later. A dead
/// letter without a time never matches --since or --until.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct DropArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    grouping: Grouping,
    /// Drop only the letters that RabbitMQ cannot deliver, which no filter can select
    #[arg(long, conflicts_with_all = ["reason", "types", "rule", "error", "since", "until", "id", "limit", "group_by"])]
    undeliverable: bool,
    /// Drop without asking
    #[arg(long)]
    yes: bool,
    /// Print what would be dropped, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the number of dropped dead letters and their groups as one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:

  unstale dlq drop --reason malformed --dry-run
  unstale dlq drop --id 42
  unstale dlq drop --type 'test.#' --yes
  unstale dlq drop --undeliverable";

pub(super) async fn drop(args: &DropArgs, config: &Config) -> Result<Exit, CliError> {
    if !args.yes && !args.dry_run && !io::stdin().is_terminal() {
        return Err(CliError::usage(
            "cannot ask for confirmation, because stdin is not a terminal",
        )
        .help("add --yes to drop, or --dry-run to see what would be dropped"));
    }
    let stop = stop_on_signal()?;
    // Selection and groups do not depend on a signature, so this does not need Redis.
    let mut letters = connect(config, &Signer::default()).await?;
    let outcome = if args.undeliverable {
        drop_undeliverable(args, &mut letters, &stop).await
    } else {
        drop_selected(args, config, &mut letters, &stop).await
    };
    close(letters, outcome).await
}

async fn drop_selected(
    args: &DropArgs,
    config: &Config,
    letters: &mut DeadLetters,
    stop: &CancellationToken,
) -> Result<Exit, CliError> {
    let mut selected = Vec::new();
    browse(letters, config, &Filter { timeless: false, ..args.selection.filter() }, stop, |seen| {
        match seen {
            Seen::Letter(_, letter) => selected.push(letter),
            Seen::Again => selected.clear(),
        }
        Ok(())
    })
    .await?;
    keep_oldest(&mut selected, args.selection.limit());
    let queue = letters.names().dead.clone();
    let groups = groups(&selected, &args.grouping.by(&GroupBy::DEFAULT));
    if !args.json {
        text::write_groups(&groups, Paint::of_stdout(), &mut io::stdout().lock())?;
    }
    let report = |name: &str, count: usize| -> io::Result<()> {
        if args.json {
            let groups: Vec<_> = groups.iter().map(|group| group.to_json()).collect();
            writeln!(io::stdout(), "{}", json!({ "queue": queue, name: count, "groups": groups }))?;
        }
        Ok(())
    };
    let all = text::letters(selected.len());
    if args.dry_run {
        report("would_drop", selected.len())?;
        writeln!(io::stderr(), "would drop {all} of `{queue}`")?;
        return Ok(exit_after(letters));
    }
    if !selected.is_empty()
        && !args.yes
        && !asked(&format!("drop {all} of `{queue}` for good?"), stop).await?
    {
        report("dropped", 0)?;
        writeln!(io::stderr(), "dropped nothing")?;
        return Ok(Exit::No);
    }
    let tags: Vec<Tag> = selected.iter().map(|letter| letter.tag).collect();
    let mut dropped = 0;
    let progress = progress(u32::try_from(tags.len()).unwrap_or(u32::MAX), "dropped");
    for some in tags.chunks(BATCH) {
        if stop.is_cancelled() {
            return Err(CliError::stopped(format!("interrupted: dropped {dropped} of {all}")));
        }
        letters.take(some).await.map_err(|ended| {
            CliError::stopped(format!("dropped {dropped} of {all}")).because(&ended)
        })?;
        dropped += some.len();
        progress.inc(some.len() as u64);
    }
    progress.finish_and_clear();
    report("dropped", dropped)?;
    writeln!(io::stderr(), "dropped {} of `{queue}`", text::letters(dropped))?;
    Ok(exit_after(letters))
}

/// Drops the letters that RabbitMQ cannot deliver, one after another. Those between them are read
/// to find the next, and go back.
async fn drop_undeliverable(
    args: &DropArgs,
    letters: &mut DeadLetters,
    stop: &CancellationToken,
) -> Result<Exit, CliError> {
    let queue = letters.names().dead.clone();
    let mut dropped = 0;
    let counted = |count: usize| {
        format!("{count} undeliverable dead letter{}", if count == 1 { "" } else { "s" })
    };
    let failed = |dropped: usize, error: &BrokerError| {
        CliError::stopped(format!("dropped {}", counted(dropped))).because(error)
    };
    while letters.rewind_before_undeliverable().await.map_err(|error| failed(dropped, &error))? {
        if stop.is_cancelled() {
            return Err(CliError::stopped(format!("interrupted: dropped {}", counted(dropped))));
        }
        let Some(letter) = letters.undeliverable() else { break };
        if args.dry_run {
            writeln!(io::stderr(), "would drop {} of `{queue}`: others may follow it", counted(1))?;
            if args.json {
                writeln!(io::stdout(), "{}", json!({ "queue": queue, "would_drop": 1 }))?;
            }
            return Ok(Exit::Clean);
        }
        let question = format!(
            "drop one of {} letters in `{queue}`, which RabbitMQ cannot deliver, for good?",
            letter.of
        );
        if !args.yes && !asked(&question, stop).await? {
            writeln!(io::stderr(), "dropped {} of `{queue}`", counted(dropped))?;
            return Ok(Exit::No);
        }
        let is_dropped =
            letters.drop_undeliverable().await.map_err(|error| failed(dropped, &error))?;
        if !is_dropped {
            return Err(CliError::stopped(format!(
                "dropped {}: another program has changed `{queue}`",
                counted(dropped)
            ))
            .help("run the command again"));
        }
        dropped += 1;
    }
    let (verb, member) =
        if args.dry_run { ("would drop", "would_drop") } else { ("dropped", "dropped") };
    if args.json {
        writeln!(io::stdout(), "{}", json!({ "queue": queue, member: dropped }))?;
    }
    writeln!(io::stderr(), "{verb} {} of `{queue}`", counted(dropped))?;
    Ok(Exit::Clean)
}

/// Asks on the terminal. Any answer but `y` or `yes` is a no.
async fn asked(question: &str, stop: &CancellationToken) -> Result<bool, CliError> {
    write!(io::stderr(), "{question} [y/N] ")?;
    io::stderr().flush()?;
    // The connection must be kept alive while the question waits.
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|_| answer)
    });
    tokio::select! {
        () = stop.cancelled() => Err(CliError::stopped("interrupted: dropped nothing")),
        answer = answer => {
            let answer = answer.map_err(CliError::of(Exit::Internal))?.map_err(CliError::of(Exit::Internal))?;
            Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
        }
    }
}

//! `unstale dlq replay`

use std::io::{self, Write as _};
use std::time::Instant;

use clap::Args;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::super::reach::{answer_of, reach};
use super::super::signal::stop_on_signal;
use super::super::{CommandError, Exit};
use super::browse::{browse, close, connect, progress, signer};
use super::select::Selection;
use super::text;
use crate::broker::{DeadLetter, DeadLetters, PublishError, Publisher};
use crate::cache::{Cache, LowWatermark};
use crate::config::Config;
use crate::ops::dead_letters::{Letter, groups, replay_batch};
use crate::ops::{Mark, Pace};
use crate::quantity::Rate;

/// Letters in flight: what may be applied twice where the program is killed.
const IN_FLIGHT: usize = 250;

/// Put dead letters back to where workers take events from
///
/// Each letter is published to the queue of events, and only to that; once it is confirmed there, it is taken out of the dead-letter queue. Attempts start
/// at 0. Interrupted, it loses nothing: run it again. Killed, it leaves at most the letters then in flight in both queues, and these are applied twice.
/// What fails again comes back with its history. Exits with 1 where letters were left behind.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    selection: Selection,
    /// No more than so many: 50/s, 600/m
    #[arg(long, value_parser = |text: &str| Rate::parse(text))]
    rate: Option<Rate>,
    /// Say what would be replayed, and change nothing
    #[arg(long)]
    dry_run: bool,
}

const EXAMPLES: &str = "\
Examples:

  unstale dlq replay --reason loader_refused --dry-run
  unstale dlq replay --type 'product.*' --rate 50/s
  unstale dlq replay --since 2h --limit 10";

pub(super) async fn replay(args: &ReplayArgs, config: &Config) -> Result<Exit, CommandError> {
    let stop = stop_on_signal()?;
    let mut letters = connect(config, &signer(config).await?).await?;
    reach(async || letters.find_main().await).await?;
    if args.dry_run {
        return dry_run(args, config, letters, &stop).await;
    }
    let mut publisher = reach(async || Publisher::connect(&config.amqp).await).await?;
    let cache = Cache::connect(&config.redis, &config.amqp.queue).map_err(CommandError::usage)?;
    let mut mark = if config.heals() { marking(&cache).await? } else { None };
    let mut done = 0;
    let outcome = replay_all(args, config, &mut letters, &mut publisher, &mut mark, &stop, &mut done).await;
    publisher.close().await;
    let queue = letters.names().main.clone();
    let closed = close(letters, Ok(())).await;
    writeln!(io::stderr(), "replayed {} to `{queue}`", text::letters(done))?;
    outcome?;
    closed.map(|()| Exit::Clean)
}

/// Should Redis go back after workers have applied the letters, it is healed from when their events arrived. The mark stays for an hour: nobody knows
/// when they are applied.
async fn marking(cache: &Cache) -> Result<Option<Mark<'_>>, CommandError> {
    match answer_of("Redis", cache.probe()).await? {
        Ok(()) => Ok(Some(Mark::new(cache, "dlq"))),
        Err(outage) => {
            writeln!(io::stderr(), "{outage}: replaying all the same; should Redis lose writes, what these letters do is not made again")?;
            Ok(None)
        }
    }
}

async fn dry_run(args: &ReplayArgs, config: &Config, mut letters: DeadLetters, stop: &CancellationToken) -> Result<Exit, CommandError> {
    let (filter, limit) = (args.selection.filter(), args.selection.limit());
    let mut meant = Vec::new();
    let outcome = browse(&mut letters, config, &filter, stop, |_, letter| {
        if meant.len() < limit {
            meant.push(letter);
        }
        Ok(())
    });
    let outcome = outcome.await;
    let queue = letters.names().main.clone();
    close(letters, outcome).await?;
    if !meant.is_empty() {
        text::write_groups(&groups(&meant), &mut io::stdout().lock())?;
    }
    writeln!(io::stderr(), "would replay {} to `{queue}`", text::letters(meant.len()))?;
    Ok(Exit::Clean)
}

/// Replays in the queue's order, a batch at a time. An error says why letters are left.
async fn replay_all(
    args: &ReplayArgs,
    config: &Config,
    letters: &mut DeadLetters,
    publisher: &mut Publisher,
    mark: &mut Option<Mark<'_>>,
    stop: &CancellationToken,
    done: &mut usize,
) -> Result<(), CommandError> {
    let filter = args.selection.filter();
    let limit = args.selection.limit();
    let mut pace = Pace::new(args.rate);
    let progress = progress(letters.total(), "looked at");
    let (mut left, mut first_problem) = (0, None);
    let partial = |message: String| CommandError { exit: Exit::No, message };
    while *done + left < limit {
        let read = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(partial(INTERRUPTED.to_owned())),
            read = letters.next_batch(IN_FLIGHT.min(limit - *done - left)) => read.map_err(|ended| partial(format!("{ended}: {RUN_AGAIN}")))?,
        };
        if read.is_empty() {
            break;
        }
        let looked_at = read.len() as u64;
        let meant: Vec<(DeadLetter, Letter)> = read
            .into_iter()
            .map(|dead| {
                let letter = Letter::read(&dead, config.reading);
                (dead, letter)
            })
            .filter(|(_, letter)| filter.matches(letter))
            .collect();
        for step in meant.chunks(pace.step(IN_FLIGHT)) {
            wait(&pace, publisher, stop).await.map_err(|()| partial(INTERRUPTED.to_owned()))?;
            if let Some(mark) = mark {
                let earliest = step.iter().map(|(_, letter)| letter.low()).reduce(LowWatermark::lower);
                mark.hold(earliest.unwrap_or_default()).await.map_err(|error| partial(format!("{error}: {RUN_AGAIN}")))?;
            }
            let now = Timestamp::now().to_string();
            let replayed = replay_batch(letters, publisher, step, &now).await.map_err(|ended| partial(format!("{ended}: {RUN_AGAIN}")))?;
            pace.went(step.len(), Instant::now());
            *done += replayed.done;
            left += replayed.left;
            match replayed.problem {
                // Nothing of what follows would fare better.
                Some(problem @ (PublishError::Ended(_) | PublishError::Returned(_) | PublishError::Refused(_))) => {
                    return Err(partial(format!("{problem}: {RUN_AGAIN}")));
                }
                Some(problem) => {
                    first_problem.get_or_insert(problem);
                }
                None => {}
            }
        }
        progress.inc(looked_at);
    }
    progress.finish_and_clear();
    match first_problem {
        Some(problem) => Err(partial(format!("{} left behind: {problem}: {RUN_AGAIN}", text::letters(left)))),
        None => Ok(()),
    }
}

const RUN_AGAIN: &str = "nothing is lost; run it again for the rest";

const INTERRUPTED: &str = "interrupted: nothing is lost; run it again for the rest";

/// Until the rate allows the next step, and the broker takes messages.
async fn wait(pace: &Pace, publisher: &Publisher, stop: &CancellationToken) -> Result<(), ()> {
    let ready = async {
        if let Some(due) = pace.due() {
            tokio::time::sleep_until(due.into()).await;
        }
        if publisher.is_blocked() {
            // Nobody waits for ever without knowing why.
            let _ = writeln!(io::stderr(), "RabbitMQ takes no messages (a memory or disk alarm): waiting");
            publisher.unblocked().await;
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(()),
        () = ready => Ok(()),
    }
}

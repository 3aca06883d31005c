//! `unstale dlq replay`

use std::io::{self, Write as _};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::super::paint::Paint;
use super::super::reach::{answer_of, reach};
use super::super::signal::stop_on_signal;
use super::super::{CommandError, Exit};
use super::browse::{browse, close, connect, progress, signer};
use super::canary::Canary;
use super::select::{Grouping, Selection};
use super::text;
use crate::broker::{DeadLetter, DeadLetters, PublishError, Publisher};
use crate::cache::{Cache, LowWatermark};
use crate::config::Config;
use crate::ops::dead_letters::{
    Candidates, Chosen, Filter, GroupBy, Letter, groups, keep_oldest, replay_batch,
};
use crate::ops::{Mark, Pace};
use crate::quantity::Rate;

/// Letters in flight: what may be applied twice where the program is killed.
const IN_FLIGHT: usize = 250;

/// Put dead letters back to where workers take events from
///
/// Each letter is published to the queue of events, and only to that; once it is confirmed there,
/// it is taken out of the dead-letter queue. Attempts start at 0. Interrupted, it loses nothing:
/// run it again. Killed, it leaves at most the letters then in flight in both queues, and these are
/// applied twice. What fails again comes back with its history. Exits with 1 where letters were
/// left behind.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    grouping: Grouping,
    /// No more than so many: 50/s, 600/m
    #[arg(long, value_parser = |text: &str| Rate::parse(text))]
    rate: Option<Rate>,
    /// Stop once so many have become dead letters again: 10 go first, then ten times as many each
    /// time that too few did
    #[arg(long, value_name = "N", value_parser = super::select::count)]
    stop_after_failures: Option<u32>,
    /// Say what would be replayed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object: how many were replayed, and why it ended before the last
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:

  unstale dlq replay --reason loader_refused --dry-run
  unstale dlq replay --type 'product.*' --rate 50/s
  unstale dlq replay --rule user.yaml#user.updated/0 --stop-after-failures 5
  unstale dlq replay --since 2h --limit 10";

/// A broker gives a connection up that reads nothing for 15 s.
const PATIENCE_OF_BROKER: Duration = Duration::from_secs(5);

const RUN_AGAIN: &str = "nothing is lost; run it again for the rest";

const INTERRUPTED: &str = "interrupted: nothing is lost; run it again for the rest";

pub(super) async fn replay(args: &ReplayArgs, config: &Config) -> Result<Exit, CommandError> {
    let stop = stop_on_signal()?;
    let mut letters = connect(config, &signer(config).await?).await?;
    reach(async || letters.find_main().await).await?;
    if let Some(rate) = args.rate {
        letters = letters.with_channel_max(within(PATIENCE_OF_BROKER, rate));
    }
    if args.dry_run {
        return dry_run(args, config, letters, &stop).await;
    }
    let publisher = reach(async || Publisher::connect(&config.amqp).await).await?;
    let cache = Cache::connect(&config.redis, &config.amqp.queue).map_err(CommandError::usage)?;
    let mark = if config.heals() { marking(&cache).await? } else { None };
    let progress = progress(letters.total(), "looked at");
    let queue = letters.names().main.clone();
    let mut replay = Replay {
        config,
        filter: args.selection.filter(),
        letters: &mut letters,
        publisher,
        mark,
        pace: Pace::new(args.rate),
        stop: &stop,
        progress,
        done: 0,
        left: 0,
        first_problem: None,
    };
    let outcome = replay.all(args).await;
    let (done, left) = (replay.done, replay.left);
    replay.publisher.close().await;
    let closed = close(letters, Ok(())).await;
    writeln!(io::stderr(), "replayed {} to `{queue}`", text::letters(done))?;
    if args.json {
        let cause = outcome.as_ref().err().map(|error| error.message.as_str());
        writeln!(
            io::stdout(),
            "{}",
            json!({ "queue": queue, "replayed": done, "left_behind": left, "ended_by": cause })
        )?;
    }
    outcome?;
    closed.map(|()| Exit::Clean)
}

/// Returns how many letters go in that time: no more are to be on their way.
fn within(time: Duration, rate: Rate) -> NonZeroU16 {
    let letters = time.as_nanos() / rate.interval().as_nanos().max(1);
    NonZeroU16::new(u16::try_from(letters).unwrap_or(u16::MAX)).unwrap_or(NonZeroU16::MIN)
}

/// Should Redis go back after workers have applied the letters, it is healed from when their events
/// arrived. The mark stays for an hour: nobody knows when they are applied.
async fn marking(cache: &Cache) -> Result<Option<Mark<'_>>, CommandError> {
    match answer_of("Redis", cache.probe()).await? {
        Ok(()) => Ok(Some(Mark::new(cache, "dlq"))),
        Err(outage) => {
            writeln!(
                io::stderr(),
                "{outage}: replaying all the same; should Redis lose writes, what these letters do is not made again"
            )?;
            Ok(None)
        }
    }
}

async fn dry_run(
    args: &ReplayArgs,
    config: &Config,
    mut letters: DeadLetters,
    stop: &CancellationToken,
) -> Result<Exit, CommandError> {
    let (mut meant, filter) = (Vec::new(), args.selection.filter());
    let outcome = browse(&mut letters, config, &filter, stop, |_, letter| {
        meant.push(letter);
        Ok(())
    });
    let outcome = outcome.await;
    let queue = letters.names().main.clone();
    close(letters, outcome).await?;
    keep_oldest(&mut meant, args.selection.limit());
    let groups = groups(&meant, &args.grouping.by(&GroupBy::DEFAULT));
    if args.json {
        let groups: Vec<_> = groups.iter().map(|group| group.to_json()).collect();
        writeln!(
            io::stdout(),
            "{}",
            json!({ "queue": queue, "would_replay": meant.len(), "groups": groups })
        )?;
    } else {
        text::write_groups(&groups, Paint::of_stdout(), &mut io::stdout().lock())?;
    }
    writeln!(io::stderr(), "would replay {} to `{queue}`", text::letters(meant.len()))?;
    Ok(Exit::Clean)
}

/// A replay under way.
struct Replay<'r> {
    config: &'r Config,
    filter: Filter,
    letters: &'r mut DeadLetters,
    publisher: Publisher,
    mark: Option<Mark<'r>>,
    pace: Pace,
    stop: &'r CancellationToken,
    progress: ProgressBar,
    done: usize,
    /// Letters that RabbitMQ did not take, and stay where they are.
    left: usize,
    first_problem: Option<PublishError>,
}

fn partial(message: impl Into<String>) -> CommandError {
    CommandError { exit: Exit::No, message: message.into() }
}

fn run_again(why: impl std::fmt::Display) -> CommandError {
    partial(format!("{why}: {RUN_AGAIN}"))
}

impl Replay<'_> {
    /// Replays what is meant. An error says why letters are left.
    async fn all(&mut self, args: &ReplayArgs) -> Result<(), CommandError> {
        // Which are the oldest, and which came back, is known after a look at all of them.
        let mut chosen = match args.selection.is_limited() || args.stop_after_failures.is_some() {
            true => Some(self.choose(args.selection.limit()).await?),
            false => None,
        };
        match (args.stop_after_failures, &mut chosen) {
            (Some(failures), Some(chosen)) => self.by_canaries(failures, chosen).await?,
            (_, chosen) => self.pass(usize::MAX, chosen.as_mut(), None).await?,
        }
        self.progress.finish_and_clear();
        match self.first_problem.take() {
            Some(problem) => {
                Err(run_again(format_args!("{} left behind: {problem}", text::letters(self.left))))
            }
            None => Ok(()),
        }
    }

    /// Looks at all, chooses the oldest, and gives all back.
    async fn choose(&mut self, limit: usize) -> Result<Chosen, CommandError> {
        let mut candidates = Candidates::default();
        browse(self.letters, self.config, &self.filter, self.stop, |dead, letter| {
            candidates.add(dead, &letter);
            Ok(())
        })
        .await
        .map_err(|error| {
            partial(if self.stop.is_cancelled() { INTERRUPTED.to_owned() } else { error.message })
        })?;
        self.letters.rewind().await.map_err(run_again)?;
        Ok(candidates.choose(limit))
    }

    /// Replays few, and more each time that not too many of them have failed again.
    async fn by_canaries(
        &mut self,
        most_failures: u32,
        chosen: &mut Chosen,
    ) -> Result<(), CommandError> {
        let mut canary = Canary::new();
        while !chosen.is_done() {
            let before = self.done + self.left;
            self.pass(canary.next_size(), Some(chosen), Some(&mut canary)).await?;
            if self.done + self.left == before {
                // The rest is gone: another command took it.
                break;
            }
            // What is on its way would stand before the answers to the looks at other queues.
            self.letters.rewind().await.map_err(run_again)?;
            self.stop
                .run_until_cancelled(canary.settled(self.letters))
                .await
                .unwrap_or_else(|| Err(partial(INTERRUPTED)))?;
            // Only now: a look counts at its beginning what is there.
            self.letters.rewind().await.map_err(run_again)?;
            let mut failures = 0;
            let all = Filter::default();
            browse(self.letters, self.config, &all, self.stop, |_, letter| {
                failures += u32::from(canary.is_failure(&letter));
                Ok(())
            })
            .await
            .map_err(|error| {
                partial(if self.stop.is_cancelled() {
                    INTERRUPTED.to_owned()
                } else {
                    error.message
                })
            })?;
            self.letters.rewind().await.map_err(run_again)?;
            if failures >= most_failures {
                return Err(partial(format!(
                    "stopped: {failures} of {} became dead letters again; the rest is as it was",
                    text::letters(self.done)
                )));
            }
        }
        Ok(())
    }

    /// Replays in the queue's order, a batch at a time, `most` letters at most: those chosen, where
    /// there is a choice, else those that the filter means.
    async fn pass(
        &mut self,
        most: usize,
        mut chosen: Option<&mut Chosen>,
        mut canary: Option<&mut Canary>,
    ) -> Result<(), CommandError> {
        let end = (self.done + self.left).saturating_add(most);
        while self.done + self.left < end && chosen.as_ref().is_none_or(|chosen| !chosen.is_done())
        {
            let read = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(partial(INTERRUPTED)),
                read = self.letters.next_batch(IN_FLIGHT.min(end - self.done - self.left)) => read.map_err(run_again)?,
            };
            if read.is_empty() {
                break;
            }
            let looked_at = read.len() as u64;
            let mut meant: Vec<(DeadLetter, Letter)> = Vec::with_capacity(read.len());
            for dead in read {
                let letter = Letter::read(&dead, self.config.reading);
                let is_meant = match &mut chosen {
                    Some(chosen) => chosen.take(&dead, &letter),
                    None => self.filter.matches(&letter),
                };
                if is_meant {
                    if let Some(canary) = &mut canary {
                        canary.goes(&letter);
                    }
                    meant.push((dead, letter));
                }
            }
            for step in meant.chunks(self.pace.step(IN_FLIGHT)) {
                self.step(step).await?;
            }
            self.progress.inc(looked_at);
        }
        Ok(())
    }

    async fn step(&mut self, step: &[(DeadLetter, Letter)]) -> Result<(), CommandError> {
        wait(&self.pace, &self.publisher, self.stop).await.map_err(|()| partial(INTERRUPTED))?;
        if let Some(mark) = &mut self.mark {
            let earliest = step.iter().map(|(_, letter)| letter.low()).reduce(LowWatermark::lower);
            mark.hold(earliest.unwrap_or_default()).await.map_err(run_again)?;
        }
        let now = Timestamp::now().to_string();
        let replayed =
            replay_batch(self.letters, &mut self.publisher, step, &now).await.map_err(run_again)?;
        self.pace.went(step.len(), Instant::now());
        self.done += replayed.done;
        self.left += replayed.left;
        match replayed.problem {
            // Nothing of what follows would fare better.
            Some(
                problem @ (PublishError::Ended(_)
                | PublishError::Returned(_)
                | PublishError::Refused(_)),
            ) => {
                return Err(run_again(problem));
            }
            Some(problem) => {
                self.first_problem.get_or_insert(problem);
            }
            None => {}
        }
        Ok(())
    }
}

/// Until the rate allows the next step, and the broker takes messages.
async fn wait(pace: &Pace, publisher: &Publisher, stop: &CancellationToken) -> Result<(), ()> {
    let ready = async {
        if let Some(due) = pace.due() {
            tokio::time::sleep_until(due.into()).await;
        }
        if publisher.is_blocked() {
            // Nobody waits for ever without knowing why.
            let _ = writeln!(
                io::stderr(),
                "RabbitMQ takes no messages (a memory or disk alarm): waiting"
            );
            publisher.unblocked().await;
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(()),
        () = ready => Ok(()),
    }
}

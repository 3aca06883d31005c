//! The command `unstale dlq replay`.

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
use super::super::{CliError, Exit};
use super::browse::{
    Seen, browse, close, connect, exit_after, progress, signer, stop_before_undeliverable,
};
use super::canary::Canary;
use super::select::{Grouping, Selection};
use super::text;
use crate::broker::{DeadLetter, DeadLetters, PublishError, Publisher};
use crate::cache::{Cache, LowWatermark};
use crate::causes::Explain;
use crate::config::Config;
use crate::ops::dead_letters::{
    Candidates, Chosen, Filter, GroupBy, Letter, groups, keep_oldest, replay_batch,
};
use crate::ops::{CommandCheckpoint, Pace};
use crate::quantity::Rate;

/// Number of letters in flight. These may be applied twice if the program is killed.
const IN_FLIGHT: usize = 250;

/// Send dead letters back to the main queue
///
/// Records each dead letter at the end of the history, so that a heal finds it. Then publishes it
/// to the main queue alone. When the broker has confirmed it, removes it from the dead-letter
/// queue. Its attempts start at 0 again. An event that fails again becomes a dead letter that lists
/// its earlier reasons.
///
/// If the command is interrupted, nothing is lost: run it again. If it is killed, up to 250 dead
/// letters may be in both queues, and are applied twice. Exits with 1 if dead letters are left.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ReplayLettersArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    grouping: Grouping,
    /// Maximum rate of dead letters, such as 50/s or 600/m
    #[arg(long, value_parser = |text: &str| Rate::parse(text))]
    rate: Option<Rate>,
    /// Stop once N of them have become dead letters again (a canary). Replays 10 dead letters
    /// first, then ten times as many in each further part. Does not see the failures of a loader,
    /// whose events first pass the retry schedule
    #[arg(long, value_name = "N", value_parser = super::select::count)]
    stop_after_failures: Option<u32>,
    /// Print what would be replayed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the number of replayed dead letters, and why the command ended early, as one JSON
    /// object
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

const RUN_AGAIN: &str = "nothing is lost; run the command again for the rest";

const NO_HISTORY: &str = "nothing is lost; run the command again for the rest once the stream works. To go on without it, set \
                          UNSTALE_HISTORY=off: no heal then repeats the effects of these dead letters";

pub(super) async fn replay(args: &ReplayLettersArgs, config: &Config) -> Result<Exit, CliError> {
    let stop = stop_on_signal()?;
    let mut letters = connect(config, &signer(config).await?).await?;
    reach(async || letters.find_main().await).await?;
    if let Some(rate) = args.rate {
        letters = letters.with_channel_max(within(PATIENCE_OF_BROKER, rate));
    }
    if args.dry_run {
        warn_of_ignored(args)?;
        return dry_run(args, config, letters, &stop).await;
    }
    let publisher = reach(async || Publisher::connect(&config.amqp).await).await?;
    let cache =
        Cache::connect(&config.redis, &config.amqp.queue).map_err(CliError::of(Exit::Usage))?;
    let checkpoint = if config.heals() { checkpoint(&cache).await? } else { None };
    let progress = progress(letters.total(), "looked at");
    let queue = letters.names().main.clone();
    let mut replay = Replay {
        config,
        filter: args.selection.filter(),
        letters: &mut letters,
        publisher,
        checkpoint,
        pace: Pace::new(args.rate),
        stop: &stop,
        progress,
        done: 0,
        left: 0,
        unrecorded: 0,
        first_problem: None,
    };
    let outcome = replay.all(args).await;
    let (done, left) = (replay.done, replay.left);
    replay.publisher.close().await;
    let exit = exit_after(&letters);
    let closed = close(letters, Ok(exit)).await;
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
    closed
}

/// Returns how many letters are sent in that time: no more are to be on their way.
fn within(time: Duration, rate: Rate) -> NonZeroU16 {
    let letters = time.as_nanos() / rate.interval().as_nanos().max(1);
    NonZeroU16::new(u16::try_from(letters).unwrap_or(u16::MAX)).unwrap_or(NonZeroU16::MIN)
}

/// Returns a checkpoint for the letters, so that a heal reaches back to the arrival of their events
/// if Redis loses writes.
///
/// The checkpoint stays for an hour after the command, because it is not known when workers apply
/// the letters. Returns `None`, with a warning, if Redis is away.
async fn checkpoint(cache: &Cache) -> Result<Option<CommandCheckpoint<'_>>, CliError> {
    match answer_of("Redis", cache.probe()).await? {
        Ok(()) => Ok(Some(CommandCheckpoint::new(cache, "dlq"))),
        Err(outage) => {
            writeln!(
                io::stderr(),
                "warning: {}: replaying without a checkpoint, so a heal may not repeat the effects of these dead letters",
                outage.in_full()
            )?;
            Ok(None)
        }
    }
}

/// Warns of options that only a real replay heeds.
fn warn_of_ignored(args: &ReplayLettersArgs) -> io::Result<()> {
    let given =
        [args.rate.map(|_| "--rate"), args.stop_after_failures.map(|_| "--stop-after-failures")];
    let ignored: Vec<&str> = given.into_iter().flatten().collect();
    if !ignored.is_empty() {
        writeln!(io::stderr(), "warning: --dry-run ignores {}", ignored.join(" and "))?;
    }
    Ok(())
}

async fn dry_run(
    args: &ReplayLettersArgs,
    config: &Config,
    mut letters: DeadLetters,
    stop: &CancellationToken,
) -> Result<Exit, CliError> {
    let (mut selected, filter) = (Vec::new(), args.selection.filter());
    let outcome = browse(&mut letters, config, &filter, stop, |seen| {
        match seen {
            Seen::Letter(_, letter) => selected.push(letter),
            Seen::Again => selected.clear(),
        }
        Ok(())
    });
    let outcome = outcome.await;
    let exit = exit_after(&letters);
    let queue = letters.names().main.clone();
    close(letters, outcome).await?;
    keep_oldest(&mut selected, args.selection.limit());
    let groups = groups(&selected, &args.grouping.by(&GroupBy::DEFAULT));
    if args.json {
        let groups: Vec<_> = groups.iter().map(|group| group.to_json()).collect();
        writeln!(
            io::stdout(),
            "{}",
            json!({ "queue": queue, "would_replay": selected.len(), "groups": groups })
        )?;
    } else {
        text::write_groups(&groups, Paint::of_stdout(), &mut io::stdout().lock())?;
    }
    writeln!(io::stderr(), "would replay {} to `{queue}`", text::letters(selected.len()))?;
    Ok(exit)
}

/// A replay that runs.
struct Replay<'r> {
    config: &'r Config,
    filter: Filter,
    letters: &'r mut DeadLetters,
    publisher: Publisher,
    checkpoint: Option<CommandCheckpoint<'r>>,
    pace: Pace,
    stop: &'r CancellationToken,
    progress: ProgressBar,
    done: usize,
    /// Number of letters that RabbitMQ did not accept, and that stay in the dead-letter queue.
    left: usize,
    /// Number of letters that are not in the history.
    unrecorded: usize,
    first_problem: Option<PublishError>,
}

fn run_again(why: impl Explain) -> CliError {
    CliError::of(Exit::No)(why).help(RUN_AGAIN)
}

fn interrupted() -> CliError {
    CliError::stopped("interrupted").help(RUN_AGAIN)
}

impl Replay<'_> {
    /// Replays the selected letters. An error names the reason why letters are left.
    async fn all(&mut self, args: &ReplayLettersArgs) -> Result<(), CliError> {
        // The oldest letters, and those that failed again, are known only after a look at all of
        // them.
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
                let left = format!("{} left in the queue", text::letters(self.left));
                Err(CliError::stopped(left).because(&problem).help(RUN_AGAIN))
            }
            None => Ok(()),
        }
    }

    /// Reads all letters, chooses the oldest, and requeues all of them.
    async fn choose(&mut self, limit: usize) -> Result<Chosen, CliError> {
        let mut candidates = Candidates::default();
        browse(self.letters, self.config, &self.filter, self.stop, |seen| {
            match seen {
                Seen::Letter(dead, letter) => candidates.add(dead, &letter),
                Seen::Again => candidates = Candidates::default(),
            }
            Ok(())
        })
        .await
        .map_err(|error| self.look_failed(error))?;
        self.letters.rewind().await.map_err(run_again)?;
        Ok(candidates.choose(limit))
    }

    /// Returns the error of a look at all letters, which leaves the rest of the replay undone.
    fn look_failed(&self, mut error: CliError) -> CliError {
        if self.stop.is_cancelled() {
            return interrupted();
        }
        error.exit = Exit::No;
        error
    }

    /// Replays a few letters, and then larger parts while few enough of them have failed again.
    async fn by_canaries(
        &mut self,
        most_failures: u32,
        chosen: &mut Chosen,
    ) -> Result<(), CliError> {
        let mut canary = Canary::new();
        while !chosen.is_done() {
            let before = self.done + self.left;
            self.pass(canary.next_size(), Some(chosen), Some(&mut canary)).await?;
            if self.done + self.left == before {
                // Another command has taken the rest.
                break;
            }
            // Letters on their way would come before the answers to the looks at other queues.
            self.letters.rewind().await.map_err(run_again)?;
            self.stop
                .run_until_cancelled(canary.wait_settled(self.letters))
                .await
                .unwrap_or_else(|| Err(interrupted()))?;
            // A look reads the letters that are in the queue when it begins, so it begins only now.
            self.letters.rewind().await.map_err(run_again)?;
            let mut failures = 0;
            let all = Filter::default();
            browse(self.letters, self.config, &all, self.stop, |seen| {
                match seen {
                    Seen::Letter(_, letter) => failures += u32::from(canary.is_failure(&letter)),
                    Seen::Again => failures = 0,
                }
                Ok(())
            })
            .await
            .map_err(|error| self.look_failed(error))?;
            self.letters.rewind().await.map_err(run_again)?;
            if failures >= most_failures {
                return Err(CliError::stopped(format!(
                    "stopped: {failures} of {} became dead letters again; the rest is unchanged",
                    text::letters(self.done)
                )));
            }
        }
        Ok(())
    }

    /// Replays at most `most` letters in the queue's order, a batch at a time. If there is a
    /// choice, these are the chosen letters, else those that match the filter.
    async fn pass(
        &mut self,
        most: usize,
        mut chosen: Option<&mut Chosen>,
        mut canary: Option<&mut Canary>,
    ) -> Result<(), CliError> {
        let end = (self.done + self.left).saturating_add(most);
        while self.done + self.left < end && chosen.as_ref().is_none_or(|chosen| !chosen.is_done())
        {
            let read = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(interrupted()),
                read = self.letters.next_batch(IN_FLIGHT.min(end - self.done - self.left)) => read,
            };
            let read = match read {
                Ok(read) => read,
                Err(ended) => {
                    if let Err(mut error) = stop_before_undeliverable(self.letters, ended).await {
                        error.exit = Exit::No;
                        return Err(error.help(RUN_AGAIN));
                    }
                    continue;
                }
            };
            if read.is_empty() {
                break;
            }
            let looked_at = read.len() as u64;
            let mut selected: Vec<(DeadLetter, Letter)> = Vec::with_capacity(read.len());
            for dead in read {
                let letter = Letter::read(&dead, self.config.reading);
                let is_selected = match &mut chosen {
                    Some(chosen) => chosen.take(&dead, &letter),
                    None => self.filter.matches(&letter),
                };
                if is_selected {
                    if let Some(canary) = &mut canary {
                        canary.add(&letter);
                    }
                    selected.push((dead, letter));
                }
            }
            for step in selected.chunks(self.pace.step(IN_FLIGHT)) {
                self.step(step).await?;
            }
            self.progress.inc(looked_at);
        }
        Ok(())
    }

    async fn step(&mut self, step: &[(DeadLetter, Letter)]) -> Result<(), CliError> {
        wait(&self.pace, &self.publisher, self.stop).await.map_err(|()| interrupted())?;
        if let Some(checkpoint) = &mut self.checkpoint {
            let earliest =
                step.iter().map(|(_, letter)| letter.low_watermark()).reduce(LowWatermark::lower);
            checkpoint.hold(earliest.unwrap_or_default()).await.map_err(run_again)?;
        }
        let now = Timestamp::now().to_string();
        let record = self.config.amqp.history.is_some();
        let replayed = replay_batch(self.letters, &mut self.publisher, step, record, &now)
            .await
            .map_err(run_again)?;
        self.pace.went(step.len(), Instant::now());
        self.done += replayed.done;
        self.left += replayed.left;
        if replayed.unrecorded > 0 && self.unrecorded == 0 {
            writeln!(
                io::stderr(),
                "warning: stream `{}` does not exist: if Redis loses writes later, no heal repeats the effects of these dead letters",
                self.letters.names().history
            )?;
        }
        self.unrecorded += replayed.unrecorded;
        if let Some(problem) = replayed.history_problem {
            let left = format!(
                "{} left in the queue, because stream `{}` does not take them",
                text::letters(self.left),
                self.letters.names().history
            );
            return Err(CliError::stopped(left).because(&problem).help(NO_HISTORY));
        }
        match replayed.problem {
            // Every further letter would fail in the same way.
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

/// Waits until the rate allows the next step, and the broker accepts messages.
async fn wait(pace: &Pace, publisher: &Publisher, stop: &CancellationToken) -> Result<(), ()> {
    let ready = async {
        if let Some(due) = pace.due() {
            tokio::time::sleep_until(due.into()).await;
        }
        if publisher.is_blocked() {
            // Without this line the command would wait silently.
            let _ = writeln!(
                io::stderr(),
                "waiting for RabbitMQ: it has blocked publishing (memory or disk alarm)"
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

//! `unstale tags gc`

use std::collections::HashSet;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::super::plan::shown;
use super::super::reach::reach_redis;
use super::super::signal::stop_on_signal;
use super::super::{CommandError, Exit};
use crate::cache::{self, Asides, Cache, SCAN_STEP};
use crate::config::Config;
use crate::event::json::write_string;
use crate::ops::Pace;
use crate::printable::printable_json;
use crate::quantity::Rate;

/// How long a command waits for a Redis that went away while it runs.
const OUTAGE_PATIENCE: Duration = Duration::from_secs(10);

/// Take members out of tags whose keys are gone
///
/// Keys expire by themselves, and stay in the sets of their tags. Workers take them out in the
/// background; this does it at once, and says how many there were. All keys of Redis are looked
/// through for sets under UNSTALE_TAG_PREFIX, some hundred at a time: others wait a fraction of a
/// millisecond. Keys are never deleted. What is taken out is looked at again half a minute later,
/// and comes back if it is a key by then: in a Redis Cluster by this command, which waits for it;
/// on a single server by a worker or the next run. Interrupted, it loses nothing: run it again.
/// Prints a line for each tag that had such members.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct GcArgs {
    /// Look at no more keys and members than so many: 50000/s
    #[arg(long, value_parser = |text: &str| Rate::parse(text))]
    rate: Option<Rate>,
    /// Say what would be taken out, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON object a line: {"tag": …, "members": …, "gone": …}
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:

  unstale tags gc --dry-run
  unstale tags gc --rate 20000/s
  unstale tags gc --json | jq -s 'sort_by(-.gone) | .[:10]'";

/// What was done so far.
#[derive(Debug, Default)]
struct Total {
    tags: u64,
    members: u64,
    gone: u64,
    /// Sets that Redis would not let us look through.
    refused: u64,
}

pub(super) async fn gc(args: &GcArgs, config: &Config) -> Result<Exit, CommandError> {
    if !args.dry_run && !config.maintains_tags() {
        return Err(CommandError::usage(TURNED_OFF));
    }
    let stop = stop_on_signal()?;
    let cache = Cache::connect(&config.redis, &config.amqp.queue).map_err(CommandError::usage)?;
    reach_redis(&cache).await?;
    let progress = progress();
    let mut total = Total::default();
    let asides = (!args.dry_run && cache.is_cluster()).then(|| cache.asides());
    let gc = Gc {
        args,
        cache: &cache,
        asides,
        pace: Pace::new(args.rate),
        stop: &stop,
        progress: &progress,
    };
    let outcome = gc.run(&mut total).await;
    progress.finish_and_clear();
    let Total { tags, members, gone, refused } = total;
    let (would, of) =
        (if args.dry_run { "would take" } else { "took" }, if tags == 1 { "tag" } else { "tags" });
    writeln!(io::stderr(), "{would} {gone} of {members} members out of {tags} {of}")?;
    outcome?;
    if refused > 0 {
        let message = format!(
            "{refused} sets were left: Redis refuses them (no set any more, or the ACL of our user)"
        );
        return Err(CommandError { exit: Exit::No, message });
    }
    Ok(Exit::Clean)
}

struct Gc<'a> {
    args: &'a GcArgs,
    cache: &'a Cache,
    /// In a cluster: what waits for its second look. On a single server a list in Redis has it, for
    /// any worker and the next run.
    asides: Option<Asides>,
    pace: Pace,
    stop: &'a CancellationToken,
    progress: &'a ProgressBar,
}

impl Gc<'_> {
    async fn run(mut self, total: &mut Total) -> Result<(), CommandError> {
        if !self.args.dry_run {
            self.settle_left().await?;
        }
        let mut seen = HashSet::new();
        let mut cursor = 0;
        loop {
            let found = self
                .ask(async |cache| cache.tag_sets(cursor).await)
                .await?
                .map_err(CommandError::unavailable)?;
            self.pace.went(SCAN_STEP, Instant::now());
            for set in found.sets {
                // A scan may give one twice.
                if seen.insert(set.clone()) {
                    self.prune(&set, total).await?;
                }
            }
            cursor = found.next;
            if cursor == 0 {
                return self.settle_all().await;
            }
            self.settle_due().await?;
        }
    }

    /// Looks for the second time at what workers or earlier runs have set aside.
    async fn settle_left(&mut self) -> Result<(), CommandError> {
        // What Redis refuses here it refuses below, where it is counted.
        for set in
            self.ask(async |cache| cache.sets_with_members_aside().await).await?.unwrap_or_default()
        {
            while self.ask(async |cache| cache.take_second_look(&set).await).await?.unwrap_or(false)
            {
                self.pace.went(SCAN_STEP, Instant::now());
            }
        }
        Ok(())
    }

    /// Looks for the second time at what is due.
    async fn settle_due(&mut self) -> Result<(), CommandError> {
        while let Some(set) = self.asides.as_ref().and_then(|asides| asides.due(Instant::now())) {
            let more = self.ask(async |cache| cache.take_second_look(&set).await).await?;
            self.pace.went(SCAN_STEP, Instant::now());
            if let Some(asides) = &mut self.asides {
                match more {
                    Ok(true) => {}
                    Ok(false) => asides.settled(&set, Instant::now()),
                    Err(_refused) => asides.forget(&set),
                }
            }
        }
        Ok(())
    }

    /// Waits until all has been looked at for the second time.
    async fn settle_all(&mut self) -> Result<(), CommandError> {
        while let Some(due) = self.asides.as_ref().and_then(Asides::next_due) {
            self.progress.set_message("waiting for a second look at what seems to be gone");
            self.progress.tick();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(CommandError { exit: Exit::No, message: INTERRUPTED.to_owned() }),
                () = tokio::time::sleep_until(due.into()) => {}
            }
            self.settle_due().await?;
        }
        Ok(())
    }

    async fn prune(&mut self, set: &[u8], total: &mut Total) -> Result<(), CommandError> {
        let (mut cursor, mut members, mut gone) = (0, 0, 0);
        loop {
            let dry_run = self.args.dry_run;
            let Ok(slice) =
                self.ask(async |cache| cache.maintain_slice(set, cursor, dry_run).await).await?
            else {
                total.refused += 1;
                return Ok(());
            };
            self.pace.went(usize::try_from(slice.looked).unwrap_or(SCAN_STEP), Instant::now());
            if let Some(asides) = self.asides.as_mut().filter(|_| slice.gone > 0) {
                asides.note(set, Instant::now());
            }
            members += slice.looked;
            gone += slice.gone;
            total.members += slice.looked;
            total.gone += slice.gone;
            self.progress.set_message(format!(
                "{} tags, {} of {} members gone",
                total.tags, total.gone, total.members
            ));
            self.progress.tick();
            cursor = slice.next;
            if cursor == 0 {
                break;
            }
        }
        total.tags += 1;
        if gone > 0 {
            self.progress.suspend(|| self.line(set, members, gone))?;
        }
        Ok(())
    }

    fn line(&self, set: &[u8], members: u64, gone: u64) -> io::Result<()> {
        let tag = String::from_utf8_lossy(
            set.strip_prefix(self.cache.tag_prefix().as_bytes()).unwrap_or(set),
        )
        .into_owned();
        let mut out = io::stdout().lock();
        if self.args.json {
            let mut quoted = String::new();
            write_string(&tag, &mut quoted);
            writeln!(
                out,
                r#"{{"tag":{},"members":{members},"gone":{gone}}}"#,
                printable_json(&quoted)
            )
        } else {
            writeln!(out, "{}  {gone} of {members} members gone", shown(&tag))
        }
    }

    /// Asks Redis at the rate that was set, and again while it is away for a moment. What Redis
    /// refuses is the inner error.
    async fn ask<T>(
        &self,
        question: impl AsyncFn(&Cache) -> Result<T, cache::CommandError>,
    ) -> Result<Result<T, String>, CommandError> {
        let mut down_since: Option<Instant> = None;
        loop {
            let due = self.pace.due();
            let answer = async {
                if let Some(due) = due {
                    tokio::time::sleep_until(due.into()).await;
                }
                question(self.cache).await
            };
            let answer = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(CommandError { exit: Exit::No, message: INTERRUPTED.to_owned() }),
                answer = answer => answer,
            };
            match answer {
                Ok(answer) => return Ok(Ok(answer)),
                Err(
                    cache::CommandError::Refused(message) | cache::CommandError::Failed(message),
                ) => return Ok(Err(message)),
                Err(cache::CommandError::Outage(outage)) => {
                    let since = *down_since.get_or_insert_with(Instant::now);
                    if outage.needs_person || since.elapsed() > OUTAGE_PATIENCE {
                        return Err(CommandError::unavailable(format_args!(
                            "{outage}: nothing is lost; run it again"
                        )));
                    }
                    // It paces itself; whether it helped the next question tells.
                    let _ = self.cache.probe().await;
                }
            }
        }
    }
}

const TURNED_OFF: &str = "\
tag maintenance is off: it takes out of each set under UNSTALE_TAG_PREFIX every member that is no key, so a set that holds \
anything else would be emptied. Where every set under that prefix holds whole keys, set UNSTALE_TAG_MAINTENANCE=on; `unstale \
tags gc --dry-run` shows what it would take out";

const INTERRUPTED: &str = "interrupted: nothing is lost; run it again for the rest";

/// Shown on a terminal only.
fn progress() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    match ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

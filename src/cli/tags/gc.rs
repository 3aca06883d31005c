//! The command `unstale tags gc`: one run of tag maintenance over all of Redis.

use std::collections::HashSet;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::super::reach::reach_redis;
use super::super::signal::stop_on_signal;
use super::super::{CliError, Exit};
use crate::cache::{self, Asides, Cache, SCAN_STEP};
use crate::config::Config;
use crate::event::json::write_string;
use crate::ops::Pace;
use crate::printable::printable_json;
use crate::printable::shown;
use crate::quantity::Rate;

/// Maximum time that the command waits for Redis if it goes away during the run.
const OUTAGE_PATIENCE: Duration = Duration::from_secs(10);

/// Remove members of tags whose keys no longer exist
///
/// A key that expires stays in the sets of its tags. Workers remove such members in the background.
/// This command removes them at once, and prints a line for each tag that had any.
///
/// It scans all keys of Redis for sets under UNSTALE_TAG_PREFIX, some hundred at a time, so other
/// clients wait for less than a millisecond. It deletes no keys. Half a minute after it removed a
/// member, a second check puts the member back if its key exists by then. In a Redis Cluster this
/// command waits for that check. On a single server, a worker or the next run does it. If the
/// command is interrupted, run it again.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct GcArgs {
    /// Maximum rate at which keys and members are examined, such as 50000/s
    #[arg(long, value_parser = |text: &str| Rate::parse(text))]
    rate: Option<Rate>,
    /// Print what would be removed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object for each tag, with the members `tag`, `members` and `gone`
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:

  unstale tags gc --dry-run
  unstale tags gc --rate 20000/s
  unstale tags gc --json | jq -s 'sort_by(-.gone) | .[:10]'";

/// Numbers of what was examined and removed so far.
#[derive(Debug, Default)]
struct Total {
    tags: u64,
    members: u64,
    gone: u64,
    /// Sets that Redis refused to show.
    refused: u64,
}

pub(super) async fn gc(args: &GcArgs, config: &Config) -> Result<Exit, CliError> {
    if !args.dry_run && !config.maintains_tags() {
        return Err(CliError::usage(TURNED_OFF).help(TURNED_OFF_HELP));
    }
    let stop = stop_on_signal()?;
    let cache =
        Cache::connect(&config.redis, &config.amqp.queue).map_err(CliError::of(Exit::Usage))?;
    reach_redis(&cache).await?;
    let progress = progress();
    let mut total = Total::default();
    let asides = (!args.dry_run && !cache.lists_members_aside()).then(|| cache.asides());
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
    let (would, of) = (
        if args.dry_run { "would remove" } else { "removed" },
        if tags == 1 { "tag" } else { "tags" },
    );
    writeln!(io::stderr(), "{would} {gone} of {members} members from {tags} {of}")?;
    outcome?;
    if refused > 0 {
        return Err(CliError::stopped(format!("Redis refused access to {refused} sets"))
            .help("check the ACL of the user; a key that is no longer a set is refused too"));
    }
    Ok(Exit::Clean)
}

struct Gc<'a> {
    args: &'a GcArgs,
    cache: &'a Cache,
    /// In a cluster, the removed members that wait for their second check. On a single server they
    /// are in a list in Redis, for any worker and the next run.
    asides: Option<Asides>,
    pace: Pace,
    stop: &'a CancellationToken,
    progress: &'a ProgressBar,
}

impl Gc<'_> {
    async fn run(mut self, total: &mut Total) -> Result<(), CliError> {
        if !self.args.dry_run {
            self.settle_left().await?;
        }
        let mut seen = HashSet::new();
        let mut cursor = 0;
        loop {
            let found = self
                .ask(async |cache| cache.tag_sets(cursor).await)
                .await?
                .map_err(CliError::of(Exit::Unavailable))?;
            self.pace.went(SCAN_STEP, Instant::now());
            for set in found.sets {
                // A scan may return a key twice.
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

    /// Checks the members that workers or earlier runs removed and have not checked again.
    async fn settle_left(&mut self) -> Result<(), CliError> {
        // A set that Redis refuses here is refused and counted below as well.
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

    /// Checks again the removed members that are due.
    async fn settle_due(&mut self) -> Result<(), CliError> {
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

    /// Waits until every removed member has been checked again.
    async fn settle_all(&mut self) -> Result<(), CliError> {
        while let Some(due) = self.asides.as_ref().and_then(Asides::next_due) {
            self.progress.set_message("waiting to check removed members again");
            self.progress.tick();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(interrupted()),
                () = tokio::time::sleep_until(due.into()) => {}
            }
            self.settle_due().await?;
        }
        Ok(())
    }

    async fn prune(&mut self, set: &[u8], total: &mut Total) -> Result<(), CliError> {
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

    /// Sends a request to Redis at the rate that is set, and repeats it during a short outage. The
    /// inner error is a refusal by Redis.
    async fn ask<T>(
        &self,
        question: impl AsyncFn(&Cache) -> Result<T, cache::CommandError>,
    ) -> Result<Result<T, cache::CommandError>, CliError> {
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
                () = self.stop.cancelled() => return Err(interrupted()),
                answer = answer => answer,
            };
            match answer {
                Ok(answer) => return Ok(Ok(answer)),
                Err(cache::CommandError::Outage(outage)) => {
                    let since = *down_since.get_or_insert_with(Instant::now);
                    if outage.needs_person || since.elapsed() > OUTAGE_PATIENCE {
                        return Err(CliError::of(Exit::Unavailable)(outage).help(RUN_AGAIN));
                    }
                    // `probe` waits between two attempts by itself. The next request shows whether
                    // Redis is back.
                    let _ = self.cache.probe().await;
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }
}

const TURNED_OFF: &str = "\
tag maintenance is off: it removes from each set under UNSTALE_TAG_PREFIX every member that is not a key, and would empty a \
set that holds anything else";

const TURNED_OFF_HELP: &str = "\
set UNSTALE_TAG_MAINTENANCE=on if every set under that prefix holds whole keys; `unstale tags gc --dry-run` shows what it \
would remove";

const RUN_AGAIN: &str = "nothing is lost; run the command again for the rest";

fn interrupted() -> CliError {
    CliError::stopped("interrupted").help(RUN_AGAIN)
}

/// Makes a progress bar, which is shown on a terminal only.
fn progress() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    match ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

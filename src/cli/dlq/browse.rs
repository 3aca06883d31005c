//! Looking through the queue from beginning to end, with everything going back that is not taken.

use std::io::{self, Write as _};

use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::super::reach::{answer_of, reach};
use super::super::{CommandError, Exit};
use crate::broker::{DeadLetter, DeadLetters, Signer};
use crate::cache::Cache;
use crate::config::Config;
use crate::ops::dead_letters::{Filter, Letter};

/// Letters read before progress is shown again, and before a signal is heeded.
const BATCH: usize = 500;

/// A dead letter that was looked at so often is near the lowest limit that a policy is likely to
/// set.
const MANY_LOOKS: u64 = 15;

/// Returns what tells the headers of workers from those of publishers: the workers' secret in
/// Redis. Without it every letter reads as unsigned, and replayed all of its effects are done.
pub(super) async fn signer(config: &Config) -> Result<Signer, CommandError> {
    let signer = Signer::default();
    let cache = Cache::connect(&config.redis, &config.amqp.queue).map_err(CommandError::usage)?;
    let asked = async {
        match cache.probe().await {
            Ok(()) => cache.signing_secret(None).await.map_err(|error| error.to_string()),
            Err(outage) => Err(outage.to_string()),
        }
    };
    let secret = answer_of("Redis", asked).await?;
    match secret {
        Ok(secret) => signer.learn(&secret),
        Err(cause) => writeln!(
            io::stderr(),
            "warning: {cause}: which headers a worker wrote cannot be checked; what was done for a dead letter before counts as not done"
        )?,
    }
    Ok(signer)
}

/// Connects, and says on stderr what it means for others.
pub(super) async fn connect(config: &Config, signer: &Signer) -> Result<DeadLetters, CommandError> {
    let letters = reach(async || DeadLetters::connect(&config.amqp, signer).await).await?;
    if letters.total() > 0 {
        let (total, queue) =
            (super::text::letters(letters.total() as usize), &letters.names().dead);
        writeln!(
            io::stderr(),
            "reading {total} of `{queue}`: nobody else sees them until this ends"
        )?;
    }
    Ok(letters)
}

/// Connects to a retry queue. `None` where there is no such queue.
pub(super) async fn connect_to_retry(
    queue: &str,
    config: &Config,
) -> Result<Option<DeadLetters>, CommandError> {
    let letters = reach(async || {
        DeadLetters::connect_to_retry(queue, &config.amqp, &Signer::default()).await
    })
    .await?;
    if let Some(letters) = letters.as_ref().filter(|letters| letters.total() > 0) {
        writeln!(
            io::stderr(),
            "reading {} events of `{queue}`: they do not go on until this ends",
            letters.total()
        )?;
    }
    Ok(letters)
}

/// Reads every letter, and shows those that are meant to `visit`. Nothing is taken.
pub(super) async fn browse(
    letters: &mut DeadLetters,
    config: &Config,
    filter: &Filter,
    stop: &CancellationToken,
    mut visit: impl FnMut(&DeadLetter, Letter) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    let progress = progress(letters.total(), "read");
    loop {
        let batch = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(interrupted("nothing was changed")),
            batch = letters.next_batch(BATCH) => batch.map_err(CommandError::unavailable)?,
        };
        if batch.is_empty() {
            progress.finish_and_clear();
            return Ok(());
        }
        for dead in &batch {
            let letter = Letter::read(dead, config.reading);
            if filter.matches(&letter) {
                visit(dead, letter)?;
            }
        }
        progress.inc(batch.len() as u64);
    }
}

/// Gives back what was not taken, whatever came of the command; its own failure is the one to tell.
pub(super) async fn close<T>(
    letters: DeadLetters,
    outcome: Result<T, CommandError>,
) -> Result<T, CommandError> {
    let (looks, queue) = (letters.most_looks(), letters.queue().to_owned());
    let closed = letters.close().await;
    if looks >= MANY_LOOKS {
        writeln!(
            io::stderr(),
            "warning: dead letters of `{queue}` have been looked at {looks} times; a policy with a `delivery-limit` that matches this queue \
             removes them after some looks more: see docs/reference/rabbitmq.md#policies"
        )?;
    }
    let outcome = outcome?;
    closed.map_err(CommandError::unavailable)?;
    Ok(outcome)
}

pub(super) fn interrupted(what: &str) -> CommandError {
    CommandError { exit: Exit::No, message: format!("interrupted: {what}") }
}

/// Shown on a terminal only.
pub(super) fn progress(total: u32, verb: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!(
        "{verb} {{pos}} of {{len}} {{wide_bar}} {{per_sec}}, {{eta}} left"
    ));
    let bar = ProgressBar::new(u64::from(total));
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

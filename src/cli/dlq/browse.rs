//! Reads a dead-letter queue or a retry queue from beginning to end. At the end, the letters that
//! were not taken are requeued.

use std::io::{self, Write as _};

use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::super::reach::{answer_of, reach};
use super::super::{CliError, Exit};
use crate::broker::{DeadLetter, DeadLetters, SessionEnded, Signer};
use crate::cache::Cache;
use crate::causes::Explain;
use crate::config::Config;
use crate::ops::dead_letters::{Filter, Letter};

/// Number of letters that are read at once. Progress is shown, and a signal is noticed, in between.
const BATCH: usize = 500;

/// Number of reads of one letter at which the command begins to warn. The lowest delivery limit
/// that a policy is likely to set is 20.
const MANY_LOOKS: u64 = 15;

/// Returns the signer that distinguishes headers of workers from headers of publishers. It uses the
/// workers' secret in Redis.
///
/// Without the secret, every letter counts as unsigned: its attempts are 0, and a replay repeats
/// all of its effects.
pub(super) async fn signer(config: &Config) -> Result<Signer, CliError> {
    let signer = Signer::default();
    let cache =
        Cache::connect(&config.redis, &config.amqp.queue).map_err(CliError::of(Exit::Usage))?;
    let asked = async {
        match cache.probe().await {
            Ok(()) => cache.signing_secret(None).await.map_err(|error| error.in_full()),
            Err(outage) => Err(outage.in_full()),
        }
    };
    let secret = answer_of("Redis", asked).await?;
    match secret {
        Ok(secret) => signer.learn(&secret),
        Err(cause) => writeln!(
            io::stderr(),
            "warning: {cause}: cannot check which headers a worker wrote, so attempts and applied effects of dead letters are unknown"
        )?,
    }
    Ok(signer)
}

/// Connects to the dead-letter queue. Prints that other clients do not see its letters until the
/// command ends.
pub(super) async fn connect(config: &Config, signer: &Signer) -> Result<DeadLetters, CliError> {
    let letters = reach(async || DeadLetters::connect(&config.amqp, signer).await).await?;
    if letters.total() > 0 {
        let (total, queue) =
            (super::text::letters(letters.total() as usize), &letters.names().dead);
        writeln!(
            io::stderr(),
            "reading {total} of `{queue}`; other clients do not see them until this command ends"
        )?;
    }
    Ok(letters)
}

/// Connects to a retry queue. Returns `None` if the queue does not exist.
pub(super) async fn connect_to_retry(
    queue: &str,
    config: &Config,
    signer: &Signer,
) -> Result<Option<DeadLetters>, CliError> {
    let letters =
        reach(async || DeadLetters::connect_to_retry(queue, &config.amqp, signer).await).await?;
    if let Some(letters) = letters.as_ref().filter(|letters| letters.total() > 0) {
        writeln!(
            io::stderr(),
            "reading {} events of `{queue}`; they are not retried until this command ends",
            letters.total()
        )?;
    }
    Ok(letters)
}

/// Step of a look over all letters.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub(super) enum Seen<'l> {
    /// The next letter that matches.
    Letter(&'l DeadLetter, Letter),
    /// The look begins again: the letters so far do not count.
    Again,
}

/// Reads every letter, and passes those that match the filter to `visit`. No letter is taken.
///
/// If RabbitMQ cannot deliver a letter, this prints a warning, and the look begins again. It then
/// ends before that letter.
pub(super) async fn browse(
    letters: &mut DeadLetters,
    config: &Config,
    filter: &Filter,
    stop: &CancellationToken,
    mut visit: impl FnMut(Seen<'_>) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let progress = progress(letters.total(), "read");
    let is_retry_queue = letters.queue() != letters.names().dead;
    loop {
        let batch = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(CliError::stopped("interrupted before anything was changed")),
            batch = letters.next_batch(BATCH) => batch,
        };
        let batch = match batch {
            Ok(batch) => batch,
            Err(ended) => {
                stop_before_undeliverable(letters, ended).await?;
                visit(Seen::Again)?;
                continue;
            }
        };
        if batch.is_empty() {
            progress.finish_and_clear();
            return Ok(());
        }
        for dead in &batch {
            let letter = Letter::read(dead, config.reading);
            let letter = if is_retry_queue { letter.waiting() } else { letter };
            if filter.matches(&letter) {
                visit(Seen::Letter(dead, letter))?;
            }
        }
        progress.inc(batch.len() as u64);
    }
}

/// Begins again after an undeliverable letter ended the connection, and prints where the look now
/// ends. Returns the error if there is no such letter.
pub(super) async fn stop_before_undeliverable(
    letters: &mut DeadLetters,
    ended: SessionEnded,
) -> Result<(), CliError> {
    if !ended.by_undeliverable_message() || letters.undeliverable().is_some() {
        return Err(CliError::of(Exit::Unavailable)(ended));
    }
    letters.rewind_before_undeliverable().await.map_err(CliError::of(Exit::Unavailable))?;
    let Some(letter) = letters.undeliverable() else {
        return Err(CliError::of(Exit::Unavailable)(ended));
    };
    writeln!(
        io::stderr(),
        "warning: RabbitMQ cannot deliver a letter of `{}`, and ends the connection instead: {} of {} letters can be read\n\
         help: `unstale dlq drop --undeliverable` drops this letter; find its publisher, see docs/faults/rabbitmq.md",
        letters.queue(),
        letter.before,
        letter.of
    )?;
    Ok(())
}

/// Returns the exit code of a command that has read letters: [`Exit::No`] if some cannot be read.
pub(super) fn exit_after(letters: &DeadLetters) -> Exit {
    if letters.undeliverable().is_some() { Exit::No } else { Exit::Clean }
}

/// Requeues the letters that were not taken, whether or not the command succeeded. Returns the
/// command's own error first.
pub(super) async fn close<T>(
    letters: DeadLetters,
    outcome: Result<T, CliError>,
) -> Result<T, CliError> {
    let (looks, queue) = (letters.most_looks(), letters.queue().to_owned());
    let closed = letters.close().await;
    if looks >= MANY_LOOKS {
        writeln!(
            io::stderr(),
            "warning: dead letters of `{queue}` have been read {looks} times, and a policy with a `delivery-limit` for this queue removes \
             them after some more reads\nhelp: set the shield policy, see docs/reference/rabbitmq.md#policies"
        )?;
    }
    let outcome = outcome?;
    closed.map_err(CliError::of(Exit::Unavailable))?;
    Ok(outcome)
}

/// Makes a progress bar, which is shown on a terminal only.
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

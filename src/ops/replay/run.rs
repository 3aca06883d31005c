//! Runs a replay: reads the history batch by batch, and applies its effects.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::apply::Applier;
use super::intake::Intake;
use super::progress::{Next, Step, TakenOver};
use super::report::{INTERRUPTED, ReplayReport, Rest};
use super::resolver::{EVENT_TIME, Messages, Resolver, Rules, Unresolved};
use super::{FENCE_MARGIN, Observer, Replay};
use crate::backoff::Backoff;
use crate::broker::{BrokerError, Delivery, History, RECONNECT_PAUSES};
use crate::cache::Cache;
use crate::causes::Explain;
use crate::ops::Pace;
use crate::registry::Registry;

/// Maximum number of messages read at once.
const BATCH: u16 = 1_000;

/// Time without a read after which the connection is closed. Otherwise the broker would close it.
const STALLED_AFTER: Duration = Duration::from_secs(3);

/// Number of targets above which applying takes long enough to close the connection first.
const MANY_TARGETS: usize = 1_000;

/// Cause of a replay that ended at the record of an earlier one.
const EARLIER_REPLAY: &str = "an earlier replay began before";

/// The reason why a part of the work was not done.
type Cause = String;

/// Returns the undone offsets that a later replay does not read again, because it begins at
/// `applied_to`.
fn not_tried_again(undone: &[u64], applied_to: u64) -> Vec<u64> {
    undone.iter().copied().filter(|offset| *offset < applied_to).collect()
}

/// A replay that runs.
struct Run<'a, O> {
    replay: &'a Replay,
    history: &'a mut History,
    resolver: Resolver,
    intake: Intake<'a>,
    applier: Applier<'a, O>,
    report: ReplayReport,
    taken_over: TakenOver,
    /// The offset to read next.
    next: u64,
    /// The offset to end before.
    end: u64,
    /// The offset before which all events are applied.
    applied_to: u64,
    applied_at: Instant,
    from: u64,
    /// Time since which the broker has failed without progress in between.
    fails_since: Option<Instant>,
}

impl Replay {
    /// Runs the replay. Without a cache it is a dry run. It waits for servers that go away
    /// meanwhile, until `stop` is cancelled.
    ///
    /// # Errors
    /// [`BrokerError`] before any work is done, if the stream does not exist or cannot be read. A
    /// later error is in [`ReplayReport::rest`].
    pub async fn run(
        &self,
        history: &mut History,
        registry: &Arc<Registry>,
        cache: Option<&Cache>,
        observer: &mut impl Observer,
        stop: &CancellationToken,
    ) -> Result<ReplayReport, BrokerError> {
        let begun = tokio::time::Instant::now();
        let fenced_until = begun + FENCE_MARGIN / 2;
        let (young, ahead) = self.fences();
        let survey = history.survey(&[self.span.first(), self.span.end(), young, ahead]).await?;
        let [first, to, young, ahead] = survey.places[..] else {
            return Err(BrokerError::Unreachable("an incomplete survey".into()));
        };
        // State from a stream that was deleted since does not apply to this one.
        let is_another = self.taken_over.end.is_some_and(|end| end > survey.end);
        let taken_over = if is_another { TakenOver::default() } else { self.taken_over.clone() };
        let begins = first.earliest;
        let from = taken_over
            .applied_to
            .filter(|applied_to| (begins..=survey.end).contains(applied_to))
            .unwrap_or(begins);
        let to = to.latest.max(from);
        // If the broker's clock is far ahead, the age of events is unknown.
        let fenced_from = if survey.reaches(ahead) { survey.end } else { young.latest };
        let mut report = ReplayReport::new(registry.rules().len(), from, to, survey.end);
        report.cut = self.span.is_cut(begins, survey.first);
        report.passed_over.clone_from(&taken_over.passed_over);
        report.undone = not_tried_again(&taken_over.undone, from);
        if from > begins {
            report.refused = taken_over.refused.clone();
        }
        let rules = Rules {
            registry: Arc::clone(registry),
            types: self.types.clone(),
            reading: self.reading,
            event_time: EVENT_TIME,
        };
        let mut run = Run {
            replay: self,
            history,
            resolver: Resolver::new(rules),
            intake: Intake::new(self, from..to, fenced_from),
            applier: Applier {
                registry,
                cache,
                only_rules: &self.only_rules,
                observer,
                stop,
                pace: Pace::new(self.rate),
                fenced_until,
                begun,
            },
            report,
            taken_over,
            next: from,
            // Events behind the span can only supersede effects of the span.
            end: if from < to { survey.end } else { from },
            applied_to: from,
            applied_at: Instant::now(),
            from,
            fails_since: None,
        };
        run.history.read_from(from);
        if let Err(cause) = run.all().await
            && run.report.rest.is_none()
        {
            run.report.rest = Some(Rest { since: run.applied_to, cause });
        }
        run.report.gave_way = run.intake.fold.superseded();
        run.history.pause();
        Ok(run.report)
    }
}

impl<O: Observer> Run<'_, O> {
    async fn all(&mut self) -> Result<(), Cause> {
        while self.next < self.end && !self.intake.is_done_at(self.next) {
            match self.taken_over.next(self.next, BATCH.into()) {
                Next::PassOver => {
                    self.apply(false).await?;
                    self.pass_over();
                }
                Next::Carefully { to } => {
                    // The messages before it must not be lost if this one kills the process.
                    self.apply(false).await?;
                    self.history.be_cautious(to - self.next == 1);
                    self.step(to, to).await?;
                    self.apply(false).await?;
                }
                Next::Normally { to, barrier } => {
                    self.history.be_cautious(false);
                    self.step(to, barrier).await?;
                    let waited = self
                        .replay
                        .apply_every
                        .is_some_and(|every| self.applied_at.elapsed() >= every);
                    if self.next < self.end
                        && (waited || self.intake.fold.is_full(self.replay.limits))
                    {
                        self.apply(false).await?;
                    }
                }
            }
        }
        self.apply(true).await
    }

    /// Reads and resolves the available messages, about up to `to`, and none from `barrier` on.
    async fn step(&mut self, to: u64, barrier: u64) -> Result<(), Cause> {
        let before = self.next;
        self.note_range(self.next, to.max(self.next + 1)).await?;
        let most = usize::try_from(to - self.next).unwrap_or(usize::MAX).clamp(1, BATCH.into());
        let stop = self.applier.stop;
        let read =
            stop.run_until_cancelled(self.history.next_batch(most)).await.ok_or(INTERRUPTED)?;
        let batch = match read {
            Ok(batch) => batch,
            Err(error) => return self.reconnect(error).await,
        };
        for unreadable in self.history.take_unreadable() {
            self.next = self.next.max(unreadable.end);
            self.report.cannot_read(unreadable);
        }
        let within = batch.partition_point(|(offset, _)| *offset < barrier);
        self.look_for_gaps(&batch[..within]);
        self.look_for_replays(&batch[..within])?;
        let batch: Messages = Arc::new(batch);
        self.resolve(&batch, within).await?;
        if within < batch.len() {
            self.next = barrier;
            self.history.read_from(barrier);
        }
        if self.next > before {
            self.fails_since = None;
        }
        self.applier.observer.read(self.next.min(self.end) - self.from, self.end - self.from);
        Ok(())
    }

    fn look_for_gaps(&mut self, batch: &[(u64, Delivery)]) {
        let mut next = self.next;
        for &(offset, _) in batch {
            // A gap of one offset is the stream's own record at the beginning of a segment.
            // Retention removes whole segments.
            let gap = offset.min(self.end).saturating_sub(next);
            self.report.missing += if gap > 1 { gap } else { 0 };
            next = offset + 1;
        }
    }

    /// Ends the replay at the record of one that began earlier. The stored progress is then still
    /// before that message, so a replay that takes over finds it again.
    fn look_for_replays(&mut self, batch: &[(u64, Delivery)]) -> Result<(), Cause> {
        let Some(begin) = self.replay.records_before else { return Ok(()) };
        let before_end = batch.iter().take_while(|(offset, _)| *offset < self.end);
        let earliest = before_end.filter_map(|(_, delivery)| delivery.replayed_from()).min();
        match earliest.filter(|from| *from < begin) {
            Some(from) => {
                self.report.earlier_replay = Some(from);
                Err(EARLIER_REPLAY.to_owned())
            }
            None => Ok(()),
        }
    }

    async fn resolve(&mut self, batch: &Messages, read: usize) -> Result<(), Cause> {
        let (begun, mut at) = (Instant::now(), 0);
        // Events that arrived after the survey are left to the workers.
        let within = batch[..read].partition_point(|(offset, _)| *offset < self.end);
        if let [(offset, delivery)] = &batch[..within]
            && self.taken_over.is_last_try(*offset)
        {
            tracing::warn!(offset, routing_key = ?delivery.routing_key(), "event of the history tried a last time: heals died at it");
        }
        while at < within {
            let messages = match self.resolver.resolve(batch, at..within, self.applier.stop).await {
                Ok(messages) => messages,
                Err(Unresolved::Stopped) => return Err(INTERRUPTED.to_owned()),
                Err(Unresolved::Hangs) => {
                    return Err("the resolution of too many events does not end".to_owned());
                }
            };
            if begun.elapsed() >= STALLED_AFTER {
                self.history.pause();
            }
            for ((offset, _), message) in batch[at..].iter().zip(messages) {
                self.intake.take(*offset, message, &mut self.report);
                at += 1;
            }
        }
        if let Some((offset, _)) = batch[..read].last() {
            self.next = offset + 1;
        }
        Ok(())
    }

    fn pass_over(&mut self) {
        tracing::error!(
            offset = self.next,
            "event of the history skipped: heals died at it three times. Once its rules are fixed, run \
             `unstale replay --since offset:{} --until offset:{}`",
            self.next,
            self.next + 1,
        );
        if !self.report.passed_over.contains(&self.next) {
            self.report.passed_over.push(self.next);
        }
        self.next += 1;
        self.applied_to = self.next;
        self.history.read_from(self.next);
    }

    /// Applies the effects of the messages read so far. `whole` is true if no message is left to
    /// read.
    async fn apply(&mut self, whole: bool) -> Result<(), Cause> {
        if !self.intake.fold.is_empty() {
            self.note_range(self.applied_to, self.next.max(self.applied_to + 1)).await?;
            // The broker closes a connection to which it cannot send for some seconds.
            let begun = Instant::now();
            if whole || self.replay.rate.is_some() || self.intake.fold.len() > MANY_TARGETS {
                self.history.pause();
            }
            self.report.rest = self
                .applier
                .apply(self.intake.fold.take(whole && self.replay.gives_way), &mut self.report)
                .await;
            if let Some(rest) = &self.report.rest {
                return Err(rest.cause.clone());
            }
            if begun.elapsed() >= STALLED_AFTER {
                self.history.pause();
            }
        }
        (self.applied_to, self.applied_at) = (self.next, Instant::now());
        Ok(())
    }

    async fn note_range(&mut self, first: u64, behind: u64) -> Result<(), Cause> {
        let step = Step {
            first: self.from,
            end: self.end,
            applied_to: self.applied_to,
            in_work: first..behind,
            passed_over: self.report.passed_over.clone(),
            undone: not_tried_again(&self.report.undone, self.applied_to),
            refused: self.report.refused.clone(),
        };
        let stop = self.applier.stop;
        stop.run_until_cancelled(self.applier.observer.note(step)).await.ok_or(INTERRUPTED)?
    }

    /// Waits until the broker is back.
    ///
    /// # Errors
    /// The error is permanent, the maximum time has passed, or the replay was asked to stop.
    async fn reconnect(&mut self, mut error: BrokerError) -> Result<(), Cause> {
        let mut backoff = Backoff::new(RECONNECT_PAUSES);
        let stop = self.applier.stop;
        // A new connection is not progress, because the next read may fail as well.
        let fails_since = *self.fails_since.get_or_insert_with(Instant::now);
        loop {
            let left =
                self.replay.patience.map(|patience| patience.saturating_sub(fails_since.elapsed()));
            if error.is_final() || left.is_some_and(|left| left.is_zero()) {
                return Err(error.in_full());
            }
            self.applier.observer.waiting(&error.in_full());
            let again = async {
                tokio::time::sleep(backoff.next_delay(fastrand::f64())).await;
                self.history.survey(&[]).await
            };
            let again = tokio::time::timeout(left.unwrap_or(Duration::MAX), again);
            let answer = stop.run_until_cancelled(again).await.ok_or(INTERRUPTED)?;
            match answer.ok() {
                // The maximum time has passed, which the next round finds.
                None => {}
                Some(Ok(survey)) => {
                    // The stream was declared again, or lost its end with a node. The rest will not
                    // arrive.
                    if survey.end < self.end {
                        let end = survey.end.max(self.next);
                        self.report.missing += self.end - end;
                        self.end = end;
                    }
                    return Ok(());
                }
                Some(Err(next)) => error = next,
            }
        }
    }
}

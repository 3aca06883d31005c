//! Applies folded effects to Redis, in order and in slices. It waits for the end of an outage.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Observer;
use super::report::{INTERRUPTED, ReplayReport, Rest};
use super::resolver::weight_bytes;
use crate::cache::{Cache, CommandError, Outage};
use crate::causes::Explain;
use crate::ops::Pace;
use crate::plan::{Batch, EffectOutcome, EffectRef, Folded};
use crate::reason::Reason;
use crate::registry::{Action, Effect, Registry};

/// Maximum number of effects in one round trip.
const SLICE: usize = 1_000;

/// Size of the effects in one round trip after which no more are added.
const SLICE_BYTES: usize = 4 << 20;

/// Maximum number of attempts for an effect that Redis refuses for a reason that may pass.
const ATTEMPTS: u32 = 4;

/// Number of connections that one effect alone loses, with successful probes in between, after
/// which it is given up. Several effects are applied in halves after the first.
const LOST_CONNECTIONS_MAX: u32 = 3;

/// Time between two attempts.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Applies effects, or only counts them if there is no cache.
pub(super) struct Applier<'a, O> {
    pub(super) registry: &'a Registry,
    pub(super) cache: Option<&'a Cache>,
    /// Names of the rules whose effects are applied; empty for all.
    pub(super) only_rules: &'a [String],
    pub(super) observer: &'a mut O,
    pub(super) stop: &'a CancellationToken,
    pub(super) pace: Pace,
    /// Time from which on fences may have expired, so that writes become deletions.
    pub(super) fenced_until: Instant,
    /// Time at which the replay began. All replayed events were published before it.
    pub(super) begun: Instant,
}

/// The replay was asked to stop.
struct Stopped;

/// Returns the time left until the second delete, or `None` if its time has passed.
///
/// A second delete is for readers that loaded before the event was published, and so before the
/// replay began. If the whole delay has passed since then, the first delete serves as the second.
fn until_second_delete(again: Duration, past: Duration) -> Option<Duration> {
    again.checked_sub(past).filter(|left| !left.is_zero())
}

/// Returns how many of the effects go into one round trip, at least one.
fn slice_len(effects: &[Effect]) -> usize {
    let mut bytes = 0;
    let fit = effects.iter().take_while(|effect| {
        let fits = bytes < SLICE_BYTES;
        bytes += weight_bytes(effect);
        fits
    });
    fit.count().max(1)
}

impl<O: Observer> Applier<'_, O> {
    /// Applies all effects. If the replay is asked to stop, it returns the offset of the history
    /// from which on effects are missing.
    pub(super) async fn apply(
        &mut self,
        mut folded: Vec<Folded>,
        report: &mut ReplayReport,
    ) -> Option<Rest> {
        if !self.only_rules.is_empty() {
            folded.retain(|folded| {
                self.only_rules.iter().any(|only| only == self.rule_of(&folded.effect))
            });
        }
        let Some(cache) = self.cache else {
            folded.iter().for_each(|folded| report.sends(&folded.effect));
            return None;
        };
        // Effects are ordered by place, not by offset. The lowest offset of all later effects is
        // the place to continue from.
        let origins: Vec<u64> = folded.iter().map(|folded| folded.since).collect();
        let mut since = origins.clone();
        for at in (1..since.len()).rev() {
            since[at - 1] = since[at - 1].min(since[at]);
        }
        let all = folded.len() as u64;
        let mut effects: Vec<Effect> = folded.into_iter().map(|folded| folded.effect).collect();
        let mut done = 0;
        while done < effects.len() {
            let end =
                done + slice_len(&effects[done..effects.len().min(done + self.pace.step(SLICE))]);
            let slice = &mut effects[done..end];
            let past = self.begun.elapsed();
            for effect in slice.iter_mut() {
                effect.again = effect.again.and_then(|again| until_second_delete(again, past));
            }
            if Instant::now() >= self.fenced_until {
                slice
                    .iter_mut()
                    .filter(|effect| matches!(effect.action, Action::Write(_)))
                    .for_each(|effect| effect.action = Action::Delete);
            }
            if self.slice(cache, slice, &origins[done..end], report).await.is_err() {
                return Some(Rest { since: since[done], cause: INTERRUPTED.to_owned() });
            }
            slice.iter().for_each(|effect| report.sends(effect));
            self.pace.went(slice.len(), Instant::now().into_std());
            done = end;
            self.observer.applied(done as u64, all);
        }
        None
    }

    /// Applies a slice until Redis has answered for each of its effects.
    async fn slice(
        &mut self,
        cache: &Cache,
        slice: &[Effect],
        origins: &[u64],
        report: &mut ReplayReport,
    ) -> Result<(), Stopped> {
        if let Some(due) = self.pace.due() {
            self.stop.run_until_cancelled(sleep_until(due.into())).await.ok_or(Stopped)?;
        }
        let mut left: Vec<(&Effect, u64)> = slice.iter().zip(origins.iter().copied()).collect();
        for attempt in 1..=ATTEMPTS {
            let mut again = Vec::new();
            for (EffectRef { event, .. }, outcome) in self.round_trip(cache, &left, report).await? {
                let (effect, offset) = left[event as usize];
                let outcome = if outcome == EffectOutcome::Slow {
                    self.drain(cache, effect).await?
                } else {
                    Some(outcome)
                };
                match outcome {
                    None => {}
                    Some(EffectOutcome::Dead { reason, message, may_be_permitted }) => {
                        if may_be_permitted {
                            report.refused.add(offset, self.rule_of(effect), &message);
                        } else if reason == Reason::RedisRefused {
                            // A key that holds another type, for example. A person must look at
                            // it.
                            report.is_undone(offset);
                        }
                        self.problem(effect, reason, &message, offset, report);
                    }
                    Some(
                        EffectOutcome::Retry { message, .. }
                        | EffectOutcome::NotTried { message, .. },
                    ) if attempt == ATTEMPTS => {
                        report.is_undone(offset);
                        self.problem(effect, Reason::AttemptsExhausted, &message, offset, report);
                    }
                    // A slow effect was drained, so it is not slow again.
                    Some(
                        EffectOutcome::Retry { .. }
                        | EffectOutcome::NotTried { .. }
                        | EffectOutcome::Slow,
                    ) => again.push(event),
                }
            }
            if again.is_empty() {
                return Ok(());
            }
            again.sort_unstable();
            left = again.into_iter().map(|event| left[event as usize]).collect();
            self.stop.run_until_cancelled(sleep(RETRY_AFTER)).await.ok_or(Stopped)?;
        }
        Ok(())
    }

    /// Sends effects in one round trip, and returns those that are not simply done.
    async fn round_trip(
        &mut self,
        cache: &Cache,
        effects: &[(&Effect, u64)],
        report: &mut ReplayReport,
    ) -> Result<Vec<(EffectRef, EffectOutcome)>, Stopped> {
        let mut batch = Batch::new(cache.tag_prefix(), effects.len());
        for (event, (effect, _)) in (0..).zip(effects) {
            batch.push(EffectRef { event, position: 0 }, effect);
        }
        let plan = batch.finish();
        let lost_connections_max = if effects.len() > 1 { 1 } else { LOST_CONNECTIONS_MAX };
        let mut lost_connections = 0;
        loop {
            let applied = self.stop.run_until_cancelled(cache.apply(&plan)).await.ok_or(Stopped)?;
            let outage = match applied {
                Ok(applied) => return Ok(applied.unsettled),
                Err(outage) => outage,
            };
            if outage.lost_connection && cache.probe().await.is_ok() {
                self.observer.answers_again().await.map_err(|_cause| Stopped)?;
                lost_connections += 1;
                if lost_connections >= lost_connections_max {
                    break;
                }
            } else {
                lost_connections = 0;
                self.wait_for(cache, &outage).await?;
            }
        }
        drop(plan);
        if let [(effect, offset)] = effects {
            return self.without_value(cache, effect, *offset, report).await;
        }
        // One of the effects is the cause. Halves are applied one after the other, in order.
        let (first, second) = effects.split_at(effects.len() / 2);
        let mut unsettled = Box::pin(self.round_trip(cache, first, report)).await?;
        let behind = u32::try_from(first.len()).unwrap_or(u32::MAX);
        let rest = Box::pin(self.round_trip(cache, second, report)).await?;
        unsettled
            .extend(rest.into_iter().map(|(slot, outcome)| {
                (EffectRef { event: slot.event + behind, ..slot }, outcome)
            }));
        Ok(unsettled)
    }

    /// Gives up an effect at which Redis closes the connection. Its key must not keep an older
    /// value, so it is deleted.
    async fn without_value(
        &mut self,
        cache: &Cache,
        effect: &Effect,
        offset: u64,
        report: &mut ReplayReport,
    ) -> Result<Vec<(EffectRef, EffectOutcome)>, Stopped> {
        let message = format!(
            "the command loses the connection to Redis each time; it has about {} bytes: compare with `proto-max-bulk-len` and \
             `client-query-buffer-limit` of Redis, and with the limits of a proxy",
            weight_bytes(effect)
        );
        let Some(deletion) = effect.without_value() else {
            let dead = EffectOutcome::Dead {
                reason: Reason::RedisRefused,
                message,
                may_be_permitted: false,
            };
            return Ok(vec![(EffectRef { event: 0, position: 0 }, dead)]);
        };
        let unsettled = Box::pin(self.round_trip(cache, &[(&deletion, offset)], report)).await?;
        if unsettled.is_empty() {
            let message = format!("{message}; the key is deleted instead");
            self.problem(effect, Reason::RedisRefused, &message, offset, report);
        }
        Ok(unsettled)
    }

    /// Deletes all members of a big tag that was detached, so that no worker has to drain the rest.
    async fn drain(
        &mut self,
        cache: &Cache,
        effect: &Effect,
    ) -> Result<Option<EffectOutcome>, Stopped> {
        loop {
            let outage = match cache.drain_tag(&effect.target, self.stop, |_, _| {}).await {
                Ok(drained) if drained.complete => return Ok(None),
                Ok(_) => return Err(Stopped),
                Err(CommandError::Outage(outage)) => outage,
                Err(error) => match error.into_outcome() {
                    Ok(outcome) => return Ok(Some(outcome)),
                    Err(outage) => outage,
                },
            };
            self.wait_for(cache, &outage).await?;
        }
    }

    async fn wait_for(&mut self, cache: &Cache, outage: &Outage) -> Result<(), Stopped> {
        self.observer.waiting(&outage.in_full());
        // `probe` waits between two attempts by itself.
        let answers = async { while cache.probe().await.is_err() {} };
        self.stop.run_until_cancelled(answers).await.ok_or(Stopped)
    }

    fn problem(
        &self,
        effect: &Effect,
        reason: Reason,
        message: &str,
        offset: u64,
        report: &mut ReplayReport,
    ) {
        let rule = self.rule_of(effect);
        report.problem(reason, 1, offset, || format!("{rule}: {message}"));
    }

    fn rule_of(&self, effect: &Effect) -> &str {
        self.registry.rules().get(effect.rule.0 as usize).map_or("", |rule| rule.name.as_str())
    }
}

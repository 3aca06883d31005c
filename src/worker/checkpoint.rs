//! Keeps this worker's checkpoint in Redis, from before the worker consumes until it ends.
//!
//! Once a second, a *tick* advances the checkpoint. It shows whether Redis lost writes, and whether
//! somebody has set its clock. The low watermark in the checkpoint then includes events that
//! stopped workers left unapplied.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::heal_record::outage;
use super::heal_state::Heals;
use crate::cache::{CommandError, Outage, Tick};

/// Time between two advances of the checkpoint.
const TICK: Duration = Duration::from_secs(1);

/// Difference between the time that passed by Redis' clock and by this machine's, from which on
/// Redis' clock was set.
const CLOCK_WAS_SET: Duration = Duration::from_secs(60);

/// Time after which a worker notes again which retry steps it uses.
const STEPS_NOTED_EVERY: Duration = Duration::from_secs(60);

/// Maximum time for the last write to the checkpoints.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Advances the checkpoint while Redis can be used; never returns.
pub(super) async fn tick(heals: Heals<'_>) -> Infallible {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut covered = Vec::new();
    let mut steps_noted: Option<Instant> = None;
    let mut clock = RedisClock::default();
    loop {
        heals.gate.open().await;
        ticks.tick().await;
        let found = match tick_once(heals, &mut covered).await {
            Ok(Tick::NotEntered) => continue,
            Ok(Tick::Good(marks)) => {
                if clock.saw(Instant::now(), marks.now_ms) {
                    // No message has returned from the others' steps any sooner.
                    steps_noted = None;
                } else if steps_noted.is_some_and(|at| at.elapsed() < STEPS_NOTED_EVERY) {
                    clock.steps = marks.steps_but(&[]);
                    continue;
                }
                let mut steps = heals.config.amqp.retry_delays.clone();
                if steps_noted.is_none() {
                    steps.extend(&clock.steps);
                }
                match heals.cache.note_steps(&steps, &marks).await {
                    Ok(()) => {
                        steps_noted = Some(Instant::now());
                        continue;
                    }
                    Err(error) => outage(error),
                }
            }
            Ok(Tick::LostWrites) => Outage::lost_writes(),
            Ok(Tick::Replaced) => Outage::replaced(),
            Ok(Tick::ToHeal) => {
                Outage::new("another worker found that Redis has lost writes that it had confirmed")
            }
            Err(error) => outage(error),
        };
        covered.clear();
        // By this the lanes notice the outage.
        heals.cache.give_up(&found);
        heals.gate.close(&found);
    }
}

/// Redis' clock at the last tick.
#[derive(Debug, Default)]
struct RedisClock {
    seen: Option<(Instant, u64)>,
    /// The retry steps that counted then.
    steps: Vec<Duration>,
}

impl RedisClock {
    /// Notes Redis' clock. Returns whether somebody has set it ahead since the last tick.
    fn saw(&mut self, now: Instant, clock_ms: u64) -> bool {
        let Some((at, before_ms)) = self.seen.replace((now, clock_ms)) else { return false };
        let passed = now.saturating_duration_since(at);
        let expected_ms =
            before_ms.saturating_add(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX));
        let apart = Duration::from_millis(clock_ms.abs_diff(expected_ms));
        if apart < CLOCK_WAS_SET {
            return false;
        }
        let direction = if clock_ms > expected_ms { "ahead" } else { "back" };
        warn!(seconds = apart.as_secs(), direction, "the clock of Redis was set");
        clock_ms > expected_ms
    }
}

/// Advances the checkpoint once. `covered` lists stopped workers whose events this worker's low
/// watermark includes since this tick.
async fn tick_once(heals: Heals<'_>, covered: &mut Vec<String>) -> Result<Tick, CommandError> {
    let Heals { cache, config, registry, metrics, state, .. } = heals;
    let (watermark, owed) = (&state.watermark, &state.owed);
    let tick = cache.tick(watermark.now()).await?;
    if let Tick::Good(marks) = &tick {
        watermark.set_lowest(marks.lowest());
        let knows_others = !marks.steps_but(&config.amqp.retry_delays).is_empty();
        state.knows_other_steps.store(knows_others, Ordering::Relaxed);
        state.history_start.note(cache, marks).await?;
        owed.note_lost(cache, marks).await?;
        metrics.set_events_lost(marks.unacknowledged_lost().is_some());
        state.broker_identity.note(cache, &config.amqp, marks).await?;
        if !covered.is_empty() {
            cache.take_over(covered).await?;
        }
        let gone: Vec<String> =
            marks.gone(cache.id()).into_iter().filter(|field| !covered.contains(field)).collect();
        log_gone(&gone);
        if let Some(bound) = marks.lowest_of(|field| gone.iter().any(|gone| gone == field)) {
            watermark.take_over(bound, heals.longest_wait(marks));
        }
        *covered = gone;
        owed.saw(marks.owed().all, marks.unhealed_by(&registry.load().resolution_digest).is_some());
        metrics.set_heal_owed(owed.any());
    }
    Ok(tick)
}

/// Logs what became of workers that are gone. Those that stopped in order left another field.
fn log_gone(fields: &[String]) {
    let stopped = fields.iter().filter(|field| field.contains(':')).count();
    let silent = fields.len() - stopped;
    if stopped > 0 {
        info!(
            workers = stopped,
            "stopped in order: this worker's low watermark includes the events that they left"
        );
    }
    if silent > 0 {
        warn!(
            workers = silent,
            "silent for 10 s, so they were killed or cannot reach Redis: their events go to other \
             workers, and this worker's low watermark includes them; no heal is needed"
        );
    }
}

/// Gives up the turn to heal, if this worker has it. The next worker then need not wait, and counts
/// no death.
pub(super) async fn give_turn_up(heals: Heals<'_>) {
    let given_up = async {
        if heals.cache.heals() {
            let _ = heals.cache.yield_heal_of(heals.cache.id()).await;
        }
        heals.state.owed.stop_healing().await;
    };
    let _ = tokio::time::timeout(LEAVE_TIMEOUT, given_up).await;
}

/// Removes this worker's checkpoint, once everything is settled or requeued.
pub(super) async fn leave(heals: Heals<'_>) {
    give_turn_up(heals).await;
    let left =
        heals.cache.leave(heals.state.watermark.now(), heals.state.watermark.is_all_settled());
    // Otherwise another worker takes over after 10 s.
    let _ = tokio::time::timeout(LEAVE_TIMEOUT, left).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_differs_from_the_time_that_passed() {
        let (start, start_ms) = (Instant::now(), 1_000_000);
        let was_set_ahead = |after_s: u64, clock_ms: u64| {
            let mut clock = RedisClock::default();
            assert!(!clock.saw(start, start_ms), "nothing to compare with");
            clock.saw(start + Duration::from_secs(after_s), clock_ms)
        };
        assert!(!was_set_ahead(1, start_ms + 1_000));
        assert!(!was_set_ahead(7_200, start_ms + 7_200_000), "an outage");
        assert!(!was_set_ahead(1, start_ms + 50_000), "less than a minute");
        assert!(was_set_ahead(1, start_ms + 10_800_000));
        assert!(!was_set_ahead(3_600, start_ms), "set back");
    }
}

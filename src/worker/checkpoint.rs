//! Keeps this worker's checkpoint in Redis, from before it consumes until it ends. Once a second
//! the checkpoint moves on, shows whether Redis lost writes, and covers events that stopped workers
//! left unapplied.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::heal_record::outage;
use super::heal_state::Heals;
use crate::cache::{CommandError, Outage, Tick};

/// Time between two moves of the checkpoint.
const TICK: Duration = Duration::from_secs(1);

/// Time after which a worker notes again which retry steps it uses.
const STEPS_NOTED_EVERY: Duration = Duration::from_secs(60);

/// Maximum time for the last write to the checkpoints.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Moves the checkpoint on while Redis can be used; never returns.
pub(super) async fn tick(heals: Heals<'_>) -> Infallible {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut covered = Vec::new();
    let mut steps_noted: Option<Instant> = None;
    loop {
        heals.gate.open().await;
        ticks.tick().await;
        let found = match tick_once(heals, &mut covered).await {
            Ok(Tick::NotEntered) => continue,
            Ok(Tick::Good(marks)) => {
                if steps_noted.is_some_and(|at| at.elapsed() < STEPS_NOTED_EVERY) {
                    continue;
                }
                match heals.cache.note_steps(&heals.config.amqp.retry_delays, &marks).await {
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

/// Moves the checkpoint on once. `covered` lists stopped workers whose events this worker's
/// checkpoint covers as of this tick.
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
            "stopped in order: this worker's checkpoint covers what they left"
        );
    }
    if silent > 0 {
        warn!(
            workers = silent,
            "silent for 10 s, so they were killed or cannot reach Redis: their events go to other \
             workers, and this worker's checkpoint covers them; no heal is needed"
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

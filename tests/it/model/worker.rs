//! Workers: their two lanes, with the production code of both.
//!
//! Some die during their work, and others continue it.

use std::cell::RefCell;
use std::time::Duration;

use redis::Value;
use tokio_util::sync::CancellationToken;
use unstale::cache::LONGEST_LEASE;
use unstale::loader::{LoadError, LoadOutcome};
use unstale::plan::{Batch, EffectOutcome, EffectRef, Plan};
use unstale::registry::{Action, Effect, Warm};
use unstale::worker::filling::{Asker, FillPace, Filling, Source};

use super::actors::{Hands, LEASE};
use super::event::{Change, Event, loaded};
use super::turns::Turns;
use super::world::{ATTEMPTS, Delivery, KEYS, Task, Work, World};

/// Takes events in batches, and their rest for the slow lane; some are redelivered.
///
/// A mortal worker dies sometimes, and another is started.
pub(super) async fn worker(
    world: &World,
    hands: Hands<'_>,
    turns: Turns,
    mut random: fastrand::Rng,
    is_mortal: bool,
) {
    loop {
        turns.next().await;
        let Some(work) = world.take(&mut random) else { return };
        hands.tap.seat(Some(turns.clone()));
        hands.tap.dies_after((is_mortal && random.u8(..4) == 0).then(|| random.u32(..8)));
        match work {
            Work::Nothing => {
                hands.begin_anew().await;
                continue;
            }
            Work::Batch(deliveries) => {
                if main_lane(world, hands, &turns, &deliveries).await {
                    world.redeliver(deliveries, &mut random);
                } else {
                    world.give_back(deliveries);
                }
            }
            Work::Slow(task) => slow_lane(world, hands, &turns, task, &mut random).await,
        }
        hands.begin_anew().await;
        world.check().await;
    }
}

/// Applies one plan in one pipeline, and leaves the rest to the slow lane. Returns whether the
/// worker is alive.
pub(super) async fn main_lane(
    world: &World,
    hands: Hands<'_>,
    turns: &Turns,
    deliveries: &[Delivery],
) -> bool {
    let places: Vec<(usize, &Delivery)> = deliveries
        .iter()
        .flat_map(|one| one.effects.iter().map(move |&effect| (effect, one)))
        .collect();
    let applications = world.begin(places.iter().map(|(at, _)| *at), turns.now());
    let effects: Vec<Effect> =
        places.iter().map(|(at, _)| world.event(*at).as_effect(*at)).collect();
    turns
        .show(|| format!("takes events {:?}", places.iter().map(|(at, _)| at).collect::<Vec<_>>()));
    let cache = hands.cache();
    let mut batch = Batch::new(cache.tag_prefix(), effects.len());
    for ((slot, effect), (_, delivery)) in (0_u32..).zip(&effects).zip(&places) {
        let slot = EffectRef { event: slot, position: 0 };
        if delivery.is_copy { batch.push_retried(slot, effect) } else { batch.push(slot, effect) }
    }
    let unsettled = apply(hands, &batch.finish()).await;
    let Some(unsettled) = unsettled else {
        world.died(&applications, turns.now());
        return false;
    };
    let mut done = applications.clone();
    for slot in &unsettled {
        let (effect, delivery) = places[slot.event as usize];
        let application = applications[slot.event as usize];
        // A value that is not served is deleted already.
        let is_done = matches!(&effects[slot.event as usize].action, Action::Warm(_))
            && !world.event(effect).change.serves();
        done.retain(|&other| is_done || other != application);
        world.left(application, turns.now());
        world.is_slow(Task {
            effect,
            applications: if is_done { Vec::new() } else { vec![application] },
            attempt: delivery.attempt,
        });
    }
    world.ended(&done, turns.now());
    true
}

/// Applies a plan. Returns the effects it did not finish; `None` if the worker died.
pub(super) async fn apply(hands: Hands<'_>, plan: &Plan<'_>) -> Option<Vec<EffectRef>> {
    let applied = hands.cache().apply(plan).await;
    if hands.tap.is_dead() {
        return None;
    }
    let slow = applied.unwrap().unsettled.into_iter().map(|(slot, outcome)| {
        assert_eq!(outcome, EffectOutcome::Slow);
        slot
    });
    Some(slow.collect())
}

/// Deletes the rest of a tag. Returns whether the worker is alive.
pub(super) async fn drain(hands: Hands<'_>, tag: &str) -> bool {
    let drained = hands.cache().drain_tag(tag, &CancellationToken::new(), |_, _| {}).await;
    let lives = !hands.tap.is_dead();
    assert!(!lives || drained.is_ok_and(|drained| drained.complete && drained.lost == 0));
    lives
}

pub(super) async fn slow_lane(
    world: &World,
    hands: Hands<'_>,
    turns: &Turns,
    task: Task,
    random: &mut fastrand::Rng,
) {
    let event = world.event(task.effect);
    let effect = event.as_effect(task.effect);
    let is_done = match &effect.action {
        Action::InvalidateTag => drain(hands, &effect.target).await.then_some(true),
        Action::Warm(warm) => {
            load(world, hands, turns, (&event, &effect, warm), task.attempt, random).await
        }
        other => panic!("{other:?}"),
    };
    turns.show(|| format!("slow lane, event {}: done? {is_done:?}", task.effect));
    match is_done {
        None => world.is_slow(task),
        Some(true) => {
            world.ended(&task.applications, turns.now());
            world.settled(task, random);
        }
        Some(false) => world.retry(&task),
    }
}

/// Returns whether a load is finished, successfully or not, or must be tried again.
///
/// Returns `None` if the worker died or was stopped.
async fn load(
    world: &World,
    hands: Hands<'_>,
    turns: &Turns,
    (event, effect, warm): (&Event, &Effect, &Warm),
    attempt: u32,
    random: &mut fastrand::Rng,
) -> Option<bool> {
    let Change::Warm { key, tags, .. } = &event.change else { panic!("{event:?}") };
    let source = Rows {
        turns,
        tags,
        random: RefCell::new(fastrand::Rng::with_seed(random.u64(..))),
        stop: CancellationToken::new(),
    };
    if random.u8(..16) == 0 {
        source.stop.cancel();
    }
    let (id, name) = (event.id.to_string(), turns.token());
    let asker = Asker { event: &id, name: &name, before: None };
    // Actors wait by turns, and nothing ends by itself.
    let forever = Duration::from_secs(86_400);
    let pace = FillPace {
        claim_ttl: LEASE,
        renewed_after: forever,
        held_interval: Duration::ZERO,
        longest_wait: forever,
    };
    assert!(pace.claim_ttl < LONGEST_LEASE);
    let cache = hands.cache();
    let outcome = Filling::new(&cache, (&effect.target, warm), &source, asker, pace, &source.stop)
        .fill(|_| attempt < ATTEMPTS)
        .await;
    if hands.tap.is_dead() {
        for _ in 0..random.usize(..4) {
            turns.next().await;
        }
        forget(world, turns, *key, &name).await;
        return None;
    }
    match outcome.unwrap() {
        None | Some(EffectOutcome::Dead { .. }) => Some(true),
        Some(EffectOutcome::Retry { .. }) => Some(attempt >= ATTEMPTS),
        Some(EffectOutcome::Slow | EffectOutcome::NotTried { .. }) => None,
    }
}

/// Ends the claims and the lease of a dead worker, which are not renewed.
async fn forget(world: &World, turns: &Turns, key: usize, name: &str) {
    for kind in ["load", "next", "lease"] {
        turns.next().await;
        let mut get = redis::cmd("GET");
        let side_key = format!("unstale:{kind}/{{{}}}", KEYS[key]);
        get.arg(&side_key);
        if let Value::BulkString(token) = world.ask(&get).await
            && String::from_utf8_lossy(&token).ends_with(&format!(".{name}"))
        {
            world.ask(redis::cmd("UNLINK").arg(&side_key)).await;
        }
    }
}

/// Source of the loads of warms.
struct Rows<'r> {
    turns: &'r Turns,
    tags: &'r [usize],
    random: RefCell<fastrand::Rng>,
    /// Stops the loading worker.
    stop: CancellationToken,
}

impl Source for Rows<'_> {
    type Turn = ();

    async fn admit(&self) -> Result<(), LoadError> {
        Ok(())
    }

    async fn load(&self, (): ()) -> Result<LoadOutcome, LoadError> {
        self.turns.next().await;
        if self.random.borrow_mut().u8(..8) == 0 {
            self.stop.cancel();
        }
        let cause = "the source is away".into();
        match self.random.borrow_mut().u8(..8) {
            0 => Ok(LoadOutcome::Absent),
            1 => Err(LoadError::Refused { cause }),
            2 => Err(LoadError::Retry { after: None, cause }),
            _ => Ok(LoadOutcome::Value(loaded(self.turns.now(), self.tags).into_bytes())),
        }
    }
}

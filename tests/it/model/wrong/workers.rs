//! Workers that apply some effects in a wrong way, and all others in the right way.

use redis::Value;
use unstale::plan::{Batch, EffectRef};
use unstale::registry::{Action, Effect};

use super::super::actors::{Hands, again, generation, lease, set};
use super::super::event::{Change, Event, Order, loaded, written};
use super::super::turns::Turns;
use super::super::worker::{apply, main_lane, slow_lane};
use super::super::world::{KEYS, Task, Work, World};
use super::{WrongWorker, fences, step, tags};
use crate::cache::effect;

/// Outcome of an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    Wrongly,
    /// The effect is one that the worker gets right, and is still to be done.
    NotYet,
    /// The worker died in the middle.
    Died,
}

pub(in super::super) async fn worker(
    world: &World,
    hands: Hands<'_>,
    turns: Turns,
    mut random: fastrand::Rng,
    wrong: WrongWorker,
) {
    loop {
        turns.next().await;
        match world.take(&mut random) {
            None => return,
            Some(Work::Nothing) => {}
            Some(Work::Slow(task))
                if wrong == WrongWorker::WarmsUnderFences
                    && world.event(task.effect).change.key().is_some() =>
            {
                warm_under_fence(world, &turns, &task).await;
                world.ended(&task.applications, turns.now());
                world.check().await;
            }
            Some(Work::Slow(task)) => {
                hands.tap.seat(Some(turns.clone()));
                slow_lane(world, hands, &turns, task, &mut random).await;
                hands.tap.seat(None);
                world.check().await;
            }
            Some(Work::Batch(deliveries)) => {
                for delivery in deliveries {
                    let mut lives = true;
                    for &at in &delivery.effects {
                        let applications = world.begin([at], turns.now());
                        match apply_wrongly(world, &turns, at, &world.event(at), &mut random, wrong)
                            .await
                        {
                            Done::Wrongly => world.ended(&applications, turns.now()),
                            Done::Died => {
                                world.died(&applications, turns.now());
                                lives = false;
                                break;
                            }
                            Done::NotYet => {
                                world.died(&applications, turns.now());
                                hands.tap.seat(Some(turns.clone()));
                                main_lane(world, hands, &turns, &[delivery.only(at)]).await;
                                hands.tap.seat(None);
                                shorten(world, &turns, at, wrong).await;
                            }
                        }
                        world.check().await;
                    }
                    if lives {
                        world.redeliver(vec![delivery], &mut random);
                    } else {
                        world.give_back(vec![delivery]);
                    }
                }
            }
        }
    }
}

async fn shorten(world: &World, turns: &Turns, at: usize, wrong: WrongWorker) {
    if let (WrongWorker::ShortGenerations, Change::InvalidateTag(tag)) =
        (wrong, world.event(at).change)
    {
        step(world, turns, &["PEXPIRE", &generation(tag), "20000"]).await;
    }
}

async fn apply_wrongly(
    world: &World,
    turns: &Turns,
    at: usize,
    event: &Event,
    random: &mut fastrand::Rng,
    wrong: WrongWorker,
) -> Done {
    use WrongWorker::{
        EntitiesCompared, EntitiesReplaced, FenceFirst, FirstOfEqual, KeepsNoRecord,
        KeyBeforeLease, MembersThenSet, MembersWithoutLeases, NoFences, Numbers, OneNameForAll,
        PopsMembers, SameEventAgain, Seed, ShortFences, SkipsOld, WritesAloneRaise,
        WritesLeaveLeases,
    };
    match (wrong, &event.change) {
        (Seed, Change::Delete { key, .. } | Change::Warm { key, .. }) => {
            step(world, turns, &["DEL", KEYS[*key]]).await;
        }
        (Seed, Change::Write { key, tags, .. }) => {
            step(world, turns, &["SETEX", KEYS[*key], "3600", &written(at, tags)]).await;
            for &tag in tags {
                step(world, turns, &["SADD", &set(tag), KEYS[*key]]).await;
            }
        }
        (
            Seed | MembersWithoutLeases | MembersThenSet | PopsMembers | KeepsNoRecord
            | OneNameForAll,
            Change::InvalidateTag(tag),
        ) => {
            return tags::invalidate(world, turns, *tag, random, wrong).await;
        }
        (KeyBeforeLease, Change::Delete { key, .. }) => {
            step(world, turns, &["UNLINK", KEYS[*key]]).await;
            step(world, turns, &["UNLINK", &lease(*key)]).await;
        }
        (
            Numbers | FirstOfEqual | SameEventAgain | WritesAloneRaise | FenceFirst
            | EntitiesCompared | EntitiesReplaced | ShortFences | WritesLeaveLeases,
            Change::Write { .. } | Change::Delete { .. } | Change::Warm { .. },
        ) if event.row().is_some() => {
            let is_write = matches!(event.change, Change::Write { .. });
            fences::fenced(world, turns, at, event, is_write, wrong).await;
        }
        (SkipsOld, Change::Delete { key, order: Some(Order { family: 0, version }) }) => {
            let fence = format!("unstale:fence/{{{}}}:row", KEYS[*key]);
            let Value::BulkString(fence) = step(world, turns, &["GET", &fence]).await else {
                return Done::NotYet;
            };
            let highest: u64 =
                String::from_utf8_lossy(&fence).split(':').next().unwrap().parse().unwrap();
            if *version >= highest {
                return Done::NotYet;
            }
        }
        (NoFences, Change::Write { key, .. }) => {
            step(world, turns, &["UNLINK", &lease(*key)]).await;
            step(world, turns, &["SET", KEYS[*key], &written(at, &[])]).await;
        }
        _ => return Done::NotYet,
    }
    Done::Wrongly
}

/// Stores a value under its event's version.
const STORE: &str = "
local fence = redis.call('GET', KEYS[2])
if fence and string.match(fence, '^%d+') == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2])
end";

async fn warm_under_fence(world: &World, turns: &Turns, task: &Task) {
    let event = world.event(task.effect);
    let Change::Warm { key, order: Some(Order { family: 0, version }), tags, .. } = &event.change
    else {
        return;
    };
    turns.next().await;
    let value = loaded(turns.now(), tags);
    for &tag in tags {
        step(world, turns, &["SADD", &set(tag), KEYS[*key]]).await;
    }
    let fence = format!("unstale:fence/{{{}}}:row", KEYS[*key]);
    step(world, turns, &["EVAL", STORE, "2", KEYS[*key], &fence, &version.to_string(), &value])
        .await;
}

/// Removes second deletes from their list, and performs them if the worker is alive.
pub(in super::super) async fn second_passes(
    world: &World,
    hands: Hands<'_>,
    turns: Turns,
    dies: bool,
) {
    turns.next().await;
    world.advance_to_second_passes().await;
    hands.tap.seat(Some(turns.clone()));
    let start = turns.now();
    let due = hands.cache().due_second_deletes("second deletes").await.unwrap();
    if !due.is_empty() {
        hands.cache().finish_second_deletes(&due).await.unwrap();
    }
    if !dies {
        let changes: Vec<Change> =
            due.iter().filter_map(unstale::cache::DueSecondDelete::target).map(again).collect();
        let effects: Vec<Effect> = changes
            .iter()
            .filter_map(|change| change.key())
            .map(|key| effect(0, KEYS[key], Action::Delete))
            .collect();
        let cache = hands.cache();
        let mut batch = Batch::new(cache.tag_prefix(), effects.len());
        for (event, effect) in (0..).zip(&effects) {
            batch.push(EffectRef { event, position: 0 }, effect);
        }
        apply(hands, &batch.finish()).await;
        let made: Vec<usize> = changes
            .into_iter()
            .filter(|change| change.key().is_some())
            .map(|change| world.made(change))
            .collect();
        world.ended(&world.begin(made, start), turns.now());
    }
    hands.tap.seat(None);
    world.check().await;
}

//! A replay beside all others: the production fold of what was published, applied as `unstale replay` applies it.

use std::collections::BTreeSet;

use unstale::cache::Cache;
use unstale::plan::{Batch, Fold, Folded, Slot};
use unstale::registry::{Action, Effect, Version};

use super::actors::{as_effect, send};
use super::tap::Tap;
use super::turns::Turns;
use super::world::{Change, Event, KEYS, TAGS, World};

/// What a span of the history came to.
struct Span {
    chosen: Vec<(usize, Event)>,
    folded: Vec<Folded>,
}

/// Replays any part of what was published so far, of any types, with writes that may have lost their fences or not.
pub(super) async fn replay(world: &World, cache: &Cache, tap: &Tap, turns: Turns, mut random: fastrand::Rng) {
    turns.next().await;
    let history: Vec<(usize, Event)> = world.history().into_iter().map(|at| (at, world.event(at))).collect();
    let messages = history.last().map_or(0, |(_, event)| event.id);
    let (since, until) = (random.u64(..=messages), random.u64(..=messages + 1));
    let (types, fenced_from) = (random.u8(..), random.u64(..=messages) * u64::from(random.bool()));
    let is_chosen = |event: &Event, of: &Event| (since..until).contains(&event.id) && types & (1 << kind(of)) > 0;
    let mut fold = Fold::new(cache.tag_prefix());
    let mut chosen = Vec::new();
    for (at, event) in &history {
        let effect = as_effect(*at, event);
        // A message is of its first effect's type.
        let (_, first) = history.iter().find(|(_, first)| first.id == event.id).expect("itself, if no other");
        if is_chosen(event, first) {
            fold.choose(event.id, effect, event.id >= fenced_from);
            chosen.push((*at, event.clone()));
        } else {
            fold.pass_over(event.id, &effect);
        }
        // No more is kept: what stands is applied, and the reading goes on.
        if event.place > 1 && random.u8(..8) == 0 {
            apply(world, cache, tap, &turns, Span { chosen: std::mem::take(&mut chosen), folded: fold.take(false) }, &mut random).await;
        }
        if random.bool() {
            turns.next().await;
        }
    }
    apply(world, cache, tap, &turns, Span { chosen, folded: fold.take(true) }, &mut random).await;
}

fn kind(event: &Event) -> u8 {
    match event.change {
        Change::Write { .. } => 0,
        Change::Delete { .. } => 1,
        Change::Warm { .. } => 2,
        Change::InvalidateTag(_) | Change::DeleteAgain(_) => 3,
    }
}

async fn apply(world: &World, cache: &Cache, tap: &Tap, turns: &Turns, span: Span, random: &mut fastrand::Rng) {
    let keys = span.chosen.iter().filter(|(_, event)| event.row().is_some()).map(|(at, _)| *at);
    let stands: BTreeSet<usize> = span.folded.iter().filter_map(|folded| written(&folded.effect, &span.chosen)).collect();
    let known = world.begin_folded(keys.filter(|at| !stands.contains(at)), turns.now());
    let mut effects: Vec<Effect> = span.folded.into_iter().map(|folded| folded.effect).collect();
    while !effects.is_empty() {
        let rest = effects.split_off(effects.len().min(random.usize(1..=3)));
        let mut batch = Batch::new(cache.tag_prefix(), effects.len());
        for (event, effect) in (0..).zip(&effects) {
            batch.push(Slot { event, position: 0 }, effect);
        }
        let meant: Vec<usize> = effects.iter().flat_map(|effect| meaning(world, effect, &span.chosen)).collect();
        let applications = world.begin(meant, turns.now());
        assert_eq!(send(cache, tap, turns, &batch.finish(), &effects).await, [], "a replay loads nothing");
        world.ended(&applications, turns.now());
        world.check().await;
        effects = rest;
    }
    world.ended(&known, turns.now());
}

/// The write that an effect is.
fn written(effect: &Effect, chosen: &[(usize, Event)]) -> Option<usize> {
    matches!(effect.action, Action::Write(_)).then(|| original(effect.version.as_deref()?, chosen)).flatten()
}

fn original(version: &Version, chosen: &[(usize, Event)]) -> Option<usize> {
    chosen.iter().find(|(_, event)| event.id == version.event && event.place == version.place).map(|(at, _)| *at)
}

/// What takes hold with an effect.
fn meaning(world: &World, effect: &Effect, chosen: &[(usize, Event)]) -> Vec<usize> {
    let place = |names: &[&str]| names.iter().position(|name| *name == effect.target).expect("a name of ours");
    match (&effect.action, effect.version.as_deref()) {
        (Action::Write(_), _) => written(effect, chosen).into_iter().collect(),
        (Action::Delete, Some(version)) => vec![world.replayed(original(version, chosen).expect("of a chosen event"))],
        (Action::Delete, None) => vec![world.second_pass(Change::DeleteAgain(place(&KEYS)))],
        (Action::InvalidateTag, _) => {
            let tag = Change::InvalidateTag(place(&TAGS));
            chosen.iter().filter(|(_, event)| event.change == tag).map(|(at, _)| *at).collect()
        }
        (other, _) => panic!("{other:?}"),
    }
}

//! Replay beside all others: the production fold of the published events, applied as `unstale
//! replay` applies it.

use std::collections::BTreeSet;

use unstale::plan::{Batch, EffectRef, Fold, Folded};
use unstale::registry::{Action, Effect, Version};

use super::actors::Hands;
use super::event::{Change, Event};
use super::turns::Turns;
use super::worker::{apply as apply_plan, drain};
use super::world::{KEYS, TAGS, World};
use super::wrong::WrongReplay;

/// State of Redis since the history was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Past {
    /// Redis has everything that was written to it.
    Kept,
    /// The fences of events before that one have expired.
    Unfenced { before: u64 },
    /// Redis has nothing. The replay reads the whole history.
    Lost,
}

/// Result of a span of the history.
struct Span {
    chosen: Vec<(usize, Event)>,
    /// Events that are known and not chosen.
    passed: Vec<(usize, Event)>,
    folded: Vec<Folded>,
}

/// Run of `unstale replay`.
pub(super) struct Replay<'r> {
    pub(super) world: &'r World,
    pub(super) hands: Hands<'r>,
    pub(super) turns: Turns,
    pub(super) random: fastrand::Rng,
    pub(super) past: Past,
    pub(super) wrong: Option<WrongReplay>,
}

impl Replay<'_> {
    /// Replays any part of the published events, of any types. Sometimes it dies.
    ///
    /// Writes may have lost their fences or not.
    pub(super) async fn run(mut self) {
        self.play().await;
        self.hands.begin_anew().await;
    }

    async fn play(&mut self) {
        self.turns.next().await;
        let history: Vec<(usize, Event)> =
            self.world.history().into_iter().map(|at| (at, self.world.event(at))).collect();
        let messages = history.last().map_or(0, |(_, event)| event.id);
        let random = &mut self.random;
        let (since, until) = (random.u64(..=messages), random.u64(..=messages + 1));
        let (types, any) =
            (random.u8(..) | random.u8(..), random.u64(..=messages) * u64::from(random.bool()));
        let (since, fenced_from) = match self.past {
            Past::Kept => (since, any),
            Past::Unfenced { .. } if self.wrong == Some(WrongReplay::AppliesOld) => (since, 0),
            Past::Unfenced { before } => (since, before.max(any)),
            Past::Lost => (0, any),
        };
        let is_chosen = |event: &Event, of: &Event| {
            (since..until).contains(&event.id) && types & (1 << kind(of)) > 0
        };
        let dies_after =
            (self.wrong.is_none() && self.random.u8(..4) == 0).then(|| self.random.u32(..8));
        self.hands.tap.dies_after(dies_after);
        let mut fold = Fold::new(self.hands.cache().tag_prefix());
        let (mut chosen, mut passed) = (Vec::new(), Vec::new());
        // Events before the span are not read. Otherwise fences would not matter.
        for (at, event) in history.iter().filter(|(_, event)| event.id >= since) {
            let effect = event.as_effect(*at);
            // The type of a message is that of its first effect.
            let (_, first) = history
                .iter()
                .find(|(_, first)| first.id == event.id)
                .expect("itself, if no other");
            if is_chosen(event, first) {
                fold.choose(event.id, effect, event.id >= fenced_from);
                chosen.push((*at, event.clone()));
            } else if self.wrong != Some(WrongReplay::GivesNoWay) {
                fold.skip(event.id, &effect);
                passed.push((*at, event.clone()));
            }
            // The memory is full: the remaining effects are applied, and the reading continues.
            if self.random.u8(..16) == 0 {
                let whole = self.wrong == Some(WrongReplay::CutsAsIfWhole);
                let span = Span {
                    chosen: std::mem::take(&mut chosen),
                    passed: std::mem::take(&mut passed),
                    folded: fold.take(whole),
                };
                if !self.apply(span).await {
                    return;
                }
            }
            if self.random.bool() {
                self.turns.next().await;
            }
        }
        self.apply(Span { chosen, passed, folded: fold.take(true) }).await;
    }

    /// Applies a span, and returns whether the replay is alive.
    async fn apply(&mut self, span: Span) -> bool {
        let (world, turns) = (self.world, self.turns.clone());
        let keys = span.chosen.iter().filter(|(_, event)| event.row().is_some()).map(|(at, _)| *at);
        let stands: BTreeSet<usize> =
            span.folded.iter().filter_map(|folded| written(&folded.effect, &span.chosen)).collect();
        let known = world.begin_folded(keys.filter(|at| !stands.contains(at)), turns.now());
        let effects = span.folded.into_iter().map(|folded| folded.effect);
        let mut effects: Vec<Effect> = match self.wrong {
            Some(WrongReplay::AppliesUnversioned) => {
                effects.map(|effect| unversioned(&effect, &span.chosen).unwrap_or(effect)).collect()
            }
            _ => effects.collect(),
        };
        while !effects.is_empty() {
            let rest = effects.split_off(effects.len().min(self.random.usize(1..=3)));
            // As fast as `--rate` permits.
            turns.rest(&mut self.random).await;
            let meant: Vec<usize> = effects
                .iter()
                .flat_map(|effect| meaning(world, effect, &span.chosen, &span.passed))
                .collect();
            let applications = world.begin(meant, turns.now());
            self.hands.tap.seat(Some(turns.clone()));
            let lives = self.send(&effects).await;
            self.hands.tap.seat(None);
            if !lives {
                world.died(&applications, turns.now());
                world.check().await;
                return false;
            }
            world.ended(&applications, turns.now());
            world.check().await;
            effects = rest;
        }
        world.ended(&known, turns.now());
        true
    }

    /// Applies some effects and ends their drains. Returns whether the replay is alive.
    async fn send(&self, effects: &[Effect]) -> bool {
        let cache = self.hands.cache();
        let mut batch = Batch::new(cache.tag_prefix(), effects.len());
        for (event, effect) in (0..).zip(effects) {
            batch.push(EffectRef { event, position: 0 }, effect);
        }
        let Some(left) = apply_plan(self.hands, &batch.finish()).await else { return false };
        for slot in left {
            let Effect { action, target, .. } = &effects[slot.event as usize];
            assert_eq!(*action, Action::InvalidateTag, "a replay loads nothing");
            if !drain(self.hands, target).await {
                return false;
            }
        }
        true
    }
}

fn kind(event: &Event) -> u8 {
    match event.change {
        Change::Write { .. } => 0,
        Change::Delete { .. } => 1,
        Change::Warm { .. } => 2,
        Change::InvalidateTag(_) => 3,
    }
}

/// Returns the write that an effect is.
fn written(effect: &Effect, chosen: &[(usize, Event)]) -> Option<usize> {
    matches!(effect.action, Action::Write(_))
        .then(|| original(effect.version.as_deref()?, chosen))
        .flatten()
}

/// Returns the write without a version that became this deletion.
fn unversioned(deletion: &Effect, chosen: &[(usize, Event)]) -> Option<Effect> {
    let of_key = |event: &Event| event.change.key().is_some_and(|key| KEYS[key] == deletion.target);
    let (at, last) = chosen.iter().rfind(|(_, event)| of_key(event))?;
    let is_write = matches!(last.change, Change::Write { .. }) && last.row().is_none();
    (is_write && deletion.action == Action::Delete && deletion.version.is_none())
        .then(|| last.as_effect(*at))
}

fn original(version: &Version, chosen: &[(usize, Event)]) -> Option<usize> {
    chosen
        .iter()
        .find(|(_, event)| event.id == version.event && event.place == version.place)
        .map(|(at, _)| *at)
}

/// Returns the events that take effect with an effect.
fn meaning(
    world: &World,
    effect: &Effect,
    chosen: &[(usize, Event)],
    passed: &[(usize, Event)],
) -> Vec<usize> {
    let place = |names: &[&str]| {
        names.iter().position(|name| *name == effect.target).expect("a name of ours")
    };
    match (&effect.action, effect.version.as_deref()) {
        (Action::Write(_), _) => written(effect, chosen).into_iter().collect(),
        (Action::Delete, Some(version)) => {
            let of = original(version, chosen)
                .or_else(|| original(version, passed))
                .expect("of an event that it has read");
            vec![world.replayed(of)]
        }
        (Action::Delete, None) => {
            vec![world.made(Change::Delete { key: place(&KEYS), order: None })]
        }
        (Action::InvalidateTag, _) => {
            let tag = Change::InvalidateTag(place(&TAGS));
            chosen.iter().filter(|(_, event)| event.change == tag).map(|(at, _)| *at).collect()
        }
        (other, _) => panic!("{other:?}"),
    }
}

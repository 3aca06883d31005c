use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const RULE: RuleId = RuleId(0);

fn effect(target: &str, action: Action, version: Option<Version>) -> Effect {
    Effect {
        rule: RULE,
        target: target.into(),
        action,
        version: version.map(Box::new),
        again: None,
    }
}

/// Returns a version of an entity. A letter names its event, and `place` counts the effects of that
/// event.
fn version(family: &str, number: u64, event: char, place: u32) -> Option<Version> {
    Some(Version { family: family.into(), digits: number.to_string(), event: event.into(), place })
}

fn write(value: &str, tags: &[&str]) -> Action {
    let tags = tags.iter().map(|&tag| tag.into()).collect();
    Action::Write(Box::new(Write { value: value.into(), expiry: Expiry::Never, tags }))
}

fn after(seconds: u64) -> Action {
    Action::Expire(Expiry::After { ttl: Duration::from_secs(seconds), jitter: 0.0 })
}

/// The event is not applied.
const OTHERS: bool = false;
const OURS: bool = true;

type Step<'s> = (bool, &'s str, Action, Option<Version>);

/// Returns the remaining effects in order: `verb target`, the version, a value or a time to live if
/// there is one, and the oldest offset.
fn folded(steps: &[Step<'_>]) -> Vec<String> {
    let mut fold = Fold::new("tag:");
    for (at, (chosen, target, action, version)) in (0..).zip(steps) {
        let effect = effect(target, action.clone(), version.clone());
        if *chosen { fold.choose(at, effect, true) } else { fold.skip(at, &effect) }
    }
    let shown = |Folded { since, effect: Effect { target, action, version, .. } }: Folded| {
        let version = version
            .map(|version| format!(" {}{}", version.family, version.digits))
            .unwrap_or_default();
        let verb = action.verb();
        let rest = match action {
            Action::Write(write) => format!(" = {}", write.value),
            Action::Expire(Expiry::After { ttl, .. }) => format!(" {}", ttl.as_secs()),
            _ => String::new(),
        };
        format!("{verb} {target}{version}{rest} @{since}")
    };
    fold.take(true).into_iter().map(shown).collect()
}

#[test]
fn a_fold_keeps_the_longest_second_delete() {
    let mut fold = Fold::new("tag:");
    let again = |effect, millis| Effect { again: Some(Duration::from_millis(millis)), ..effect };
    for (at, (target, millis)) in
        (0..).zip([("a", 200), ("a", 500), ("a", 100), ("b", 300), ("c", 400), ("n", 400)])
    {
        fold.choose(
            at,
            again(effect(target, Action::Delete, version("f", 1, 'x', 1)), millis),
            true,
        );
        fold.choose(at, again(effect(target, Action::InvalidateTag, None), millis), true);
    }
    fold.choose(6, effect("b", write("v", &[]), version("f", 2, 'y', 1)), true);
    // An event that is not applied supersedes what came before it, and its second delete does not
    // count.
    fold.skip(7, &again(effect("c", Action::Delete, None), 900));
    fold.skip(8, &again(effect("a", Action::InvalidateTag, None), 900));
    // A counter is not set back.
    fold.choose(9, effect("n", Action::BumpVersion, None), true);
    let asked: BTreeSet<_> = (fold.take(true).into_iter())
        .map(|Folded { effect: Effect { target, action, again, .. }, .. }| {
            format!("{} {target} {}", action.verb(), again.map_or(0, |again| again.as_millis()))
        })
        .collect();
    let expected = [
        "delete a 500",
        "delete b 300",
        "write b 0",
        "bump_version n 0",
        "invalidate_tags a 500",
        "invalidate_tags b 300",
        "invalidate_tags c 400",
        "invalidate_tags n 400",
    ];
    assert_eq!(asked, BTreeSet::from(expected.map(str::to_owned)));
}

#[test]
fn a_fold_keeps_one_effect_for_each_target() {
    use Action::{BumpVersion as Bump, Delete, InvalidateTag as Invalidate};
    for (why, steps, expected) in [
        (
            "the last deletion",
            vec![(OURS, "a", Delete), (OURS, "b", Delete), (OURS, "a", Delete)],
            vec!["delete b @1", "delete a @2"],
        ),
        ("one bump", vec![(OURS, "n", Bump), (OURS, "n", Bump)], vec!["bump_version n @1"]),
        (
            "a counter is not set back",
            vec![(OURS, "n", Delete), (OURS, "n", Bump)],
            vec!["bump_version n @1"],
        ),
        (
            "the last invalidation",
            vec![(OURS, "T", Invalidate), (OURS, "T", Invalidate)],
            vec!["invalidate_tags T @1"],
        ),
        (
            "the sooner expiry",
            vec![(OURS, "a", after(9)), (OURS, "a", after(5)), (OURS, "a", after(7))],
            vec!["expire a 5 @1"],
        ),
        (
            "of two kinds of expiry neither is known to be sooner",
            vec![(OURS, "a", after(9)), (OURS, "a", Action::Expire(Expiry::At(5)))],
            vec!["delete a @0"],
        ),
        (
            "a deletion is sooner",
            vec![(OURS, "a", after(9)), (OURS, "a", Delete), (OURS, "a", after(9))],
            vec!["delete a @1"],
        ),
        ("a write without a version", vec![(OURS, "a", write("1", &[]))], vec!["delete a @0"]),
        (
            "a tag's own set",
            vec![(OURS, "tag:T", Delete), (OURS, "tag:U", after(5))],
            vec!["invalidate_tags T @0", "invalidate_tags U @1"],
        ),
        (
            "gives way to a write",
            vec![(OURS, "a", Delete), (OURS, "b", Delete), (OTHERS, "a", write("1", &[]))],
            vec!["delete b @1"],
        ),
        (
            "only to later ones",
            vec![(OTHERS, "a", Delete), (OURS, "a", Delete)],
            vec!["delete a @1"],
        ),
        (
            "a deletion stays for an expiry",
            vec![(OURS, "a", Delete), (OTHERS, "a", after(5))],
            vec!["delete a @0"],
        ),
        (
            "an invalidation does not give way",
            vec![(OURS, "T", Invalidate), (OTHERS, "T", Invalidate)],
            vec!["invalidate_tags T @0"],
        ),
    ] {
        let steps: Vec<Step<'_>> = steps
            .into_iter()
            .map(|(chosen, target, action)| (chosen, target, action, None))
            .collect();
        assert_eq!(folded(&steps), expected, "{why}");
    }
}

#[test]
fn a_fold_keeps_the_write_with_the_highest_version() {
    use Action::{Delete, InvalidateTag as Invalidate};
    let w = |value| write(value, &[]);
    let v = |number, event| version("f", number, event, 1);
    for (why, steps, expected) in [
        (
            "the higher version",
            vec![(OURS, "a", w("1"), v(9, 'a')), (OURS, "a", w("2"), v(10, 'b'))],
            vec!["write a f10 = 2 @1"],
        ),
        (
            "whatever came later",
            vec![(OURS, "a", w("2"), v(10, 'b')), (OURS, "a", w("1"), v(9, 'a'))],
            vec!["write a f10 = 2 @0"],
        ),
        (
            "of two events neither",
            vec![
                (OURS, "a", w("1"), v(9, 'a')),
                (OURS, "a", w("2"), v(9, 'b')),
                (OURS, "a", w("3"), v(9, 'c')),
            ],
            vec!["delete a f9 @2", "delete a f9 @2"],
        ),
        (
            "one event twice",
            vec![(OURS, "a", w("1"), v(9, 'a')), (OURS, "a", w("1"), v(9, 'a'))],
            vec!["write a f9 = 1 @0"],
        ),
        (
            "a deletion after it, with its version",
            vec![(OURS, "a", w("1"), v(9, 'a')), (OURS, "a", Delete, None)],
            vec!["delete a f9 @1"],
        ),
        (
            "an older deletion",
            vec![(OURS, "a", w("1"), v(9, 'a')), (OURS, "a", Delete, v(8, 'b'))],
            vec!["delete a f9 @1"],
        ),
        (
            "an older write",
            vec![(OURS, "a", Delete, v(9, 'a')), (OURS, "a", w("1"), v(8, 'b'))],
            vec!["delete a f9 @0"],
        ),
        (
            "a write that may be refused leaves the deletion before it",
            vec![
                (OURS, "a", Delete, None),
                (OURS, "a", w("1"), v(9, 'a')),
                (OURS, "a", w("2"), v(10, 'b')),
            ],
            vec!["delete a @0", "write a f10 = 2 @0"],
        ),
        (
            "of one event in the order written",
            vec![
                (OURS, "a", Delete, version("f", 9, 'a', 1)),
                (OURS, "a", w("1"), version("f", 9, 'a', 2)),
            ],
            vec!["delete a @0", "write a f9 = 1 @0"],
        ),
        (
            "the later one of two entities, and both fences",
            vec![
                (OURS, "a", w("1"), version("f", 9, 'a', 1)),
                (OURS, "a", w("2"), version("g", 1, 'b', 1)),
            ],
            vec!["delete a f9 @1", "write a g1 = 2 @1"],
        ),
        (
            "none with a shorter life",
            vec![(OURS, "a", w("1"), v(9, 'a')), (OURS, "a", after(5), None)],
            vec!["delete a f9 @0"],
        ),
        (
            "with any event that shortened it",
            vec![(OURS, "a", w("1"), v(9, 'a')), (OTHERS, "a", after(5), None)],
            vec!["delete a f9 @0"],
        ),
        (
            "none that was invalidated by its tag",
            vec![
                (OURS, "a", write("1", &["T"]), v(1, 'a')),
                (OURS, "b", write("2", &["U"]), v(2, 'b')),
                (OURS, "T", Invalidate, None),
            ],
            vec!["delete a f1 @0", "write b f2 = 2 @1", "invalidate_tags T @2"],
        ),
        (
            "with any event that did so",
            vec![
                (OURS, "a", write("1", &["T"]), v(1, 'a')),
                (OTHERS, "T", Invalidate, None),
                (OURS, "b", write("2", &["T"]), v(2, 'b')),
            ],
            vec!["delete a f1 @0", "write b f2 = 2 @2"],
        ),
        (
            "none that a later event touches",
            vec![(OURS, "a", w("1"), v(9, 'a')), (OTHERS, "a", Delete, None)],
            vec![],
        ),
    ] {
        assert_eq!(folded(&steps), expected, "{why}");
    }
}

#[test]
fn a_write_that_may_be_superseded_folds_to_a_deletion() {
    let mut fold = Fold::new("tag:");
    let deletion = effect("a", Action::Delete, version("f", 1, 'a', 1));
    fold.choose(0, effect("a", write("1", &[]), version("f", 1, 'a', 1)), false);
    assert_eq!(fold.take(true)[0].effect, deletion);
    fold.choose(1, effect("a", write("1", &[]), version("f", 1, 'a', 1)), true);
    assert_eq!(fold.take(false)[0].effect, deletion);
}

#[test]
fn a_fold_has_bounded_memory() {
    let limits = FoldLimits { targets: 3, bytes: 100 + 2 * TARGET_BYTES };
    let mut fold = Fold::new("tag:");
    let targets = FoldLimits { targets: 3, bytes: usize::MAX };
    for (key, full) in [("a", false), ("a", false), ("b", false), ("c", true)] {
        fold.choose(0, effect(key, Action::Delete, None), true);
        assert_eq!(fold.is_full(targets), full, "{key}");
    }
    assert!(fold.is_full(limits), "each takes some bytes");
    fold.take(true);
    assert!(fold.is_empty() && !fold.is_full(limits));
    let value = "x".repeat(60);
    let written = |key, number| effect(key, write(&value, &[]), version("f", number, 'a', 1));
    fold.choose(0, written("a", 1), true);
    fold.choose(1, written("a", 2), true);
    assert!(!fold.is_full(limits), "the first one's value is kept no longer");
    fold.choose(2, written("b", 1), true);
    assert!(fold.is_full(limits));
    fold.skip(3, &effect("b", Action::Delete, None));
    fold.choose(4, effect("a", Action::Delete, None), true);
    assert_eq!(fold.bytes, 2 + 2 * TARGET_BYTES, "the names, and b's version");
}

#[test]
fn a_newer_version_that_is_not_applied_supersedes_a_write() {
    let passed = || (OTHERS, "k", Action::Delete, version("f", 5, 'a', 1));
    for (write_of, expected) in [
        (version("f", 4, 'b', 1), vec![]),
        (version("f", 5, 'b', 1), vec!["delete k f5 @1", "delete k f5 @1"]),
        (version("f", 6, 'b', 1), vec!["write k f6 = v @1"]),
        (version("g", 1, 'b', 1), vec!["delete k f5 @1", "write k g1 = v @1"]),
    ] {
        assert_eq!(folded(&[passed(), (OURS, "k", write("v", &[]), write_of)]), expected);
    }
    assert_eq!(folded(&[passed(), (OURS, "k", after(5), None)]), ["expire k 5 @1"]);
    assert_eq!(
        folded(&[passed(), passed(), (OTHERS, "l", Action::Delete, None)]),
        <[&str; 0]>::default()
    );

    // After a cut, only the fences that a deletion raised record the versions.
    for (chosen, is_fenced) in [
        (None, false),
        (Some(after(5)), false),
        (Some(Action::BumpVersion), false),
        (Some(Action::Delete), true),
    ] {
        let mut fold = Fold::new("tag:");
        fold.skip(0, &effect("k", Action::Delete, version("f", 5, 'a', 1)));
        if let Some(action) = chosen {
            fold.choose(1, effect("k", action, None), true);
        }
        fold.take(false);
        fold.choose(2, effect("k", write("v", &[]), version("f", 4, 'b', 1)), true);
        assert_eq!(fold.take(true)[0].effect.action == Action::Delete, !is_fenced);
    }
}

/// A model of Redis and of the facts that its values depend on.
///
/// Each value is as of the event after which it was written or loaded, and is derived from the
/// state of its tags.
#[derive(Debug, Clone, Default, PartialEq)]
struct World {
    values: BTreeMap<String, Value>,
    fences: BTreeMap<String, u64>,
    sets: BTreeMap<String, BTreeSet<String>>,
    counters: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq)]
struct Value {
    as_of: u64,
    tags: Vec<String>,
}

impl World {
    fn apply(&mut self, effect: &Effect) {
        let target = effect.target.clone();
        let as_of = effect.version.as_ref().map_or(0, |version| version.digits.parse().unwrap());
        let is_newest = self.fences.get(&target).is_none_or(|&fence| as_of > fence);
        if effect.version.is_some() && is_newest {
            self.fences.insert(target.clone(), as_of);
        }
        match &effect.action {
            Action::Delete | Action::Warm(_) => drop(self.values.remove(&target)),
            Action::InvalidateTag => {
                let members = self.sets.remove(&target).unwrap_or_default();
                self.values.retain(|key, _| !members.contains(key));
            }
            Action::BumpVersion => *self.counters.entry(target).or_insert(1) += 1,
            Action::Expire(_) => {}
            Action::Write(write) if is_newest => {
                self.put(&target, Value { as_of, tags: write.tags.clone() })
            }
            Action::Write(_) => {}
        }
    }

    /// A reader finds nothing and loads the value.
    fn fill(&mut self, key: &str, tag: Option<&str>, as_of: u64) {
        if !self.values.contains_key(key) {
            self.put(key, Value { as_of, tags: tag.into_iter().map(String::from).collect() });
        }
    }

    fn put(&mut self, key: &str, value: Value) {
        for tag in &value.tags {
            self.sets.entry(tag.clone()).or_default().insert(key.to_owned());
        }
        self.values.insert(key.to_owned(), value);
    }
}

/// An event of the history, followed by a reader's load.
#[derive(Debug, Clone)]
struct Happened {
    chosen: bool,
    effects: Vec<Effect>,
    fill: Option<(&'static str, Option<&'static str>)>,
}

/// The version is the index of the event, which [`live`] fills in.
fn any_step() -> impl Strategy<Value = Happened> {
    let plain = prop::sample::select(vec!["a", "b"]);
    let written = prop::sample::select(vec!["w", "x"]);
    let tag = prop::sample::select(vec!["T", "U"]);
    let versioned = || version("f", 0, 'a', 1);
    let one = prop_oneof![
        3 => plain.clone().prop_map(|key| effect(key, Action::Delete, None)),
        1 => plain.clone().prop_map(|key| effect(key, after(30), None)),
        1 => written.clone().prop_map(|key| effect(key, Action::Delete, None)),
        1 => written.clone().prop_map(move |key| effect(key, Action::Delete, versioned())),
        1 => written.clone().prop_map(|key| effect(key, after(30), None)),
        2 => tag.clone().prop_map(|tag| effect(tag, Action::InvalidateTag, None)),
        1 => Just(effect("n", Action::BumpVersion, None)),
        5 => (written, prop::sample::subsequence(vec!["T", "U"], 0..=2))
            .prop_map(move |(key, tags)| effect(key, write("", &tags), versioned())),
    ];
    let fill = prop::option::of((plain, prop::option::of(tag)));
    (any::<bool>(), prop::collection::vec(one, 0..3), fill)
        .prop_map(|(chosen, effects, fill)| Happened { chosen, effects, fill })
}

/// A history with its facts: the worlds after each event, and the newest event that made a key or
/// the values of a tag stale.
struct Past {
    steps: Vec<Happened>,
    worlds: Vec<World>,
    keys: BTreeMap<String, u64>,
    tags: BTreeMap<String, u64>,
}

fn live(steps: Vec<Happened>) -> Past {
    let mut past = Past { steps, worlds: Vec::new(), keys: BTreeMap::new(), tags: BTreeMap::new() };
    let mut world = World::default();
    for (at, step) in (1..).zip(&mut past.steps) {
        for (place, effect) in (1..).zip(&mut step.effects) {
            effect.version = effect.version.take().and(version("f", at, 'a', place).map(Box::new));
            match effect.action {
                Action::InvalidateTag => {
                    past.tags.insert(effect.target.clone(), at);
                }
                Action::Delete | Action::Warm(_) | Action::Write(_) => {
                    past.keys.insert(effect.target.clone(), at);
                }
                Action::BumpVersion | Action::Expire(_) => {}
            }
            world.apply(effect);
        }
        if let Some((key, tag)) = step.fill {
            world.fill(key, tag, at);
        }
        past.worlds.push(world.clone());
    }
    past
}

impl Past {
    /// Folds the events to apply of the span, and the events known after it. At `flush_at` the
    /// fold is full.
    fn fold(&self, span: std::ops::Range<u64>, all: bool, flush_at: u64) -> Vec<Vec<Folded>> {
        let mut fold = Fold::new("tag:");
        let mut parts = Vec::new();
        for (at, step) in (1..).zip(&self.steps) {
            if at < span.start {
                continue;
            }
            for effect in &step.effects {
                if span.contains(&at) && (all || step.chosen) {
                    fold.choose(at, effect.clone(), true);
                } else {
                    fold.skip(at, effect);
                }
            }
            if at == flush_at {
                parts.push(fold.take(false));
            }
        }
        parts.push(fold.take(true));
        parts
    }

    /// Returns whether a value is fresh. Within one event it may come before the effect that
    /// invalidates it, so "as of that event" counts as fresh.
    fn is_fresh(&self, key: &str, value: &Value) -> bool {
        let since = |stale: Option<&u64>| stale.is_none_or(|&stale| value.as_of >= stale);
        since(self.keys.get(key)) && value.tags.iter().all(|tag| since(self.tags.get(tag)))
    }

    /// Checks that every value is fresh, or no older than the one before. In the second case its
    /// tags must still find it.
    fn check(&self, before: &World, now: &World) -> Result<(), TestCaseError> {
        for (key, value) in &now.values {
            let earlier = before.values.get(key);
            let is_no_staler = earlier.is_some_and(|earlier| value.as_of >= earlier.as_of);
            prop_assert!(
                is_no_staler || self.is_fresh(key, value),
                "{key} {value:?}: {before:?} became {now:?}"
            );
            for tag in value.tags.iter().filter(|_| earlier == Some(value)) {
                prop_assert!(
                    now.sets.get(tag).is_some_and(|set| set.contains(key)),
                    "{key} is there, and {tag} no longer finds it"
                );
            }
        }
        for (counter, number) in &before.counters {
            prop_assert!(now.counters.get(counter) >= Some(number), "{counter}");
        }
        Ok(())
    }

    fn check_healed(&self, now: &World, lost_from: u64) -> Result<(), TestCaseError> {
        for (key, value) in &now.values {
            prop_assert!(self.is_fresh(key, value), "{key} {value:?} is stale in {now:?}");
        }
        let bumped = (1..).zip(&self.steps).any(|(at, step)| {
            at >= lost_from && step.effects.iter().any(|effect| effect.target == "n")
        });
        prop_assert!(!bumped || now.counters.contains_key("n"));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    /// The property holds with any loss in Redis, any selection for the replay, and any
    /// interruption and resumption.
    #[test]
    fn a_replay_never_makes_anything_staler(
        steps in prop::collection::vec(any_step(), 1..14),
        kept in 0_usize..14,
        span in (1_u64..14, 1_u64..16),
        flush_at in 0_u64..20,
        cut in 0_usize..10,
        all: bool,
    ) {
        let past = live(steps);
        let kept = kept.min(past.worlds.len());
        let before = kept.checked_sub(1).map_or_else(World::default, |last| past.worlds[last].clone());
        let lost_from = kept as u64 + 1;
        let is_whole = all && span.0 <= lost_from && span.1 > past.steps.len() as u64;
        let mut world = before.clone();
        let mut resumed = false;
        for part in past.fold(span.0..span.1, all, flush_at) {
            for (done, folded) in part.iter().enumerate() {
                if done == cut && !resumed {
                    // Interrupted before this effect, and resumed at the offset from which the rest
                    // follows.
                    resumed = true;
                    let since = part[done..].iter().map(|folded| folded.since).min().unwrap_or(span.0);
                    for folded in past.fold(since..span.1, all, 0).concat() {
                        world.apply(&folded.effect);
                        past.check(&before, &world)?;
                    }
                    if is_whole {
                        past.check_healed(&world, lost_from)?;
                    }
                }
                world.apply(&folded.effect);
                past.check(&before, &world)?;
            }
        }
        if is_whole {
            past.check_healed(&world, lost_from)?;
        }
    }
}

#[test]
fn a_letter_that_is_not_applied_supersedes_nothing() {
    let written = || effect("k", write("new", &["t"]), version("f", 2, 'b', 1));
    let letter = || effect("k", write("old", &["t"]), version("f", 1, 'a', 1));
    let left = |chosen: Effect, letter: Effect| {
        let mut fold = Fold::new("cache_tag:");
        fold.choose(1, chosen, true);
        fold.doubt(2, &letter);
        let left = fold.take(true).into_iter();
        left.map(|folded| (folded.effect.target, folded.effect.action)).collect::<Vec<_>>()
    };
    let deleted = [("k".to_owned(), Action::Delete)];
    assert_eq!(left(written(), letter()), deleted, "it may have overwritten the value");
    assert_eq!(left(effect("k", Action::Delete, None), letter()), deleted);
    let tag = || effect("t", Action::InvalidateTag, None);
    assert_eq!(left(written(), tag()), deleted);
    assert_eq!(left(tag(), tag()), [("t".to_owned(), Action::InvalidateTag)]);
    let other = effect("other", Action::Delete, None);
    assert_eq!(left(written(), other).len(), 1, "it is of another key");
}

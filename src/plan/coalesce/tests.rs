use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::registry::{LoaderId, Version, Warm};

/// In milliseconds. Every operation of the model happens at this time.
const NOW: i64 = 1_000_000;

/// Time for which a value may be read while its load is under way.
const SERVED_MS: i64 = 900_000;

/// The content of Redis, as far as effects depend on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    values: BTreeMap<String, Value>,
    sets: BTreeMap<String, Set>,
    /// By key and family.
    fences: BTreeMap<(String, String), Fence>,
}

/// The highest version, its event, and that event's place, unless two events had the version.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fence {
    number: u64,
    by: Option<(u64, u32)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Value {
    text: String,
    expires_at: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Set {
    members: BTreeSet<String>,
    expires_at: Option<i64>,
}

impl Model {
    /// Raises the fence. Returns whether the version was newer, and `None` for the same version of
    /// another event.
    fn raise(&mut self, target: &str, version: &FenceVersion<'_>) -> Option<bool> {
        let Version { family, digits, event, place } = version.version;
        let number: u64 = digits.parse().expect("small");
        let by = (!version.tied).then_some((*event, *place));
        let at = (target.to_owned(), family.clone());
        let before = self.fences.get(&at).cloned();
        let (standing, by) = match before {
            Some(before) if number < before.number => return Some(false),
            Some(before) if number == before.number => match (before.by, by) {
                (Some((old_event, old_place)), Some((event, place))) if old_event == event => {
                    (Some(place > old_place), Some((event, place.max(old_place))))
                }
                _ => (None, None),
            },
            _ => (Some(true), by),
        };
        self.fences.insert(at, Fence { number, by });
        standing
    }

    fn apply(&mut self, target: &str, command: Command<'_>, version: Option<&FenceVersion<'_>>) {
        if let Some(version) = version {
            match (self.raise(target, version), command) {
                (Some(false), Command::Write(_)) => return,
                (None, Command::Write(_)) => {
                    self.values.remove(target);
                    return;
                }
                _ => {}
            }
        }
        match command {
            Command::Delete => {
                self.values.remove(target);
            }
            Command::InvalidateTag => {
                for member in self.sets.remove(target).map(|set| set.members).unwrap_or_default() {
                    self.values.remove(&member);
                }
            }
            Command::Bump(by) => {
                let value = self
                    .values
                    .entry(target.to_owned())
                    .or_insert(Value { text: "1".into(), expires_at: None });
                if let Ok(number) = value.text.parse::<i64>() {
                    value.text = (number + i64::from(by)).to_string();
                }
            }
            Command::Expire(expiry) => {
                let at = moment(expiry).expect("an expiry has a moment");
                if let Some(value) = self.values.get_mut(target) {
                    value.expires_at = Some(value.expires_at.map_or(at, |earlier| earlier.min(at)));
                }
                self.values.retain(|_, value| value.expires_at.is_none_or(|at| at > NOW));
            }
            Command::Serve => {
                if let Some(value) = self.values.get_mut(target) {
                    value.expires_at = Some(
                        value
                            .expires_at
                            .map_or(NOW + SERVED_MS, |earlier| earlier.min(NOW + SERVED_MS)),
                    );
                }
            }
            Command::Write(write) => {
                let at = moment(write.expiry);
                if at.is_some_and(|at| at <= NOW) {
                    self.values.remove(target);
                    return;
                }
                for tag in &write.tags {
                    match self.sets.get_mut(tag) {
                        None => {
                            let members = BTreeSet::from([target.to_owned()]);
                            self.sets.insert(tag.clone(), Set { members, expires_at: at });
                        }
                        Some(set) => {
                            set.members.insert(target.to_owned());
                            set.expires_at =
                                set.expires_at.zip(at).map(|(earlier, at)| earlier.max(at));
                        }
                    }
                }
                self.values
                    .insert(target.to_owned(), Value { text: write.value.clone(), expires_at: at });
            }
        }
    }
}

fn moment(expiry: Expiry) -> Option<i64> {
    match expiry {
        Expiry::After { ttl, .. } => Some(NOW + i64::try_from(ttl.as_millis()).expect("short")),
        Expiry::At(at) => Some(at),
        Expiry::Never => None,
    }
}

/// Applies the effects one by one. Returns the keys to load in the end.
fn one_by_one(model: &mut Model, effects: &[Effect]) -> BTreeSet<String> {
    let mut loads = BTreeSet::new();
    for effect in effects {
        if let Action::Warm(warm) = &effect.action
            && (warm.only == Only::Always || model.values.contains_key(&effect.target))
        {
            loads.insert(effect.target.clone());
        }
        let command = match &effect.action {
            Action::Warm(warm) if warm.stale == Stale::Serve => Command::Serve,
            Action::Delete | Action::Warm(_) => Command::Delete,
            Action::InvalidateTag => Command::InvalidateTag,
            Action::BumpVersion => Command::Bump(1),
            Action::Expire(expiry) => Command::Expire(*expiry),
            Action::Write(write) => Command::Write(write),
        };
        model.apply(
            &effect.target,
            command,
            effect.version.as_deref().map(FenceVersion::of).as_ref(),
        );
    }
    loads
}

fn plan(effects: &[Effect]) -> Plan<'_> {
    let mut batch = Batch::new("tag:", effects.len());
    for (event, effect) in effects.iter().enumerate() {
        batch.push(EffectRef { event: id(event), position: 0 }, effect);
    }
    batch.finish()
}

/// Applies a plan. Returns the keys to load in the end.
fn run(model: &mut Model, plan: &Plan<'_>) -> BTreeSet<String> {
    let mut existed = BTreeSet::new();
    for &operation in plan.deletions().iter().chain(plan.in_order()) {
        let Operation { target, command, fence_version, .. } = *plan.operation(operation);
        if model.values.contains_key(target) {
            existed.insert(operation);
        }
        model.apply(target, command, fence_version.as_ref());
    }
    let due =
        plan.loads().iter().filter(|load| !load.only_if_existed || existed.contains(&load.after));
    due.map(|load| plan.operation(load.after).target.to_owned()).collect()
}

fn effect(target: &str, action: Action) -> Effect {
    Effect { rule: RuleId(0), target: target.into(), action, version: None, again: None }
}

fn write(value: &str, expiry: Expiry, tags: &[&str]) -> Action {
    Action::Write(Box::new(Write {
        value: value.into(),
        expiry,
        tags: tags.iter().map(|&tag| tag.into()).collect(),
    }))
}

fn warm(stale: Stale, only: Only) -> Action {
    Action::Warm(Box::new(Warm {
        loader: LoaderId(0),
        url: String::new(),
        expiry: Expiry::Never,
        tags: vec![],
        stale,
        only,
    }))
}

fn at(digits: &str, event: u64, effect: Effect) -> Effect {
    of("F", digits, event, 1, effect)
}

fn of(family: &str, digits: &str, event: u64, place: u32, effect: Effect) -> Effect {
    let version = Version { family: family.into(), digits: digits.into(), event, place };
    Effect { version: Some(Box::new(version)), ..effect }
}

fn after(seconds: u64) -> Expiry {
    Expiry::After { ttl: Duration::from_secs(seconds), jitter: 0.0 }
}

fn shape(effects: &[Effect]) -> Vec<String> {
    let plan = plan(effects);
    let show = |&operation: &OperationId| {
        let Operation { target, command, .. } = plan.operation(operation);
        let effects: Vec<_> = plan.effects(operation).map(|effect_ref| effect_ref.event).collect();
        let version = plan.operation(operation).fence_version.map(|version| {
            format!("@{}{}", version.version.digits, if version.tied { "tied" } else { "" })
        });
        let verb = match command {
            Command::Delete => "delete".to_owned(),
            Command::InvalidateTag => "invalidate".to_owned(),
            Command::Bump(by) => format!("bump {by}"),
            Command::Expire(expiry) => format!("expire {}", moment(*expiry).expect("set") - NOW),
            Command::Serve => "serve".to_owned(),
            Command::Write(write) => format!("write {}", write.value),
        };
        format!("{verb}{} {target} {effects:?}", version.unwrap_or_default())
    };
    plan.deletions().iter().chain(plan.in_order()).map(show).collect()
}

#[test]
fn effects_coalesce_only_if_the_result_is_the_same() {
    use Action::{BumpVersion as Bump, Delete, InvalidateTag as Invalidate};
    let w = |value: &str, tags: &[&str]| write(value, after(60), tags);
    for (why, effects, expected) in [
        (
            "one deletion a key",
            vec![("a", Delete), ("b", Delete), ("a", Delete)],
            vec!["delete a [0, 2]", "delete b [1]"],
        ),
        (
            "a deletion passes tags",
            vec![("T", Invalidate), ("a", Delete)],
            vec!["delete a [1]", "invalidate T [0]"],
        ),
        (
            "a deletion makes a write unseen",
            vec![("a", w("1", &[])), ("a", Delete)],
            vec!["delete a [1, 0]"],
        ),
        (
            "a tagged write stays",
            vec![("a", w("1", &["T"])), ("a", Delete)],
            vec!["write 1 a [0]", "delete a [1]"],
        ),
        (
            "a later write wins",
            vec![("a", w("1", &["T"])), ("a", w("2", &["T", "U"]))],
            vec!["write 2 a [1, 0]"],
        ),
        (
            "not where a tag that may be refused comes first",
            vec![("a", w("1", &["U"])), ("a", w("2", &["T", "U"]))],
            vec!["write 1 a [0]", "write 2 a [1]"],
        ),
        (
            "not with other tags",
            vec![("a", w("1", &["T"])), ("a", w("2", &["U"]))],
            vec!["write 1 a [0]", "write 2 a [1]"],
        ),
        ("bumps add up", vec![("v", Bump), ("v", Bump), ("v", Bump)], vec!["bump 3 v [0, 1, 2]"]),
        (
            "not past a tag",
            vec![("v", Bump), ("T", Invalidate), ("v", Bump)],
            vec!["bump 1 v [0]", "invalidate T [1]", "bump 1 v [2]"],
        ),
        (
            "tags merge",
            vec![("T", Invalidate), ("v", Bump), ("T", Invalidate)],
            vec!["invalidate T [0, 2]", "bump 1 v [1]"],
        ),
        (
            "not past their own write",
            vec![("T", Invalidate), ("a", w("1", &["T"])), ("T", Invalidate)],
            vec!["invalidate T [0]", "write 1 a [1]", "invalidate T [2]"],
        ),
        (
            "the sooner expiry counts, apart by kind",
            vec![
                ("a", Action::Expire(after(9))),
                ("a", Action::Expire(Expiry::At(NOW + 5))),
                ("a", Action::Expire(after(3))),
                ("a", Action::Expire(Expiry::At(NOW + 7))),
            ],
            vec!["expire 3000 a [0, 2]", "expire 5 a [1, 3]"],
        ),
        (
            "a tag's own set is a wall",
            vec![
                ("a", Delete),
                ("T", Invalidate),
                ("tag:T", Delete),
                ("a", Delete),
                ("T", Invalidate),
            ],
            vec![
                "delete a [0]",
                "invalidate T [1]",
                "delete tag:T [2]",
                "delete a [3]",
                "invalidate T [4]",
            ],
        ),
    ] {
        let effects: Vec<_> =
            effects.into_iter().map(|(target, action)| effect(target, action)).collect();
        assert_eq!(shape(&effects), expected, "{why}");
    }
}

#[test]
fn versioned_effects_coalesce_only_if_the_result_is_the_same() {
    let (d, w) =
        (|| effect("a", Action::Delete), |value: &str| effect("a", write(value, after(60), &[])));
    let tagged = |value: &str| effect("a", write(value, after(60), &["T"]));
    let served = || effect("a", warm(Stale::Serve, Only::Always));
    for (why, effects, expected) in [
        (
            "a newer write wins",
            vec![at("9", 1, w("9")), at("10", 2, w("10"))],
            vec!["write 10@10 a [1, 0]"],
        ),
        (
            "an older one gives way",
            vec![at("10", 2, w("10")), at("9", 1, w("9"))],
            vec!["write 10@10 a [0, 1]"],
        ),
        (
            "an event once more",
            vec![at("9", 1, w("9")), at("9", 1, w("9"))],
            vec!["write 9@9 a [0, 1]"],
        ),
        (
            "a later effect of one event",
            vec![of("F", "9", 1, 1, w("x")), of("F", "9", 1, 2, w("y"))],
            vec!["write y@9 a [1, 0]"],
        ),
        (
            "only Redis knows of a tie",
            vec![at("9", 1, w("x")), at("9", 2, w("y"))],
            vec!["write x@9 a [0]", "write y@9 a [1]"],
        ),
        (
            "a deletion adds up",
            vec![at("9", 1, d()), at("8", 2, d()), d()],
            vec!["delete@9 a [0, 1, 2]"],
        ),
        (
            "a tie of deletions",
            vec![at("9", 1, d()), at("9", 2, d())],
            vec!["delete@9tied a [0, 1]"],
        ),
        (
            "a deleted key leaves its version",
            vec![at("9", 1, w("9")), d(), at("8", 2, w("8"))],
            vec!["delete@9 a [1, 0, 2]"],
        ),
        (
            "deleted at a version",
            vec![at("9", 1, d()), at("8", 2, w("8")), at("10", 3, w("10"))],
            vec!["delete@9 a [0, 1]", "write 10@10 a [2]"],
        ),
        (
            "families are apart",
            vec![at("9", 1, w("9")), of("G", "1", 2, 1, w("g")), of("G", "1", 3, 1, d())],
            vec!["write 9@9 a [0]", "delete@1tied a [2, 1]"],
        ),
        (
            "a write without a version stays, whatever comes",
            vec![w("x"), at("9", 1, w("9"))],
            vec!["write x a [0]", "write 9@9 a [1]"],
        ),
        (
            "and sees nothing give way",
            vec![at("9", 1, w("9")), w("x")],
            vec!["write 9@9 a [0]", "write x a [1]"],
        ),
        (
            "sets are filled all the same",
            vec![at("8", 1, tagged("8")), at("9", 2, w("9"))],
            vec!["write 8@8 a [0]", "write 9@9 a [1]"],
        ),
        (
            "the same sets",
            vec![at("8", 1, tagged("8")), at("9", 2, tagged("9"))],
            vec!["write 9@9 a [1, 0]"],
        ),
        (
            "a tie does not replace effects before its twin",
            vec![at("8", 1, tagged("8")), at("10", 2, w("x")), at("10", 1, tagged("y"))],
            vec!["write 8@8 a [0]", "write x@10 a [1]", "write y@10 a [2]"],
        ),
        (
            "serving during a load leaves the value, which a tie deletes",
            vec![at("10", 2, w("x")), at("10", 1, served()), at("10", 1, w("y"))],
            vec!["write x@10 a [0]", "serve@10 a [1]", "write y@10 a [2]"],
        ),
        (
            "the operation that shows a tie stays before it",
            vec![at("8", 1, w("x")), at("8", 2, tagged("y")), at("9", 1, w("9"))],
            vec!["write x@8 a [0]", "write y@8 a [1]", "write 9@9 a [2]"],
        ),
        (
            "an older write adds no member",
            vec![
                at("9", 1, w("9")),
                effect("T", Action::InvalidateTag),
                at("8", 2, tagged("8")),
                effect("T", Action::InvalidateTag),
            ],
            vec!["write 9@9 a [0, 2]", "invalidate T [1, 3]"],
        ),
    ] {
        assert_eq!(shape(&effects), expected, "{why}");
    }
}

#[test]
fn a_warm_effect_deletes_now_and_loads_later() {
    let effects = [effect("a", Action::Delete), effect("a", warm(Stale::Drop, Only::Always))];
    let plan = plan(&effects);
    assert_eq!(
        plan.loads(),
        [Load {
            effect_ref: EffectRef { event: 1, position: 0 },
            after: plan.deletions()[0],
            only_if_existed: false
        }]
    );
}

#[test]
fn warms_of_present_or_served_keys_keep_their_place() {
    let present = || effect("a", warm(Stale::Drop, Only::Present));
    let served = || effect("a", warm(Stale::Serve, Only::Always));
    let delete = || effect("a", Action::Delete);
    let invalidate = || effect("T", Action::InvalidateTag);
    let conditional = |effects: &[Effect]| {
        plan(effects).loads().iter().map(|load| load.only_if_existed).collect::<Vec<_>>()
    };
    for (why, effects, expected, conditions) in [
        (
            "a tag may delete it first",
            vec![invalidate(), present()],
            vec!["invalidate T [0]", "delete a [1]"],
            vec![true],
        ),
        (
            "a deleted key does not exist",
            vec![delete(), present()],
            vec!["delete a [0, 1]"],
            vec![],
        ),
        (
            "once is enough",
            vec![present(), present(), delete()],
            vec!["delete a [0, 1, 2]"],
            vec![true],
        ),
        ("served once", vec![served(), served()], vec!["serve a [0, 1]"], vec![false, false]),
        (
            "not past a tag",
            vec![served(), invalidate(), served()],
            vec!["serve a [0]", "invalidate T [1]", "serve a [2]"],
            vec![false, false],
        ),
        (
            "a deletion stays behind it",
            vec![served(), delete()],
            vec!["serve a [0]", "delete a [1]"],
            vec![false],
        ),
    ] {
        assert_eq!(shape(&effects), expected, "{why}");
        assert_eq!(conditional(&effects), conditions, "{why}");
    }
    let effects = [present()];
    let mut batch = Batch::new("tag:", 1);
    batch.push_retried(EffectRef { event: 0, position: 0 }, &effects[0]);
    assert!(
        !batch.finish().loads()[0].only_if_existed,
        "it was there when the event was tried first"
    );
}

#[test]
fn a_second_delete_repeats_the_operation_that_replaced_its_effect() {
    let again =
        |seconds, effect: Effect| Effect { again: Some(Duration::from_secs(seconds)), ..effect };
    let effects = [
        again(1, effect("a", Action::Delete)),
        again(2, effect("a", Action::Delete)),
        effect("T", Action::InvalidateTag),
        again(3, effect("T", Action::InvalidateTag)),
        effect("b", Action::Delete),
    ];
    let plan = plan(&effects);
    let second_deletes: Vec<_> = plan
        .second_deletes()
        .iter()
        .map(|&(id, after)| (plan.operation(id).target, after.as_secs()))
        .collect();
    assert_eq!(second_deletes, [("a", 1), ("a", 2), ("T", 3)]);
}

#[test]
fn deletions_of_a_plan_are_grouped_by_rule() {
    let rules = [1, 0, 1, 0, 1];
    let effects: Vec<_> = rules
        .iter()
        .enumerate()
        .map(|(n, &rule)| Effect { rule: RuleId(rule), ..effect(&format!("k{n}"), Action::Delete) })
        .collect();
    let plan = plan(&effects);
    let groups: Vec<_> =
        plan.deletions_by_rule().map(|(rule, _, operations)| (rule.0, operations.len())).collect();
    assert_eq!(groups, [(0, 2), (1, 3)]);
}

fn any_expiry() -> impl Strategy<Value = Expiry> {
    prop_oneof![
        3 => (1u64..4).prop_map(|n| after(n * 1000)),
        1 => (-1i64..3).prop_map(|n| Expiry::At(NOW + n * 1_500_000)),
    ]
}

fn any_warm() -> impl Strategy<Value = Action> {
    let stale = prop::sample::select(vec![Stale::Drop, Stale::Serve]);
    (stale, prop::sample::select(vec![Only::Always, Only::Present]))
        .prop_map(|(stale, only)| warm(stale, only))
}

fn any_effect() -> impl Strategy<Value = Effect> {
    let key = prop::sample::select(vec!["a", "b", "c", "tag:T"]);
    let tag = prop::sample::select(vec!["T", "U"]);
    let expiry_of_write = prop_oneof![4 => any_expiry(), 1 => Just(Expiry::Never)];
    let tags =
        prop::sample::subsequence(vec!["T", "U"], 0..=2).prop_map(|tags: Vec<&'static str>| tags);
    let text = prop::sample::select(vec!["x", "7", "y"]);
    let version = (
        prop::sample::select(vec!["F", "G"]),
        prop::sample::select(vec!["8", "9", "10"]),
        1u64..4,
        1u32..3,
    );
    let with_version =
        |effect: Effect, version: Option<(&str, &str, u64, u32)>| match (version, &effect.action) {
            (
                Some((family, digits, event, place)),
                Action::Delete | Action::Write(_) | Action::Warm(_),
            ) => of(family, digits, event, place, effect),
            _ => effect,
        };
    let effects = prop_oneof![
        3 => key.clone().prop_map(|key| effect(key, Action::Delete)),
        3 => tag.prop_map(|tag| effect(tag, Action::InvalidateTag)),
        3 => (key.clone(), any_warm()).prop_map(|(key, action)| effect(key, action)),
        2 => key.clone().prop_map(|key| effect(key, Action::BumpVersion)),
        2 => (key.clone(), any_expiry()).prop_map(|(key, expiry)| effect(key, Action::Expire(expiry))),
        4 => (key, text, expiry_of_write, tags).prop_map(|(key, text, expiry, tags)| effect(key, write(text, expiry, &tags))),
    ];
    (effects, prop::option::weighted(0.6, version))
        .prop_map(move |(effect, version)| with_version(effect, version))
}

fn any_model() -> impl Strategy<Value = Model> {
    let value = (prop::sample::select(vec!["old", "3"]), prop::option::of(1i64..5_000_000))
        .prop_map(|(text, ttl)| Value { text: text.into(), expires_at: ttl.map(|ttl| NOW + ttl) });
    let members = prop::collection::btree_set(
        prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(String::from),
        1..4,
    );
    let set = (members, prop::option::of(1i64..5_000_000))
        .prop_map(|(members, ttl)| Set { members, expires_at: ttl.map(|ttl| NOW + ttl) });
    let fence = (8u64..11, prop::option::of((1u64..4, 1u32..3)))
        .prop_map(|(number, by)| Fence { number, by });
    let names = |names: Vec<&'static str>| prop::sample::select(names).prop_map(String::from);
    (
        prop::collection::btree_map(names(vec!["a", "b", "c", "d"]), value, 0..4),
        prop::collection::btree_map(names(vec!["T", "U"]), set, 0..3),
        prop::collection::btree_map(
            (names(vec!["a", "b", "c"]), names(vec!["F", "G"])),
            fence,
            0..4,
        ),
    )
        .prop_map(|(values, sets, fences)| Model { values, sets, fences })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8192, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_leaves_redis_as_its_effects_would_one_by_one(before in any_model(), effects in prop::collection::vec(any_effect(), 0..14)) {
        let (mut expected, mut found) = (before.clone(), before);
        let expected_loads = one_by_one(&mut expected, &effects);
        let plan = plan(&effects);
        let loads = run(&mut found, &plan);
        prop_assert_eq!(found, expected);
        prop_assert_eq!(loads, expected_loads);

        let mut decided: Vec<_> =
            plan.deletions().iter().chain(plan.in_order()).flat_map(|&operation| plan.effects(operation)).map(|effect_ref| effect_ref.event).collect();
        decided.sort_unstable();
        prop_assert_eq!(decided, (0..id(effects.len())).collect::<Vec<_>>());
        let operations = plan.deletions().len() + plan.in_order().len();
        prop_assert_eq!(operations + plan.absorbed().len(), effects.len());
    }
}

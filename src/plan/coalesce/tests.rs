use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::registry::{LoaderId, Warm};

/// Milliseconds: every operation of the model happens at once.
const NOW: i64 = 1_000_000;

/// What Redis holds, as far as effects can tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    values: BTreeMap<String, Value>,
    sets: BTreeMap<String, Set>,
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
    fn apply(&mut self, target: &str, command: Command<'_>) {
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
                let value = self.values.entry(target.to_owned()).or_insert(Value { text: "1".into(), expires_at: None });
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
                            set.expires_at = set.expires_at.zip(at).map(|(earlier, at)| earlier.max(at));
                        }
                    }
                }
                self.values.insert(target.to_owned(), Value { text: write.value.clone(), expires_at: at });
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

fn one_by_one(model: &mut Model, effects: &[Effect]) {
    for effect in effects {
        let command = match &effect.action {
            Action::Delete | Action::Warm(_) => Command::Delete,
            Action::InvalidateTag => Command::InvalidateTag,
            Action::BumpVersion => Command::Bump(1),
            Action::Expire(expiry) => Command::Expire(*expiry),
            Action::Write(write) => Command::Write(write),
        };
        model.apply(&effect.target, command);
    }
}

fn plan(effects: &[Effect]) -> Plan<'_> {
    let mut batch = Batch::new("tag:", effects.len());
    for (event, effect) in effects.iter().enumerate() {
        batch.push(Slot { event: id(event), position: 0 }, effect);
    }
    batch.finish()
}

fn run(model: &mut Model, plan: &Plan<'_>) {
    for &operation in plan.deletions().iter().chain(plan.in_order()) {
        let Operation { target, command, .. } = *plan.operation(operation);
        model.apply(target, command);
    }
}

fn effect(target: &str, action: Action) -> Effect {
    Effect { rule: RuleId(0), target: target.into(), action }
}

fn write(value: &str, expiry: Expiry, tags: &[&str]) -> Action {
    Action::Write(Box::new(Write { value: value.into(), expiry, tags: tags.iter().map(|&tag| tag.into()).collect(), version: None }))
}

fn after(seconds: u64) -> Expiry {
    Expiry::After { ttl: Duration::from_secs(seconds), jitter: 0.0 }
}

fn shape(effects: &[Effect]) -> Vec<String> {
    let plan = plan(effects);
    let show = |&operation: &OperationId| {
        let Operation { target, command, .. } = plan.operation(operation);
        let slots: Vec<_> = plan.slots(operation).map(|slot| slot.event).collect();
        let verb = match command {
            Command::Delete => "delete".to_owned(),
            Command::InvalidateTag => "invalidate".to_owned(),
            Command::Bump(by) => format!("bump {by}"),
            Command::Expire(expiry) => format!("expire {}", moment(*expiry).expect("set") - NOW),
            Command::Write(write) => format!("write {}", write.value),
        };
        format!("{verb} {target} {slots:?}")
    };
    plan.deletions().iter().chain(plan.in_order()).map(show).collect()
}

#[test]
fn what_coalesces_and_what_does_not() {
    use Action::{BumpVersion as Bump, Delete, InvalidateTag as Invalidate};
    let w = |value: &str, tags: &[&str]| write(value, after(60), tags);
    for (why, effects, expected) in [
        ("one deletion a key", vec![("a", Delete), ("b", Delete), ("a", Delete)], vec!["delete a [0, 2]", "delete b [1]"]),
        ("a deletion passes tags", vec![("T", Invalidate), ("a", Delete)], vec!["delete a [1]", "invalidate T [0]"]),
        ("a deletion makes a write unseen", vec![("a", w("1", &[])), ("a", Delete)], vec!["delete a [1, 0]"]),
        ("a tagged write stays", vec![("a", w("1", &["T"])), ("a", Delete)], vec!["write 1 a [0]", "delete a [1]"]),
        ("a later write wins", vec![("a", w("1", &["T"])), ("a", w("2", &["T", "U"]))], vec!["write 2 a [1, 0]"]),
        ("not with other tags", vec![("a", w("1", &["T"])), ("a", w("2", &["U"]))], vec!["write 1 a [0]", "write 2 a [1]"]),
        ("bumps add up", vec![("v", Bump), ("v", Bump), ("v", Bump)], vec!["bump 3 v [0, 1, 2]"]),
        ("not past a tag", vec![("v", Bump), ("T", Invalidate), ("v", Bump)], vec!["bump 1 v [0]", "invalidate T [1]", "bump 1 v [2]"]),
        ("tags merge", vec![("T", Invalidate), ("v", Bump), ("T", Invalidate)], vec!["invalidate T [0, 2]", "bump 1 v [1]"]),
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
            vec![("a", Delete), ("T", Invalidate), ("tag:T", Delete), ("a", Delete), ("T", Invalidate)],
            vec!["delete a [0]", "invalidate T [1]", "delete tag:T [2]", "delete a [3]", "invalidate T [4]"],
        ),
    ] {
        let effects: Vec<_> = effects.into_iter().map(|(target, action)| effect(target, action)).collect();
        assert_eq!(shape(&effects), expected, "{why}");
    }
}

#[test]
fn a_warm_deletes_now_and_loads_later() {
    let warm = Action::Warm(Box::new(Warm { loader: LoaderId(0), url: String::new(), expiry: Expiry::Never, tags: vec![] }));
    let effects = [effect("a", Action::Delete), effect("a", warm)];
    let plan = plan(&effects);
    assert_eq!(plan.warms(), [(Slot { event: 1, position: 0 }, plan.deletions()[0])]);
}

#[test]
fn deletions_are_grouped_by_rule() {
    let rules = [1, 0, 1, 0, 1];
    let effects: Vec<_> =
        rules.iter().enumerate().map(|(n, &rule)| Effect { rule: RuleId(rule), target: format!("k{n}"), action: Action::Delete }).collect();
    let plan = plan(&effects);
    let groups: Vec<_> = plan.deletions_by_rule().map(|(rule, operations)| (rule.0, operations.len())).collect();
    assert_eq!(groups, [(0, 2), (1, 3)]);
}

fn any_expiry() -> impl Strategy<Value = Expiry> {
    prop_oneof![
        3 => (1u64..4).prop_map(|n| after(n * 1000)),
        1 => (-1i64..3).prop_map(|n| Expiry::At(NOW + n * 1_500_000)),
    ]
}

fn any_effect() -> impl Strategy<Value = Effect> {
    let key = prop::sample::select(vec!["a", "b", "c", "tag:T"]);
    let tag = prop::sample::select(vec!["T", "U"]);
    let expiry_of_write = prop_oneof![4 => any_expiry(), 1 => Just(Expiry::Never)];
    let tags = prop::sample::subsequence(vec!["T", "U"], 0..=2).prop_map(|tags: Vec<&'static str>| tags);
    let text = prop::sample::select(vec!["x", "7", "y"]);
    prop_oneof![
        3 => key.clone().prop_map(|key| effect(key, Action::Delete)),
        3 => tag.prop_map(|tag| effect(tag, Action::InvalidateTag)),
        2 => key.clone().prop_map(|key| effect(key, Action::BumpVersion)),
        2 => (key.clone(), any_expiry()).prop_map(|(key, expiry)| effect(key, Action::Expire(expiry))),
        4 => (key, text, expiry_of_write, tags).prop_map(|(key, text, expiry, tags)| effect(key, write(text, expiry, &tags))),
    ]
}

fn any_model() -> impl Strategy<Value = Model> {
    let value = (prop::sample::select(vec!["old", "3"]), prop::option::of(1i64..5_000_000))
        .prop_map(|(text, ttl)| Value { text: text.into(), expires_at: ttl.map(|ttl| NOW + ttl) });
    let members = prop::collection::btree_set(prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(String::from), 1..4);
    let set = (members, prop::option::of(1i64..5_000_000)).prop_map(|(members, ttl)| Set { members, expires_at: ttl.map(|ttl| NOW + ttl) });
    let names = |names: Vec<&'static str>| prop::sample::select(names).prop_map(String::from);
    (
        prop::collection::btree_map(names(vec!["a", "b", "c", "d"]), value, 0..4),
        prop::collection::btree_map(names(vec!["T", "U"]), set, 0..3),
    )
        .prop_map(|(values, sets)| Model { values, sets })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_leaves_redis_as_its_effects_would_one_by_one(before in any_model(), effects in prop::collection::vec(any_effect(), 0..14)) {
        let (mut expected, mut found) = (before.clone(), before);
        one_by_one(&mut expected, &effects);
        let plan = plan(&effects);
        run(&mut found, &plan);
        prop_assert_eq!(found, expected);

        let mut slots: Vec<_> =
            plan.deletions().iter().chain(plan.in_order()).flat_map(|&operation| plan.slots(operation)).map(|slot| slot.event).collect();
        slots.sort_unstable();
        prop_assert_eq!(slots, (0..id(effects.len())).collect::<Vec<_>>());
        let operations = plan.deletions().len() + plan.in_order().len();
        prop_assert_eq!(operations + plan.absorbed().len(), effects.len());
    }
}

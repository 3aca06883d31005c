//! Versions order the writes of one entity: an older one neither replaces a newer one nor revives
//! what a newer event deleted.

use std::time::Duration;

use unstale::cache::Cache;
use unstale::plan::EffectOutcome;
use unstale::reason::Reason;
use unstale::registry::{Action, Effect, Expiry, LoaderId, Only, Stale, Warm};

use super::deployment::{Client, Deployment, Kind};
use crate::cache::{HOUR, apply, at, effect, run, write};

super::on_both! {
    shared:
        an_older_write_never_replaces_a_newer_one_in_any_order,
        a_deletion_is_never_skipped_and_raises_the_fence,
        two_events_of_one_version_leave_no_value,
        a_value_served_by_warm_survives_an_older_write_and_no_deletion,
        effects_of_one_event_take_effect_in_their_order,
        versions_of_different_families_are_not_compared,
        an_older_write_does_not_revive_a_value_that_a_tag_deleted,
        a_refused_write_succeeds_once_its_tags_set_is_fixed,
        an_expired_value_raises_the_fence_and_deletes,
        a_fence_lives_for_its_ttl_and_needs_a_version,
        many_deletions_raise_their_fences_before_their_keys_go,
        an_older_version_is_refused_even_after_the_newer_value_is_gone;
}

struct Stage {
    cache: Cache,
    redis: Client,
    key: String,
}

impl Stage {
    async fn new(on: &Deployment, name: &str) -> Self {
        let (names, cache, redis) = on.scene().await;
        Self { cache, redis, key: names.of(name) }
    }

    fn write(&self, digits: &str, event: u64, value: &str) -> Effect {
        at(("post", digits), (event, 1), effect(0, &self.key, write(value, HOUR, &[])))
    }

    fn delete(&self, digits: &str, event: u64) -> Effect {
        at(("post", digits), (event, 1), effect(1, &self.key, Action::Delete))
    }

    /// What the key holds after each of these, applied by themselves.
    async fn values(&mut self, effects: &[Effect]) -> Vec<Option<String>> {
        let mut values = Vec::new();
        for effect in effects {
            assert_eq!(apply(&self.cache, std::slice::from_ref(effect)).await.unsettled, []);
            values.push(run(&mut self.redis, &["GET", &self.key]).await);
        }
        values
    }
}

fn some(values: &[&str]) -> Vec<Option<String>> {
    values.iter().map(|value| (!value.is_empty()).then(|| (*value).to_owned())).collect()
}

async fn an_older_write_never_replaces_a_newer_one_in_any_order(on: &Deployment) {
    // Versions that a double cannot distinguish, and others whose text sorts the wrong way.
    for (low, high) in [
        ("9", "10"),
        ("9007199254740992", "9007199254740993"),
        ("0", "1"),
        ("999", "1000"),
        ("1767225600000000000", "1767225600000000001"),
    ] {
        for name in on.usable(&["k", "x:{u}:k", "a}b"]) {
            let mut stage = Stage::new(on, name).await;
            let effects = [
                stage.write(low, 1, "low"),
                stage.write(high, 2, "high"),
                stage.write(low, 1, "low"),
                stage.write(high, 2, "again"),
            ];
            assert_eq!(
                stage.values(&effects).await,
                some(&["low", "high", "high", "high"]),
                "{low} {high}"
            );
            let effects =
                [stage.delete(low, 3), stage.write(low, 1, "low"), stage.write(high, 2, "high")];
            assert_eq!(
                stage.values(&effects).await,
                some(&["", "", ""]),
                "{name}: what is deleted stays deleted for the same events"
            );
        }
    }
}

async fn a_deletion_is_never_skipped_and_raises_the_fence(on: &Deployment) {
    let mut stage = Stage::new(on, "k").await;
    let effects = [
        stage.write("5", 1, "5"),
        stage.delete("3", 2),
        stage.write("4", 3, "4"),
        stage.write("6", 4, "6"),
        stage.delete("9", 5),
    ];
    assert_eq!(stage.values(&effects).await, some(&["5", "", "", "6", ""]));
    let effects = [stage.write("8", 6, "8"), stage.write("10", 7, "10")];
    assert_eq!(stage.values(&effects).await, some(&["", "10"]));
}

async fn two_events_of_one_version_leave_no_value(on: &Deployment) {
    let mut stage = Stage::new(on, "k").await;
    let effects = [
        stage.write("5", 1, "a"),
        stage.write("5", 2, "b"),
        stage.write("5", 1, "a"),
        stage.write("5", 2, "b"),
        stage.write("6", 3, "c"),
    ];
    assert_eq!(stage.values(&effects).await, some(&["a", "", "", "", "c"]));
}

async fn a_value_served_by_warm_survives_an_older_write_and_no_deletion(on: &Deployment) {
    let warm = Warm {
        loader: LoaderId(0),
        url: String::new(),
        expiry: HOUR,
        tags: vec![],
        stale: Stale::Serve,
        only: Only::Always,
    };
    for at_once in [1, 3] {
        let mut stage = Stage::new(on, "k").await;
        let serve = at(
            ("post", "6"),
            (6, 1),
            effect(0, stage.key.clone(), Action::Warm(Box::new(warm.clone()))),
        );
        assert_eq!(stage.values(&[stage.write("4", 4, "served")]).await, some(&["served"]));
        for batch in
            [serve, stage.write("4", 3, "of the same version"), stage.write("5", 5, "between")]
                .chunks(at_once)
        {
            apply(&stage.cache, batch).await;
            let value: Option<String> = run(&mut stage.redis, &["GET", &stage.key]).await;
            assert_eq!(value.as_deref(), Some("served"), "{at_once} at once");
        }
        assert_eq!(stage.values(&[stage.delete("3", 7)]).await, some(&[""]));
    }
}

async fn effects_of_one_event_take_effect_in_their_order(on: &Deployment) {
    let mut stage = Stage::new(on, "k").await;
    let place = |place, action| at(("post", "5"), (1, place), effect(0, stage.key.clone(), action));
    let effects = [
        place(1, Action::Delete),
        place(2, write("first", HOUR, &[])),
        place(3, write("last", HOUR, &[])),
    ];
    assert_eq!(stage.values(&effects).await, some(&["", "first", "last"]));
    assert_eq!(stage.values(&effects[1..]).await, some(&["last", "last"]), "redelivered");
}

async fn versions_of_different_families_are_not_compared(on: &Deployment) {
    let mut stage = Stage::new(on, "k").await;
    let other = |digits, value| {
        at(("author", digits), (9, 1), effect(0, stage.key.clone(), write(value, HOUR, &[])))
    };
    let unversioned = effect(0, stage.key.clone(), write("u", HOUR, &[]));
    let effects = [
        stage.write("5", 1, "5"),
        other("2", "author"),
        stage.write("4", 2, "4"),
        unversioned,
        stage.write("5", 1, "5"),
        stage.write("6", 3, "6"),
    ];
    assert_eq!(stage.values(&effects).await, some(&["5", "author", "author", "u", "u", "6"]));
    let effects = [
        effect(0, stage.key.clone(), Action::Delete),
        stage.write("5", 1, "5"),
        stage.write("6", 3, "6"),
        stage.write("7", 4, "7"),
    ];
    assert_eq!(
        stage.values(&effects).await,
        some(&["", "", "", "7"]),
        "a deletion without a version leaves the fence as it is"
    );
}

async fn an_older_write_does_not_revive_a_value_that_a_tag_deleted(on: &Deployment) {
    let mut stage = Stage::new(on, "k").await;
    let tag = format!("{}:t", stage.key);
    let key = stage.key.clone();
    let tagged = |digits, event, value| {
        at(("post", digits), (event, 1), effect(0, &key, write(value, HOUR, &[&tag])))
    };
    let set = format!("cache_tag:{tag}");
    let effects = [
        tagged("5", 1, "5"),
        effect(2, tag.clone(), Action::InvalidateTag),
        tagged("4", 2, "4"),
        tagged("5", 1, "5"),
    ];
    assert_eq!(stage.values(&effects).await, some(&["5", "", "", ""]));
    let set_exists = run::<u64>(&mut stage.redis, &["EXISTS", &set]).await == 1;
    // In a cluster, a key joins its tags' sets before its fence is asked.
    assert_eq!(set_exists, on.kind() == Kind::Cluster, "what is not written is in no set");
    let effects = [tagged("6", 3, "6"), effect(2, tag.clone(), Action::InvalidateTag)];
    assert_eq!(stage.values(&effects).await, some(&["6", ""]));
}

async fn a_refused_write_succeeds_once_its_tags_set_is_fixed(on: &Deployment) {
    let mut stage = Stage::new(on, "k").await;
    let tag = format!("{}:t", stage.key);
    let set = format!("cache_tag:{tag}");
    run::<()>(&mut stage.redis, &["SET", &set, "no set"]).await;
    let key = stage.key.clone();
    let tagged = |digits, event, value| {
        at(("post", digits), (event, 1), effect(0, &key, write(value, HOUR, &[&tag])))
    };
    assert_eq!(stage.values(&[stage.write("4", 1, "4")]).await, some(&["4"]));
    let refused = apply(&stage.cache, &[tagged("5", 2, "5")]).await.unsettled;
    assert!(
        matches!(refused[0].1, EffectOutcome::Dead { reason: Reason::RedisRefused, .. }),
        "{refused:?}"
    );
    assert_eq!(
        stage.values(&[stage.write("4", 3, "4")]).await,
        some(&[""]),
        "older than what was refused"
    );
    run::<()>(&mut stage.redis, &["DEL", &set]).await;
    assert_eq!(stage.values(&[tagged("5", 2, "5")]).await, some(&["5"]));
    assert_eq!(stage.values(&[tagged("6", 4, "6")]).await, some(&["6"]));
}

async fn an_expired_value_raises_the_fence_and_deletes(on: &Deployment) {
    let mut stage = Stage::new(on, "k").await;
    let over =
        at(("post", "5"), (2, 1), effect(0, stage.key.clone(), write("over", Expiry::At(1), &[])));
    let effects = [stage.write("4", 1, "4"), over, stage.write("4", 1, "4")];
    assert_eq!(stage.values(&effects).await, some(&["4", "", ""]));
}

async fn a_fence_lives_for_its_ttl_and_needs_a_version(on: &Deployment) {
    let mut stage = Stage::new(on, "k").await;
    let fence = format!("unstale:fence/{{{}}}:post", stage.key);
    let unversioned = [
        effect(0, stage.key.clone(), write("u", HOUR, &[])),
        effect(0, stage.key.clone(), Action::Delete),
    ];
    stage.values(&unversioned).await;
    assert_eq!(run::<u64>(&mut stage.redis, &["EXISTS", &fence]).await, 0);
    for effect in [stage.write("5", 1, "5"), stage.delete("6", 2), stage.write("6", 3, "6")] {
        stage.values(std::slice::from_ref(&effect)).await;
        let left: i64 = run(&mut stage.redis, &["PTTL", &fence]).await;
        assert!((86_000_000..=86_400_000).contains(&left), "{left}");
    }
    assert_eq!(run::<String>(&mut stage.redis, &["GET", &fence]).await, "6::");
    // Somebody's own text there counts as none, and so does another type.
    run::<()>(&mut stage.redis, &["SET", &fence, "x"]).await;
    assert_eq!(stage.values(&[stage.write("1", 4, "1")]).await, some(&["1"]));
    run::<()>(&mut stage.redis, &["DEL", &fence]).await;
    run::<()>(&mut stage.redis, &["SADD", &fence, "x"]).await;
    assert_eq!(
        stage.values(&[stage.delete("1", 4), stage.write("2", 5, "2")]).await,
        some(&["", "2"])
    );
}

async fn many_deletions_raise_their_fences_before_their_keys_go(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let key = |n: usize| names.of(&format!("k{n}"));
    let writes = |digits, event| -> Vec<Effect> {
        (0..450)
            .map(|n| at(("post", digits), (event, 1), effect(0, key(n), write("v", HOUR, &[]))))
            .collect()
    };
    let deletions: Vec<Effect> =
        (0..450).map(|n| at(("post", "8"), (2, 1), effect(1, key(n), Action::Delete))).collect();
    apply(&cache, &writes("7", 1)).await;
    let applied = apply(&cache, &deletions).await;
    assert_eq!((applied.unsettled, applied.hits[0].yes), (vec![], 450));
    apply(&cache, &writes("7", 3)).await;
    for n in 0..450 {
        assert_eq!(redis.text(&key(n)).await, None, "{n}");
    }
    tokio::time::timeout(Duration::from_secs(20), apply(&cache, &writes("9", 4))).await.unwrap();
    assert_eq!(run::<String>(&mut redis, &["GET", &key(449)]).await, "v");
}

async fn an_older_version_is_refused_even_after_the_newer_value_is_gone(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let tag = names.of("t");
    for key in ["k", "{k}", "x:{u:{42}:p}"].map(|key| names.of(key)) {
        let wrote = |version: u64, tags: &[&str]| {
            at(
                ("post", &version.to_string()),
                (version, 1),
                effect(0, &key, write(&version.to_string(), HOUR, tags)),
            )
        };
        let deleted = |version: u64| {
            at(("post", &version.to_string()), (version, 1), effect(0, &key, Action::Delete))
        };
        let invalidated = effect(1, &tag, Action::InvalidateTag);
        let steps: [(Vec<Effect>, Option<&str>); 8] = [
            (vec![wrote(9, &[&tag])], Some("9")),
            (vec![wrote(8, &[])], Some("9")),
            (vec![wrote(10, &[&tag]), wrote(9, &[])], Some("10")),
            (vec![deleted(12)], None),
            (vec![wrote(11, &[&tag])], None),
            // No reader ever sees the value, but its version counts.
            (vec![wrote(20, &[&tag]), invalidated.clone()], None),
            (vec![wrote(19, &[&tag])], None),
            (vec![invalidated, wrote(21, &[&tag])], Some("21")),
        ];
        for (place, (effects, expected)) in steps.into_iter().enumerate() {
            assert_eq!(apply(&cache, &effects).await.unsettled, [], "{key} {place}");
            assert_eq!(redis.text(&key).await.as_deref(), expected, "{key} {place}");
        }
        assert!(redis.members(&tag).await.contains(&key));
    }
}

//! Tags: small ones are deleted at once, big ones detached and drained. In a cluster their members
//! are in all slots.

use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;
use unstale::cache::KeyHits;
use unstale::plan::EffectOutcome;
use unstale::registry::{Action, RuleId};

use super::deployment::{Client, Deployment, Kind};
use crate::cache::{HOUR, apply, effect, slot, write};

super::on_both! {
    shared:
        a_small_tag_is_deleted_at_once,
        a_detached_set_that_was_not_drained_is_found_again,
        within_a_batch_writes_and_invalidations_of_their_tags_keep_their_order,
        unstales_own_keys_among_the_members_stay;
    own:
        a_big_tag_is_detached_and_drained_by_any_worker;
}

fn keys(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}")).collect()
}

async fn fill_tag(redis: &mut Client, tag: &str, prefix: &str, count: usize) {
    redis.fill_tag(tag, &keys(prefix, count)).await;
}

async fn left(redis: &mut Client, prefix: &str, count: usize) -> usize {
    let keys = keys(prefix, count);
    redis.count(&keys.iter().map(String::as_str).collect::<Vec<_>>()).await
}

async fn a_small_tag_is_deleted_at_once(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let (tag, key) = (names.of("t"), names.of("k"));
    fill_tag(&mut redis, &tag, &key, 300).await;
    let _: () = redis.sadd(format!("cache_tag:{tag}"), "gone-before").await.unwrap();
    let applied = apply(
        &cache,
        &[
            effect(0, &tag, Action::InvalidateTag),
            effect(1, names.of("other"), Action::InvalidateTag),
        ],
    )
    .await;
    assert_eq!(applied.unsettled, []);
    let without_a_set = KeyHits { rule: RuleId(1), yes: 0, no: 1 };
    assert_eq!(applied.hits, [KeyHits { rule: RuleId(0), yes: 300, no: 1 }, without_a_set]);
    assert_eq!(left(&mut redis, &key, 300).await, 0);
    assert_eq!(redis.members(&tag).await, <[&str; 0]>::default());
    let record: usize = redis.scard(format!("unstale:drain/{{cache_tag:{tag}}}")).await.unwrap();
    assert_eq!(record, 0, "nothing is left to be drained");
}

async fn a_big_tag_is_detached_and_drained_by_any_worker(on: &Deployment) {
    let (names, one, mut redis) = on.scene().await;
    let (tag, key) = (names.of("t"), names.of("k"));
    fill_tag(&mut redis, &tag, &key, 1_200).await;
    let applied = apply(&one, &[effect(0, &tag, Action::InvalidateTag)]).await;
    assert_eq!(applied.unsettled, [(slot(0), EffectOutcome::Slow)]);
    // What comes in while it drains is not lost from the index.
    apply(&one, &[effect(0, names.of("new"), write("v", HOUR, &[&tag]))]).await;
    // Of another queue, to which the tag is the same.
    let other = on.cache(&names.of("another")).await;
    let again = apply(&other, &[effect(0, &tag, Action::InvalidateTag)]).await;
    assert_eq!(again.unsettled, [(slot(0), EffectOutcome::Slow)], "not done before the drain is");
    assert_eq!(redis.text(&names.of("new")).await, None);
    drop(one);

    let stop = CancellationToken::new();
    let partly = other.drain_tag(&tag, &stop, |_, _| stop.cancel()).await.unwrap();
    assert!(!partly.complete && partly.existed > 0, "{partly:?}");
    let next = on.cache(&names.of("q")).await;
    let rest = next.drain_all(&CancellationToken::new(), |_, _| {}).await.unwrap();
    assert!(rest.complete);
    assert_eq!(left(&mut redis, &key, 1_200).await, 0);
    assert_eq!(apply(&other, &[effect(0, &tag, Action::InvalidateTag)]).await.unsettled, []);
    let draining: bool =
        redis.sismember("unstale:drains", format!("cache_tag:{tag}")).await.unwrap();
    assert!(!draining, "the list of tags that drain");
}

/// What a worker that died between the two left behind.
async fn a_detached_set_that_was_not_drained_is_found_again(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let (tag, key) = (names.of("t"), names.of("k"));
    fill_tag(&mut redis, &tag, &key, 10).await;
    let record = format!("unstale:drain/{{cache_tag:{tag}}}");
    let _: () = redis.rename(format!("cache_tag:{tag}"), format!("{record}:7")).await.unwrap();
    let _: () = redis.sadd(&record, 7).await.unwrap();
    if on.kind() == Kind::Single {
        // A single server lists the tag in the step that detaches its set.
        let _: () = redis.sadd("unstale:drains", format!("cache_tag:{tag}")).await.unwrap();
    }
    assert_eq!(
        apply(&cache, &[effect(0, &tag, Action::InvalidateTag)]).await.unsettled,
        [(slot(0), EffectOutcome::Slow)]
    );
    assert!(cache.drain_tag(&tag, &CancellationToken::new(), |_, _| {}).await.unwrap().complete);
    assert_eq!(left(&mut redis, &key, 10).await, 0);
}

async fn within_a_batch_writes_and_invalidations_of_their_tags_keep_their_order(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let (tag, key) = (names.of("t"), names.of("k"));
    let (invalidate, before) =
        (effect(0, &tag, Action::InvalidateTag), effect(1, &key, write("before", HOUR, &[&tag])));
    let (after, bump) = (
        effect(1, &key, write("after", HOUR, &[&tag])),
        effect(2, names.of("c"), Action::BumpVersion),
    );

    // The counter is a member: it starts anew.
    let _: () = redis.set(names.of("c"), "8").await.unwrap();
    let _: () = redis.sadd(format!("cache_tag:{tag}"), names.of("c")).await.unwrap();
    apply(&cache, &[bump.clone(), before.clone(), invalidate.clone(), after.clone(), bump]).await;
    assert_eq!(redis.text(&key).await.as_deref(), Some("after"));
    assert_eq!(redis.text(&names.of("c")).await.as_deref(), Some("2"));
    assert_eq!(redis.members(&tag).await, [key.as_str()]);

    apply(&cache, &[after, before, invalidate]).await;
    assert_eq!(redis.text(&key).await, None);
    assert_eq!(redis.members(&tag).await, <[&str; 0]>::default());
}

async fn unstales_own_keys_among_the_members_stay(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let own = format!("unstale:{}", names.of("own"));
    let _: () = redis.set(&own, "as it was").await.unwrap();
    for count in [0, 3, 1_200] {
        let (tag, key) = (names.of(&format!("t{count}")), names.of(&format!("k{count}-")));
        let set = format!("cache_tag:{tag}");
        if count > 0 {
            fill_tag(&mut redis, &tag, &key, count).await;
        }
        let _: () = redis.sadd(&set, &own).await.unwrap();
        apply(&cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
        let drained = cache.drain_tag(&tag, &CancellationToken::new(), |_, _| {}).await.unwrap();
        assert!(drained.complete, "{count} neighbours");
        assert_eq!(left(&mut redis, &key, count).await, 0, "{count} neighbours");
        assert_eq!(redis.text(&own).await.as_deref(), Some("as it was"), "{count} neighbours");
        assert_eq!(redis.members(&tag).await, <[&str; 0]>::default());
        let record: usize = redis.scard(format!("unstale:drain/{{{set}}}")).await.unwrap();
        assert_eq!(record, 0, "{count} neighbours");
    }
}

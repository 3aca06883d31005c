//! Second deletes are scheduled with the first delete and removed only after they are done.

use std::time::Duration;

use redis::AsyncCommands;
use unstale::cache::{DueSecondDelete, SecondDelete};
use unstale::registry::{Action, Effect};

use super::deployment::{Deployment, Kind};
use crate::cache::{apply, effect, run};
use crate::support::wait_until;

super::on_both! {
    shared:
        a_second_delete_stays_scheduled_until_it_is_done,
        many_second_deletes_are_scheduled_and_done_in_parts,
        a_second_delete_that_cannot_be_scheduled_fails_its_effect,
        a_second_delete_removes_late_values_of_keys_and_tags;
}

const SOON: Duration = Duration::from_secs(20);

fn again(millis: u64, effect: Effect) -> Effect {
    Effect { again: Some(Duration::from_millis(millis)), ..effect }
}

async fn a_second_delete_stays_scheduled_until_it_is_done(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let name = if on.kind() == Kind::Single { "k}1" } else { "{k}1" };
    let (queue, key, tag) = (names.of("q"), names.of(name), names.of("t"));
    let set = format!("unstale:again:{queue}");
    let effects = [
        again(1, effect(0, &key, Action::Delete)),
        again(1, effect(0, &tag, Action::InvalidateTag)),
    ];
    assert_eq!(apply(&cache, &effects).await.unsettled, []);

    let mut due = Vec::new();
    wait_until(SOON, "both are due", async || {
        due = cache.due_second_deletes("a").await.unwrap();
        due.len() == 2
    })
    .await;
    let mut targets: Vec<_> = due.iter().filter_map(DueSecondDelete::target).collect();
    targets.sort_by_key(|target| matches!(target, SecondDelete::Tag(_)));
    assert_eq!(targets, [SecondDelete::Key(&key), SecondDelete::Tag(&tag)]);
    assert_eq!(
        cache.due_second_deletes("another worker").await.unwrap(),
        [],
        "one worker at a time"
    );
    assert_eq!(cache.due_second_deletes("a").await.unwrap(), due, "not done yet");
    wait_until(SOON, "another worker follows one that died", async || {
        cache.due_second_deletes("b").await.unwrap() == due
    })
    .await;

    // It was scheduled anew while it was done: the new one is still to come.
    apply(&cache, &[again(600_000, effect(0, &key, Action::Delete))]).await;
    cache.finish_second_deletes(&due).await.unwrap();
    assert_eq!(
        run::<Vec<String>>(&mut redis, &["ZRANGE", &set, "0", "-1"]).await,
        [format!("k{key}")]
    );
    // An earlier time does not replace a later one.
    apply(&cache, &[again(1, effect(0, &key, Action::Delete))]).await;
    let now: Vec<u64> = run(&mut on.servers().await[0], &["TIME"]).await;
    let at: u64 = run(&mut redis, &["ZSCORE", &set, &format!("k{key}")]).await;
    assert!((500_000..=601_000).contains(&(at - now[0] * 1_000)), "{at}");
}

async fn many_second_deletes_are_scheduled_and_done_in_parts(on: &Deployment) {
    let (names, cache, _) = on.scene().await;
    let effects: Vec<_> =
        (0..450).map(|n| again(1, effect(0, names.of(&n.to_string()), Action::Delete))).collect();
    apply(&cache, &effects).await;
    let mut done = 0;
    wait_until(SOON, "all are done", async || {
        let due = cache.due_second_deletes("a").await.unwrap();
        assert!(due.len() <= 200);
        cache.finish_second_deletes(&due).await.unwrap();
        done += due.len();
        done == 450
    })
    .await;
}

async fn a_second_delete_that_cannot_be_scheduled_fails_its_effect(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let queue = names.of("q");
    run::<()>(&mut redis, &["SET", &format!("unstale:again:{queue}"), "no sorted set"]).await;
    run::<()>(&mut redis, &["SET", &names.of("a"), "1"]).await;
    let applied = apply(
        &cache,
        &[
            again(1, effect(0, names.of("a"), Action::Delete)),
            effect(0, names.of("b"), Action::Delete),
        ],
    )
    .await;
    assert_eq!(applied.unsettled.len(), 1, "{applied:?}");
    assert_eq!(
        run::<u64>(&mut redis, &["EXISTS", &names.of("a")]).await,
        0,
        "the first delete is done all the same"
    );
}

async fn a_second_delete_removes_late_values_of_keys_and_tags(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let key = |n: usize| names.of(&format!("k{n}"));
    let effects: Vec<_> = (0..20)
        .map(|n| again(1, effect(0, key(n), Action::Delete)))
        .chain(
            ["small", "big"].map(|tag| again(1, effect(1, names.of(tag), Action::InvalidateTag))),
        )
        .collect();
    assert_eq!(apply(&cache, &effects).await.unsettled, []);
    // Late: keys, members of a small tag, and of one that no round trip can finish.
    for n in 0..700 {
        let _: () = redis.set(key(n), "stale").await.unwrap();
    }
    for (tag, members) in [("small", 20..50), ("big", 50..700)] {
        let members: Vec<String> = members.map(key).collect();
        let _: () = redis.sadd(format!("cache_tag:{}", names.of(tag)), members).await.unwrap();
    }
    // Not even nodes that have forgotten the scripts are in the way.
    for mut server in on.servers().await {
        run::<()>(&mut server, &["SCRIPT", "FLUSH"]).await;
    }
    let mut done = 0;
    wait_until(SOON, "all passes are done", async || {
        let passes = cache.run_second_deletes("a").await.unwrap();
        assert_eq!(passes.failed, <[String; 0]>::default());
        done += passes.due.len();
        done == 22
    })
    .await;
    for n in 0..700 {
        assert_eq!(redis.text(&key(n)).await, None, "{n}");
    }
    assert_eq!(cache.run_second_deletes("a").await.unwrap().due, []);
}

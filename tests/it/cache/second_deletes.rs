//! Second deletes are scheduled with the first delete and removed only after they are done.

use std::time::Duration;

use unstale::cache::{DueSecondDelete, SecondDelete};
use unstale::registry::{Action, Effect};

use super::{Names, apply, cache, effect, run};
use crate::support::{self, wait_until};

const SOON: Duration = Duration::from_secs(20);

fn again(millis: u64, effect: Effect) -> Effect {
    Effect { again: Some(Duration::from_millis(millis)), ..effect }
}

#[tokio::test]
async fn a_second_delete_stays_scheduled_until_it_is_done() {
    let (names, server) = (Names::new(), support::redis().await);
    let (queue, key, tag) = (names.of("q"), names.of("k}1"), names.of("t"));
    let (cache, mut redis) = (cache(&server.url(), &queue).await, server.connection().await);
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
    let now: Vec<u64> = run(&mut redis, &["TIME"]).await;
    let at: u64 = run(&mut redis, &["ZSCORE", &set, &format!("k{key}")]).await;
    assert!((500_000..=601_000).contains(&(at - now[0] * 1_000)), "{at}");
}

#[tokio::test]
async fn many_second_deletes_are_scheduled_and_done_in_parts() {
    let (names, server) = (Names::new(), support::redis().await);
    let cache = cache(&server.url(), &names.of("q")).await;
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

#[tokio::test]
async fn a_second_delete_that_cannot_be_scheduled_fails_its_effect() {
    let (names, server) = (Names::new(), support::redis().await);
    let queue = names.of("q");
    let (cache, mut redis) = (cache(&server.url(), &queue).await, server.connection().await);
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

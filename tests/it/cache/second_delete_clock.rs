//! Second deletes whose time is wrong, and second deletes that Redis refuses.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use unstale::cache::{Cache, DueSecondDelete, SecondDelete};
use unstale::registry::{Action, Effect};

use super::{apply, cache, config, effect, run};
use crate::support::{Redis, wait_until};

const SOON: Duration = Duration::from_secs(20);

fn again(millis: u64, effect: Effect) -> Effect {
    Effect { again: Some(Duration::from_millis(millis)), ..effect }
}

/// The time until a second delete is due is the same before and after, by any clock.
async fn due_in_time_although_the_clock_changes(before: i32, after: &[i32]) {
    for hours_left in after.iter().copied() {
        let server = Redis::start_at(before, &[]).await;
        let worker = cache(&server.url(), "q").await;
        let deletes = [("soon", 1_500), ("later", 3_600_000)]
            .map(|(key, after)| again(after, effect(0, key, Action::Delete)));
        apply(&worker, &deletes).await;
        server.restore_at(hours_left, &server.snapshot().await).await;
        wait_until(SOON, "Redis answers", async || worker.probe().await.is_ok()).await;
        apply(&worker, &[again(1_500, effect(0, "new", Action::Delete))]).await;
        assert_eq!(worker.due_second_deletes("a").await.unwrap(), [], "not yet");
        wait_until(SOON, "both are due", async || {
            worker.due_second_deletes("a").await.unwrap().len() == 2
        })
        .await;
        let due = worker.run_second_deletes("a").await.unwrap().due;
        let mut targets: Vec<_> = due.iter().filter_map(DueSecondDelete::target).collect();
        targets.sort_by_key(|target| *target == SecondDelete::Key("soon"));
        assert_eq!(targets, [SecondDelete::Key("new"), SecondDelete::Key("soon")]);
    }
}

#[tokio::test]
async fn second_deletes_are_due_in_time_although_the_clock_of_redis_goes_back() {
    // By one hour, the times are not impossible, only wrong.
    due_in_time_although_the_clock_changes(3, &[2, 0]).await;
}

/// A second delete that came sooner would precede what a slow reader stores.
#[tokio::test]
async fn second_deletes_are_due_in_time_although_the_clock_of_redis_goes_ahead() {
    due_in_time_although_the_clock_changes(0, &[1, 3]).await;
}

/// A key may be evicted, and workers of earlier versions have none.
#[tokio::test]
async fn a_time_that_no_rule_can_ask_for_is_due_now() {
    let server = Redis::start().await;
    let (worker, mut redis) = (cache(&server.url(), "q").await, server.connection().await);
    let now: Vec<u64> = run(&mut redis, &["TIME"]).await;
    let in_ms = |ms: u64| (now[0] * 1_000 + ms).to_string();
    for (key, ms) in [("kahead", 3 * 3_600_000), ("kin an hour", 3_600_000), ("khere", 0)] {
        run::<()>(&mut redis, &["ZADD", "unstale:again:q", &in_ms(ms), key]).await;
    }
    let due = worker.due_second_deletes("a").await.unwrap();
    let targets: Vec<_> = due.iter().filter_map(DueSecondDelete::target).collect();
    assert_eq!(targets, [SecondDelete::Key("here"), SecondDelete::Key("ahead")]);
}

#[tokio::test]
async fn the_lock_of_a_dead_worker_does_not_outlive_it_if_the_clock_goes_back() {
    let server = Redis::start_at(3, &[]).await;
    let worker = cache(&server.url(), "q").await;
    apply(&worker, &[again(1, effect(0, "k", Action::Delete))]).await;
    wait_until(SOON, "it is due", async || {
        worker.due_second_deletes("dead").await.unwrap().len() == 1
    })
    .await;
    server.restore_at(0, &server.snapshot().await).await;
    wait_until(SOON, "Redis answers", async || worker.probe().await.is_ok()).await;
    wait_until(SOON, "another worker follows", async || {
        worker.due_second_deletes("next").await.unwrap().len() == 1
    })
    .await;
    // A lock without a time to live does not either.
    let mut redis = server.connection().await;
    run::<()>(&mut redis, &["SET", "unstale:lease/{unstale:again:q}", "stranger"]).await;
    assert_eq!(worker.due_second_deletes("next").await.unwrap().len(), 1);
}

/// Lets the time pass until the only second delete is due. Returns how long that is.
async fn pass_time(redis: &mut MultiplexedConnection) -> f64 {
    let now: Vec<f64> = run(redis, &["TIME"]).await;
    let set = "unstale:again:q";
    let [member, at]: [String; 2] =
        run::<Vec<String>>(redis, &["ZRANGE", set, "0", "-1", "WITHSCORES"])
            .await
            .try_into()
            .unwrap();
    let left = at.parse::<f64>().unwrap().floor() - now[0] * 1_000.0;
    run::<()>(redis, &["ZINCRBY", set, &format!("{}", -left - 1_000.0), &member]).await;
    left
}

/// A cache whose user may not touch the key `hidden`, and an administrator's connection.
async fn restricted(server: &Redis) -> (Cache, MultiplexedConnection) {
    let mut admin = server.connection().await;
    let all = ["ACL", "SETUSER", "u", "reset", "on", ">p", "+@all", "allkeys"];
    run::<()>(&mut admin, &all).await;
    let url = format!("redis://u:p@{}/0", server.addr());
    let cache = Cache::connect(&config(&url), "q").unwrap();
    cache.probe().await.unwrap();
    (cache, admin)
}

const NARROW: [&str; 5] = ["ACL", "SETUSER", "u", "resetkeys", "~unstale:*"];

#[tokio::test]
async fn a_refused_second_delete_is_done_once_redis_permits_it() {
    let server = Redis::start().await;
    let (worker, mut admin) = restricted(&server).await;
    apply(&worker, &[again(1, effect(0, "k", Action::Delete))]).await;
    run::<()>(&mut admin, &["SET", "k", "stale"]).await;
    run::<()>(&mut admin, &NARROW).await;
    for told in [vec!["UNLINK: NOPERM".to_owned()], vec![], vec![]] {
        pass_time(&mut admin).await;
        let passes = worker.run_second_deletes("a").await.unwrap();
        assert_eq!((passes.due.len(), passes.failed), (1, told), "only the first is reported");
    }
    run::<()>(&mut admin, &["ACL", "SETUSER", "u", "allkeys"]).await;
    // Meanwhile it was asked for once more. That one does not wait for the retry.
    apply(&worker, &[again(1_000, effect(0, "k", Action::Delete))]).await;
    run::<()>(&mut admin, &["SET", "k", "stale"]).await;
    assert!(pass_time(&mut admin).await < 2_000.0);
    assert_eq!(worker.run_second_deletes("a").await.unwrap().due.len(), 1);
    assert_eq!(run::<u64>(&mut admin, &["EXISTS", "k", "unstale:again:q"]).await, 0);
}

/// A tag is refused too. Nothing is tried for ever.
#[tokio::test]
async fn a_second_delete_that_redis_refuses_for_hours_is_given_up() {
    let server = Redis::start().await;
    let (worker, mut admin) = restricted(&server).await;
    apply(&worker, &[again(1, effect(0, "t", Action::InvalidateTag))]).await;
    run::<()>(&mut admin, &["SADD", "cache_tag:t", "k"]).await;
    run::<()>(&mut admin, &NARROW).await;
    let (mut waited_ms, mut given_up) = (0.0, Vec::new());
    while given_up.is_empty() {
        let left = pass_time(&mut admin).await;
        assert!(left <= 601_000.0, "{left}");
        waited_ms += left;
        given_up = worker.run_second_deletes("a").await.unwrap().given_up;
    }
    assert!((4.0..4.5).contains(&(waited_ms / 3_600_000.0)), "{waited_ms}");
    let [(due, cause)] = given_up.as_slice() else { panic!("{given_up:?}") };
    assert_eq!(due.target(), Some(SecondDelete::Tag("t")));
    assert!(cause.contains("no permission") || cause.contains("NOPERM"), "{cause}");
    assert_eq!(run::<u64>(&mut admin, &["EXISTS", "unstale:again:q"]).await, 0);
}

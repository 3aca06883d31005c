//! The checkpoints themselves, on a real Redis: losses that workers notice, and that nothing hides.

use std::time::Duration;

use redis::AsyncCommands;
use unstale::cache::{
    Cache, DeadlyRange, Doubt, Entered, HealFrom, HealProgress, HealRecord, HealTurn, LowWatermark,
    OwedHeal, Tick,
};
use unstale::causes::Explain;
use unstale::config::{RedisConfig, RedisMode, SecretUrl, TlsConfig};
use unstale::plan::{Batch, EffectRef};
use unstale::registry::{Action, Effect, RuleId};

use crate::support::{Redis, wait_until};

pub(super) const MARKS: &str = "unstale:mark:q";

pub(super) async fn cache(server: &Redis) -> Cache {
    let config = RedisConfig {
        urls: vec![SecretUrl::new(server.url().parse().unwrap())],
        mode: RedisMode::Single,
        tls: TlsConfig::default(),
        tag_prefix: "cache_tag:".into(),
        fence_ttl: Duration::from_secs(86_400),
    };
    let cache = Cache::connect(&config, "q").unwrap();
    probe(&cache).await;
    cache
}

pub(super) async fn probe(cache: &Cache) {
    wait_until(Duration::from_secs(20), "Redis answers", async || cache.probe().await.is_ok())
        .await;
}

/// Returns a worker that has begun right after another one ended.
pub(super) async fn worker(server: &Redis) -> Cache {
    let cache = cache(server).await;
    if !matches!(cache.enter(1).await.unwrap(), Entered::Good(_)) {
        assert!(matches!(cache.take_heal().await.unwrap(), HealTurn::Ours(_)));
        assert!(cache.finish_heal(None, &[], 1).await.unwrap());
    }
    cache
}

pub(super) async fn delete(cache: &Cache, key: &str) -> Result<(), String> {
    apply(cache, key, Action::Delete).await
}

pub(super) async fn bump(cache: &Cache, key: &str) {
    apply(cache, key, Action::BumpVersion).await.unwrap();
}

async fn apply(cache: &Cache, key: &str, action: Action) -> Result<(), String> {
    let effect = Effect { rule: RuleId(0), target: key.into(), action, version: None, again: None };
    let mut batch = Batch::new("cache_tag:", 1);
    batch.push(EffectRef { event: 0, position: 0 }, &effect);
    cache.apply(&batch.finish()).await.map(drop).map_err(|outage| outage.in_full())
}

/// A confirmed write is lost between two advances of the checkpoint, and the worker notices it.
#[tokio::test]
async fn one_lost_batch_is_noticed() {
    let server = Redis::start().await;
    let cache = worker(&server).await;
    let snapshot = server.snapshot().await;
    delete(&cache, "a").await.unwrap();
    server.restore(&snapshot).await;
    probe(&cache).await;
    assert!(matches!(cache.enter(1).await.unwrap(), Entered::ToHeal(_)));
}

#[tokio::test]
async fn nothing_lost_is_no_loss_whatever_became_of_the_last_batch() {
    let server = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let cache = worker(&server).await;
    delete(&cache, "a").await.unwrap();
    server.kill();
    delete(&cache, "b").await.unwrap_err();
    server.restart().await;
    probe(&cache).await;
    let Entered::ToHeal(marks) = cache.enter(1).await.unwrap() else {
        panic!("each restart is answered by a heal")
    };
    assert_eq!(marks.doubt(), Doubt::Replaced, "nobody says that anything was lost");
    assert!(matches!(cache.take_heal().await.unwrap(), HealTurn::Ours(_)));
    assert!(cache.finish_heal(None, &[], 1).await.unwrap());
    // The answer is lost, although the command took effect.
    server.freeze();
    let (thawed, answer) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_millis(5_500)).await;
            server.thaw();
        },
        delete(&cache, "c")
    );
    let () = thawed;
    answer.unwrap_err();
    probe(&cache).await;
    assert!(matches!(cache.enter(1).await.unwrap(), Entered::Good(_)));
}

/// A command that is sent after a loss, before any worker noticed it, finds the loss and does not
/// hide it.
#[tokio::test]
async fn batches_after_a_loss_do_not_cover_it() {
    let server = Redis::start().await;
    let cache = worker(&server).await;
    let mut redis = server.connection().await;
    let old: String = redis.hget(MARKS, cache.id()).await.unwrap();
    delete(&cache, "a").await.unwrap();
    // As if a snapshot had been loaded behind a proxy: the connection stays open.
    let _: () = redis.hset(MARKS, cache.id(), &old).await.unwrap();
    let told = delete(&cache, "b").await.unwrap_err();
    assert!(told.contains("lost writes"), "{told}");
    assert_eq!(redis.hget::<_, _, String>(MARKS, cache.id()).await.unwrap(), old);
    probe(&cache).await;
    assert!(matches!(cache.enter(1).await.unwrap(), Entered::ToHeal(_)));
    // Its own next advance would have found the loss too. Now that of every other worker finds it.
    let other = self::cache(&server).await;
    assert!(
        matches!(other.enter(1).await.unwrap(), Entered::ToHeal(_)),
        "wanted by anybody is wanted by all"
    );
}

#[tokio::test]
async fn a_heal_is_one_workers_turn_and_serves_all() {
    let server = Redis::start().await;
    let (one, other, idle) = (worker(&server).await, worker(&server).await, worker(&server).await);
    let snapshot = server.snapshot().await;
    assert!(matches!(one.tick(100).await.unwrap(), Tick::Good(_)));
    assert!(matches!(other.tick(200).await.unwrap(), Tick::Good(_)));
    server.restore(&snapshot).await;
    for cache in [&one, &other, &idle] {
        probe(cache).await;
    }
    let Entered::ToHeal(_) = one.enter(100).await.unwrap() else { panic!("it lost a tick") };
    // This worker lost no write, but it waits for the heal as all others do.
    assert!(matches!(idle.enter(1).await.unwrap(), Entered::ToHeal(_)));
    let HealTurn::Ours(marks) = one.take_heal().await.unwrap() else { panic!("nobody else heals") };
    assert_eq!(marks.lowest_ms(), Some(1), "as it was in the snapshot");
    assert_eq!(other.take_heal().await.unwrap(), HealTurn::Anothers);
    delete(&one, "a").await.unwrap();
    one.renew_heal().await.unwrap();
    let record = HealRecord {
        began_ms: marks.now_ms,
        ended_ms: 0,
        from_ms: 1,
        count: 1,
        complete: true,
        ..HealRecord::default()
    };
    assert!(one.finish_heal(Some(&record), &[], 100).await.unwrap());
    assert_eq!(other.take_heal().await.unwrap(), HealTurn::Done);
    for cache in [&other, &idle] {
        assert!(matches!(cache.enter(200).await.unwrap(), Entered::Good(_)), "healed by the first");
    }
    assert_eq!(one.read_checkpoints().await.unwrap().last_heal().unwrap().count, 1);
    assert!(matches!(one.tick(100).await.unwrap(), Tick::Good(_)));
}

/// The snapshot holds the lock, but not the writes that the heal made later.
#[tokio::test]
async fn a_loss_in_the_midst_of_a_heal_begins_it_anew() {
    let server = Redis::start().await;
    let cache = worker(&server).await;
    let before = server.snapshot().await;
    assert!(matches!(cache.tick(1).await.unwrap(), Tick::Good(_)));
    server.restore(&before).await;
    probe(&cache).await;
    assert!(matches!(cache.enter(1).await.unwrap(), Entered::ToHeal(_)));
    assert!(matches!(cache.take_heal().await.unwrap(), HealTurn::Ours(_)));
    let during = server.snapshot().await;
    delete(&cache, "a").await.unwrap();
    server.restore(&during).await;
    probe(&cache).await;
    cache.renew_heal().await.unwrap_err();
    probe(&cache).await;
    assert!(!cache.finish_heal(None, &[], 1).await.unwrap());
    assert!(matches!(cache.enter(1).await.unwrap(), Entered::ToHeal(_)));
    assert!(
        matches!(cache.take_heal().await.unwrap(), HealTurn::Ours(_)),
        "its own lock does not keep it waiting"
    );
    assert!(cache.finish_heal(None, &[], 1).await.unwrap());
}

#[tokio::test]
async fn marks_of_the_dead_go_after_an_hour() {
    let server = Redis::start().await;
    let cache = worker(&server).await;
    let mut redis = server.connection().await;
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()
            as u64;
    for (field, age_ms) in [("dead", 3_700_000), ("dlq:dead", 3_700_000), ("dying", 3_500_000)] {
        let _: () = redis.hset(MARKS, field, format!("7:5:{}", now - age_ms)).await.unwrap();
    }
    assert!(matches!(cache.tick(9).await.unwrap(), Tick::Good(_)));
    let mut fields: Vec<String> = redis.hkeys(MARKS).await.unwrap();
    fields.retain(|field| field != cache.id() && field != "server");
    assert_eq!(fields, ["dying"]);
    assert_eq!(cache.read_checkpoints().await.unwrap().lowest_ms(), Some(5));
}

/// The last heal's lock expires within 3 s of its worker's death.
async fn take_over(cache: &Cache) -> HealProgress {
    probe(cache).await;
    let mut taken = None;
    wait_until(Duration::from_secs(6), "the turn comes", async || {
        if let HealTurn::Ours(marks) = cache.take_heal().await.unwrap() {
            taken = Some(cache.take_over_progress(
                &marks,
                HealFrom { offset: Some(5), time: None },
                "rules",
            ));
        }
        taken.is_some()
    })
    .await;
    taken.unwrap()
}

#[tokio::test]
async fn a_heal_goes_on_where_the_one_before_it_died() {
    let server = Redis::start().await;
    let (one, other) = (worker(&server).await, worker(&server).await);
    let snapshot = server.snapshot().await;
    delete(&one, "a").await.unwrap();
    server.restore(&snapshot).await;
    probe(&one).await;
    assert!(matches!(one.enter(1).await.unwrap(), Entered::ToHeal(_)));
    let begun = take_over(&one).await;
    assert_eq!((begun.from.offset, begun.applied_to, &begun.died), (Some(5), None, &None));
    let mut progress = begun;
    (progress.applied_to, progress.in_work, progress.passed_over) =
        (Some(20), Some((20, 30)), vec![7]);
    one.note_heal_progress(&progress).await.unwrap();
    let died = Some(DeadlyRange { first: 20, end: 30, workers: vec![one.id().to_owned()] });
    drop(one);

    let found = take_over(&other).await;
    assert_eq!((found.applied_to, &found.died), (Some(20), &died));
    assert_eq!(found.passed_over, [7]);
    let stranger = cache(&server).await;
    assert!(stranger.note_heal_progress(&found).await.is_err(), "the turn is another's");
    let mut progress = found;
    progress.in_work = Some((40, 50));
    other.note_heal_progress(&progress).await.unwrap();
    // Another server may have lost applied writes. Its successor starts again, and still knows the
    // events at which heals died.
    let during = server.snapshot().await;
    server.restore(&during).await;
    let again = take_over(&stranger).await;
    let died = Some(DeadlyRange { first: 40, end: 50, workers: vec![other.id().to_owned()] });
    assert_eq!((again.applied_to, again.died, again.passed_over), (None, died, vec![7]));
    assert!(stranger.finish_heal(None, &[], 1).await.unwrap());
    assert_eq!(stranger.read_checkpoints().await.unwrap().progress(), None);
}

/// The worker stops cleanly, or another takes its lock while it is cut off from Redis.
#[tokio::test]
async fn a_worker_that_stops_in_the_midst_of_a_heal_has_not_died() {
    let server = Redis::start().await;
    let (one, other) = (worker(&server).await, worker(&server).await);
    let snapshot = server.snapshot().await;
    delete(&one, "a").await.unwrap();
    server.restore(&snapshot).await;
    probe(&one).await;
    assert!(matches!(one.enter(1).await.unwrap(), Entered::ToHeal(_)));
    let mut progress = take_over(&one).await;
    (progress.applied_to, progress.in_work) = (Some(20), Some((20, 21)));
    one.note_heal_progress(&progress).await.unwrap();
    one.yield_heal_of(one.id()).await.unwrap();
    probe(&other).await;
    let HealTurn::Ours(marks) = other.take_heal().await.unwrap() else {
        panic!("it gave the turn up")
    };
    let mut found =
        other.take_over_progress(&marks, HealFrom { offset: Some(5), time: None }, "rules");
    assert_eq!((found.applied_to, &found.died), (Some(20), &None));
    found.in_work = Some((20, 21));
    other.note_heal_progress(&found).await.unwrap();
    // The other worker loses its lock, and reports that it is alive only after it was counted as
    // dead.
    let third = take_over(&one).await;
    assert_eq!(third.died.as_ref().map(DeadlyRange::deaths), Some(1));
    one.note_heal_progress(&third).await.unwrap();
    other.yield_heal_of(other.id()).await.unwrap();
    assert_eq!(one.without_survivors(third).await.unwrap().died, None);
    one.keep_heal_of(one.id()).await.expect("the turn is still its own");
    assert!(one.finish_heal(None, &[], 1).await.unwrap());
}

#[tokio::test]
async fn a_worker_that_ends_leaves_what_it_let_go_of_to_the_others() {
    let server = Redis::start().await;
    let (one, other) = (worker(&server).await, worker(&server).await);
    let low = LowWatermark { time_ms: 100, offset: Some(7) };
    one.leave(low, false).await.unwrap();
    let Tick::Good(marks) = other.tick(200).await.unwrap() else { panic!("nothing is lost") };
    let gone = marks.gone(other.id());
    assert_eq!(gone, [format!("stopped:{}", one.id())]);
    assert_eq!(marks.lowest_of(|field| gone.iter().any(|gone| gone == field)), Some(low));
    other.take_over(&gone).await.unwrap();
    assert_eq!(other.read_checkpoints().await.unwrap().lowest(), Some(200.into()));
    // If everything is settled and another worker runs, the worker that ends leaves no checkpoint.
    let third = worker(&server).await;
    third.leave(50, true).await.unwrap();
    assert_eq!(other.read_checkpoints().await.unwrap().lowest(), Some(200.into()));
    // The last worker leaves its low watermark in any case.
    other.leave(300, true).await.unwrap();
    assert_eq!(cache(&server).await.read_checkpoints().await.unwrap().lowest_ms(), Some(300));
}

/// A worker that did not advance its checkpoint for long, but lives, finds its number. Its low
/// watermark includes its deliveries again.
#[tokio::test]
async fn a_worker_that_was_taken_for_dead_goes_on() {
    let server = Redis::start().await;
    let (silent, other) = (worker(&server).await, worker(&server).await);
    let mut redis = server.connection().await;
    let mark: String = redis.hget(MARKS, silent.id()).await.unwrap();
    let parts: Vec<u64> = mark.split(':').map(|part| part.parse().unwrap()).collect();
    let _: () = redis
        .hset(MARKS, silent.id(), format!("{}:{}:{}", parts[0], parts[1], parts[2] - 11_000))
        .await
        .unwrap();
    let Tick::Good(marks) = other.tick(200).await.unwrap() else { panic!("nothing is lost") };
    assert_eq!(marks.gone(other.id()), [silent.id()]);
    other.take_over(&[silent.id().to_owned()]).await.unwrap();
    assert_eq!(other.read_checkpoints().await.unwrap().lowest_ms(), Some(200));
    delete(&silent, "a").await.unwrap();
    assert!(matches!(silent.tick(150).await.unwrap(), Tick::Good(_)));
    assert_eq!(other.read_checkpoints().await.unwrap().lowest_ms(), Some(150));
}

/// Two debts of one worker count as two, and the earlier place counts. A debt that is owed twice is
/// one.
#[tokio::test]
async fn a_second_debt_of_a_worker_does_not_replace_the_first() {
    let server = Redis::start().await;
    let cache = worker(&server).await;
    let from = |offset| HealFrom { offset: Some(offset), time: None };
    let first = OwedHeal::new(from(5), "the first", 1);
    cache.owe_heal(&first).await.unwrap();
    cache.owe_heal(&OwedHeal::new(from(9), "the second", 1)).await.unwrap();
    cache.owe_heal(&first).await.unwrap();
    let all = cache.read_checkpoints().await.unwrap().owed().all.unwrap();
    assert_eq!(all.from, from(5));
    let fields: Vec<String> = server.connection().await.hkeys(MARKS).await.unwrap();
    assert_eq!(fields.iter().filter(|field| field.starts_with("owed:")).count(), 2, "{fields:?}");
    assert!(
        cache
            .read_checkpoints()
            .await
            .unwrap()
            .gone("")
            .iter()
            .all(|field| !field.starts_with("owed:"))
    );
}

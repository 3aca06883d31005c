//! The marks themselves, on a real Redis: what is noticed, by whom, and that nothing hides it.

use std::time::Duration;

use redis::AsyncCommands;
use unstale::cache::{Cache, Entered, HealRecord, Tick, Turn};
use unstale::config::{RedisConfig, RedisMode, SecretUrl, TlsConfig};
use unstale::plan::{Batch, Slot};
use unstale::registry::{Action, Effect, RuleId};

use crate::support::{Redis, wait_until};

const MARKS: &str = "unstale:mark:q";

async fn cache(server: &Redis) -> Cache {
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

async fn probe(cache: &Cache) {
    wait_until(Duration::from_secs(20), "Redis answers", async || cache.probe().await.is_ok()).await;
}

/// A worker that has begun where another has just been.
async fn worker(server: &Redis) -> Cache {
    let cache = cache(server).await;
    if !matches!(cache.enter(1).await.unwrap(), Entered::Good(_)) {
        assert!(matches!(cache.take_heal().await.unwrap(), Turn::Ours(_)));
        assert!(cache.finish_heal(None, 1).await.unwrap());
    }
    cache
}

async fn delete(cache: &Cache, key: &str) -> Result<(), String> {
    let effect = Effect { rule: RuleId(0), target: key.into(), action: Action::Delete, version: None, again: None };
    let mut batch = Batch::new("cache_tag:", 1);
    batch.push(Slot { event: 0, position: 0 }, &effect);
    cache.apply(&batch.finish()).await.map(drop).map_err(|outage| outage.cause)
}

/// Between two ticks, and with no tick after it: what was confirmed is lost all the same.
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
    assert!(matches!(cache.enter(1).await.unwrap(), Entered::Good(_)));
    // Its answer is lost, and it was done.
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

/// What is sent after Redis went back, and before anybody noticed, finds it out and does not hide it.
#[tokio::test]
async fn batches_after_a_loss_do_not_cover_it() {
    let server = Redis::start().await;
    let cache = worker(&server).await;
    let mut redis = server.connection().await;
    let old: String = redis.hget(MARKS, cache.id()).await.unwrap();
    delete(&cache, "a").await.unwrap();
    // As if a snapshot had been loaded behind a proxy: the connection stands.
    let _: () = redis.hset(MARKS, cache.id(), &old).await.unwrap();
    let told = delete(&cache, "b").await.unwrap_err();
    assert!(told.contains("lost writes"), "{told}");
    assert_eq!(redis.hget::<_, _, String>(MARKS, cache.id()).await.unwrap(), old);
    probe(&cache).await;
    assert!(matches!(cache.enter(1).await.unwrap(), Entered::ToHeal(_)));
    // Its tick would have found it too; and now everybody else's does.
    let other = self::cache(&server).await;
    assert!(matches!(other.enter(1).await.unwrap(), Entered::ToHeal(_)), "wanted by anybody is wanted by all");
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
    // It has lost nothing, but waits like all.
    assert!(matches!(idle.enter(1).await.unwrap(), Entered::ToHeal(_)));
    let Turn::Ours(marks) = one.take_heal().await.unwrap() else { panic!("nobody else heals") };
    assert_eq!(marks.lowest_ms(), Some(1), "as it was in the snapshot");
    assert_eq!(other.take_heal().await.unwrap(), Turn::Anothers);
    delete(&one, "a").await.unwrap();
    one.renew_heal().await.unwrap();
    let record = HealRecord { began_ms: marks.now_ms, ended_ms: 0, from_ms: 1, count: 1, complete: true };
    assert!(one.finish_heal(Some(record), 100).await.unwrap());
    assert_eq!(other.take_heal().await.unwrap(), Turn::Done);
    for cache in [&other, &idle] {
        assert!(matches!(cache.enter(200).await.unwrap(), Entered::Good(_)), "healed by the first");
    }
    assert_eq!(one.read_marks().await.unwrap().last_heal().unwrap().count, 1);
    assert!(matches!(one.tick(100).await.unwrap(), Tick::Good(_)));
}

/// The lock comes back with the snapshot; what was healed after it does not.
#[tokio::test]
async fn a_loss_in_the_midst_of_a_heal_begins_it_anew() {
    let server = Redis::start().await;
    let cache = worker(&server).await;
    let before = server.snapshot().await;
    assert!(matches!(cache.tick(1).await.unwrap(), Tick::Good(_)));
    server.restore(&before).await;
    probe(&cache).await;
    assert!(matches!(cache.enter(1).await.unwrap(), Entered::ToHeal(_)));
    assert!(matches!(cache.take_heal().await.unwrap(), Turn::Ours(_)));
    let during = server.snapshot().await;
    delete(&cache, "a").await.unwrap();
    server.restore(&during).await;
    probe(&cache).await;
    cache.renew_heal().await.unwrap_err();
    probe(&cache).await;
    assert!(!cache.finish_heal(None, 1).await.unwrap());
    assert!(matches!(cache.enter(1).await.unwrap(), Entered::ToHeal(_)));
    assert!(matches!(cache.take_heal().await.unwrap(), Turn::Ours(_)), "its own lock does not keep it waiting");
    assert!(cache.finish_heal(None, 1).await.unwrap());
}

#[tokio::test]
async fn whoever_remembers_nothing_trusts_fresh_marks_alone() {
    let server = Redis::start().await;
    let _worker = worker(&server).await;
    assert!(matches!(cache(&server).await.enter(1).await.unwrap(), Entered::Good(_)), "a moment old");
    let mut redis = server.connection().await;
    let marks: Vec<(String, String)> = redis.hgetall(MARKS).await.unwrap();
    for (field, mark) in marks {
        let parts: Vec<u64> = mark.split(':').map(|part| part.parse().unwrap()).collect();
        let older = format!("{}:{}:{}", parts[0], parts[1], parts[2] - 11_000);
        let _: () = redis.hset(MARKS, field, older).await.unwrap();
    }
    // A command's mark is no worker's.
    cache(&server).await.hold_mark("replay", 7).await.unwrap();
    let Entered::ToHeal(marks) = cache(&server).await.enter(1).await.unwrap() else { panic!("they are older than 10 s") };
    assert_eq!(marks.lowest_ms(), Some(1));
}

#[tokio::test]
async fn marks_of_the_dead_go_after_an_hour() {
    let server = Redis::start().await;
    let cache = worker(&server).await;
    let mut redis = server.connection().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    for (field, age_ms) in [("dead", 3_700_000), ("dlq:dead", 3_700_000), ("dying", 3_500_000)] {
        let _: () = redis.hset(MARKS, field, format!("7:5:{}", now - age_ms)).await.unwrap();
    }
    assert!(matches!(cache.tick(9).await.unwrap(), Tick::Good(_)));
    let mut fields: Vec<String> = redis.hkeys(MARKS).await.unwrap();
    fields.retain(|field| field != cache.id());
    assert_eq!(fields, ["dying"]);
    assert_eq!(cache.read_marks().await.unwrap().lowest_ms(), Some(5));
}

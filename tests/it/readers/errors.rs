//! A fault of the cache fails no read, and a reader that does not load keeps no lease.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::poll;
use redis::AsyncCommands;
use redis::aio::ConnectionManagerConfig;
use unstale_reader::{Options, Outcome, Reader};

use super::{HOUR, Held, Outcomes, Source};
use crate::support::{Redis, wait_until};

const SOON: Duration = Duration::from_secs(20);
const LEASE: &str = "unstale:lease/{k}";

async fn gone(server: &Redis, key: &str) {
    let mut redis = server.connection().await;
    wait_until(SOON, &format!("{key} is gone"), async || {
        !redis.exists::<_, bool>(key).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_loader_that_fails_or_finds_nothing_releases_the_lease() {
    let server = Redis::start().await;
    let outcomes = Outcomes::default();
    let reader = Reader::new(server.connection().await, outcomes.options());
    assert_eq!(
        reader.get_or_load("k", async || Err::<Option<Vec<u8>>, _>("no database"), HOUR, ()).await,
        Err("no database")
    );
    assert!(!server.connection().await.exists::<_, bool>(LEASE).await.unwrap());
    assert_eq!(reader.get_or_load("k", async || Ok::<_, ()>(None), HOUR, ()).await, Ok(None));
    assert!(!server.connection().await.exists::<_, bool>(LEASE).await.unwrap());
    assert_eq!(outcomes.take(), [Outcome::Absent]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_or_panicking_read_releases_the_lease() {
    let server = Redis::start().await;
    let reader = Reader::new(server.connection().await, Options::default());
    let held = Held::default();
    let read = tokio::spawn({
        let (reader, held) = (reader.clone(), held.clone());
        async move { reader.get_or_load("k", || held.load("v"), HOUR, ()).await }
    });
    tokio::time::timeout(SOON, held.begun.notified()).await.expect("the load has begun");
    assert!(server.connection().await.exists::<_, bool>(LEASE).await.unwrap());
    read.abort();
    gone(&server, LEASE).await;
    let read = tokio::spawn(async move {
        reader
            .get_or_load(
                "k",
                async || -> Result<_, ()> { panic!("a bug of the loader's") },
                HOUR,
                (),
            )
            .await
    });
    assert!(read.await.unwrap_err().is_panic());
    gone(&server, LEASE).await;
}

#[tokio::test]
async fn a_killed_holder_blocks_the_others_no_longer_than_its_lease() {
    let server = Redis::start().await;
    let lease = Duration::from_millis(600);
    let reader = Reader::new(server.connection().await, Options { lease, ..Options::default() });
    {
        let held = Held::default();
        let mut killed = Box::pin({
            let (reader, held) = (reader.clone(), held.clone());
            async move { reader.get_or_load("k", || held.load("v"), HOUR, ()).await }
        });
        wait_until(SOON, "it loads", async || {
            assert!(poll!(&mut killed).is_pending());
            server.connection().await.exists::<_, bool>(LEASE).await.unwrap()
        })
        .await;
        // As a killed process would: nothing is released.
        std::mem::forget(killed);
    }
    let (source, start) = (Source::default(), Instant::now());
    let values =
        join_all((0..50).map(|_| reader.get_or_load("k", || source.load("v"), HOUR, ()))).await;
    assert!(values.iter().all(|value| value.as_ref().unwrap().as_deref() == Some(b"v")));
    assert_eq!(source.loads(), 1, "one takes over, the others wait for it");
    assert!(start.elapsed() < lease + SOON);
}

#[tokio::test]
async fn a_lease_is_shortened_after_the_clock_was_set_back() {
    let server = Redis::start().await;
    let outcomes = Outcomes::default();
    let lease = Duration::from_millis(200);
    let reader =
        Reader::new(server.connection().await, Options { lease, wait: SOON, ..outcomes.options() });
    let mut redis = server.connection().await;
    let _: () = redis.set_ex(LEASE, "another's", 7200).await.unwrap();
    assert_eq!(
        reader.get_or_load("k", async || Ok::<_, ()>(Some(b"v".to_vec())), HOUR, ()).await,
        Ok(Some(b"v".to_vec()))
    );
    assert_eq!(outcomes.take(), [Outcome::Filled]);
    let left_ms: i64 = redis.pttl("k").await.unwrap();
    assert!(left_ms > 0, "the value is cached");
}

#[tokio::test]
async fn a_wait_is_no_shorter_than_the_lease_and_an_empty_key_is_not_cached() {
    let server = Redis::start().await;
    let outcomes = Outcomes::default();
    let lease = Duration::from_millis(300);
    let reader = Reader::new(
        server.connection().await,
        Options { lease, wait: Duration::ZERO, ..outcomes.options() },
    );
    let mut redis = server.connection().await;
    let _: () = redis.pset_ex(LEASE, "another's", 100).await.unwrap();
    assert_eq!(
        reader.get_or_load("k", async || Ok::<_, ()>(Some(b"v".to_vec())), HOUR, ()).await,
        Ok(Some(b"v".to_vec()))
    );
    assert_eq!(outcomes.take(), [Outcome::Filled], "it waited for the other's lease");
    assert_eq!(
        reader.get_or_load("", async || Ok::<_, ()>(Some(b"v".to_vec())), HOUR, ()).await,
        Ok(Some(b"v".to_vec()))
    );
    assert_eq!(outcomes.take(), [Outcome::Away]);
    assert!(!redis.exists::<_, bool>("").await.unwrap());
}

#[tokio::test]
async fn a_reader_that_waits_too_long_loads_and_caches_nothing() {
    let server = Redis::start().await;
    let outcomes = Outcomes::default();
    let wait = Duration::from_millis(100);
    let reader =
        Reader::new(server.connection().await, Options { lease: wait, wait, ..outcomes.options() });
    let mut redis = server.connection().await;
    let _: () = redis.set_ex(LEASE, "another's", 60).await.unwrap();
    let start = Instant::now();
    assert_eq!(
        reader.get_or_load("k", async || Ok::<_, ()>(Some(b"v".to_vec())), HOUR, ()).await,
        Ok(Some(b"v".to_vec()))
    );
    assert!(start.elapsed() >= wait);
    assert_eq!(outcomes.take(), [Outcome::Crowded]);
    assert!(!redis.exists::<_, bool>("k").await.unwrap());
    assert_eq!(redis.get::<_, String>(LEASE).await.unwrap(), "another's");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_values_are_loaded_and_not_cached() {
    let server = Redis::start().await;
    let outcomes = Outcomes::default();
    let options = Options { timeout: Duration::from_millis(200), ..outcomes.options() };
    let reader = Reader::new(server.connection().await, options);
    let read = async || {
        reader.get_or_load("k", async || Ok::<_, ()>(Some(b"v".to_vec())), HOUR, ["t"]).await
    };
    // Silent, then refusing, then gone.
    server.freeze();
    assert_eq!(read().await, Ok(Some(b"v".to_vec())));
    server.thaw();
    let mut redis = server.connection().await;
    for refuse in [["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]] {
        redis::cmd(refuse[0]).arg(&refuse[1..]).exec_async(&mut redis).await.unwrap();
        if refuse[3] == "1" {
            assert_eq!(read().await, Ok(Some(b"v".to_vec())));
        }
    }
    // A tag that is no set: the value must not be cached where the tag cannot reach it.
    let _: () = redis.set("cache_tag:t", "text").await.unwrap();
    assert_eq!(read().await, Ok(Some(b"v".to_vec())));
    assert!(!redis.exists::<_, bool>(&["k", LEASE]).await.unwrap());
    server.kill();
    assert_eq!(read().await, Ok(Some(b"v".to_vec())));
    assert_eq!(outcomes.take(), [Outcome::Away; 4]);
}

/// As the pages advise. A `MultiplexedConnection` would stay away.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_manager_caches_again_after_redis_restarts() {
    let server = Redis::start().await;
    let outcomes = Outcomes::default();
    let connection =
        server.client().get_connection_manager_lazy(ConnectionManagerConfig::new()).unwrap();
    let options = Options { timeout: Duration::from_millis(200), ..outcomes.options() };
    let reader = Reader::new(connection, options);
    let read = async || {
        let load = async || Ok::<_, ()>(Some(b"v".to_vec()));
        assert_eq!(reader.get_or_load("k", load, HOUR, ["t"]).await, Ok(Some(b"v".to_vec())));
        outcomes.take()
    };
    assert_eq!(read().await, [Outcome::Filled]);
    server.kill();
    assert_eq!(read().await, [Outcome::Away]);
    server.restart().await;
    wait_until(SOON, "a read finds the value", async || read().await == [Outcome::Hit]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_lost_during_the_load_costs_only_the_fill() {
    let server = Redis::start().await;
    let outcomes = Outcomes::default();
    let reader = Reader::new(server.connection().await, outcomes.options());
    let held = Held::default();
    let mut read = pin!(reader.get_or_load("k", || held.load("v"), HOUR, ()));
    tokio::select! {
        _ = &mut read => panic!("it has not ended"),
        () = held.begun.notified() => {}
    }
    server.kill();
    held.end.notify_one();
    assert_eq!(read.await.unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(outcomes.take(), [Outcome::Away]);
}

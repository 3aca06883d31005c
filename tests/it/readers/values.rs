//! Contents of Redis after a read, and their lifetimes.

use std::time::Duration;

use futures_util::future::join_all;
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};
use unstale_reader::{Options, Outcome, Reader};

use super::{HOUR, Held, Outcomes, Source};
use crate::support;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn bytes_are_stored_at_the_plain_key_with_tags_and_ttls() {
    let server = support::Redis::start().await;
    let mut redis = server.connection().await;
    let reader = Reader::new(
        redis.clone(),
        Options {
            key_prefix: "shop:".into(),
            tag_prefix: "tag:".into(),
            jitter: 0.5,
            ..Options::default()
        },
    );
    let value = vec![0xff, 0, b'\r', b'\n'];
    for n in 0..40 {
        let key = format!("k{n}");
        let load = async || Ok::<_, ()>(Some(value.clone()));
        assert_eq!(reader.get_or_load(&key, load, HOUR, ["t", "u"]).await, Ok(Some(value.clone())));
        assert_eq!(
            reader.get_or_load(&key, async || Err("cached"), HOUR, ()).await,
            Ok(Some(value.clone()))
        );
        assert_eq!(redis.get::<_, Vec<u8>>(format!("shop:{key}")).await.unwrap(), value);
    }
    let mut lives = Vec::new();
    for n in 0..40 {
        lives.push(redis.pttl::<_, i64>(format!("shop:k{n}")).await.unwrap());
    }
    assert!(lives.iter().all(|life| (1_790_000..=3_600_000).contains(life)), "{lives:?}");
    assert!(
        lives.iter().max().unwrap() - lives.iter().min().unwrap() > 60_000,
        "not spread: {lives:?}"
    );
    for tag in ["tag:t", "tag:u"] {
        assert_eq!(redis.scard::<_, usize>(tag).await.unwrap(), 40);
        assert!(redis.pttl::<_, i64>(tag).await.unwrap() > 3_590_000);
    }
    // Nothing of ours is left but the values and their tags.
    assert_eq!(redis::cmd("DBSIZE").query_async::<usize>(&mut redis).await.unwrap(), 42);
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Product {
    id: u64,
    category: String,
}

#[tokio::test]
async fn json_goes_in_and_out_and_names_its_tags() {
    let server = support::Redis::start().await;
    let mut redis = server.connection().await;
    let outcomes = Outcomes::default();
    let reader = Reader::new(redis.clone(), outcomes.options());
    let kite = Product { id: 7, category: "toys".into() };
    let read = async || {
        let load = async || Ok::<_, ()>(Some(kite.clone()));
        reader
            .get_or_load_json("k", load, HOUR, |product: &Product| {
                vec![format!("category:{}", product.category)]
            })
            .await
    };
    assert_eq!(read().await, Ok(Some(kite.clone())));
    assert_eq!(read().await, Ok(Some(kite.clone())));
    assert_eq!(redis.get::<_, String>("k").await.unwrap(), r#"{"id":7,"category":"toys"}"#);
    assert_eq!(redis.smembers::<_, Vec<String>>("cache_tag:category:toys").await.unwrap(), ["k"]);
    // Somebody else's value: neither read nor replaced.
    let _: () = redis.set("k", "pickled").await.unwrap();
    assert_eq!(read().await, Ok(Some(kite.clone())));
    assert_eq!(redis.get::<_, String>("k").await.unwrap(), "pickled");
    assert_eq!(outcomes.take(), [Outcome::Filled, Outcome::Hit, Outcome::Unreadable]);
}

#[tokio::test]
async fn a_value_near_its_end_is_loaded_by_one_reader_and_served_to_the_others() {
    let server = support::Redis::start().await;
    let mut redis = server.connection().await;
    let outcomes = Outcomes::default();
    let reader = Reader::new(
        redis.clone(),
        Options { stale: Duration::from_secs(60), ..outcomes.options() },
    );
    let _: () = redis.set_ex("k", "old", 3_000).await.unwrap();
    assert_eq!(
        reader
            .get_or_load("k", async || Err("far from its end"), HOUR, ())
            .await
            .unwrap()
            .as_deref(),
        Some(&b"old"[..])
    );
    let _: () = redis.set_ex("k", "old", 30).await.unwrap();
    assert_eq!(outcomes.take(), [Outcome::Hit]);

    let held = Held::default();
    let refresh = tokio::spawn({
        let (reader, held) = (reader.clone(), held.clone());
        async move { reader.get_or_load("k", || held.load("new"), HOUR, ()).await }
    });
    tokio::time::timeout(SOON, held.begun.notified()).await.expect("one loads");
    let others = join_all(
        (0..20).map(|_| reader.get_or_load("k", async || Err("the others do not load"), HOUR, ())),
    )
    .await;
    assert!(others.iter().all(|value| value.as_ref().unwrap().as_deref() == Some(b"old")));
    assert_eq!(outcomes.take(), [Outcome::Hit; 20]);
    held.end.notify_one();
    assert_eq!(refresh.await.unwrap().unwrap().as_deref(), Some(&b"new"[..]));
    assert_eq!(redis.get::<_, String>("k").await.unwrap(), "new");
    assert_eq!(outcomes.take(), [Outcome::Filled]);

    // A loader that fails early costs nothing: the value is good to its end.
    let _: () = redis.set_ex("k", "old", 30).await.unwrap();
    assert_eq!(
        reader.get_or_load("k", async || Err("no database"), HOUR, ()).await,
        Ok(Some(b"old".to_vec()))
    );
    assert_eq!(outcomes.take(), [Outcome::Kept]);
    // A value that never ends is not loaded early.
    let _: () = redis.set("k", "for ever").await.unwrap();
    assert_eq!(
        reader.get_or_load("k", async || Err("no end"), HOUR, ()).await,
        Ok(Some(b"for ever".to_vec()))
    );
}

#[tokio::test]
async fn scripts_are_sent_again_after_a_script_flush() {
    let server = support::Redis::start().await;
    let mut redis = server.connection().await;
    let outcomes = Outcomes::default();
    let reader = Reader::new(redis.clone(), outcomes.options());
    let source = Source::default();
    for n in 0..3 {
        redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut redis).await.unwrap();
        reader.get_or_load(&n.to_string(), || source.load("v"), HOUR, ["t"]).await.unwrap();
    }
    assert_eq!(outcomes.take(), [Outcome::Filled; 3]);
}

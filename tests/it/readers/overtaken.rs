//! A value loaded before an invalidation is not readable after it, however the event reaches the
//! key.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use redis::AsyncCommands;
use unstale_reader::{Options, Outcome};

use super::{HOUR, Held, Outcomes, RULES, reader};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::wait_until;

#[tokio::test(flavor = "multi_thread")]
async fn every_event_for_the_key_during_the_load_voids_it() {
    let stage = Stage::new(&[("products.yaml", RULES)]).await;
    let worker = stage.worker(&[("UNSTALE_VAR_CATALOGUE_URL", "http://127.0.0.1:1")]).await;
    let outcomes = Outcomes::default();
    let reader = reader(&stage, outcomes.options()).await;
    let mut redis = stage.connection().await;
    let cases = [
        ("product.changed", r#"{"id":7}"#, None),
        ("products.imported", "{}", None),
        ("product.priced", r#"{"id":7,"price":"5"}"#, Some(r#""5""#)),
        ("product.expiring", r#"{"id":7}"#, None),
    ];
    for big in [false, true] {
        for known in [false, true] {
            for (event, body, left) in cases {
                let what = format!("{event}, big: {big}, known: {known}");
                let _: () = redis.del(&["product:7", "cache_tag:products"]).await.unwrap();
                if big {
                    let members: Vec<String> = (0..600).map(|n| format!("member:{n}")).collect();
                    let _: () = redis.sadd("cache_tag:products", members).await.unwrap();
                }
                stage.set("marker", "there").await;
                let held = Held::default();
                let read = tokio::spawn({
                    let (reader, held) = (reader.clone(), held.clone());
                    async move {
                        let load = || held.load("old");
                        match known {
                            true => reader.get_or_load("product:7", load, HOUR, ["products"]).await,
                            false => {
                                reader
                                    .get_or_load("product:7", load, HOUR, |_: &Vec<u8>| {
                                        vec!["products".to_owned()]
                                    })
                                    .await
                            }
                        }
                    }
                });
                tokio::time::timeout(SOON, held.begun.notified())
                    .await
                    .expect("the load has begun");
                stage.publish(event, body).await;
                stage.wait_gone("marker").await;
                stage.wait_settled(&[&worker]).await;
                held.end.notify_one();
                assert_eq!(read.await.unwrap().unwrap().as_deref(), Some(&b"old"[..]), "{what}");
                assert_eq!(outcomes.take(), [Outcome::Void], "{what}");
                assert_eq!(stage.get("product:7").await.as_deref(), left, "{what}");
                // The next reader does not wait.
                assert!(!stage.exists("unstale:lease/{product:7}").await, "{what}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_invalidated_before_the_load_refuses_nothing() {
    let stage = Stage::new(&[("products.yaml", RULES)]).await;
    let _worker = stage.worker(&[("UNSTALE_VAR_CATALOGUE_URL", "http://127.0.0.1:1")]).await;
    let outcomes = Outcomes::default();
    let reader = reader(&stage, outcomes.options()).await;
    stage.set("marker", "there").await;
    stage.publish("products.imported", "{}").await;
    stage.wait_gone("marker").await;
    reader
        .get_or_load("product:7", async || Ok::<_, ()>(Some(b"new".to_vec())), HOUR, ["products"])
        .await
        .unwrap();
    assert_eq!(outcomes.take(), [Outcome::Filled]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_and_a_reader_load_a_key_one_after_the_other() {
    let stage = Stage::new(&[("products.yaml", RULES)]).await;
    let asked = Held::default();
    let app = Router::new().route(
        "/{id}",
        get({
            let asked = asked.clone();
            move || async move { asked.load("warmed").await.unwrap().unwrap() }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let _worker = stage.worker(&[("UNSTALE_VAR_CATALOGUE_URL", &url)]).await;
    let outcomes = Outcomes::default();
    let reader = reader(&stage, outcomes.options()).await;

    // The warm loads: the reader waits for it.
    stage.publish("product.ranked", r#"{"id":7}"#).await;
    tokio::time::timeout(SOON, asked.begun.notified()).await.expect("the warm loads");
    let read = tokio::spawn({
        let reader = reader.clone();
        async move {
            reader
                .get_or_load("product:7", async || Err("nobody asks the reader's source"), HOUR, ())
                .await
        }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    asked.end.notify_one();
    assert_eq!(read.await.unwrap().unwrap().as_deref(), Some(&b"warmed"[..]));
    assert_eq!(outcomes.take(), [Outcome::Waited]);

    // The reader loads when the event comes: its value is void, and the warm's stays.
    let _: () = stage.connection().await.del("product:7").await.unwrap();
    let held = Held::default();
    let read = tokio::spawn({
        let (reader, held) = (reader.clone(), held.clone());
        async move { reader.get_or_load("product:7", || held.load("old"), HOUR, ()).await }
    });
    tokio::time::timeout(SOON, held.begun.notified()).await.expect("the reader loads");
    stage.publish("product.ranked", r#"{"id":7}"#).await;
    asked.end.notify_one();
    wait_until(SOON, "the warm has filled", async || {
        stage.get("product:7").await.as_deref() == Some("warmed")
    })
    .await;
    held.end.notify_one();
    read.await.unwrap().unwrap();
    assert_eq!(outcomes.take(), [Outcome::Void]);
    assert_eq!(stage.get("product:7").await.as_deref(), Some("warmed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_reader_gets_a_value_stored_without_a_lease() {
    let stage = Stage::new(&[("products.yaml", RULES)]).await;
    let outcomes = Outcomes::default();
    let reader = reader(&stage, outcomes.options()).await;
    let held = Held::default();
    let first = tokio::spawn({
        let (reader, held) = (reader.clone(), held.clone());
        async move { reader.get_or_load("product:7", || held.load("a"), HOUR, ()).await }
    });
    tokio::time::timeout(SOON, held.begun.notified()).await.expect("the load has begun");
    let second = tokio::spawn({
        let reader = reader.clone();
        async move { reader.get_or_load("product:7", async || Err("it waits"), HOUR, ()).await }
    });
    let _: () = stage.connection().await.set_ex("product:7", "b", 3_600).await.unwrap();
    assert_eq!(second.await.unwrap().unwrap().as_deref(), Some(&b"b"[..]));
    held.end.notify_one();
    first.await.unwrap().unwrap();
    assert!(matches!(outcomes.take()[..], [Outcome::Waited | Outcome::Hit, Outcome::Filled]));
    assert_eq!(stage.get("product:7").await.as_deref(), Some("a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_outlasts_its_lease_fills_nothing_and_blocks_no_other_load() {
    let stage = Stage::new(&[("products.yaml", RULES)]).await;
    let outcomes = Outcomes::default();
    let options = Options { lease: Duration::from_millis(200), ..outcomes.options() };
    let reader = reader(&stage, options).await;
    let held = Held::default();
    let slow = tokio::spawn({
        let (reader, held) = (reader.clone(), held.clone());
        async move { reader.get_or_load("product:7", || held.load("slow"), HOUR, ()).await }
    });
    tokio::time::timeout(SOON, held.begun.notified()).await.expect("the load has begun");
    let next = reader.get_or_load("product:7", async || Ok(Some(b"next".to_vec())), HOUR, ()).await;
    assert_eq!(next, Ok::<_, ()>(Some(b"next".to_vec())));
    held.end.notify_one();
    assert_eq!(slow.await.unwrap().unwrap().as_deref(), Some(&b"slow"[..]));
    assert_eq!(outcomes.take(), [Outcome::Filled, Outcome::Void]);
    assert_eq!(stage.get("product:7").await.as_deref(), Some("next"));
}

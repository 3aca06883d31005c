//! Large bodies, a heal over them, and events in the history that cost the permitted maximum.

use std::time::Duration;

use lapin::BasicProperties;

use super::{Boxed, READY, publish, sized, stage, stale, store};
use crate::support::{RabbitMq, wait_until};

const MEBIBYTE: usize = 1 << 20;

/// Maximum time for a body of a mebibyte to pass through the box.
const EACH: Duration = Duration::from_millis(250);

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_large_bodies_and_the_heal_over_it_fit_into_a_small_box() {
    let count = sized(300, 1_500);
    let within = READY + EACH * u32::try_from(count).unwrap();
    let broker = RabbitMq::start().await;
    let stage = stage(&broker).await;
    let boxed = Boxed::start(&stage);
    boxed.ready_within(READY).await;
    store(&stage, "body", 0..count).await;
    let snapshot = stage.redis.snapshot().await;
    let flows = async || {
        boxed.usage();
        stale(&stage, "body").await == Some(0)
    };
    publish(&stage, |_| "body.changed".to_owned(), 0..count, MEBIBYTE).await;
    wait_until(within, "the storm is applied", flows).await;

    stage.redis.restore(&snapshot).await;
    assert_eq!(stale(&stage, "body").await, Some(count), "the snapshot has them all");
    wait_until(within, "the heal has applied the storm again", flows).await;
    boxed.ready_within(within).await;
    eprintln!("{count} bodies of 1 MiB: {:?}", boxed.usage());
    assert_eq!(stage.ready(".dead").await, 0);

    // The same, by a worker that starts with it.
    stage.redis.restore(&snapshot).await;
    drop(boxed);
    let boxed = Boxed::start(&stage);
    boxed.ready_within(within).await;
    let flows = async || {
        boxed.usage();
        stale(&stage, "body").await == Some(0)
    };
    wait_until(within, "the heal of a start has applied the storm again", flows).await;
}

/// Rules of a tenant, each with an event that costs the permitted maximum.
const EXPENSIVE: &str = r##"
events:
  tenant.fanned: { effects: [ { delete: "t:{tenant}:p:{ids[]}" } ] }
  tenant.nested:
    data:
      $defs: { node: { oneOf: [
        { properties: { type: { const: a }, children: { type: array, items: { $ref: "#/$defs/node" } } }, required: [type] },
        { properties: { type: { const: b }, children: { type: array, items: { $ref: "#/$defs/node" } } }, required: [type] },
        { properties: { type: { const: c }, children: { type: array, items: { $ref: "#/$defs/node" } } }, required: [type] },
        { properties: { type: { const: d } }, required: [type] } ] } }
      type: object
      properties: { root: { $ref: "#/$defs/node" } }
    effects: [ { delete: "node" } ]
  tenant.joined: { let: { l: "data.a.map(x, data.b.map(y, x + y))" }, effects: [ { delete: "k", when: "size(lets.l) > 0" } ] }
  tenant.matched: { let: { l: 'data.a.filter(x, x.matches("^[\\w.-]{1,64}$"))' }, effects: [ { delete: "k", when: "size(lets.l) > 0" } ] }
"##;

/// Events that kill or stall a worker must not do so in a heal either.
#[tokio::test(flavor = "multi_thread")]
async fn a_heal_over_expensive_events_ends_in_a_small_box() {
    let rounds = sized(3, 40);
    let broker = RabbitMq::start().await;
    let stage = stage(&broker).await;
    stage.write_schema("tenant.yaml", EXPENSIVE);
    let boxed = Boxed::start(&stage);
    boxed.ready_within(READY).await;
    store(&stage, "body", 0..rounds).await;
    let snapshot = stage.redis.snapshot().await;
    let numbers = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let texts = |count: usize, bytes: usize| {
        (0..count).map(|n| format!("\"{n:0>bytes$}\"")).collect::<Vec<_>>().join(",")
    };
    let deep = format!(
        r#"{{"root":{}{{"type":"z"}}{}}}"#,
        r#"{"type":"a","children":["#.repeat(9),
        "]}".repeat(9)
    );
    let attacks = [
        (
            "tenant.fanned",
            format!(r#"{{"tenant":"{}","ids":[{}]}}"#, "x".repeat(60_000), numbers(9_900)),
        ),
        ("tenant.nested", deep),
        ("tenant.joined", format!(r#"{{"a":[{0}],"b":[{0}]}}"#, texts(990, 500))),
        ("tenant.matched", format!(r#"{{"a":[{}]}}"#, texts(4_000, 5))),
    ];
    for round in 0..rounds {
        for (routing_key, body) in &attacks {
            stage.publish_with(routing_key, BasicProperties::default(), body.as_bytes()).await;
        }
        publish(&stage, |_| "body.changed".to_owned(), round..round + 1, 10).await;
    }
    let within = READY + Duration::from_secs(10) * u32::try_from(rounds).unwrap();
    let flows = async || {
        boxed.usage();
        stale(&stage, "body").await == Some(0)
    };
    wait_until(within, "the innocent events are applied", flows).await;
    stage.redis.restore(&snapshot).await;
    wait_until(within, "the innocent events are applied again", flows).await;
    boxed.ready_within(within).await;
    eprintln!("{rounds} rounds of expensive events: {:?}", boxed.usage());
}

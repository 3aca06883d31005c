//! What one event costs between its bytes and Redis' commands, and after Redis' answer: the pure middle, without sockets.
//!
//! `cargo bench --bench pipeline`: a batch of 256 single-delete events, step by step. Shares of the whole on a busy two-core machine: decode
//! 60 %, resolve 34 %, coalesce 5 %, settle 1 %; together about 1.6 µs an event.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use unstale::config::{UnknownPolicy, Vars};
use unstale::event::{Decoded, Event, Message, decode};
use unstale::plan::{Batch, Ladder, Plan, SettlePolicy, Settlement, Slot, settle};
use unstale::registry::{LoadOptions, MissingVars, Registry, Resolution};

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;
const EVENTS: u32 = 256;
const MAX_BODY_BYTES: usize = 1 << 20;

fn body(id: u32) -> String {
    format!(r#"{{"id":"e-{id}","type":"user.updated","data":{{"id":{id},"email":"user{id}@example.org","plan":"team"}}}}"#)
}

fn message(body: &str) -> Message<'_> {
    Message { exchange: "events", routing_key: "user.updated", body: body.as_bytes(), ..Message::default() }
}

fn registry() -> Registry {
    let schemas = tempfile::tempdir().unwrap();
    std::fs::write(schemas.path().join("users.yaml"), RULES).unwrap();
    let options = LoadOptions {
        schemas: schemas.path().to_owned(),
        key_prefix: String::new(),
        vars: Vars::default(),
        max_keys_per_event: 10_000,
        missing_vars: MissingVars::Refuse,
    };
    Registry::load(&options).unwrap().registry
}

fn decoded<'m>(messages: &'m [Message<'m>]) -> Vec<Event<'m>> {
    let event = |message| match decode(message, MAX_BODY_BYTES) {
        Ok(Decoded::Event(event)) => event,
        other => panic!("{other:?}"),
    };
    messages.iter().map(event).collect()
}

fn coalesced(resolutions: &[Resolution]) -> Plan<'_> {
    let mut batch = Batch::new("cache_tag:", resolutions.len());
    for (event, resolution) in (0..).zip(resolutions) {
        for (position, effect) in (0..).zip(&resolution.effects) {
            batch.push(Slot { event, position }, effect);
        }
    }
    batch.finish()
}

fn settled(policy: &SettlePolicy, resolutions: &[Resolution]) -> Vec<Settlement> {
    resolutions.iter().map(|resolution| settle(policy, resolution, None, &[], 0)).collect()
}

fn pipeline(criterion: &mut Criterion) {
    let registry = registry();
    let policy = SettlePolicy { ladder: Ladder(Vec::new()), unknown: UnknownPolicy::Dead };
    let bodies: Vec<String> = (0..EVENTS).map(body).collect();
    let messages: Vec<Message<'_>> = bodies.iter().map(|body| message(body)).collect();
    let events = decoded(&messages);
    let resolutions: Vec<Resolution> = events.iter().map(|event| registry.resolve(event)).collect();

    let mut group = criterion.benchmark_group("256 single deletes");
    group.throughput(Throughput::Elements(EVENTS.into()));
    group.bench_function("decode", |bencher| bencher.iter(|| decoded(black_box(&messages))));
    group.bench_function("resolve", |bencher| {
        bencher.iter(|| black_box(&events).iter().map(|event| registry.resolve(event)).collect::<Vec<_>>());
    });
    group.bench_function("coalesce", |bencher| bencher.iter(|| black_box(coalesced(black_box(&resolutions)))));
    group.bench_function("settle", |bencher| bencher.iter(|| settled(&policy, black_box(&resolutions))));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots();
    targets = pipeline
}
criterion_main!(benches);

//! Measures the cost of one event between its bytes and Redis' commands, and after Redis' answer.
//! There are no sockets.
//!
//! `cargo bench --bench pipeline` runs a batch of 256 single-delete events step by step, with the
//! allocations of each. Their limits are in `tests/allocations.rs`.

mod steps;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use steps::{EVENTS, ONE_DELETE, WITH_SCHEMA, coalesced, decoded, settled};
use unstale::registry::Resolution;

#[expect(clippy::print_stderr, reason = "a benchmark's report")]
fn allocations(step: &str, work: impl FnOnce()) {
    let counted = allocation_counter::measure(work);
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    let [count, bytes] =
        [counted.count_total, counted.bytes_total].map(|total| total as f64 / f64::from(EVENTS));
    eprintln!("{step}: {count:.2} allocations and {bytes:.0} bytes an event");
}

fn pipeline(criterion: &mut Criterion) {
    let (registry, with_schema) = (steps::registry(ONE_DELETE), steps::registry(WITH_SCHEMA));
    let policy = steps::policy();
    let bodies = steps::bodies();
    let messages = steps::messages(&bodies);
    let events: Vec<_> = messages.iter().map(decoded).collect();
    let resolutions: Vec<Resolution> = events.iter().map(|event| registry.resolve(event)).collect();

    let decode =
        || messages.iter().for_each(|message| drop(black_box(decoded(black_box(message)))));
    let resolve =
        || events.iter().for_each(|event| drop(black_box(registry.resolve(black_box(event)))));
    let resolve_with_schema =
        || events.iter().for_each(|event| drop(black_box(with_schema.resolve(black_box(event)))));
    let coalesce = || drop(black_box(coalesced(black_box(&resolutions))));
    let settle = || drop(black_box(settled(&policy, black_box(&resolutions))));

    allocations("decode", decode);
    allocations("resolve", resolve);
    allocations("resolve, with a schema", resolve_with_schema);
    allocations("coalesce", coalesce);
    allocations("settle", settle);

    let mut group = criterion.benchmark_group("256 single deletes");
    group.throughput(Throughput::Elements(EVENTS.into()));
    group.bench_function("decode", |bencher| bencher.iter(decode));
    group.bench_function("resolve", |bencher| bencher.iter(resolve));
    group.bench_function("resolve, with a schema", |bencher| bencher.iter(resolve_with_schema));
    group.bench_function("coalesce", |bencher| bencher.iter(coalesce));
    group.bench_function("settle", |bencher| bencher.iter(settle));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots();
    targets = pipeline
}
criterion_main!(benches);

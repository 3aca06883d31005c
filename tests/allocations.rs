//! Limits of the allocations for one event, between its bytes and Redis' commands.

#[path = "../benches/pipeline/steps.rs"]
mod steps;

use steps::{EVENTS, ONE_DELETE, WITH_SCHEMA, coalesced, decoded, settled};
use unstale::registry::Resolution;

/// The text of the key, and the list of effects. A batch has a few of its own.
const MOST_AN_EVENT: f64 = 2.1;

/// A payload is checked in place, except for parts that a format must split.
const MOST_FOR_A_SCHEMA: f64 = 1.0;

/// Returns the allocations for one event of a batch, from its bytes to its settlement.
fn allocations_an_event(rules: &str) -> f64 {
    let registry = steps::registry(rules);
    let policy = steps::policy();
    let bodies = steps::bodies();
    let messages = steps::messages(&bodies);
    let pipeline = || {
        let mut resolutions: Vec<Resolution> = Vec::with_capacity(messages.len());
        resolutions.extend(messages.iter().map(|message| registry.resolve(&decoded(message))));
        assert_eq!(coalesced(&resolutions).deletions().len(), messages.len());
        assert_eq!(settled(&policy, &resolutions).len(), messages.len());
    };
    // The first run also makes what is kept, which belongs to no batch.
    pipeline();
    let counted = allocation_counter::measure(pipeline).count_total;
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    let an_event = counted as f64 / f64::from(EVENTS);
    an_event
}

#[test]
fn an_event_that_deletes_one_key_stays_within_its_allocations() {
    let an_event = allocations_an_event(ONE_DELETE);
    assert!(an_event <= MOST_AN_EVENT, "{an_event} allocations an event");
    let with_schema = allocations_an_event(WITH_SCHEMA);
    assert!(
        with_schema <= an_event + MOST_FOR_A_SCHEMA,
        "{with_schema} allocations an event with a schema, {an_event} without"
    );
}

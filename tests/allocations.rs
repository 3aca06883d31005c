//! What an event costs the allocator between its bytes and Redis' commands: a limit, since every allocation more is one for each event.

#[path = "../benches/pipeline/steps.rs"]
mod steps;

use steps::{EVENTS, ONE_DELETE, coalesced, decoded, settled};
use unstale::registry::Resolution;

/// The text of the key, and the list that it stands in; and a batch has a handful for itself.
const MOST_AN_EVENT: f64 = 2.1;

#[test]
fn an_event_that_deletes_one_key_allocates_little() {
    let registry = steps::registry(ONE_DELETE);
    let policy = steps::policy();
    let bodies = steps::bodies();
    let messages = steps::messages(&bodies);
    let pipeline = || {
        let mut resolutions: Vec<Resolution> = Vec::with_capacity(messages.len());
        resolutions.extend(messages.iter().map(|message| registry.resolve(&decoded(message))));
        assert_eq!(coalesced(&resolutions).deletions().len(), messages.len());
        assert_eq!(settled(&policy, &resolutions).len(), messages.len());
    };
    // What is made once and kept belongs to no batch.
    pipeline();
    let counted = allocation_counter::measure(pipeline).count_total;
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    let an_event = counted as f64 / f64::from(EVENTS);
    assert!(an_event <= MOST_AN_EVENT, "{an_event} allocations an event");
}

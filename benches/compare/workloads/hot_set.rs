//! (d) 100,000 events about 100 keys: measures how few commands Redis receives.

use super::{ONE_DELETE, drain};
use crate::contender::Contender;
use crate::events;
use crate::results::Results;
use crate::stage::Stage;

const EVENTS: u64 = 100_000;
const KEYS: u64 = 100;

pub(super) async fn run(stage: &Stage, rounds: usize, results: &mut Results) {
    let target = stage.target("hot-set", ONE_DELETE).await;
    for _ in 0..rounds {
        stage.fill(&target, EVENTS, |id| events::user_updated(id % KEYS)).await;
        stage.seed((0..KEYS).map(|id| format!("user:{id}"))).await;
        let before = stage.commands().await;
        let worker = Contender::Unstale.start(&target, EVENTS);
        let drained = drain::by_count(stage, &worker, "user.updated", EVENTS).await;
        let after = stage.commands().await;
        // Other commands of the worker count too, such as its probes. The benchmark's own query
        // does not.
        #[expect(clippy::cast_precision_loss, reason = "counts")]
        let each =
            |before: u64, after: u64| (after - before).saturating_sub(1) as f64 / EVENTS as f64;
        let ours = Contender::Unstale.name();
        drained.note(results, 'd', ours);
        results.note('d', ours, "commands an event", each(before.1, after.1));
        results.note(
            'd',
            ours,
            "commands an event, those called by scripts too",
            each(before.0, after.0),
        );
        worker.stop().await;
        stage.clear(&target).await;
    }
}

//! (h) One, two and four workers on one queue.

use super::{ONE_DELETE, drain};
use crate::contender::{Contender, Running};
use crate::events;
use crate::results::Results;
use crate::stage::Stage;

const EVENTS: u64 = 200_000;

pub(crate) const WORKERS: [(usize, &str); 3] = [(1, "one worker"), (2, "two workers"), (4, "four workers")];

pub(super) async fn run(stage: &Stage, rounds: usize, results: &mut Results) {
    let target = stage.target("scale", ONE_DELETE).await;
    for _ in 0..rounds {
        for (count, who) in WORKERS {
            stage.fill(&target, EVENTS, events::user_updated).await;
            stage.seed((0..EVENTS).map(|id| format!("user:{id}"))).await;
            let workers: Vec<Running> = (0..count).map(|_| Contender::Unstale.start(&target, EVENTS)).collect();
            drain::by_keys(stage, &workers, EVENTS).await.note(results, 'h', who);
            for worker in workers {
                worker.stop().await;
            }
            stage.clear(&target).await;
        }
    }
}

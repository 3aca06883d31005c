//! (h) One, two and four workers on one queue. Bare loops beside them show the cost of four
//! processes.

use super::{ONE_DELETE, drain};
use crate::contender::{Contender, Running};
use crate::events;
use crate::results::Results;
use crate::stage::Stage;

const EVENTS: u64 = 200_000;

pub(crate) const ONE: &str = "one worker";
pub(crate) const FOUR: &str = "four workers";
pub(crate) const ONE_BARE: &str = "one bare loop with one UNLINK";
pub(crate) const FOUR_BARE: &str = "four bare loops with one UNLINK";

const CONTENDERS: [(Contender, usize, &str); 5] = [
    (Contender::Unstale, 1, ONE),
    (Contender::Unstale, 2, "two workers"),
    (Contender::Unstale, 4, FOUR),
    (Contender::Sketch, 1, ONE_BARE),
    (Contender::Sketch, 4, FOUR_BARE),
];

pub(super) async fn run(stage: &Stage, rounds: usize, results: &mut Results) {
    let target = stage.target("scale", ONE_DELETE).await;
    for _ in 0..rounds {
        for (contender, count, who) in CONTENDERS {
            stage.fill(&target, EVENTS, events::user_updated).await;
            stage.seed((0..EVENTS).map(|id| format!("user:{id}"))).await;
            let workers: Vec<Running> =
                (0..count).map(|_| contender.start(&target, EVENTS)).collect();
            drain::by_keys(stage, &workers, EVENTS).await.note(results, 'h', who);
            for worker in workers {
                worker.stop().await;
            }
            stage.clear(&target).await;
        }
    }
}

//! The workloads, one file for each kind. docs/bench/README.md explains their purpose.
//!
//! In reading order:
//! - Shared parts: `drain`, `loader`, `tracking`.
//! - (a) to (e): `one_delete`, `realistic`, `write_through`, `hot_set`, `tag`.
//! - (f) to (j): `latency`, `memory`, `scale`, `link`, `warm`.

mod drain;
mod hot_set;
pub(crate) mod latency;
mod link;
mod loader;
pub(crate) mod memory;
mod one_delete;
pub(crate) mod realistic;
pub(crate) mod scale;
pub(crate) mod tag;
mod tracking;
pub(crate) mod warm;
pub(crate) mod write_through;

use crate::results::Results;
use crate::stage::Stage;

/// Rules of most workloads: one event deletes one key.
pub(crate) const ONE_DELETE: &str =
    r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// The worker with the prefetch of its peers, which does not grow with a backlog.
pub(crate) const NARROW_UNSTALE: &str = "unstale run, UNSTALE_PREFETCH=1000";

fn narrow() -> Vec<(&'static str, String)> {
    vec![("UNSTALE_PREFETCH", "1000".to_owned())]
}

pub(crate) async fn run(workload: char, stage: &Stage, rounds: usize, results: &mut Results) {
    match workload {
        'a' => one_delete::run(stage, rounds, results).await,
        'b' => realistic::run(stage, rounds, results).await,
        'c' => write_through::run(stage, rounds, results).await,
        'd' => hot_set::run(stage, rounds, results).await,
        'e' => tag::run(stage, rounds, results).await,
        'f' => latency::run(stage, rounds, results).await,
        'g' => memory::run(stage, results).await,
        'h' => scale::run(stage, rounds, results).await,
        'i' => link::run(stage, rounds, results).await,
        'j' => warm::run(stage, results).await,
        other => unreachable!("{other} was refused"),
    }
}

//! (c) Write-through: the event's own data becomes the value.
//!
//! One run writes without a version and tags, another one with both.

use super::drain;
use crate::contender::Contender;
use crate::events;
use crate::results::Results;
use crate::stage::Stage;

const EVENTS: u64 = 150_000;
const TEAMS: u64 = 1_000;

const PLAIN: &str = r#"
events:
  user.updated:
    effects:
      - write: "user:{id}:summary"
        value: { id: "{id}", email: "{email}", plan: "{plan}" }
        ttl: 1h
"#;

const VERSIONED: &str = r#"
events:
  user.updated:
    version: "{rev}"
    effects:
      - write: "user:{id}:summary"
        value: { id: "{id}", email: "{email}", plan: "{plan}" }
        ttl: 1h
        tags: ["users:{plan}", "team:{team}"]
"#;

/// Suffix of the worker's name in the run with a version and tags.
pub(crate) const WITH_VERSION_AND_TAGS: &str = "unstale run, versioned and tagged";

pub(super) async fn run(stage: &Stage, rounds: usize, results: &mut Results) {
    let plain = stage.target("write", PLAIN).await;
    let versioned = stage.target("write-versioned", VERSIONED).await;
    let body = |id| events::user_revised(id, TEAMS);
    for _ in 0..rounds {
        stage.fill(&plain, EVENTS, body).await;
        drain::bare(stage, Contender::Bare, &plain, EVENTS).await.note(
            results,
            'c',
            Contender::Bare.name(),
        );
        for (target, who) in
            [(&plain, Contender::Unstale.name()), (&versioned, WITH_VERSION_AND_TAGS)]
        {
            stage.fill(target, EVENTS, body).await;
            let worker = Contender::Unstale.start(target, EVENTS);
            drain::by_count(stage, &worker, "user.updated", EVENTS).await.note(results, 'c', who);
            worker.stop().await;
            stage.clear(target).await;
        }
    }
}

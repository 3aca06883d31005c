//! (b) Rules as they look after some months: a JSON Schema, a condition, one fenced key, two plain
//! keys, two small tags.

use super::drain::{self, Drained};
use crate::contender::{Contender, Target};
use crate::events;
use crate::recording::{self, Recorder};
use crate::results::Results;
use crate::stage::Stage;

/// Name of the client that sends Redis the worker's commands again and does nothing else.
pub(crate) const REDIS_ALONE: &str = "Redis alone, sent the same again";

const EVENTS: u64 = 100_000;
const TEAMS: u64 = 1_000;

/// `user:{id}:summary` is fenced, since another event definition writes it.
const RULES: &str = r#"
defaults: { ttl: 1h }
events:
  user.updated:
    data:
      type: object
      required: [id, email, plan, team, rev]
      properties:
        id: { type: integer, minimum: 0 }
        email: { type: string, format: email, maxLength: 254 }
        plan: { enum: [free, team, enterprise] }
        team: { type: integer }
        rev: { type: integer, minimum: 0 }
    version: "{rev}"
    effects:
      - delete: "user:{id}:summary"
      - delete: ["user:{id}", "user:{id}:page"]
      - invalidate_tags: ["user:{id}", "team:{team}"]
        when: data.plan != "free"
  user.renamed:
    version: "{rev}"
    effects:
      - write: "user:{id}:summary"
        value: { id: "{id}", email: "{email}" }
"#;

pub(super) async fn run(stage: &Stage, rounds: usize, results: &mut Results) {
    let target = stage.target("realistic", RULES).await;
    let recorded = record(stage).await;
    for _ in 0..rounds {
        stage.fill(&target, EVENTS, body).await;
        drain::bare(stage, Contender::Bare, &target, EVENTS).await.note(
            results,
            'b',
            Contender::Bare.name(),
        );
        drained(stage, &target).await.note(results, 'b', Contender::Unstale.name());
        seed(stage).await;
        let (took, redis_cpu) = recording::replay(stage, recorded.clone()).await;
        #[expect(clippy::cast_precision_loss, reason = "a count of events")]
        let events = EVENTS as f64;
        results.note('b', REDIS_ALONE, "events/s", events / took.as_secs_f64());
        results.note(
            'b',
            REDIS_ALONE,
            "µs an event: Redis",
            redis_cpu.as_secs_f64() * 1e6 / events,
        );
        stage.flush().await;
    }
}

fn body(id: u64) -> String {
    events::user_revised(id, TEAMS)
}

async fn drained(stage: &Stage, target: &Target) -> Drained {
    stage.fill(target, EVENTS, body).await;
    seed(stage).await;
    let worker = Contender::Unstale.start(target, EVENTS);
    let drained = drain::by_count(stage, &worker, "user.updated", EVENTS).await;
    worker.stop().await;
    stage.clear(target).await;
    drained
}

/// Records the commands that the worker sends to Redis for those events.
async fn record(stage: &Stage) -> Vec<u8> {
    let recorder = Recorder::start(stage).await;
    let target = recorder.target(stage, stage.target("realistic-recorded", RULES).await);
    drained(stage, &target).await;
    recorder.into_bytes()
}

/// Sets every key that an event deletes, and gives every tag members.
async fn seed(stage: &Stage) {
    for key in ["", ":summary", ":page"] {
        stage.seed((0..EVENTS).map(|id| format!("user:{id}{key}"))).await;
    }
    for team in 0..TEAMS {
        stage
            .seed_tag(
                &format!("team:{team}"),
                (0..20).map(|member| format!("team:{team}:{member}")),
            )
            .await;
    }
    stage
        .seed_small_tags((0..EVENTS).map(|id| (format!("user:{id}"), format!("user:{id}:badge"))))
        .await;
}

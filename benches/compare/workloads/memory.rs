//! (g) The worker's memory does not depend on the amount of waiting work: a backlog of 1,000,000
//! events, and 1,000 tags of 1,000 keys each.

use std::time::Duration;

use super::{ONE_DELETE, drain};
use crate::contender::Contender;
use crate::events;
use crate::results::Results;
use crate::stage::Stage;
use crate::support::wait_until;

const BACKLOG: u64 = 1_000_000;
const TAGS: u64 = 1_000;
const MEMBERS: u64 = 1_000;

const TAG_RULES: &str =
    r#"events: { team.updated: { effects: [ { invalidate_tags: "team:{id}" } ] } }"#;

pub(crate) const WITH_BACKLOG: &str = "unstale run, a backlog of 1,000,000";
pub(crate) const WITH_TAGS: &str = "unstale run, 1,000 tags of 1,000";

pub(super) async fn run(stage: &Stage, results: &mut Results) {
    let target = stage.target("backlog", ONE_DELETE).await;
    stage.fill(&target, BACKLOG, events::user_updated).await;
    let worker = Contender::Unstale.start(&target, BACKLOG);
    drain::by_count(stage, &worker, "user.updated", BACKLOG).await.note(results, 'g', WITH_BACKLOG);
    results.note('g', WITH_BACKLOG, "MiB resident at most", worker.peak_resident_mib());
    worker.stop().await;
    stage.clear(&target).await;

    let target = stage.target("tags", TAG_RULES).await;
    for tag in 0..TAGS {
        stage
            .seed_tag(
                &format!("team:{tag}"),
                (0..MEMBERS).map(|member| format!("team:{tag}:{member}")),
            )
            .await;
    }
    stage.fill(&target, TAGS, |id| events::plain("team.updated", id)).await;
    let worker = Contender::Unstale.start(&target, TAGS);
    // The rest are side keys: a generation for each tag, and the worker's own keys.
    let most_left = 2 * TAGS;
    wait_until(Duration::from_secs(300), "every member is gone", async || {
        stage.keys().await < most_left
    })
    .await;
    results.note('g', WITH_TAGS, "MiB resident at most", worker.peak_resident_mib());
    worker.stop().await;
    stage.clear(&target).await;
}

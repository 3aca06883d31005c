//! (j) 20,000 warms with a loader that takes 20 ms for each, and single-key events beside them.

use std::time::{Duration, Instant};

use super::drain;
use super::loader::Loader;
use crate::contender::{Contender, Target};
use crate::events;
use crate::results::Results;
use crate::stage::Stage;
use crate::support::wait_until;

const WARMS: u64 = 20_000;
const SINGLE_KEYS: u64 = 200_000;

/// The default of `UNSTALE_WARM_CONCURRENCY`.
const CONCURRENCY: usize = 16;

const RULES: &str = r#"
loaders:
  pages: { url: "{vars.PAGES}" }
events:
  user.updated: { effects: [ { delete: "user:{id}" } ] }
  page.updated: { effects: [ { warm: "page:{id}", from: "pages:/pages/{id}", ttl: 1h } ] }
"#;

pub(crate) const LOADER: &str = "the loader, asked by 16 clients";
pub(crate) const ALONE: &str = "unstale run, no warms beside";
pub(crate) const BESIDE: &str = "unstale run, warms beside";

pub(super) async fn run(stage: &Stage, results: &mut Results) {
    let loader = Loader::start().await;
    results.note('j', LOADER, "loads/s", loader.limit(CONCURRENCY).await);
    let settings = [("UNSTALE_VAR_PAGES", loader.url()), ("UNSTALE_WARM_RATE", "off".to_owned())];
    let target = stage.target_with("warm", RULES, settings.to_vec()).await;

    backlog(stage, &target).await;
    let worker = Contender::Unstale.start(&target, 0);
    drain::by_count(stage, &worker, "user.updated", SINGLE_KEYS).await.note(results, 'j', ALONE);
    worker.stop().await;
    stage.clear(&target).await;

    to_the_slow_lane(stage, &target).await;
    backlog(stage, &target).await;
    let worker = Contender::Unstale.start(&target, 0);
    let before = loader.loads();
    wait_until(Duration::from_secs(30), "the first page is loaded", async || {
        loader.loads() > before
    })
    .await;
    let (before, start) = (loader.loads(), Instant::now());
    drain::by_count(stage, &worker, "user.updated", SINGLE_KEYS).await.note(results, 'j', BESIDE);
    let slow = format!("{}.slow", target.queue());
    wait_until(Duration::from_secs(180), "every page is loaded", async || {
        stage.ready_in(&slow).await == 0
    })
    .await;
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let rate = (loader.loads() - before) as f64 / start.elapsed().as_secs_f64();
    results.note('j', BESIDE, "loads/s", rate);
    worker.stop().await;
    stage.clear(&target).await;
}

/// Fills the main queue with single-key events, and sets their keys.
async fn backlog(stage: &Stage, target: &Target) {
    stage.fill(target, SINGLE_KEYS, events::user_updated).await;
    stage.seed((0..SINGLE_KEYS).map(|id| format!("user:{id}"))).await;
}

/// Makes a worker move the warms to the slow lane, so that they are not between the single-key
/// events.
async fn to_the_slow_lane(stage: &Stage, target: &Target) {
    stage.fill(target, WARMS, |id| events::plain("page.updated", id)).await;
    let worker = Contender::Unstale.start(target, 0);
    wait_until(Duration::from_secs(120), "every warm is in the slow lane", async || {
        stage.ready(target).await == 0 && worker.counted("page.updated", "slow").await >= WARMS
    })
    .await;
    worker.stop().await;
}

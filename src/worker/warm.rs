//! Runs one `warm`: fills its key from the loader that the registry names.
//!
//! The steps of a fill are in `filling.rs`.

use super::batch::Contents;
use super::filling::{self, FillPace, Filling, Source};
use super::lane_end::Until;
use super::live::Live;
use super::pipeline::Pipeline;
use crate::cache::{Outage, new_token};
use crate::loader::{Admitted, LoadContext, LoadError, LoadOutcome};
use crate::plan::EffectOutcome;
use crate::registry::Warm;
use crate::telemetry::Metrics;

/// The names of the loads of one delivery. They change each time an outage of Redis interrupts the
/// delivery.
#[derive(Debug)]
pub(super) struct Tokens {
    stem: String,
    round: u32,
}

/// The name under which one effect's load is claimed, and the name before the outage.
#[derive(Debug)]
pub(super) struct Asker {
    name: String,
    before: Option<String>,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self { stem: new_token(), round: 0 }
    }

    /// Changes the names after an outage, since it is unknown what was granted.
    pub(super) fn renew(&mut self) {
        self.round += 1;
    }

    /// Returns the names for the effect at that position.
    pub(super) fn of(&self, position: u32) -> Asker {
        let name = |round: u32| format!("{}-{position}-{round}", self.stem);
        Asker { name: name(self.round), before: self.round.checked_sub(1).map(name) }
    }
}

/// Loads and fills `key` for the one event of `batch`. The key was deleted before, unless its old
/// value is served. Returns the outcome if the effect is unfinished. A load that delays the main
/// lane is interrupted, and made again later.
///
/// # Errors
/// Returns the outage. The whole filling must then be done again.
pub(super) async fn fill(
    pipeline: Pipeline<'_>,
    batch: &Contents,
    (key, warm): (&str, &Warm),
    asker: &Asker,
    until: Until<'_>,
) -> Result<Option<EffectOutcome>, Outage> {
    let identity = batch.requests[0].identity.as_deref();
    let event_id = identity.map_or("", |identity| &identity.event_id);
    let context = LoadContext {
        event_id,
        traceparent: identity.and_then(|identity| identity.traceparent.as_deref()),
    };
    let Pipeline { cache, settler, .. } = pipeline;
    let source = Origin { metrics: settler.metrics, live: &batch.live, context, warm };
    let asker =
        filling::Asker { event: event_id, name: &asker.name, before: asker.before.as_deref() };
    let attempts_made = batch.requests[0].attempts_before + 1;
    let is_tried_again = |after| settler.policy.retry_schedule.step(attempts_made, after).is_some();
    let filling =
        Filling::new(cache, (key, warm), &source, asker, FillPace::default(), until.no_more);
    tokio::select! {
        biased;
        outcome = filling.fill(is_tried_again) => outcome,
        () = until.interrupts() => filling.interrupted().await,
    }
}

/// The loader of a `warm`, as a source of values.
struct Origin<'o> {
    metrics: &'o Metrics,
    live: &'o Live,
    context: LoadContext<'o>,
    warm: &'o Warm,
}

impl<'o> Source for Origin<'o> {
    type Turn = Admitted<'o>;

    async fn admit(&self) -> Result<Admitted<'o>, LoadError> {
        let admitted = self.live.loaders.admit(self.warm).await;
        self.note_loader();
        admitted
    }

    async fn load(&self, turn: Admitted<'o>) -> Result<LoadOutcome, LoadError> {
        let loaded = turn.load(&self.context).await;
        self.note_loader();
        loaded
    }
}

impl Origin<'_> {
    fn note_loader(&self) {
        if let Some((name, open)) = self.live.loaders.breaker_state(self.warm.loader) {
            self.metrics.set_loader_open(name, open);
        }
    }
}

//! The steps that each delivery of a lane passes through.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::batch::{NotApplied, Settler};
use super::gate::Gate;
use super::in_flight::{InFlight, Taken};
use super::live::CurrentRegistry;
use super::resolver::Resolver;
use crate::broker::{SessionEnded, Tag};
use crate::cache::Cache;

/// The steps of one lane, in order: a delivery is taken, resolved, applied and settled. The gate
/// holds it back while Redis is away.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pipeline<'s> {
    pub(super) in_flight: &'s InFlight,
    pub(super) registry: &'s CurrentRegistry,
    pub(super) resolver: &'s Resolver,
    pub(super) cache: &'s Cache,
    pub(super) gate: &'s Gate,
    pub(super) settler: &'s Settler<'s>,
}

impl Pipeline<'_> {
    /// Settles one delivery of the main lane by itself. Returns `None` if it is to be requeued,
    /// since Redis is away.
    pub(super) async fn handle_alone(
        &self,
        stop: &CancellationToken,
        taken: Taken,
    ) -> Result<Option<Tag>, SessionEnded> {
        let mut batch = self.resolver.read_one(self.registry.load_full(), taken).await;
        let mut held_since = None;
        loop {
            let NotApplied { batch: mut held, outage } =
                match batch.apply(self.cache, self.gate).await {
                    Ok(applied) => return Ok(applied.settle(self.settler).await?.last_tag()),
                    Err(not_applied) => not_applied,
                };
            self.gate.close(&outage);
            held.met(&outage);
            if outage.out_of_memory {
                held.delete_now(self.cache).await;
            }
            let since = *held_since.get_or_insert_with(Instant::now);
            if !self.gate.hold(stop, &outage, since).await {
                return Ok(None);
            }
            if !self.gate.passed_each_probe() {
                held.forget_lost_connections();
            }
            batch = held;
        }
    }
}

//! State that both lanes share. Only `mod.rs`, `supervisor.rs` and `main_lane.rs` know all of it.
//! Everything else receives the parts that it uses.

use std::sync::atomic::AtomicU32;

use super::batch::Settler;
use super::gate::Gate;
use super::heal_state::{HealState, Heals};
use super::in_flight::InFlight;
use super::live::CurrentRegistry;
use super::pipeline::Pipeline;
use super::report::Subject;
use super::republish::{Publisher, Republishing};
use super::resolver::Resolver;
use super::tag_maintenance::Maintenance;
use crate::broker::{LaneName, Signer};
use crate::cache::Cache;
use crate::config::Config;
use crate::http::Readiness;
use crate::plan::SettlePolicy;
use crate::telemetry::{EventLog, Metrics};

/// State that both lanes share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) policy: SettlePolicy,
    pub(super) registry: CurrentRegistry,
    pub(super) cache: Cache,
    pub(super) signer: Signer,
    pub(super) gate: Gate,
    pub(super) in_flight: InFlight,
    pub(super) main_resolver: Resolver,
    pub(super) slow_resolver: Resolver,
    pub(super) readiness: Readiness,
    pub(super) heal_state: HealState,
    /// Events that waited in the main queue when it was last looked at.
    pub(super) waiting: AtomicU32,
    pub(super) metrics: Metrics,
    pub(super) event_log: EventLog,
}

impl Shared {
    /// Returns the steps that the deliveries of a lane pass through.
    pub(super) fn pipeline<'s>(&'s self, lane: LaneName, settler: &'s Settler<'s>) -> Pipeline<'s> {
        let resolver = match lane {
            LaneName::Main => &self.main_resolver,
            LaneName::Slow => &self.slow_resolver,
        };
        let Self { in_flight, registry, cache, gate, .. } = self;
        Pipeline { in_flight, registry, resolver, cache, gate, settler }
    }

    /// Returns what settles the batches of a lane.
    pub(super) fn settler<'s>(&'s self, publisher: &'s Publisher<'s>) -> Settler<'s> {
        let reading = self.config.reading;
        Settler { policy: &self.policy, publisher, metrics: &self.metrics, reading }
    }

    /// Returns everything that a publisher of a session needs.
    pub(super) fn republishing(&self) -> Republishing<'_> {
        Republishing {
            reading: self.config.reading,
            signer: &self.signer,
            watermark: &self.heal_state.watermark,
            metrics: &self.metrics,
            readiness: &self.readiness,
            event_log: &self.event_log,
        }
    }

    /// Returns everything that heals use.
    pub(super) fn heals(&self) -> Heals<'_> {
        let Self { config, cache, gate, registry, metrics, readiness, heal_state, .. } = self;
        Heals { config, cache, gate, registry, metrics, readiness, state: heal_state }
    }

    /// Returns everything that tag maintenance uses.
    pub(super) fn maintenance(&self) -> Maintenance<'_> {
        let Self { cache, gate, registry, metrics, config, .. } = self;
        Maintenance { cache, gate, registry, metrics, maintains_tags: config.maintains_tags() }
    }

    /// Returns everything that this worker's report is about.
    pub(super) fn report_subject(&self) -> Subject<'_> {
        let Self { cache, gate, registry, in_flight, readiness, heal_state, .. } = self;
        let history_fault = &heal_state.history_fault;
        Subject { cache, gate, registry, in_flight, readiness, history_fault }
    }

    /// Returns how many deliveries of the slow lane may be in flight. The loads have their own
    /// limits, and some deliveries must wait for them.
    pub(super) fn slow_prefetch(&self) -> u16 {
        u16::try_from(2 * self.config.warm.concurrency + 8).unwrap_or(u16::MAX)
    }
}

//! All metrics: each name once, and handles that count without a look-up.
//!
//! Label values come from the registry, never from an event's values. Their number is bounded by
//! the rules.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::histogram::Histogram;
use super::registry_metrics::{DefinitionMetrics, RegistryMetrics, RuleMetrics};
use crate::plan::EventOutcome;
use crate::reason::Reason;
use crate::registry::RuleName;

/// The label `type` of events that no event definition matches.
const UNKNOWN_TYPE: &str = "unknown";

type Labels<const N: usize> = [(&'static str, String); N];

/// The metrics of this process. Clones share their counts.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    exposed: Registry,
    events: Family<Labels<2>, Counter>,
    effects: Family<Labels<2>, Counter>,
    keys: Family<Labels<3>, Counter>,
    violations: Family<Labels<1>, Counter>,
    event_to_applied: Histogram,
    oldest_unsettled_seconds: Gauge<f64, AtomicU64>,
    /// Arrival of the oldest delivery in flight, in milliseconds since the Unix epoch. 0 for none.
    oldest_unsettled_ms: AtomicU64,
    paused: Family<Labels<1>, Gauge>,
    loader_open: Family<Labels<1>, Gauge>,
    retries: Counter,
    dead: HashMap<Reason, Counter>,
    batch_events: Histogram,
    in_flight: Gauge,
    registry_info: Family<Labels<1>, Gauge>,
    /// The digest in `registry_info`.
    digest: Mutex<Option<String>>,
    reload_failures: Counter,
    heals: Counter,
    heal_owed: Gauge,
    events_lost: Gauge,
    pruned: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Returns all metrics at zero.
    pub fn new() -> Self {
        let dead_family = Family::<Labels<1>, Counter>::default();
        let mut inner = Inner {
            exposed: Registry::default(),
            events: Family::default(),
            effects: Family::default(),
            keys: Family::default(),
            violations: Family::default(),
            event_to_applied: Histogram::with_bounds_micros(seconds_bounds()),
            oldest_unsettled_seconds: Gauge::default(),
            oldest_unsettled_ms: AtomicU64::new(0),
            paused: Family::default(),
            loader_open: Family::default(),
            retries: Counter::default(),
            dead: Reason::ALL
                .map(|reason| {
                    (
                        reason,
                        dead_family.get_or_create_owned(&[("reason", reason.as_str().to_owned())]),
                    )
                })
                .into(),
            batch_events: Histogram::with_bounds_micros(
                (0..=16).map(|power| (1 << power) * 1_000_000).collect(),
            ),
            in_flight: Gauge::default(),
            registry_info: Family::default(),
            digest: Mutex::default(),
            reload_failures: Counter::default(),
            heals: Counter::default(),
            heal_owed: Gauge::default(),
            events_lost: Gauge::default(),
            pruned: Counter::default(),
        };
        // The library appends `_total` to the names of counters.
        let names = &mut inner.exposed;
        names.register(
            "unstale_events",
            "Events handled, by event definition and outcome",
            inner.events.clone(),
        );
        names.register("unstale_effects", "Effects applied", inner.effects.clone());
        names.register(
            "unstale_keys",
            "Keys of applied effects, by whether they existed",
            inner.keys.clone(),
        );
        names.register(
            "unstale_violations",
            "Events that violate a schema with validate: warn",
            inner.violations.clone(),
        );
        names.register(
            "unstale_event_to_applied_seconds",
            "Time from an event until its effects are applied",
            inner.event_to_applied.clone(),
        );
        names.register(
            "unstale_oldest_unsettled_seconds",
            "Age of the oldest delivery in flight",
            inner.oldest_unsettled_seconds.clone(),
        );
        names.register(
            "unstale_paused",
            "1 while consuming pauses for that cause",
            inner.paused.clone(),
        );
        names.register(
            "unstale_loader_open",
            "1 while a loader is suspended because its last loads failed",
            inner.loader_open.clone(),
        );
        names.register("unstale_retries", "Retry messages published", inner.retries.clone());
        names.register("unstale_dead", "Dead letters published", dead_family);
        names.register(
            "unstale_batch_events",
            "Events applied together",
            inner.batch_events.clone(),
        );
        names.register(
            "unstale_in_flight",
            "Deliveries in flight: not yet acknowledged",
            inner.in_flight.clone(),
        );
        names.register(
            "unstale_registry_info",
            "Digest of the loaded registry",
            inner.registry_info.clone(),
        );
        names.register(
            "unstale_registry_reload_failures",
            "Changes of the registry that could not be loaded",
            inner.reload_failures.clone(),
        );
        names.register(
            "unstale_heal_owed",
            "1 while a heal is due and the history could not be read yet",
            inner.heal_owed.clone(),
        );
        names.register(
            "unstale_events_lost",
            "1 for a day after events may have been lost: neither a queue nor the history holds them",
            inner.events_lost.clone(),
        );
        names.register(
            "unstale_heals",
            "Heals: the history was applied again because Redis had lost writes",
            inner.heals.clone(),
        );
        names.register(
            "unstale_pruned_members",
            "Members removed from tag sets because their keys no longer exist",
            inner.pruned.clone(),
        );
        Self(Arc::new(inner))
    }

    /// Returns the handles of one registry: rules by [`RuleId`](crate::registry::RuleId), event
    /// definitions by their index. Counts whose labels remain go on.
    pub fn for_registry<'n>(
        &self,
        digest: &str,
        rules: &[RuleName],
        definitions: impl IntoIterator<Item = &'n str>,
    ) -> RegistryMetrics {
        let inner = &self.0;
        let mut shown = inner.digest.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.as_deref() != Some(digest) {
            if let Some(old) = shown.replace(digest.to_owned()) {
                inner.registry_info.remove(&[("digest", old)]);
            }
            inner.registry_info.get_or_create(&[("digest", digest.to_owned())]).set(1);
        }
        RegistryMetrics {
            definitions: definitions.into_iter().map(|name| self.definition(name)).collect(),
            unknown: self.definition(UNKNOWN_TYPE),
            rules: rules.iter().map(|rule| self.rule(rule)).collect(),
        }
    }

    fn definition(&self, name: &str) -> DefinitionMetrics {
        let outcomes = EventOutcome::ALL.map(|outcome| {
            self.0.events.get_or_create_owned(&[
                ("type", name.to_owned()),
                ("outcome", outcome.as_str().to_owned()),
            ])
        });
        DefinitionMetrics {
            outcomes,
            violations: self.0.violations.get_or_create_owned(&[("type", name.to_owned())]),
        }
    }

    fn rule(&self, rule: &RuleName) -> RuleMetrics {
        let rule_and_verb =
            || [("rule", rule.name.clone()), ("verb", rule.verb.as_str().to_owned())];
        let keys = |hit: &str| {
            let [rule, verb] = rule_and_verb();
            self.0.keys.get_or_create_owned(&[rule, verb, ("hit", hit.to_owned())])
        };
        RuleMetrics {
            effects: self.0.effects.get_or_create_owned(&rule_and_verb()),
            hits: keys("yes"),
            misses: keys("no"),
        }
    }

    /// Counts the time between an event and the moment when its effects took effect.
    pub fn event_to_applied(&self, duration: Duration) {
        self.0.event_to_applied.observe_duration(duration);
    }

    /// Sets the arrival of the oldest delivery in flight. Its age is computed when the metrics are
    /// read.
    pub fn set_oldest_unsettled(&self, arrived: Option<SystemTime>) {
        let millis = arrived
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_millis());
        self.0
            .oldest_unsettled_ms
            .store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Sets whether consuming pauses for that cause.
    pub fn set_paused(&self, cause: &'static str, paused: bool) {
        self.0.paused.get_or_create(&[("cause", cause.to_owned())]).set(i64::from(paused));
    }

    /// Sets the loaders, and whether each is suspended after failed loads. Other loaders are
    /// removed.
    pub fn set_loaders<'n>(&self, standings: impl IntoIterator<Item = (&'n str, bool)>) {
        self.0.loader_open.clear();
        for (loader, open) in standings {
            self.set_loader_open(loader, open);
        }
    }

    /// Sets whether a loader is suspended after failed loads.
    pub fn set_loader_open(&self, loader: &str, open: bool) {
        self.0.loader_open.get_or_create(&[("loader", loader.to_owned())]).set(i64::from(open));
    }

    /// Counts a retry message.
    pub fn retried(&self) {
        self.0.retries.inc();
    }

    /// Counts a dead letter.
    pub fn dead(&self, reason: Reason) {
        if let Some(counter) = self.0.dead.get(&reason) {
            counter.inc();
        }
    }

    /// Counts a batch by its number of events.
    pub fn batch(&self, events: usize) {
        self.0.batch_events.observe_count(events);
    }

    /// Sets the number of deliveries in flight.
    pub fn set_in_flight(&self, deliveries: usize) {
        self.0.in_flight.set(i64::try_from(deliveries).unwrap_or(i64::MAX));
    }

    /// Counts a change of the registry that could not be loaded.
    pub fn reload_failed(&self) {
        self.0.reload_failures.inc();
    }

    /// Sets whether a heal is due that could not be done yet.
    pub fn set_heal_owed(&self, owed: bool) {
        self.0.heal_owed.set(i64::from(owed));
    }

    /// Sets whether events may have been lost in the last day.
    pub fn set_events_lost(&self, lost: bool) {
        self.0.events_lost.set(i64::from(lost));
    }

    /// Counts a heal: Redis had lost writes, and the history was applied again.
    pub fn healed(&self) {
        self.0.heals.inc();
    }

    /// Counts members that were removed from tag sets because their keys no longer exist.
    pub fn pruned(&self, members: u64) {
        self.0.pruned.inc_by(members);
    }

    /// Returns all metrics as OpenMetrics 1.0 text.
    pub fn openmetrics(&self) -> String {
        let since = match self.0.oldest_unsettled_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            millis => SystemTime::now()
                .duration_since(UNIX_EPOCH + Duration::from_millis(millis))
                .unwrap_or_default(),
        };
        self.0.oldest_unsettled_seconds.set(since.as_secs_f64());
        let mut out = String::new();
        // Writing to a String cannot fail. If encoding failed, the text so far would be valid.
        let _ = text::encode(&mut out, &self.0.exposed);
        out
    }

    /// Returns all metrics in Prometheus' text format 0.0.4. There, comments too have a counter's
    /// name with `_total`.
    pub fn prometheus_text(&self) -> String {
        let openmetrics = self.openmetrics();
        let mut out = String::with_capacity(openmetrics.len() + 256);
        let mut help = None;
        for line in openmetrics.lines() {
            if line.starts_with("# HELP ") {
                help = line.strip_prefix("# HELP ").and_then(|help| help.split_once(' '));
                continue;
            }
            if let Some((name, kind)) =
                line.strip_prefix("# TYPE ").and_then(|declared| declared.split_once(' '))
            {
                let total = if kind == "counter" { "_total" } else { "" };
                if let Some((_, help)) = help.take() {
                    out.extend(["# HELP ", name, total, " ", help, "\n"]);
                }
                out.extend(["# TYPE ", name, total, " ", kind, "\n"]);
            } else if line != "# EOF" {
                out.extend([line, "\n"]);
            }
        }
        out
    }
}

/// Returns bounds in microseconds: from 1 ms, about one round trip, to 10 min, the default's
/// longest retry step.
fn seconds_bounds() -> Vec<u64> {
    const MILLIS: [u64; 18] = [
        1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000,
        300_000, 600_000,
    ];
    MILLIS.map(|millis| millis * 1_000).to_vec()
}

#[cfg(test)]
mod tests;

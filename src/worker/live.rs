//! The registry in use, with its metrics and its loaders.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use tokio::sync::Notify;

use super::resolution_digest;
use crate::loader::Loaders;
use crate::registry::Registry;
use crate::telemetry::{Metrics, RegistryMetrics};

/// A registry in use, with its metrics and its loaders.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) registry: Arc<Registry>,
    pub(super) metrics: RegistryMetrics,
    pub(super) loaders: Loaders,
    /// Digest of the settings that decide which effects an event has.
    pub(super) settings_digest: String,
    /// Digest of everything that decides which effects an event has.
    pub(super) resolution_digest: String,
}

/// The registry in use, which a reload replaces.
#[derive(Debug)]
pub(super) struct CurrentRegistry {
    live: ArcSwap<Live>,
    /// Notified whenever the registry was replaced.
    pub(super) replaced: Notify,
    /// Why the current rule files were not loaded.
    refused: ArcSwapOption<String>,
    /// One of the rule files that change all the time.
    changing: ArcSwapOption<String>,
    /// Notified when the registry was replaced, when another one was refused, and when rule files
    /// begin or cease to change all the time.
    pub(super) changed: Notify,
}

impl Live {
    /// Brings a registry into use.
    pub(super) fn new(
        registry: Registry,
        loaders: Loaders,
        metrics: &Metrics,
        settings_digest: String,
    ) -> Self {
        let entries = registry.definitions().iter().map(|entry| entry.name.as_str());
        metrics.set_loaders(loaders.breaker_states());
        Self {
            metrics: metrics.for_registry(registry.digest(), registry.rules(), entries),
            loaders,
            resolution_digest: resolution_digest::of_both(registry.digest(), &settings_digest),
            settings_digest,
            registry: Arc::new(registry),
        }
    }
}

impl CurrentRegistry {
    pub(super) fn new(live: Live) -> Self {
        Self {
            live: ArcSwap::from_pointee(live),
            replaced: Notify::new(),
            refused: ArcSwapOption::empty(),
            changing: ArcSwapOption::empty(),
            changed: Notify::new(),
        }
    }

    /// Returns the registry for a short use.
    pub(super) fn load(&self) -> Guard<Arc<Live>> {
        self.live.load()
    }

    /// Returns the registry for a long use.
    pub(super) fn load_full(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Replaces the registry.
    pub(super) fn replace(&self, live: Live) {
        self.live.store(Arc::new(live));
        self.refused.store(None);
        self.changed.notify_one();
        // Without a session no routing key is bound now. The next session binds all.
        self.replaced.notify_one();
    }

    /// Notes why the current rule files were not loaded.
    pub(super) fn refuse(&self, cause: String) {
        self.refused.store(Some(Arc::new(cause)));
        self.changed.notify_one();
    }

    /// Notes one of the rule files that change all the time, or that none does.
    pub(super) fn set_changing(&self, file: Option<String>) {
        self.changing.store(file.map(Arc::new));
        self.changed.notify_one();
    }

    /// Returns one of the rule files that change all the time.
    pub(super) fn changing(&self) -> Option<String> {
        self.changing.load().as_deref().cloned()
    }

    /// Returns why the current rule files were not loaded.
    pub(super) fn refused(&self) -> Option<String> {
        self.refused.load().as_deref().cloned()
    }
}

//! The main lane keeps little in flight while the slow lane handles a message that may end the
//! worker.
//!
//! Loads take seconds, and plain deletes must not wait for them. So the main lane goes on, with a
//! prefetch so small that such a death costs few of its deliveries a redelivery.

use tokio::sync::watch;

/// What the slow lane asks for, and whether the main lane does it.
#[derive(Debug, Default)]
pub(super) struct Yielding {
    asked: watch::Sender<bool>,
    yields: watch::Sender<bool>,
}

/// Held by the slow lane while the main lane is to keep little in flight.
#[derive(Debug)]
pub(super) struct Asked<'y>(&'y Yielding);

impl Yielding {
    /// Asks the main lane, and waits until little is in flight there.
    pub(super) async fn ask(&self) -> Asked<'_> {
        let asked = Asked(self);
        self.asked.send_replace(true);
        // It fails only where the sender is gone, and `self` is one.
        let _ = self.yields.subscribe().wait_for(|yields| *yields).await;
        asked
    }

    /// Returns what tells the main lane what it is asked for.
    pub(super) fn asked(&self) -> watch::Receiver<bool> {
        self.asked.subscribe()
    }

    /// Little is in flight in the main lane.
    pub(super) fn yields(&self) {
        self.yields.send_if_modified(|yields| !std::mem::replace(yields, true));
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.asked.send_replace(false);
        self.0.yields.send_replace(false);
    }
}

/// Waits until the main lane is asked for something else than it does.
pub(super) async fn changed(asked: &mut watch::Receiver<bool>, does: bool) -> bool {
    asked.wait_for(|asked| *asked != does).await.map_or(does, |asked| *asked)
}

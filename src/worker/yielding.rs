//! Lets the main lane keep little in flight while the slow lane handles a suspected poison message.
//!
//! Loads take seconds, and plain deletes must not wait for them. So the main lane goes on with a
//! small prefetch. If the worker dies, few of its deliveries are redelivered.

use tokio::sync::watch;

/// The slow lane's request, and whether the main lane complies.
#[derive(Debug, Default)]
pub(super) struct Yielding {
    asked: watch::Sender<bool>,
    yields: watch::Sender<bool>,
}

/// A running request of the slow lane. Dropping it ends the request.
#[derive(Debug)]
pub(super) struct Asked<'y>(&'y Yielding);

impl Yielding {
    /// Asks the main lane to keep little in flight, and waits until it does.
    pub(super) async fn ask(&self) -> Asked<'_> {
        let asked = Asked(self);
        self.asked.send_replace(true);
        // It fails only if the sender is gone, and `self` is one.
        let _ = self.yields.subscribe().wait_for(|yields| *yields).await;
        asked
    }

    /// Returns the receiver by which the main lane sees the request.
    pub(super) fn asked(&self) -> watch::Receiver<bool> {
        self.asked.subscribe()
    }

    /// Notes that little is in flight in the main lane.
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

/// Waits until the request differs from what the main lane does.
pub(super) async fn changed(asked: &mut watch::Receiver<bool>, does: bool) -> bool {
    asked.wait_for(|asked| *asked != does).await.map_or(does, |asked| *asked)
}

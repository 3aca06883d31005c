//! A watch on a session, which outlives it.

use tokio::sync::watch;

use super::failure::SessionEnded;

/// Watch on a session, for other tasks.
#[derive(Debug, Clone)]
pub struct SessionWatch {
    pub(super) ended: watch::Receiver<Option<SessionEnded>>,
    pub(super) blocked: watch::Receiver<bool>,
}

impl SessionWatch {
    /// Waits for the end of the session, and returns its cause.
    pub async fn ended(&mut self) -> SessionEnded {
        let cause = self.ended.wait_for(Option::is_some).await.ok().and_then(|cause| cause.clone());
        cause.unwrap_or_else(|| SessionEnded::new("dropped by us"))
    }

    /// Returns the first cause of the end, if the session is over.
    pub fn cause(&self) -> Option<SessionEnded> {
        self.ended.borrow().clone()
    }

    /// Returns whether the broker blocks publishing at the moment (a memory or disk alarm).
    ///
    /// The broker announces this only to a connection that has published.
    pub fn is_blocked(&self) -> bool {
        *self.blocked.borrow()
    }

    /// Waits until the broker blocks or unblocks publishing; returns true if it blocks.
    ///
    /// Waits for ever once the session is over.
    pub async fn blocked_changed(&mut self) -> bool {
        if self.blocked.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        *self.blocked.borrow_and_update()
    }
}

//! Counts the bytes that a lane has built for events that are read and not settled.
//!
//! One event may build some MiB, and many events are in flight. Together they stay within
//! [`MOST_BYTES`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Maximum number of bytes built for the events in flight of one lane. One event that needs more is
/// allowed alone.
pub(super) const MOST_BYTES: u64 = 32 * 1024 * 1024;

/// One lane's account. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Account(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    bytes: AtomicU64,
    released: Notify,
}

/// A part of the account. Dropping it releases the bytes.
#[derive(Debug)]
pub(super) struct Charge {
    account: Account,
    bytes: u64,
}

impl Account {
    /// Returns true if more may be read.
    pub(super) fn has_room(&self) -> bool {
        self.0.bytes.load(Ordering::Relaxed) < MOST_BYTES
    }

    /// Charges bytes that are built already.
    pub(super) fn charge(&self, bytes: u64) -> Charge {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        Charge { account: self.clone(), bytes }
    }

    /// Waits until that many bytes fit, or until nothing else is charged.
    pub(super) async fn reserve(&self, bytes: u64) -> Charge {
        loop {
            let mut released = std::pin::pin!(self.0.released.notified());
            // Registers before the check, so that no release in between is missed.
            released.as_mut().enable();
            let fits = |before: u64| {
                (before == 0 || before + bytes <= MOST_BYTES).then_some(before + bytes)
            };
            if self.0.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok() {
                return Charge { account: self.clone(), bytes };
            }
            released.await;
        }
    }
}

impl Charge {
    /// Releases the reserved bytes that were not built.
    pub(super) fn reduce_to(&mut self, bytes: u64) {
        let over = self.bytes.saturating_sub(bytes);
        self.bytes -= over;
        self.account.release(over);
    }
}

impl Account {
    fn release(&self, bytes: u64) {
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.0.released.notify_waiters();
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_charge_that_does_not_fit_waits_until_enough_is_released() {
        let account = Account::default();
        let mut first = account.reserve(MOST_BYTES).await;
        assert!(!account.has_room());
        let mut second = Box::pin(account.reserve(10));
        assert!(second.as_mut().now_or_never().is_none());
        first.reduce_to(MOST_BYTES - 9);
        assert!(second.as_mut().now_or_never().is_none());
        first.reduce_to(MOST_BYTES - 10);
        let second = second.await;
        assert!(!account.has_room());
        drop((first, second));
        assert!(account.has_room());
    }

    #[tokio::test]
    async fn one_that_is_larger_than_all_of_it_goes_alone() {
        let account = Account::default();
        let small = account.charge(1);
        let mut large = Box::pin(account.reserve(2 * MOST_BYTES));
        assert!(large.as_mut().now_or_never().is_none());
        drop(small);
        drop(large.await);
    }
}

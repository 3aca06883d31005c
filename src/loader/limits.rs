//! Limits on loads: how many run at once, and how many start per second. They exist over all
//! loaders, and for each loader within them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use crate::quantity::Rate;

/// Maximum delay for which later starts make up, for the timer's resolution of 1 ms and late
/// wake-ups. Over any time `t` at most `(t + CATCH_UP) / interval + 1` loads start.
const CATCH_UP: Duration = Duration::from_millis(10);

/// A limit on the number of loads at once, and on the rate at which they start.
#[derive(Debug)]
pub(super) struct Limit {
    /// `None` for any number.
    slots: Option<Arc<Semaphore>>,
    /// Locked by the load that starts next. The others wait for it in order.
    starts: Mutex<Starts>,
}

/// Starts that are evenly spaced in time.
#[derive(Debug)]
struct Starts {
    /// Zero for any rate.
    interval: Duration,
    next: Instant,
}

impl Starts {
    fn started(&mut self) {
        let now = Instant::now();
        self.next = self.next.max(now.checked_sub(CATCH_UP).unwrap_or(now)) + self.interval;
    }
}

impl Limit {
    pub(super) fn new(concurrency: Option<usize>, rate: Option<Rate>) -> Self {
        let slots = concurrency
            .map(|permits| Arc::new(Semaphore::new(permits.clamp(1, Semaphore::MAX_PERMITS))));
        Self {
            slots,
            starts: Mutex::new(Starts {
                interval: rate.map_or(Duration::ZERO, Rate::interval),
                next: Instant::now(),
            }),
        }
    }

    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        match &self.slots {
            // The semaphore is never closed, so this always gives a permit.
            Some(slots) => Arc::clone(slots).acquire_owned().await.ok(),
            None => None,
        }
    }
}

/// The limits of one loader.
#[derive(Debug)]
pub(super) struct LoaderLimits {
    concurrency: Option<usize>,
    rate: Option<Rate>,
    own: Limit,
}

impl LoaderLimits {
    pub(super) fn new(concurrency: Option<usize>, rate: Option<Rate>) -> Self {
        Self { concurrency, rate, own: Limit::new(concurrency, rate) }
    }

    /// Returns true if these are the limits that a registry sets.
    pub(super) fn are(&self, concurrency: Option<usize>, rate: Option<Rate>) -> bool {
        self.concurrency == concurrency && self.rate == rate
    }

    /// Waits for a place within the loader's own limits, then for one within those over `all`
    /// loaders.
    ///
    /// A loader at its own limit holds no place that another loader could use. Only one load of
    /// each loader waits for the common limits at a time, so loaders take turns. Nothing is used up
    /// before the last wait has ended, so the future may be dropped at any point.
    pub(super) async fn admit(&self, all: &Limit) -> Permit {
        let own_slot = self.own.slot().await;
        let mut own_starts = self.own.starts.lock().await;
        sleep_until(own_starts.next).await;
        let common_slot = all.slot().await;
        let mut common_starts = all.starts.lock().await;
        sleep_until(common_starts.next).await;
        own_starts.started();
        common_starts.started();
        Permit { _own: own_slot, _common: common_slot }
    }
}

/// A load's place within the limits, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    _own: Option<OwnedSemaphorePermit>,
    _common: Option<OwnedSemaphorePermit>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_millis(20);

    fn unlimited() -> Limit {
        Limit::new(None, None)
    }

    fn rate(text: &str) -> Option<Rate> {
        Some(Rate::parse(text).unwrap())
    }

    #[tokio::test]
    async fn no_more_loads_run_at_once_than_either_limit_allows() {
        for (own, common) in
            [(Some(2), None), (None, Some(2)), (Some(2), Some(9)), (Some(9), Some(2))]
        {
            let (loader, all) = (LoaderLimits::new(own, None), Limit::new(common, None));
            let first = loader.admit(&all).await;
            let _second = loader.admit(&all).await;
            assert!(timeout(SOON, loader.admit(&all)).await.is_err(), "{own:?} {common:?}");
            drop(first);
            loader.admit(&all).await;
        }
    }

    #[tokio::test]
    async fn a_loader_at_its_limit_leaves_the_common_places_to_others() {
        let all = Limit::new(Some(2), None);
        let (slow, quick) = (LoaderLimits::new(Some(1), None), LoaderLimits::new(None, None));
        let _running = slow.admit(&all).await;
        let waiting = join_all((0..10).map(|_| timeout(SOON, slow.admit(&all))));
        let (waited, admitted) = tokio::join!(waiting, timeout(SOON, quick.admit(&all)));
        assert!(waited.iter().all(Result::is_err));
        assert!(admitted.is_ok());
    }

    #[tokio::test]
    async fn a_loader_with_many_waiting_loads_does_not_delay_another() {
        let all = Limit::new(Some(1), None);
        let (busy, quiet) = (LoaderLimits::new(None, None), LoaderLimits::new(None, None));
        let running = busy.admit(&all).await;
        let order = std::sync::Mutex::new(Vec::new());
        let crowd = join_all((0..20).map(|_| async {
            let _permit = busy.admit(&all).await;
            order.lock().unwrap().push("busy");
        }));
        let one = async {
            let _permit = quiet.admit(&all).await;
            order.lock().unwrap().push("quiet");
        };
        let start = async {
            tokio::task::yield_now().await;
            drop(running);
        };
        tokio::join!(crowd, one, start);
        let place = order.lock().unwrap().iter().position(|who| *who == "quiet");
        assert!(place <= Some(1), "{place:?}");
    }

    #[tokio::test]
    async fn loads_start_evenly_spaced_and_in_order() {
        for (own, common) in
            [(rate("100/s"), None), (None, rate("100/s")), (rate("100/s"), rate("1000/s"))]
        {
            let (loader, all) = (LoaderLimits::new(None, own), Limit::new(None, common));
            let begun = Instant::now();
            let starts = join_all((0..21).map(|_| async {
                loader.admit(&all).await;
                begun.elapsed()
            }))
            .await;
            assert!(starts[20] >= Duration::from_millis(190), "{starts:?}");
            for (index, start) in starts.iter().enumerate() {
                let before = starts.iter().filter(|other| **other <= *start).count();
                assert_eq!(before, index + 1, "out of order: {starts:?}");
                assert!(
                    *start + CATCH_UP >= Duration::from_millis(10) * u32::try_from(index).unwrap(),
                    "{starts:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn idle_time_allows_no_burst_of_loads_later() {
        let (loader, all) = (LoaderLimits::new(None, rate("100/s")), unlimited());
        loader.admit(&all).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let begun = Instant::now();
        for _ in 0..6 {
            loader.admit(&all).await;
        }
        assert!(begun.elapsed() >= Duration::from_millis(39), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_load_that_stops_waiting_uses_nothing_up() {
        let (loader, all) =
            (LoaderLimits::new(Some(2), rate("1/m")), Limit::new(Some(2), rate("1/m")));
        loader.admit(&all).await;
        let second = async || (loader.own.starts.lock().await.next, all.starts.lock().await.next);
        let due = second().await;
        for _ in 0..4 {
            assert!(timeout(Duration::from_millis(5), loader.admit(&all)).await.is_err());
        }
        assert_eq!(second().await, due, "the second start keeps its time");
        assert_eq!(loader.own.slots.as_ref().unwrap().available_permits(), 2);
        assert_eq!(all.slots.as_ref().unwrap().available_permits(), 2);
    }
}

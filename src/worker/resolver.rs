//! Reads deliveries: in the lane's loop if that takes a few milliseconds, otherwise on another
//! thread with a deadline.
//!
//! The deadline follows the wall clock. A thread may miss it for want of CPU time, since the
//! machine is busy or the process suspended. So an event that misses it is resolved once more. An
//! event that exceeds its budget of work or bytes fails at once.
//!
//! A thread cannot be stopped from outside. A thread that runs long beyond the deadline is
//! abandoned, and its event is dead-lettered. The worker ends in order once [`MOST_ABANDONED`] such
//! threads run at a time. Nothing else can free their memory and CPU time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::account::{Account, Charge};
use super::batch::Resolved;
use super::in_flight::Taken;
use super::intake::Request;
use super::live::Live;

use crate::broker::{Delivery, LaneName};
use crate::event::Reading;
use crate::reason::Reason;
use crate::registry::{Budget, Spent};

/// Maximum time one event may take, by the wall clock.
const DEADLINE: Duration = Duration::from_secs(5);

/// Maximum time a resolution takes to end after its deadline, if it checks the deadline itself. Its
/// message names the rule.
const UNWINDING: Duration = Duration::from_millis(250);

/// Number of abandoned threads at which the worker ends.
const MOST_ABANDONED: usize = 3;

/// Maximum units of work of one batch in the lane's loop. They take a few milliseconds, and a usual
/// batch needs far less.
const INLINE_WORK: u64 = 250_000;

/// Maximum bytes that one batch may build in the lane's loop.
const INLINE_BYTES: u64 = 1024 * 1024;

/// Maximum bytes of bodies that one batch may parse in the lane's loop.
const INLINE_BODY_BYTES: usize = 1024 * 1024;

/// Maximum size of a body that is parsed in the lane's loop.
const INLINE_BODY_MAX_BYTES: usize = 256 * 1024;

/// Reads the deliveries of one lane.
#[derive(Debug)]
pub(super) struct Resolver {
    lane: LaneName,
    reading: Reading,
    account: Account,
    threads: Threads,
}

/// The result of reading deliveries in the lane's loop.
#[derive(Debug)]
pub(super) enum FirstLook {
    /// All of them are read.
    Done(Resolved),
    /// One delivery, which needs more than a batch may take in the loop.
    Heavy(Heavy),
}

/// A delivery that must be read on another thread.
#[derive(Debug)]
pub(super) struct Heavy {
    taken: Taken,
    live: Arc<Live>,
}

impl Heavy {
    /// Returns the delivery.
    pub(super) fn deliveries(&self) -> &[Delivery] {
        &self.taken.deliveries
    }

    /// Returns the delivery unread. The caller must hold it for the low watermark.
    pub(super) fn into_deliveries(self) -> Vec<Delivery> {
        self.taken.into_deliveries()
    }
}

impl FirstLook {
    /// Returns the deliveries that are read, or must be read on another thread.
    pub(super) fn deliveries(&self) -> &[Delivery] {
        match self {
            Self::Done(batch) => batch.deliveries(),
            Self::Heavy(heavy) => heavy.deliveries(),
        }
    }
}

impl Resolver {
    /// Returns the resolver of a lane. Abandoned threads are counted over both lanes, and `ends` is
    /// cancelled when there are too many.
    pub(super) fn new(
        (lane, reading): (LaneName, Reading),
        abandoned: &Arc<AtomicUsize>,
        ends: &CancellationToken,
    ) -> Self {
        let threads = Threads {
            turn: Semaphore::new(1),
            deadline: DEADLINE,
            abandoned: Arc::clone(abandoned),
            ends: ends.clone(),
        };
        Self { lane, reading, account: Account::default(), threads }
    }

    /// Returns true if the deliveries in flight leave room for more.
    pub(super) fn has_room(&self) -> bool {
        self.account.has_room()
    }

    /// Reads as many deliveries as a batch may take in the loop. Returns the others too, to be read
    /// next.
    pub(super) fn read(&self, live: Arc<Live>, mut taken: Taken) -> (FirstLook, Vec<Delivery>) {
        let allowance = Budget::with_limits(INLINE_WORK, INLINE_BYTES);
        let mut requests = Vec::with_capacity(taken.deliveries.len());
        let mut body_bytes = 0;
        for delivery in &taken.deliveries {
            body_bytes += delivery.body().len();
            if body_bytes > INLINE_BODY_BYTES || delivery.body().len() > INLINE_BODY_MAX_BYTES {
                break;
            }
            let request = Request::of(delivery, &live, self.reading, self.lane, &allowance);
            if allowance.is_spent() {
                break;
            }
            requests.push(request);
        }
        let left = taken.deliveries.split_off(requests.len().max(1));
        if requests.is_empty() {
            return (FirstLook::Heavy(Heavy { taken, live }), left);
        }
        let charge = self.account.charge(allowance.spent_bytes());
        (FirstLook::Done(Resolved::new(taken, requests, live, charge)), left)
    }

    /// Reads one delivery, in the loop or on another thread.
    pub(super) async fn read_one(&self, live: Arc<Live>, taken: Taken) -> Resolved {
        match self.read(live, taken).0 {
            FirstLook::Done(batch) => batch,
            FirstLook::Heavy(heavy) => self.read_apart(heavy).await,
        }
    }

    /// Reads one delivery on another thread, within the budget of an event. Never fails: an event
    /// that misses its deadline is dead-lettered.
    pub(super) async fn read_apart(&self, Heavy { taken, live }: Heavy) -> Resolved {
        let delivery = &taken.deliveries[0];
        let body_bytes = delivery.body().len();
        let mut charge: Charge =
            self.account.reserve(Budget::for_bytes(body_bytes).bytes_limit()).await;
        let (reading, lane) = (self.reading, self.lane);
        // A clone: the thread may keep it for ever.
        let (its_delivery, its_live) = (delivery.clone(), Arc::clone(&live));
        let read = self.threads.run(body_bytes, move |budget| {
            let request = Request::of(&its_delivery, &its_live, reading, lane, budget);
            (request, budget.spent_bytes())
        });
        let request = match read.await {
            Some((request, bytes)) => {
                charge.reduce_to(bytes);
                request
            }
            None => {
                charge.reduce_to(0);
                let deadline_s = self.threads.deadline.as_secs();
                warn!(routing_key = ?delivery.routing_key(), deadline_s, "an event is dead-lettered: it was not resolved before its deadline");
                let error = format!(
                    "the event was not resolved within {deadline_s} s, its deadline: look for expressions and schemas that take long, and please report it"
                );
                Request::unread(delivery, Reason::Unresolvable, error)
            }
        };
        Resolved::new(taken, vec![request], live, charge)
    }
}

/// Runs one piece of work at a time, each on another thread.
#[derive(Debug)]
struct Threads {
    turn: Semaphore,
    deadline: Duration,
    /// Threads that run beyond their deadline, or for a session that has ended.
    abandoned: Arc<AtomicUsize>,
    ends: CancellationToken,
}

/// One piece of work, shared by its waiter and its thread.
#[derive(Debug)]
struct Run {
    state: AtomicU8,
    abandoned: Arc<AtomicUsize>,
}

/// The thread runs, and the waiter waits.
const RUNNING: u8 = 0;
/// The thread has ended.
const ENDED: u8 = 1;
/// No one waits for the thread.
const ABANDONED: u8 = 2;

/// The result of one try.
enum Tried<T> {
    /// The work is done, or its budget is spent.
    Done(T),
    /// The deadline ended the work.
    Late(T),
    /// The work does not end.
    Stuck,
}

impl Threads {
    /// Runs the work with the budget of a body of that many bytes, and once more if the deadline
    /// ended it. Returns `None` if it does not end.
    async fn run<T: Send + 'static>(
        &self,
        body_bytes: usize,
        work: impl Fn(&Budget) -> T + Send + Sync + 'static,
    ) -> Option<T> {
        // The semaphore is never closed.
        let _turn = self.turn.acquire().await;
        let work = Arc::new(work);
        match self.try_once(body_bytes, &work).await {
            Tried::Done(result) => return Some(result),
            Tried::Stuck => return None,
            Tried::Late(_) => {}
        }
        match self.try_once(body_bytes, &work).await {
            Tried::Done(result) | Tried::Late(result) => Some(result),
            Tried::Stuck => None,
        }
    }

    async fn try_once<T: Send + 'static>(
        &self,
        body_bytes: usize,
        work: &Arc<impl Fn(&Budget) -> T + Send + Sync + 'static>,
    ) -> Tried<T> {
        let stop = Arc::new(AtomicBool::new(false));
        let run =
            Arc::new(Run { state: AtomicU8::new(RUNNING), abandoned: Arc::clone(&self.abandoned) });
        let budget = (Instant::now() + self.deadline, Arc::clone(&stop));
        let (ends, work) = (EndsWithThread(Arc::clone(&run)), Arc::clone(work));
        let mut thread = tokio::task::spawn_blocking(move || {
            let _ends = ends;
            let (deadline, stop) = budget;
            let budget = Budget::for_bytes(body_bytes).until(deadline).stopped_by(stop);
            let result = work(&budget);
            (result, budget.spent() == Some(Spent::Time))
        });
        let waits = Waits { run, stop };
        match tokio::time::timeout(self.deadline + UNWINDING, &mut thread).await {
            Ok(Ok((result, false))) => return Tried::Done(result),
            Ok(Ok((result, true))) => return Tried::Late(result),
            Ok(Err(_)) => return Tried::Stuck,
            Err(_) => drop(waits),
        }
        // A thread that only lacked CPU time ends soon after it gets some.
        if let Ok(Ok((result, _))) = tokio::time::timeout(self.deadline, thread).await {
            return Tried::Late(result);
        }
        if self.abandoned.load(Ordering::SeqCst) >= MOST_ABANDONED {
            error!(
                threads = MOST_ABANDONED,
                "resolving events does not end: the worker ends, so that it can be started anew"
            );
            self.ends.cancel();
        }
        Tried::Stuck
    }
}

/// Held by the waiter of a thread. Dropping it abandons the thread, unless the thread has ended.
struct Waits {
    run: Arc<Run>,
    stop: Arc<AtomicBool>,
}

impl Drop for Waits {
    fn drop(&mut self) {
        // Counts first. Otherwise a thread that ends in between would be counted for ever.
        self.run.abandoned.fetch_add(1, Ordering::SeqCst);
        if self.run.state.swap(ABANDONED, Ordering::SeqCst) == ENDED {
            self.run.abandoned.fetch_sub(1, Ordering::SeqCst);
        }
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Held by the thread. Dropping it notes that the thread has ended.
struct EndsWithThread(Arc<Run>);

impl Drop for EndsWithThread {
    fn drop(&mut self) {
        if self.0.state.swap(ENDED, Ordering::SeqCst) == ABANDONED {
            self.0.abandoned.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn threads(deadline: Duration) -> Threads {
        Threads {
            turn: Semaphore::new(1),
            deadline,
            abandoned: Arc::default(),
            ends: CancellationToken::new(),
        }
    }

    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn work_that_ends_in_time_gives_its_result() {
        let threads = threads(Duration::from_secs(60));
        assert_eq!(
            threads.run(0, |budget| budget.bytes(7).map(|()| budget.spent_bytes())).await,
            Some(Ok(7))
        );
        assert_eq!(threads.abandoned.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn work_that_looks_at_its_budget_is_ended_by_the_deadline() {
        let threads = threads(SHORT);
        let spent = threads.run(0, |budget| (0..u64::MAX).find_map(|_| budget.work(1).err())).await;
        assert!(spent.is_some(), "the work or the deadline ends it, and it says which: {spent:?}");
        assert_eq!(threads.abandoned.load(Ordering::SeqCst), 0);
    }

    /// Returns how often the work was tried, and its result. `first` is the first try.
    async fn tried(
        deadline: Duration,
        first: fn(&Budget) -> Result<(), Spent>,
    ) -> (usize, Option<Result<(), Spent>>) {
        let tries = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&tries);
        let work = move |budget: &Budget| {
            if counter.fetch_add(1, Ordering::SeqCst) == 0 { first(budget) } else { budget.work(1) }
        };
        let result = threads(deadline).run(0, work).await;
        (tries.load(Ordering::SeqCst), result)
    }

    #[tokio::test]
    async fn work_that_misses_its_deadline_is_tried_once_more() {
        #![expect(clippy::disallowed_methods, reason = "the work is what blocks its thread")]
        let late = |budget: &Budget| {
            std::thread::sleep(SHORT);
            budget.work(1)
        };
        assert_eq!(tried(SHORT, late).await, (2, Some(Ok(()))));
        // Simulates a thread that gets no CPU time until long after its deadline.
        const LONG: Duration = Duration::from_secs(1);
        let starved = |_: &Budget| {
            std::thread::sleep(LONG + UNWINDING + LONG / 2);
            Ok(())
        };
        assert_eq!(tried(LONG, starved).await, (2, Some(Ok(()))));
    }

    #[tokio::test]
    async fn work_that_spends_its_budget_is_not_tried_again() {
        assert_eq!(
            tried(Duration::from_secs(60), |budget| budget.work(u64::MAX)).await,
            (1, Some(Err(Spent::Work)))
        );
        assert_eq!(
            tried(Duration::from_secs(60), |budget| budget.bytes(usize::MAX)).await,
            (1, Some(Err(Spent::Bytes)))
        );
    }

    #[tokio::test]
    async fn work_that_never_looks_is_abandoned_and_too_much_of_it_ends_the_worker() {
        let threads = threads(SHORT);
        let mut blocked = Vec::new();
        for count in 1..=MOST_ABANDONED {
            assert!(!threads.ends.is_cancelled());
            let (release, held) = mpsc::channel::<()>();
            blocked.push(release);
            let held = std::sync::Mutex::new(held);
            assert_eq!(
                threads.run(0, move |_| held.lock().unwrap().recv().is_ok()).await,
                None,
                "the thread is stuck"
            );
            assert_eq!(threads.abandoned.load(Ordering::SeqCst), count);
        }
        assert!(threads.ends.is_cancelled());
        drop(blocked);
        while threads.abandoned.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn abandoned_work_is_cancelled() {
        let threads = threads(Duration::from_secs(60));
        let (begun, has_begun) = mpsc::channel();
        let work = threads.run(0, move |budget| {
            begun.send(()).unwrap();
            while budget.work(10_000).is_ok() {
                std::thread::yield_now();
            }
        });
        // After one poll its thread runs.
        assert!(futures_util::FutureExt::now_or_never(work).is_none());
        has_begun.recv().unwrap();
        while threads.abandoned.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
        assert!(!threads.ends.is_cancelled());
    }
}

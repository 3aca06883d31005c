//! Whether Redis can be worked with: a connection at a time, shared by all; replaced whole, and
//! only by a probe.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::failure::Outage;
use crate::backoff::{Backoff, Doubling};

/// Between failing probes. Below the 2 s in which consuming must resume.
const PROBE_PAUSES: Doubling =
    Doubling { first: Duration::from_millis(50), longest: Duration::from_millis(1_000) };

/// A success that an outage follows sooner counts as a failure: a probe may promise what no other
/// command can keep (a cluster's node that owns the probe's slot alone), and nothing else would
/// slow down the loop.
const STEADY: Duration = Duration::from_secs(5);

/// Whether Redis can be worked with, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The last that was heard of it was good.
    Up,
    /// It was not, or nothing was heard yet.
    Down(Outage),
}

/// What can be connected to.
pub(super) trait Connect: Debug + Send + Sync {
    /// What stands once it is.
    type Live: Live;

    /// Connects to whatever has to be written to now.
    fn connect(&self) -> impl Future<Output = Result<Arc<Self::Live>, Outage>> + Send;

    /// Finds out whether writes are taken: what they need (memory, a primary, rights, replicas, a
    /// disk) only a write can tell.
    fn check(&self, live: &Self::Live) -> impl Future<Output = Result<(), Outage>> + Send;
}

/// A connection, or several that stand and fall together.
pub(super) trait Live: Debug + Send + Sync {
    /// From now on nothing that it answers counts.
    fn give_up(&self, outage: &Outage);

    /// Why it was given up, if it was.
    fn given_up(&self) -> Option<&Outage>;
}

#[derive(Debug)]
pub(super) struct Standing<C: Connect> {
    connect: C,
    current: ArcSwap<Current<C::Live>>,
    pace: tokio::sync::Mutex<Pace>,
    /// Probes that have ended.
    probes: AtomicU64,
}

#[derive(Debug)]
enum Current<L> {
    Live(Arc<L>),
    Down(Outage),
}

#[derive(Debug)]
struct Pace {
    backoff: Backoff,
    /// When the last probe ended, and how long the next one waits from then on.
    last: Option<(Instant, Duration)>,
    result: Option<Result<(), Outage>>,
}

impl<C: Connect> Standing<C> {
    pub(super) fn new(connect: C) -> Self {
        let current =
            ArcSwap::from_pointee(Current::Down(Outage::new("not connected to Redis yet")));
        Self {
            connect,
            current,
            pace: tokio::sync::Mutex::new(Pace::new()),
            probes: AtomicU64::new(0),
        }
    }

    pub(super) fn connect(&self) -> &C {
        &self.connect
    }

    pub(super) fn state(&self) -> State {
        match self.live() {
            Ok(_) => State::Up,
            Err(outage) => State::Down(outage),
        }
    }

    pub(super) fn live(&self) -> Result<Arc<C::Live>, Outage> {
        match &**self.current.load() {
            Current::Live(live) => {
                live.given_up().map_or_else(|| Ok(Arc::clone(live)), |outage| Err(outage.clone()))
            }
            Current::Down(outage) => Err(outage.clone()),
        }
    }

    /// An outage ends the connection on which it showed, with all that is under way there: what was
    /// asked for later must not take hold before what is asked for again.
    pub(super) fn give_up(&self, live: &C::Live, outage: &Outage) {
        live.give_up(outage);
        let current = self.current.load();
        if let Current::Live(standing) = &**current
            && std::ptr::eq(Arc::as_ptr(standing), live)
        {
            let down = Arc::new(Current::Down(outage.for_others()));
            let previous = self.current.compare_and_swap(&*current, down);
            if Arc::ptr_eq(&previous, &current) {
                tracing::warn!(cause = %outage, "Redis cannot be worked with");
            }
        }
    }

    /// Connects where there is no connection, and finds out whether Redis takes writes. Paces
    /// itself: after a failure the next call waits. Who calls while a probe is under way shares its
    /// result: many callers wait no longer than one.
    pub(super) async fn probe(&self) -> Result<(), Outage> {
        let seen = self.probes.load(Ordering::SeqCst);
        let mut pace = self.pace.lock().await;
        if self.probes.load(Ordering::SeqCst) != seen
            && let Some(result) = &pace.result
        {
            return result.clone();
        }
        pace.wait().await;
        let result = self.connect_and_check().await;
        pace.note(&result);
        self.probes.fetch_add(1, Ordering::SeqCst);
        result
    }

    async fn connect_and_check(&self) -> Result<(), Outage> {
        let (live, fresh) = match self.live() {
            Ok(live) => (live, false),
            Err(before) => match self.connect.connect().await {
                Ok(live) => (live, true),
                Err(outage) => {
                    if before != outage {
                        self.current.store(Arc::new(Current::Down(outage.clone())));
                    }
                    return Err(outage);
                }
            },
        };
        if let Err(outage) = self.connect.check(&live).await {
            if fresh {
                self.current.store(Arc::new(Current::Down(outage.clone())));
            } else {
                self.give_up(&live, &outage);
            }
            return Err(outage);
        }
        if fresh {
            self.current.store(Arc::new(Current::Live(live)));
            tracing::debug!("Redis answers and takes writes");
        }
        Ok(())
    }
}

impl Pace {
    fn new() -> Self {
        Self { backoff: Backoff::new(PROBE_PAUSES), last: None, result: None }
    }

    async fn wait(&mut self) {
        let Some((last, pause)) = self.last else { return };
        if matches!(self.result, Some(Ok(()))) && last.elapsed() > STEADY {
            self.backoff.reset();
            return;
        }
        tokio::time::sleep(pause.saturating_sub(last.elapsed())).await;
    }

    fn note(&mut self, result: &Result<(), Outage>) {
        self.last = Some((Instant::now(), self.backoff.next_delay(fastrand::f64())));
        self.result = Some(result.clone());
    }
}

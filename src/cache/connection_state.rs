//! The state of the connection to Redis. There is one connection at a time, which all callers
//! share. Only a probe replaces it, and always as a whole.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::failure::Outage;
use crate::backoff::{Backoff, Doubling};
use crate::causes::Explain;

/// Between failing probes. Below the 2 s in which consuming must resume.
const PROBE_PAUSES: Doubling =
    Doubling { first: Duration::from_millis(50), longest: Duration::from_millis(1_000) };

/// Minimum time from a successful probe to the next outage. After a shorter time, the success
/// counts as a failure.
///
/// A probe may succeed while every other command fails: one node of a cluster may own the probe's
/// slot alone. Without this limit, the loop would run unbraked.
const STEADY: Duration = Duration::from_secs(5);

/// State of the connection to Redis, as far as it is known.
#[derive(Debug, Clone)]
pub enum ConnectionState {
    /// The last answer was good.
    Up,
    /// The last answer was bad, or there was none yet.
    Down(Outage),
}

impl ConnectionState {
    /// Returns whether Redis can be used.
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Up)
    }
}

/// A server or a cluster that can be connected to.
pub(super) trait Connect: Debug + Send + Sync {
    /// The connection that results.
    type Live: LiveConnection;

    /// Connects to the servers that take writes at this moment.
    fn connect(&self) -> impl Future<Output = Result<Arc<Self::Live>, Outage>> + Send;

    /// Checks by a write that Redis takes writes. Only a write shows whether memory, role, rights,
    /// replicas and disk allow it.
    fn check(&self, live: &Self::Live) -> impl Future<Output = Result<(), Outage>> + Send;
}

/// A connection, or several that are given up together.
pub(super) trait LiveConnection: Debug + Send + Sync {
    /// Invalidates all answers from now on.
    fn give_up(&self, outage: &Outage);

    /// Returns the reason why it was given up, if it was.
    fn given_up(&self) -> Option<&Outage>;
}

#[derive(Debug)]
pub(super) struct SharedConnection<C: Connect> {
    connect: C,
    current: ArcSwap<Current<C::Live>>,
    pace: tokio::sync::Mutex<Pace>,
    /// Number of probes that have ended.
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

impl<C: Connect> SharedConnection<C> {
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

    pub(super) fn state(&self) -> ConnectionState {
        match self.live() {
            Ok(_) => ConnectionState::Up,
            Err(outage) => ConnectionState::Down(outage),
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

    /// Gives up the connection on which an outage showed, with all commands in flight there. A
    /// later request must not take effect before the repetition of an earlier one.
    pub(super) fn give_up(&self, live: &C::Live, outage: &Outage) {
        live.give_up(outage);
        let current = self.current.load();
        if let Current::Live(connection) = &**current
            && std::ptr::eq(Arc::as_ptr(connection), live)
        {
            let down = Arc::new(Current::Down(outage.for_others()));
            let previous = self.current.compare_and_swap(&*current, down);
            if Arc::ptr_eq(&previous, &current) {
                tracing::debug!(cause = outage.in_full(), "redis connection given up");
            }
        }
    }

    /// Connects if there is no connection, and checks that Redis takes writes.
    ///
    /// After a failure, the next call waits first. Callers that arrive during a probe share its
    /// result, so that many wait no longer than one.
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
            Err(_) => match self.connect.connect().await {
                Ok(live) => (live, true),
                Err(outage) => {
                    self.current.store(Arc::new(Current::Down(outage.clone())));
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
            tracing::debug!("redis connection ready");
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

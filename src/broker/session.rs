//! Session: two connections and the objects on them, from the first handshake to the end.

mod objects;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use lapin::Channel;
use tokio::sync::watch;

use super::convert::short;
use super::deletion::{DeletionSeen, Depth, owes_heal};
use super::failure::{BrokerError, ContractObject, SessionEnded, TopologyProblem};
use super::history_object::{HistoryFault, HistoryObject, in_words};
use super::lane::{Lane, LaneName};
use super::link::{EndSignal, Link};
use super::look::Looker;
use super::names::Names;
use super::origin::Origins;
use super::permitted;
use super::publisher::Publisher;
use super::queue_specs::Kind;
use super::recent_acks::RecentAcks;
use super::session_watch::SessionWatch;
use super::signature::Signer;
use super::topology::{self, Declared, Ensured};
use crate::config::AmqpConfig;

pub use objects::{Mended, Rebound};

/// Two connections: one consumes and acknowledges, the other publishes.
///
/// A broker that blocks publishers must not freeze acknowledgements.
///
/// Dropping a session closes both connections at once and invalidates its lanes and publishers.
/// [`close`](Session::close) shuts down cleanly.
#[derive(Debug)]
pub struct Session {
    config: AmqpConfig,
    names: Names,
    /// The names with only those retry queues that could be used when the session began.
    usable_names: Names,
    origins: Origins,
    bound: Mutex<BTreeSet<String>>,
    warnings: Vec<String>,
    signal: EndSignal,
    blocked: watch::Receiver<bool>,
    consume: Link,
    publish: Arc<Link>,
    history: Option<HistoryObject>,
    found: Found,
    seen: DeletionSeen,
    /// Channels of the lanes. lapin closes a channel with its last handle. The broker then forgets
    /// the acknowledgements that it had not passed on yet.
    kept_open: Mutex<Vec<(Channel, RecentAcks)>>,
}

/// Start of a session: decides whether a fault of the history is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// First session of the worker. It checks the permissions, and a history that does not fit the
    /// settings is an error.
    First,
    /// Later session. It begins with any state of the history, because a running worker must go on.
    Again,
}

/// Findings of a session at its start.
#[derive(Debug, Default)]
struct Found {
    declared: Vec<Declared>,
    history_was_missing: bool,
    /// The first session of the worker found no history: no object may have existed before.
    is_first: bool,
    /// Neither the main queue nor the history existed before the first session.
    is_first_ever: bool,
    /// The history is still missing.
    history_is_missing: bool,
    history_fault: Option<String>,
}

impl Session {
    /// Connects, finds or declares the topology, and binds the queues of events.
    ///
    /// The bindings are `routing_keys` and those of `UNSTALE_BIND`. The session trusts what the
    /// signer has signed.
    ///
    /// # Errors
    /// [`BrokerError`]: [`is_final`](BrokerError::is_final) reports whether a retry can help.
    pub async fn open(
        config: &AmqpConfig,
        routing_keys: &[String],
        signer: &Signer,
        start: Start,
    ) -> Result<Self, BrokerError> {
        Self::open_noting(config, routing_keys, signer, start, &DeletionSeen::default()).await
    }

    /// Opens a session as [`open`](Self::open) does, and notes in `seen` every deleted object that
    /// it declared again.
    ///
    /// Events may be in the history alone since the deletion. The note remains even if the opening
    /// fails; [`mend`](Self::mend) adds to it later.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn open_noting(
        config: &AmqpConfig,
        routing_keys: &[String],
        signer: &Signer,
        start: Start,
        seen: &DeletionSeen,
    ) -> Result<Self, BrokerError> {
        let signal = EndSignal::new();
        let (blocked, blocked_receiver) = watch::channel(false);
        let blocked = Arc::new(blocked);
        let consume = Link::connect(config, "", &signal, &blocked).await?;
        let publish = Arc::new(Link::connect(config, " publish", &signal, &blocked).await?);
        let names = Names::new(&config.queue, &config.retry_delays);
        let bound: BTreeSet<String> = routing_keys.iter().chain(&config.bind).cloned().collect();
        let keys: Vec<String> = bound.iter().cloned().collect();
        let history = HistoryObject::new(config, &names);
        // First: a queue that another worker declares at this moment must not look like a deleted
        // one.
        let history_was_missing = match &history {
            Some(history) => history.is_missing().await,
            None => true,
        };
        // A later session knows that the objects existed.
        let is_first = history_was_missing && start == Start::First;
        let noting = (seen, is_first);
        let ensured =
            topology::ensure(&consume, config, &names, &keys, Depth::Arguments, noting).await;
        let history_ensured = match &history {
            Some(history) => history.ensure(&keys, Depth::Arguments, seen).await,
            None => Ok(Ensured::default()),
        };
        let ensured = all_problems(ensured, &history_ensured, start)?;
        let usable_names = usable_names(&names, &ensured.of_steps, start)?;
        if start == Start::First {
            permitted::check(config, &names).await?;
        }
        let mut warnings = ensured.warnings;
        let (history_is_missing, history_fault) = match history_ensured {
            Ok(history) => {
                warnings.extend(history.warnings);
                (false, None)
            }
            Err(fault) => (fault.is_missing(), Some(fault.words())),
        };
        let declared = ensured.declared;
        let found = Found {
            declared,
            history_was_missing,
            is_first,
            // An attempt before this one may have declared the objects.
            is_first_ever: seen.neither_existed(),
            history_is_missing,
            history_fault,
        };
        Ok(Self {
            config: config.clone(),
            origins: Origins::new(signer, &names),
            names,
            usable_names,
            bound: Mutex::new(bound),
            warnings,
            signal,
            blocked: blocked_receiver,
            consume,
            publish,
            history,
            found,
            seen: seen.clone(),
            kept_open: Mutex::default(),
        })
    }

    /// Returns the broker's cluster name and virtual host; `None` if the broker does not send the
    /// name.
    pub fn broker(&self) -> Option<String> {
        self.consume.broker()
    }

    /// Returns the names of the queues.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Returns the names of the queues to publish to. A retry queue that could not be used when the
    /// session began is replaced by another one.
    pub fn usable_names(&self) -> &Names {
        &self.usable_names
    }

    /// Returns the retry queues that could not be used when the session began.
    ///
    /// They may have been deleted together with their events.
    pub fn lacking_retry_queues(&self) -> BTreeSet<String> {
        let steps = self.names.retry.iter().zip(&self.usable_names.retry);
        steps.filter(|(step, used)| step != used).map(|((_, name), _)| name.clone()).collect()
    }

    /// Returns warnings that stop nothing, such as a history whose retention differs.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns whether both the main queue and the history were missing before the first session.
    ///
    /// If Redis holds no checkpoint either, no event can have arrived before.
    pub fn is_first_ever(&self) -> bool {
        self.found.is_first_ever
    }

    /// Returns whether the session had to declare the main queue.
    ///
    /// If the history existed, events may have gone to the history alone.
    pub fn main_was_missing(&self) -> bool {
        self.found.declared.iter().any(|declared| declared.kind == Kind::Main)
    }

    /// Returns the objects that the session had to declare, such as ``queue `unstale` ``.
    pub fn declared(&self) -> Vec<String> {
        in_words(&self.found.declared).collect()
    }

    /// Returns whether the declared objects make a heal due.
    ///
    /// They existed before, so events may be in the history alone.
    pub fn owes_heal(&self) -> bool {
        !self.found.is_first
            && self.found.declared.iter().any(|declared| owes_heal(declared.kind, Depth::Arguments))
    }

    /// Returns whether the history was missing although events may have arrived before.
    ///
    /// The earlier contents of the history are lost.
    pub fn has_declared_history_anew(&self) -> bool {
        self.history.is_some()
            && self.found.history_was_missing
            && self.found.history_fault.is_none()
            && !self.is_first_ever()
    }

    /// Returns whether the history was missing at the start, and this worker does not declare it.
    pub fn history_is_missing(&self) -> bool {
        self.found.history_is_missing
    }

    /// Returns the evidence of deletions, noted at the opening or by [`mend`](Self::mend), and not
    /// taken since.
    pub fn deletion_seen(&self) -> &DeletionSeen {
        &self.seen
    }

    /// Returns why the history could not be used when the session began.
    pub fn history_fault(&self) -> Option<&str> {
        self.found.history_fault.as_deref()
    }

    /// Returns the number of bindings that it requests for each queue.
    pub fn bindings(&self) -> usize {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Returns a lane, without a consumer yet.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn lane(&self, name: LaneName) -> Result<Lane, SessionEnded> {
        let queue = match name {
            LaneName::Main => &self.names.main,
            LaneName::Slow => &self.names.slow,
        };
        let channel = self.consume.channel().await.map_err(|ended| self.signal.end(ended))?;
        let queue =
            short(queue).ok_or_else(|| SessionEnded::new("the queue's name is too long"))?;
        let recent = RecentAcks::default();
        self.kept_open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((channel.clone(), recent.clone()));
        Ok(Lane::new(channel, queue, self.signal.clone(), recent, self.origins.clone()))
    }

    /// Returns a publisher with a channel of its own.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn publisher(&self) -> Result<Publisher, SessionEnded> {
        Publisher::on(&self.publish, self.blocked.clone(), &self.signal)
            .await
            .map_err(|ended| self.signal.end(ended))
    }

    /// Returns a reader of the lanes' queue depths, which works beside everything else.
    pub fn looker(&self) -> Looker<'_> {
        Looker::new(&self.consume, &self.names)
    }

    /// Returns a watch on the end of the session and on blocked publishing. The watch outlives the
    /// session.
    pub fn watch(&self) -> SessionWatch {
        SessionWatch { ended: self.signal.subscribe(), blocked: self.blocked.clone() }
    }

    /// Shuts down cleanly, so that earlier acknowledgements take effect. Takes 5 s at most.
    pub async fn close(self) {
        let Self { consume, publish, history, signal, kept_open, .. } = self;
        let kept_open = kept_open.into_inner().unwrap_or_else(PoisonError::into_inner);
        if signal.cause().is_none() {
            let take_effect_in = kept_open.iter().map(|(_, recent)| recent.take_effect_in()).max();
            tokio::time::sleep(take_effect_in.unwrap_or_default()).await;
        }
        if let Some(publish) = Arc::into_inner(publish) {
            publish.close().await;
        }
        if let Some(history) = history {
            history.close().await;
        }
        consume.close().await;
    }
}

/// Returns all problems that keep a session from beginning, at once.
fn all_problems(
    ensured: Result<Ensured, BrokerError>,
    history: &Result<Ensured, HistoryFault>,
    start: Start,
) -> Result<Ensured, BrokerError> {
    match (ensured, history) {
        (
            Err(BrokerError::Topology(mut problems)),
            Err(HistoryFault::Settings(more) | HistoryFault::Missing(more)),
        ) => {
            // A missing queue cannot be bound. Reporting both would repeat the problem.
            let is_queue =
                |problem: &&TopologyProblem| matches!(problem.object, ContractObject::Queue(_));
            problems.extend(more.iter().filter(is_queue).cloned());
            Err(BrokerError::Topology(problems))
        }
        // If the main queue existed, events may be waiting. A fault of the history must not delay
        // them.
        (Ok(ensured), Err(HistoryFault::Settings(problems)))
            if start == Start::First
                && ensured.declared.iter().any(|declared| declared.kind == Kind::Main) =>
        {
            Err(BrokerError::Topology(problems.clone()))
        }
        (ensured, _) => ensured,
    }
}

/// Returns the names without the retry queues that cannot be used.
///
/// A worker that starts refuses to run without one of them. A running worker applies events all the
/// same: a stale cache is worse than another delay before a retry.
fn usable_names(
    names: &Names,
    of_steps: &[TopologyProblem],
    start: Start,
) -> Result<Names, BrokerError> {
    let cannot_be_used = |name: &str| {
        of_steps
            .iter()
            .any(|problem| matches!(&problem.object, ContractObject::Queue(queue) if queue == name))
    };
    let usable = names
        .without_steps(cannot_be_used)
        .filter(|_| start == Start::Again || of_steps.is_empty());
    usable.ok_or_else(|| BrokerError::Topology(of_steps.to_vec()))
}

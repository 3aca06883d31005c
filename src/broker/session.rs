//! Two connections and what stands on them, from the first handshake to whatever ends them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use lapin::Channel;
use tokio::sync::watch;

use super::convert::short;
use super::deletion::{DeletionSeen, owes_heal};
use super::failure::{BrokerError, SessionEnded};
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
use super::signature::Signer;
use super::topology::{self, Declared, Depth, Ensured};
use crate::config::AmqpConfig;

/// One connection consumes and acknowledges, the other publishes: a broker that blocks publishers
/// must not freeze acknowledgements.
///
/// Dropped, both are cut at once, and its lanes and publishers are over; [`close`](Session::close)
/// says goodbye first.
#[derive(Debug)]
pub struct Session {
    config: AmqpConfig,
    names: Names,
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
    /// The lanes' channels. lapin closes a channel with its last handle, and the broker forgets
    /// what it had not passed on yet.
    kept_open: Mutex<Vec<(Channel, RecentAcks)>>,
}

/// Whether a session may refuse to begin for the sake of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The worker's first session. It checks the permissions, and a history that does not fit the
    /// settings is an error.
    First,
    /// A later one, which begins whatever became of the history: a worker that ran must go on.
    Again,
}

/// What a session found when it began.
#[derive(Debug, Default)]
struct Found {
    declared: Vec<Declared>,
    history_was_missing: bool,
    /// There is still none.
    history_is_missing: bool,
    history_fault: Option<String>,
}

/// What [`Session::mend`] found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mended {
    /// Objects that were missing and are declared again, such as ``queue `unstale.dead` ``.
    pub declared: Vec<String>,
    /// The history is among them.
    pub has_declared_history: bool,
    /// What is missing or not as it must be, and could not be mended.
    pub problems: Vec<String>,
    /// There is no history, and somebody else is to declare it.
    pub history_is_missing: bool,
    /// Why the history cannot be used.
    pub history_fault: Option<String>,
}

/// What [`Session::bind`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebound {
    /// Newly bound.
    pub added: Vec<String>,
    /// Bound earlier in this session, no longer asked for, and left bound: another worker may still
    /// need them, and what nobody knows goes the way of `UNSTALE_UNKNOWN`.
    pub left_bound: Vec<String>,
}

impl Session {
    /// Connects, finds or declares the topology, and binds the queues of events to `routing_keys`
    /// and to those of `UNSTALE_BIND`. What the signer has signed is believed.
    ///
    /// # Errors
    /// [`BrokerError`]: [`is_final`](BrokerError::is_final) says whether to try again.
    pub async fn open(
        config: &AmqpConfig,
        routing_keys: &[String],
        signer: &Signer,
        start: Start,
    ) -> Result<Self, BrokerError> {
        Self::open_noting(config, routing_keys, signer, start, &DeletionSeen::default()).await
    }

    /// As [`open`](Self::open); notes in `seen` what had to be declared although it existed before:
    /// events may be in the history alone since. It is noted whatever becomes of the opening, and
    /// later by [`mend`](Self::mend).
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
        // First: a queue that another worker declares at this moment must not look like one that
        // was deleted.
        let history_was_missing = match &history {
            Some(history) => history.is_missing().await,
            None => true,
        };
        let existed = Some(seen).filter(|_| !history_was_missing);
        let ensured =
            topology::ensure(&consume, config, &names, &keys, Depth::Arguments, existed).await;
        let history_ensured = match &history {
            Some(history) => history.ensure(&keys, Depth::Arguments).await,
            None => Ok(Ensured::default()),
        };
        let ensured = all_problems(ensured, &history_ensured, start)?;
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
        let found = Found { declared, history_was_missing, history_is_missing, history_fault };
        Ok(Self {
            config: config.clone(),
            origins: Origins::new(signer, &names),
            names,
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

    /// The broker, by its cluster's name and the virtual host; `None` where it does not tell.
    pub fn broker(&self) -> Option<String> {
        self.consume.broker()
    }

    /// The names of the queues.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// What a person should know, and nothing stops for: the history's retention differs.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether there was neither a main queue nor a history: no event can have arrived before.
    pub fn is_first_ever(&self) -> bool {
        self.main_was_missing() && self.found.history_was_missing
    }

    /// Whether the main queue had to be declared. Where the history existed, events may have gone
    /// to that alone.
    pub fn main_was_missing(&self) -> bool {
        self.found.declared.iter().any(|declared| declared.kind == Kind::Main)
    }

    /// The objects that had to be declared, such as ``queue `unstale` ``.
    pub fn declared(&self) -> Vec<String> {
        in_words(&self.found.declared).collect()
    }

    /// Whether what had to be declared makes a heal due: it existed before, and events may be in
    /// the history alone.
    pub fn owes_heal(&self) -> bool {
        !self.found.history_was_missing
            && self.found.declared.iter().any(|declared| owes_heal(declared.kind, Depth::Arguments))
    }

    /// Whether the history had to be declared, although the main queue existed: what it held before
    /// is gone.
    pub fn has_declared_history_anew(&self) -> bool {
        self.history.is_some()
            && self.found.history_was_missing
            && self.found.history_fault.is_none()
            && !self.main_was_missing()
    }

    /// Returns whether there was no history when the session had begun, and somebody else is to
    /// declare it.
    pub fn history_is_missing(&self) -> bool {
        self.found.history_is_missing
    }

    /// What was noted while it was opened, or by [`mend`](Self::mend), and not taken since.
    pub fn deletion_seen(&self) -> &DeletionSeen {
        &self.seen
    }

    /// Why the history could not be used when the session began.
    pub fn history_fault(&self) -> Option<&str> {
        self.found.history_fault.as_deref()
    }

    /// How many bindings it asks for, for each queue.
    pub fn bindings(&self) -> usize {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Looks whether every object is still there, declares what is missing, and binds the queues
    /// again: what somebody has unbound cannot be seen. Where events may have gone to the history
    /// alone, [`deletion_seen`](Self::deletion_seen) says so, even after an error.
    ///
    /// # Errors
    /// [`BrokerError::Unreachable`]: what ends a session is reported elsewhere too.
    pub async fn mend(&self) -> Result<Mended, BrokerError> {
        let keys: Vec<String> =
            self.bound.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        let mut mended = Mended::default();
        match topology::ensure(
            &self.consume,
            &self.config,
            &self.names,
            &keys,
            Depth::Existence,
            Some(&self.seen),
        )
        .await
        {
            Ok(ensured) => mended.declared.extend(in_words(&ensured.declared)),
            Err(BrokerError::Topology(problems)) => {
                mended.problems = problems.iter().map(ToString::to_string).collect()
            }
            Err(error) => return Err(error),
        }
        if let Some(history) = &self.history {
            match history.ensure(&keys, Depth::Existence).await {
                Ok(ensured) => {
                    mended.has_declared_history = !ensured.declared.is_empty();
                    mended.declared.extend(in_words(&ensured.declared));
                }
                Err(fault) => {
                    mended.history_is_missing = fault.is_missing();
                    mended.history_fault = Some(fault.words());
                }
            }
        }
        Ok(mended)
    }

    /// Binds what a changed registry asks for beside what is bound. Nothing is unbound.
    ///
    /// # Errors
    /// [`BrokerError`], as for [`open`](Self::open).
    pub async fn bind(&self, routing_keys: &[String]) -> Result<Rebound, BrokerError> {
        let wanted: BTreeSet<String> =
            routing_keys.iter().chain(&self.config.bind).cloned().collect();
        let bound = || self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let added: Vec<String> = wanted.difference(&bound()).cloned().collect();
        topology::bind(&self.consume, &self.config, &self.names.main, &added).await?;
        if let Some(history) = &self.history
            && let Err(fault) = history.ensure(&added, Depth::Existence).await
        {
            tracing::warn!(
                cause = fault.words(),
                "the history is not bound to the new routing keys yet"
            );
        }
        bound().extend(added.iter().cloned());
        let left_bound = bound().difference(&wanted).cloned().collect();
        Ok(Rebound { added, left_bound })
    }

    /// A lane, without a consumer yet.
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

    /// A publisher, with a channel to itself.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn publisher(&self) -> Result<Publisher, SessionEnded> {
        Publisher::on(&self.publish, self.blocked.clone(), &self.signal)
            .await
            .map_err(|ended| self.signal.end(ended))
    }

    /// Looks at the lanes' queues, beside all else that goes on.
    pub fn looker(&self) -> Looker<'_> {
        Looker::new(&self.consume, &self.names)
    }

    /// Whether and when it is over, and whether the broker takes messages; outlives the session.
    pub fn watch(&self) -> SessionWatch {
        SessionWatch { ended: self.signal.subscribe(), blocked: self.blocked.clone() }
    }

    /// Says goodbye, so that the acknowledgements made before still take hold; takes 5 s at most.
    pub async fn close(self) {
        let Self { consume, publish, history, signal, kept_open, .. } = self;
        let kept_open = kept_open.into_inner().unwrap_or_else(PoisonError::into_inner);
        if signal.cause().is_none() {
            let take_hold_in = kept_open.iter().map(|(_, recent)| recent.take_hold_in()).max();
            tokio::time::sleep(take_hold_in.unwrap_or_default()).await;
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

/// What keeps a session from beginning, with all that is wrong at once.
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
            // What is missing cannot be bound, and would be reported twice.
            problems
                .extend(more.iter().filter(|problem| problem.object.starts_with("queue")).cloned());
            Err(BrokerError::Topology(problems))
        }
        // Where the main queue existed, events may be waiting: no fault of the history keeps them
        // from being applied.
        (Ok(ensured), Err(HistoryFault::Settings(problems)))
            if start == Start::First
                && ensured.declared.iter().any(|declared| declared.kind == Kind::Main) =>
        {
            Err(BrokerError::Topology(problems.clone()))
        }
        (ensured, _) => ensured,
    }
}

/// Follows a session from elsewhere.
#[derive(Debug, Clone)]
pub struct SessionWatch {
    ended: watch::Receiver<Option<SessionEnded>>,
    blocked: watch::Receiver<bool>,
}

impl SessionWatch {
    /// Waits for the end of the session, and gives its cause.
    pub async fn ended(&mut self) -> SessionEnded {
        let cause = self.ended.wait_for(Option::is_some).await.ok().and_then(|cause| cause.clone());
        cause.unwrap_or_else(|| SessionEnded::new("dropped by us"))
    }

    /// What ended the session first, if anything has.
    pub fn cause(&self) -> Option<SessionEnded> {
        self.ended.borrow().clone()
    }

    /// Whether the broker takes no messages at the moment (a memory or disk alarm): it says so only
    /// to a connection that has published.
    pub fn is_blocked(&self) -> bool {
        *self.blocked.borrow()
    }

    /// Waits until the broker begins or ceases to take messages; true where it takes none. For ever
    /// once the session is over.
    pub async fn blocked_changed(&mut self) -> bool {
        if self.blocked.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        *self.blocked.borrow_and_update()
    }
}

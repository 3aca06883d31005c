//! Two connections and what stands on them, from the first handshake to whatever ends them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use lapin::Channel;
use tokio::sync::watch;

use super::convert::short;
use super::failure::{BrokerError, SessionEnded};
use super::lane::{Lane, LaneName};
use super::link::{EndSignal, Link};
use super::look::Looker;
use super::names::Names;
use super::publisher::Publisher;
use super::recent_acks::RecentAcks;
use super::topology;
use crate::config::AmqpConfig;

/// One connection consumes and acknowledges, the other publishes: a broker that blocks publishers must not freeze acknowledgements.
///
/// Dropped, both are cut at once, and its lanes and publishers are over; [`close`](Session::close) says goodbye first.
#[derive(Debug)]
pub struct Session {
    config: AmqpConfig,
    names: Names,
    bound: Mutex<BTreeSet<String>>,
    warnings: Vec<String>,
    signal: EndSignal,
    blocked: watch::Receiver<bool>,
    consume: Link,
    publish: Arc<Link>,
    /// The lanes' channels. lapin closes a channel with its last handle, and the broker forgets what it had not passed on yet.
    kept_open: Mutex<Vec<(Channel, RecentAcks)>>,
}

/// What [`Session::bind`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebound {
    /// Newly bound.
    pub added: Vec<String>,
    /// Bound earlier in this session, no longer asked for, and left bound: another worker may still need them, and what nobody knows goes the
    /// way of `UNSTALE_UNKNOWN`.
    pub left_bound: Vec<String>,
}

impl Session {
    /// Connects, finds or declares the topology, and binds the queues of events to `routing_keys` and to those of `UNSTALE_BIND`.
    ///
    /// # Errors
    /// [`BrokerError`]: [`is_final`](BrokerError::is_final) says whether to try again.
    pub async fn open(config: &AmqpConfig, routing_keys: &[String]) -> Result<Self, BrokerError> {
        let signal = EndSignal::new();
        let (blocked, blocked_receiver) = watch::channel(false);
        let blocked = Arc::new(blocked);
        let consume = Link::connect(config, "", &signal, &blocked).await?;
        let publish = Arc::new(Link::connect(config, " publish", &signal, &blocked).await?);
        let names = Names::new(&config.queue, &config.retry_delays);
        let bound: BTreeSet<String> = routing_keys.iter().chain(&config.bind).cloned().collect();
        let keys: Vec<String> = bound.iter().cloned().collect();
        let warnings = topology::ensure(&consume, config, &names, &keys).await?;
        Ok(Self {
            config: config.clone(),
            names,
            bound: Mutex::new(bound),
            warnings,
            signal,
            blocked: blocked_receiver,
            consume,
            publish,
            kept_open: Mutex::default(),
        })
    }

    /// The names of the queues.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// What a person should know, and nothing stops for: the history's retention differs.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Binds what a changed registry asks for beside what is bound. Nothing is unbound.
    ///
    /// # Errors
    /// [`BrokerError`], as for [`open`](Self::open).
    pub async fn bind(&self, routing_keys: &[String]) -> Result<Rebound, BrokerError> {
        let wanted: BTreeSet<String> = routing_keys.iter().chain(&self.config.bind).cloned().collect();
        let bound = || self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let added: Vec<String> = wanted.difference(&bound()).cloned().collect();
        topology::bind(&self.consume, &self.config, &self.names, &added).await?;
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
        let queue = short(queue).ok_or_else(|| SessionEnded::new("the queue's name is too long"))?;
        let recent = RecentAcks::default();
        self.kept_open.lock().unwrap_or_else(PoisonError::into_inner).push((channel.clone(), recent.clone()));
        Ok(Lane::new(channel, queue, self.signal.clone(), recent))
    }

    /// A publisher, with a channel to itself.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn publisher(&self) -> Result<Publisher, SessionEnded> {
        Publisher::on(&self.publish, self.blocked.clone(), &self.signal).await.map_err(|ended| self.signal.end(ended))
    }

    /// Looks at the lanes' queues, beside all else that goes on.
    pub fn looker(&self) -> Looker<'_> {
        Looker::new(&self.consume, [&self.names.main, &self.names.slow])
    }

    /// Whether and when it is over, and whether the broker takes messages; outlives the session.
    pub fn watch(&self) -> SessionWatch {
        SessionWatch { ended: self.signal.subscribe(), blocked: self.blocked.clone() }
    }

    /// Says goodbye, so that the acknowledgements made before still take hold; takes 5 s at most.
    pub async fn close(self) {
        let Self { consume, publish, signal, kept_open, .. } = self;
        let kept_open = kept_open.into_inner().unwrap_or_else(PoisonError::into_inner);
        if signal.cause().is_none() {
            let take_hold_in = kept_open.iter().map(|(_, recent)| recent.take_hold_in()).max();
            tokio::time::sleep(take_hold_in.unwrap_or_default()).await;
        }
        if let Some(publish) = Arc::into_inner(publish) {
            publish.close().await;
        }
        consume.close().await;
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

    /// Whether the broker takes no messages at the moment (a memory or disk alarm): it says so only to a connection that has published.
    pub fn is_blocked(&self) -> bool {
        *self.blocked.borrow()
    }

    /// Waits until the broker begins or ceases to take messages; true where it takes none. For ever once the session is over.
    pub async fn blocked_changed(&mut self) -> bool {
        if self.blocked.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        *self.blocked.borrow_and_update()
    }
}

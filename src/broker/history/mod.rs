//! The history: the stream of every event, read from any place to its end at the last survey.
//!
//! In reading order: [`survey`] finds places in it at one node, and [`nodes`] at all of them.
//! [`attach`] begins consumers, and [`behind`] skips what the broker cannot read.
//!
//! This module limits memory: a connection reads only a few bytes ahead, however much the broker
//! sends.
//!
//! Deliberately absent: declaring and binding the stream, which is in `history_object`.

mod attach;
mod behind;
mod failures;
mod nodes;
mod survey;

use std::ops::Range;
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use lapin::options::BasicAckOptions;
use lapin::types::AMQPValue;
use tokio::sync::watch;
use tokio::time::sleep;

use super::convert::Delivery;
use super::failure::{BrokerError, SessionEnded};
use super::link::{EndSignal, Link};
use super::names::Names;
use super::origin::establish_in_history;
use super::prefetch::Prefetch;
use super::throttle::{Allowance, GRANT_INTERVAL};
use crate::config::AmqpConfig;
use attach::{STREAM_OFFSET, has_replica, offset};
use failures::Failures;
pub use survey::{Found, Place, Survey};

/// Maximum number of deliveries in flight, as far as their bodies permit.
///
/// AMQP reads a stream at full speed with some thousands.
const PREFETCH: u16 = 10_000;

/// Maximum number of deliveries in flight before the size of bodies is known.
const FIRST_PREFETCH: u16 = 16;

/// Approximate number of messages in a large chunk.
const CHUNK: u32 = 5_000;

/// Maximum bytes that a connection reads ahead.
const AHEAD_BYTES: u64 = 16 << 20;

/// Maximum bytes that a connection reads ahead if reading may kill the worker.
///
/// The offset on record is then close to what was read.
const CAUTIOUS_AHEAD_BYTES: u64 = 64 << 10;

/// Maximum size of the bodies in one batch, beside the last one.
const BATCH_BYTES: usize = 8 << 20;

/// The history, on a connection of its own that is made when needed. Declares and changes nothing.
#[derive(Debug)]
pub struct History {
    config: AmqpConfig,
    queue: String,
    connected: Option<Connected>,
    /// Next offset to read.
    next: u64,
    /// Offset after the newest one, according to the last survey.
    end: u64,
    prefetch: Prefetch,
    /// True while the caller wants one message at a time.
    is_cautious: bool,
    /// Messages still to read one at a time, because the broker failed.
    cautious_for: u32,
    failures: Failures,
    unreadable: Vec<Range<u64>>,
    /// Node to read at, as an index into the settings: that of the last survey.
    node: usize,
    /// Nodes that did not answer a survey.
    silent: Vec<usize>,
}

/// Connection, with its consumer if it has one.
#[derive(Debug)]
struct Connected {
    /// First field: a drop then shuts the socket before the channels, and nothing is sent about
    /// them.
    link: Link,
    ended: watch::Receiver<Option<SessionEnded>>,
    allowance: Arc<Allowance>,
    reading: Option<attach::Reading>,
}

impl History {
    /// Connects.
    ///
    /// # Errors
    /// [`BrokerError`]; [`survey`](Self::survey) reports a missing history.
    pub async fn connect(config: &AmqpConfig) -> Result<Self, BrokerError> {
        let queue = Names::new(&config.queue, &config.retry_delays).history;
        let mut history = Self {
            config: config.clone(),
            queue,
            connected: None,
            next: 0,
            end: u64::MAX,
            prefetch: Prefetch::new(PREFETCH).starting_at(FIRST_PREFETCH),
            is_cautious: false,
            cautious_for: 0,
            failures: Failures::default(),
            unreadable: Vec::new(),
            node: 0,
            silent: Vec::new(),
        };
        history.reconnect().await?;
        Ok(history)
    }

    /// Connects again; reading continues after the last message given out.
    ///
    /// # Errors
    /// [`BrokerError`], as for [`connect`](Self::connect).
    pub async fn reconnect(&mut self) -> Result<(), BrokerError> {
        self.connected = None;
        self.connected = Some(self.link().await?);
        Ok(())
    }

    /// Connects to the node of the last survey, or else to the first that answers and has a
    /// readable stream.
    async fn link(&self) -> Result<Connected, BrokerError> {
        let mut failures = Vec::new();
        let others = (0..self.config.urls.len()).filter(|node| *node != self.node);
        for node in std::iter::once(self.node).chain(others) {
            match self.link_to(node).await {
                Ok(connected) => return Ok(connected),
                Err(failure) => failures.push(failure),
            }
        }
        Err(worst(failures))
    }

    /// Connects to one node, if the stream is readable there.
    async fn link_to(&self, node: usize) -> Result<Connected, BrokerError> {
        let Some(url) = self.config.urls.get(node) else {
            return Err(BrokerError::Unreachable("no node is named".into()));
        };
        let ahead_bytes = if self.reads_one() { CAUTIOUS_AHEAD_BYTES } else { AHEAD_BYTES };
        let one = AmqpConfig { urls: vec![url.clone()], ..self.config.clone() };
        let signal = EndSignal::new();
        let blocked = Arc::new(watch::Sender::new(false));
        let allowance = Arc::new(Allowance::new(ahead_bytes));
        let link =
            Link::connect_throttled(&one, " history", &signal, &blocked, Some(&allowance)).await?;
        has_replica(&link, &self.queue).await?;
        Ok(Connected { link, ended: signal.subscribe(), allowance, reading: None })
    }

    /// Returns the stream's name.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Continues to read at that offset, or at the oldest newer one.
    pub fn read_from(&mut self, offset: u64) {
        self.next = offset;
        if let Some(connected) = &mut self.connected
            && connected.reading.is_some()
        {
            self.connected = None;
        }
    }

    /// Reads one message at a time from now on if `is_cautious`, else as many as there are.
    ///
    /// The caller is cautious if reading itself may kill the worker.
    pub fn be_cautious(&mut self, is_cautious: bool) {
        let before = self.reads_one();
        self.is_cautious = is_cautious;
        if self.reads_one() != before {
            self.connected = None;
        }
    }

    fn reads_one(&self) -> bool {
        self.is_cautious || self.cautious_for > 0
    }

    /// Stops reading for now.
    ///
    /// Deliveries in flight are dropped and come again. Otherwise the broker would close a
    /// connection to which it cannot send for some seconds.
    pub fn pause(&mut self) {
        self.connected = None;
    }

    /// Returns the skipped offsets that the broker could not read, since the last call.
    pub fn take_unreadable(&mut self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.unreadable)
    }

    /// Waits for a message, and returns it with the others that have arrived, `max` at most, each
    /// with its offset, in order.
    ///
    /// At the end of the stream it waits for more. It returns nothing after it skipped messages
    /// that the broker cannot read. Cancel-safe.
    ///
    /// # Errors
    /// [`BrokerError`]: the connection is over, or the stream is gone.
    pub async fn next_batch(&mut self, max: usize) -> Result<Vec<(u64, Delivery)>, BrokerError> {
        if self.failures.are_many_at(self.next) {
            self.get_behind().await?;
            return Ok(Vec::new());
        }
        let read = self.read_batch(max).await;
        match &read {
            Ok(_) if self.cautious_for > 0 => {
                self.cautious_for -= 1;
                if !self.reads_one() {
                    self.connected = None;
                }
            }
            Ok(_) => {}
            Err(error) => {
                if self.broker_failed(error).await {
                    self.failures.note(self.next);
                    // Messages before the unreadable one may still come, one at a time.
                    self.cautious_for = CHUNK;
                }
                self.connected = None;
            }
        }
        read
    }

    async fn read_batch(&mut self, max: usize) -> Result<Vec<(u64, Delivery)>, BrokerError> {
        let before = self.prefetch.current();
        if let Some(prefetch) = self.prefetch.adapt()
            && let Some(connected) = &mut self.connected
        {
            // A prefetch counts for new consumers only. Large bodies in flight are dropped with the
            // connection.
            connected.reading = None;
            if prefetch < before {
                self.connected = None;
            }
        }
        if self.connected.is_none() {
            self.reconnect().await?;
        }
        let (prefetch, max) =
            if self.reads_one() { (1, 1) } else { (self.prefetch.current(), max) };
        let Some(connected) = &mut self.connected else {
            return Err(BrokerError::Unreachable("no connection".into()));
        };
        let reading = match &mut connected.reading {
            Some(reading) => reading,
            None => {
                let at = AMQPValue::LongLongInt(i64::try_from(self.next).unwrap_or(i64::MAX));
                let reading = attach::attach(&connected.link, &self.queue, prefetch, at).await?;
                connected.reading.insert(reading)
            }
        };
        let mut arrived = reading.consumer.next().now_or_never();
        while arrived.is_none() {
            // A body may be larger than the permitted bytes.
            connected.allowance.took_all();
            tokio::select! {
                biased;
                ended = connected.ended.wait_for(Option::is_some) => return Err(cause(ended.ok().as_deref()).into()),
                first = reading.consumer.next() => arrived = Some(first),
                () = sleep(GRANT_INTERVAL) => {}
            }
        }
        let mut batch: Vec<(u64, Delivery)> = Vec::with_capacity(max.clamp(1, 1_000));
        // Messages that an error drops here come again: only those given out count as read.
        let (mut newest, mut behind, mut bytes) = (0, self.next, 0);
        while let Some(next) = arrived {
            let delivery = next
                .ok_or_else(|| BrokerError::Unreachable(attach::cancelled(&self.queue).into()))?
                .map_err(SessionEnded::from)?;
            newest = delivery.delivery_tag;
            let mut delivery = Delivery::new(0, delivery);
            establish_in_history(&mut delivery);
            let Some(at) = delivery.header(STREAM_OFFSET).and_then(offset) else {
                return Err(attach::not_a_stream(&self.queue));
            };
            behind = at + 1;
            self.prefetch.observe(delivery.body().len());
            connected.allowance.took(delivery.body().len());
            bytes += delivery.body().len();
            batch.push((at, delivery));
            arrived = if batch.len() < max && bytes < BATCH_BYTES {
                reading.consumer.next().now_or_never()
            } else {
                None
            };
        }
        // To a stream, an acknowledgement only makes room for as many more. The first poll queues
        // the frame.
        if let Some(Err(error)) =
            reading.channel.basic_ack(newest, BasicAckOptions { multiple: true }).now_or_never()
        {
            return Err(SessionEnded::from(error).into());
        }
        self.next = behind;
        Ok(batch)
    }

    /// Closes the connection.
    pub async fn close(self) {
        if let Some(connected) = self.connected {
            connected.link.close().await;
        }
    }
}

/// Returns the most informative failure: a refusal explains more than a node that is away.
fn worst(mut failures: Vec<BrokerError>) -> BrokerError {
    let worst = failures.iter().position(BrokerError::is_final).unwrap_or(0);
    if failures.is_empty() {
        BrokerError::Unreachable("no node is named".into())
    } else {
        failures.swap_remove(worst)
    }
}

fn cause(ended: Option<&Option<SessionEnded>>) -> SessionEnded {
    ended.cloned().flatten().unwrap_or_else(|| SessionEnded::new("dropped by us"))
}

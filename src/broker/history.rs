//! The history: the stream of every event, read from any place to where it ended when somebody looked.
//!
//! What a stream over AMQP 0-9-1 does not tell: how much it holds, where it ends, when a message came. So places are found by attaching consumers
//! and looking at the first offset that each is given; the end, by attaching to the last chunk, which the broker sends whole.

use std::time::Duration;

use futures_util::future::{try_join, try_join_all};
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use lapin::options::{BasicAckOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::consume::consume;
use super::convert::{Delivery, long, short};
use super::failure::{BrokerError, Refusal, SessionEnded, TopologyProblem};
use super::link::{ANSWER_TIMEOUT, EndSignal, Link, answered};
use super::names::Names;
use super::prefetch::Prefetch;
use crate::config::AmqpConfig;

/// The consumer's argument that says where to attach, and the header of each delivery that says where it stands.
const STREAM_OFFSET: &str = "x-stream-offset";

/// Deliveries under way at once, as far as their bodies allow: a stream over AMQP is read at full speed with some thousands.
const PREFETCH: u16 = 10_000;

/// A chunk has at most so many messages (osiris keeps their number in 16 bits), and the last one is to come whole.
const CHUNK_MAX: u16 = u16::MAX;

/// How often, and how far apart, the broker is asked whether it has sent anything of the last chunk, before the stream counts as empty.
const EMPTY_ROUNDS: u32 = 20;
const EMPTY_INTERVAL: Duration = Duration::from_millis(100);

/// For what was asked for before the last chunk, and comes after it: each comes on a channel of its own.
const LATE: Duration = Duration::from_secs(2);

/// A place in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The message of that offset.
    Offset(u64),
    /// The first message of the first chunk that the broker wrote then or later, to the second.
    Time(Timestamp),
}

/// What the history holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The oldest offset there is.
    pub first: u64,
    /// Behind the newest offset there is: equal to `first` where there is none.
    pub end: u64,
    /// The offsets of the places asked for, in order, between `first` and `end`.
    pub places: Vec<u64>,
}

impl Survey {
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.first == self.end
    }
}

/// The history, on a connection of its own. Declares nothing and changes nothing.
#[derive(Debug)]
pub struct History {
    /// Before the channels: dropped, the socket is shut first, and nothing is said about them.
    link: Link,
    ended: watch::Receiver<Option<SessionEnded>>,
    config: AmqpConfig,
    queue: String,
    reading: Option<Reading>,
    /// The offset to be read next.
    next: u64,
    prefetch: Prefetch,
}

/// A consumer that stands.
#[derive(Debug)]
struct Reading {
    channel: Channel,
    consumer: Consumer,
}

impl History {
    /// Connects.
    ///
    /// # Errors
    /// [`BrokerError`]; that there is no history is told by [`survey`](Self::survey).
    pub async fn connect(config: &AmqpConfig) -> Result<Self, BrokerError> {
        let queue = Names::new(&config.queue, &config.retry_delays).history;
        let (link, ended) = Self::link(config, &queue).await?;
        Ok(Self { link, ended, config: config.clone(), queue, reading: None, next: 0, prefetch: Prefetch::new(PREFETCH) })
    }

    /// To the first node that answers and lets the stream be read.
    async fn link(config: &AmqpConfig, queue: &str) -> Result<(Link, watch::Receiver<Option<SessionEnded>>), BrokerError> {
        let mut failures = Vec::new();
        for url in &config.urls {
            let one = AmqpConfig { urls: vec![url.clone()], ..config.clone() };
            let signal = EndSignal::new();
            let blocked = std::sync::Arc::new(watch::Sender::new(false));
            let linked = async {
                let link = Link::connect(&one, " history", &signal, &blocked).await?;
                has_replica(&link, queue).await?;
                Ok((link, signal.subscribe()))
            };
            match linked.await {
                Ok(linked) => return Ok(linked),
                Err(failure) => failures.push(failure),
            }
        }
        // A refusal says more than a node that is away.
        let worst = failures.iter().position(BrokerError::is_final).unwrap_or(0);
        Err(if failures.is_empty() { BrokerError::Unreachable("no node is named".into()) } else { failures.swap_remove(worst) })
    }

    /// A new connection for one that is over: reading goes on behind what was given out.
    ///
    /// # Errors
    /// [`BrokerError`], as for [`connect`](Self::connect).
    pub async fn reconnect(&mut self) -> Result<(), BrokerError> {
        self.reading = None;
        (self.link, self.ended) = Self::link(&self.config, &self.queue).await?;
        Ok(())
    }

    /// The stream's name.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Finds out what the stream holds, and where the places are in it: those before its beginning at `first`, those behind its end at `end`.
    ///
    /// # Errors
    /// [`BrokerError`]: also when there is no such stream.
    pub async fn survey(&self, places: &[Place]) -> Result<Survey, BrokerError> {
        let attached = places.iter().map(async |place| match place {
            Place::Offset(_) => Ok(None),
            Place::Time(time) => self.attach(1, AMQPValue::Timestamp(unix_s(*time))).await.map(Some),
        });
        let (mut first, mut at_times) = try_join(self.attach(1, long("first")), try_join_all(attached)).await?;
        // The last chunk is asked for last: once it comes, the others have what there is for them.
        let mut last = self.attach(CHUNK_MAX, long("last")).await?;
        let Some(newest) = self.newest(&mut last).await? else {
            return Ok(Survey { first: 0, end: 0, places: vec![0; places.len()] });
        };
        let end = newest + 1;
        let (mut oldest, mut given) = (None, vec![None; places.len()]);
        let deadline = Instant::now() + LATE;
        loop {
            oldest = oldest.or(self.given(&mut first.consumer)?);
            for ((place, reading), given) in places.iter().zip(&mut at_times).zip(&mut given) {
                match (place, reading) {
                    (Place::Offset(offset), _) => *given = Some(*offset),
                    (Place::Time(_), Some(reading)) if given.is_none() => *given = self.given(&mut reading.consumer)?,
                    (Place::Time(_), _) => {}
                }
            }
            // A time behind the last chunk is given nothing, and to take a late answer for that would leave events out.
            if oldest.is_some() && (given.iter().all(Option::is_some) || Instant::now() >= deadline) {
                break;
            }
            if Instant::now() >= deadline + ANSWER_TIMEOUT {
                return Err(BrokerError::Unreachable(format!(
                    "the history's first message did not come within {} s",
                    ANSWER_TIMEOUT.as_secs()
                )));
            }
            sleep(LATE / 40).await;
        }
        let first = oldest.unwrap_or(newest);
        let found = given.into_iter().map(|offset: Option<u64>| offset.unwrap_or(end).clamp(first, end)).collect();
        Ok(Survey { first, end, places: found })
    }

    /// Returns an offset close before the end: that of the last chunk's first message. `None` where
    /// nothing comes in time, such as from an empty stream.
    ///
    /// # Errors
    /// [`BrokerError`]: also when there is no such stream.
    pub async fn last_chunk(&self) -> Result<Option<u64>, BrokerError> {
        let mut last = self.attach(1, long("last")).await?;
        let deadline = Instant::now() + LATE;
        loop {
            match self.given(&mut last.consumer)? {
                None if Instant::now() < deadline => sleep(LATE / 40).await,
                given => return Ok(given),
            }
        }
    }

    /// The newest offset, by a consumer attached to the last chunk.
    async fn newest(&self, last: &mut Reading) -> Result<Option<u64>, BrokerError> {
        let mut newest = None;
        for round in 0.. {
            // The broker answers behind all that it has sent: a chunk is sent in one go, so two rounds after its first message all of it is here.
            for _ in 0..2 {
                answered(last.channel.basic_qos(1, BasicQosOptions { global: false })).await?;
            }
            let seen = newest;
            while let Some(offset) = self.given(&mut last.consumer)? {
                newest = newest.max(Some(offset));
            }
            if (newest.is_some() && seen.is_some()) || round > EMPTY_ROUNDS {
                break;
            }
            if newest.is_none() {
                sleep(EMPTY_INTERVAL).await;
            }
        }
        Ok(newest)
    }

    /// The offset of the next delivery, where one has arrived.
    fn given(&self, consumer: &mut Consumer) -> Result<Option<u64>, BrokerError> {
        match consumer.next().now_or_never() {
            None => Ok(None),
            Some(Some(Ok(delivery))) => {
                let offset = delivery.properties.headers().as_ref().and_then(|headers| headers.inner().get(STREAM_OFFSET)).and_then(offset);
                offset.map(Some).ok_or_else(|| not_a_stream(&self.queue))
            }
            Some(Some(Err(error))) => Err(self.refused(&error)),
            Some(None) => Err(BrokerError::Unreachable(cancelled(&self.queue))),
        }
    }

    /// A consumer on a channel of its own: where another one of the stream stands on the same channel, RabbitMQ may send the new one's messages before
    /// it says that there is such a consumer (3.10: the one waits in the channel's mailbox behind the other), and they reach nobody.
    async fn attach(&self, prefetch: u16, offset: AMQPValue) -> Result<Reading, BrokerError> {
        let queue = self.short_name()?;
        let channel = self.link.channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert(STREAM_OFFSET.into(), offset);
        let started = timeout(ANSWER_TIMEOUT, consume(&channel, 1, queue, prefetch, arguments)).await;
        let consumer = started
            .map_err(|_| BrokerError::Unreachable(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))?
            .map_err(|error| self.refused(&error))?;
        Ok(Reading { channel, consumer })
    }

    fn short_name(&self) -> Result<ShortString, BrokerError> {
        short(&self.queue).ok_or_else(|| BrokerError::Settings(format!("UNSTALE_QUEUE makes a name that is too long: {}", self.queue)))
    }

    /// Reads on from that offset, or from the oldest one that is newer.
    pub fn read_from(&mut self, offset: u64) {
        self.reading = None;
        self.next = offset;
    }

    /// Reads no further, for now: what is under way is thrown away, and comes again.
    pub fn pause(&mut self) {
        self.reading = None;
    }

    /// Waits for a message, and gives it with what else has arrived, `max` at most, each with its offset, in order. At the end of the stream
    /// it waits for more. Cancel-safe.
    ///
    /// # Errors
    /// [`BrokerError`]: the connection is over, or the stream is gone.
    pub async fn next_batch(&mut self, max: usize) -> Result<Vec<(u64, Delivery)>, BrokerError> {
        if self.prefetch.adapt().is_some() {
            // A prefetch counts for new consumers only.
            self.reading = None;
        }
        let reading = match &mut self.reading {
            Some(reading) => reading,
            None => {
                let at = AMQPValue::LongLongInt(i64::try_from(self.next).unwrap_or(i64::MAX));
                let reading = self.attach(self.prefetch.current(), at).await?;
                self.reading.insert(reading)
            }
        };
        let first = tokio::select! {
            biased;
            ended = self.ended.wait_for(Option::is_some) => return Err(cause(ended.ok().as_deref()).into()),
            first = reading.consumer.next() => first,
        };
        let mut batch: Vec<(u64, Delivery)> = Vec::with_capacity(max.clamp(1, 1_000));
        let mut arrived = Some(first);
        // What an error leaves behind here comes again: only what is given out counts as read.
        let (mut newest, mut behind) = (0, self.next);
        while let Some(next) = arrived {
            let delivery = next.ok_or_else(|| BrokerError::Unreachable(cancelled(&self.queue)))?.map_err(SessionEnded::from)?;
            newest = delivery.delivery_tag;
            let delivery = Delivery::new(0, delivery);
            let Some(at) = delivery.header(STREAM_OFFSET).and_then(offset) else {
                return Err(not_a_stream(&self.queue));
            };
            behind = at + 1;
            self.prefetch.observe(delivery.body().len());
            batch.push((at, delivery));
            arrived = if batch.len() < max { reading.consumer.next().now_or_never() } else { None };
        }
        // To a stream an acknowledgement is but the room for as many more. The first poll queues the frame.
        if let Some(Err(error)) = reading.channel.basic_ack(newest, BasicAckOptions { multiple: true }).now_or_never() {
            return Err(SessionEnded::from(error).into());
        }
        self.next = behind;
        Ok(batch)
    }

    /// Says goodbye.
    pub async fn close(self) {
        self.link.close().await;
    }

    fn refused(&self, error: &lapin::Error) -> BrokerError {
        match Refusal::from(error) {
            Refusal::Missing(words) => problem(
                &self.queue,
                &words,
                "workers declare it when they start, unless UNSTALE_HISTORY=off (which brokers without streams need): without it there is \
                 nothing to replay. Look at UNSTALE_QUEUE and at the virtual host in UNSTALE_AMQP_URL",
            ),
            Refusal::Forbidden(words) => problem(&self.queue, &words, "the user needs the permission `read` on it"),
            Refusal::Differs(words) if words.contains(STREAM_OFFSET) => not_a_stream(&self.queue),
            // On a cluster: the node has no replica, or not yet. Another node of the list may have one.
            Refusal::Differs(words) | Refusal::Unsupported(words) | Refusal::Passing(words) => BrokerError::Unreachable(words),
        }
    }
}

/// A stream can be read at nodes alone that have a replica of it. What else is wrong with it is told by whoever reads.
async fn has_replica(link: &Link, queue: &str) -> Result<(), BrokerError> {
    let Some(name) = short(queue) else { return Ok(()) };
    let channel = link.channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert(STREAM_OFFSET.into(), long("next"));
    let started = timeout(ANSWER_TIMEOUT, consume(&channel, 1, name, 1, arguments)).await;
    match started.map_err(|_| BrokerError::Unreachable(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))? {
        // A refusal to close is no news.
        Ok(_) => drop(answered(channel.close(200, "bye".into())).await),
        Err(error) => match Refusal::from(&error) {
            Refusal::Differs(words) if words.contains("replica") => {
                return Err(BrokerError::Unreachable(format!(
                    "{words}: name a node that has one in UNSTALE_AMQP_URL, or give this one a replica (rabbitmq-streams add_replica)"
                )));
            }
            _ => {}
        },
    }
    Ok(())
}

fn problem(queue: &str, what: &str, advice: &str) -> BrokerError {
    let object = format!("stream `{queue}`");
    BrokerError::Topology(vec![TopologyProblem { object, what: what.to_owned(), advice: advice.to_owned() }])
}

fn not_a_stream(queue: &str) -> BrokerError {
    problem(queue, "a queue of another type has that name", "move its messages and delete it by hand, or set UNSTALE_QUEUE to another name")
}

fn cause(ended: Option<&Option<SessionEnded>>) -> SessionEnded {
    ended.cloned().flatten().unwrap_or_else(|| SessionEnded::new("dropped by us"))
}

fn cancelled(queue: &str) -> String {
    format!("the broker cancelled the consumer of `{queue}`: the stream was deleted or has moved")
}

fn offset(value: &AMQPValue) -> Option<u64> {
    match value {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        AMQPValue::LongInt(offset) => u64::try_from(*offset).ok(),
        AMQPValue::LongUInt(offset) => Some(u64::from(*offset)),
        _ => None,
    }
}

/// Whole seconds, as AMQP counts them: an integer would be taken for an offset.
fn unix_s(time: Timestamp) -> u64 {
    u64::try_from(time.as_second()).unwrap_or(0)
}

//! The dead-letter queue, looked through: every letter is delivered, few or none are acknowledged,
//! the others go back in their order.
//!
//! What the obvious way loses: a prefetch of 0 delivers 2,000 letters, a prefetch has 16 bits, a
//! nack of many scrambles them. So: channels of up to 50,000, one filled after the other; at the
//! end all consumers are cancelled first, then the channels are closed in order of their opening,
//! each once the letters of the one before it are back.
//!
//! Letters may have bodies of megabytes. So the connection reads only [`AHEAD_BYTES`] ahead of its
//! reader, and the next channel takes as many letters as are likely to fit into that.

mod channels;
mod death;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

pub use death::Death;

use super::consume::consume;
use super::convert::{Delivery, short};
use super::failure::{BrokerError, GRANT, Refusal, SessionEnded, TopologyProblem};
use super::lane::Tag;
use super::link::{ANSWER_TIMEOUT, EndSignal, Link, answered};
use super::names::Names;
use super::origin::Origins;
use super::permitted::refused_read;
use super::signature::Signer;
use super::throttle::{Allowance, GRANT_INTERVAL};
use crate::config::AmqpConfig;
use channels::Sizes;

/// Letters held by one channel: the prefetch has 16 bits.
const CHANNEL_MAX: u16 = 50_000;

/// Bytes that the connection reads ahead of its reader, beside one letter.
const AHEAD_BYTES: u64 = 8 << 20;

/// Nothing came for so long: are there any left? Somebody else may have taken them. A busy broker
/// takes seconds to send the first of 50,000, and meanwhile none of them counts as ready.
const QUIET: Duration = Duration::from_secs(10);

/// As [`QUIET`], for a retry queue: what is counted there may have gone on.
const RETRY_QUIET: Duration = Duration::from_secs(1);

/// How long a queue may go without getting more of a closed channel's letters back, and how often
/// it is asked.
const RETURN_TIMEOUT: Duration = Duration::from_secs(10);
const RETURN_INTERVAL: Duration = Duration::from_millis(5);

/// A letter, read as it was at first arrival where the broker put it there itself.
#[derive(Debug)]
pub struct DeadLetter {
    /// The message; a publisher's has the exchange and the routing key that it first came with.
    pub delivery: Delivery,
    /// What the broker says of it, where it was the broker that dead-lettered it.
    pub death: Option<Death>,
}

/// A look through the dead-letter queue. While it lasts nobody else sees what it has read; dropped,
/// all of it goes back.
#[derive(Debug)]
pub struct DeadLetters {
    /// Before the channels: dropped, the socket is shut first, and nothing is said about them.
    link: Link,
    allowance: Arc<Allowance>,
    ended: watch::Receiver<Option<SessionEnded>>,
    names: Names,
    /// The queue that is looked through.
    queue: String,
    quiet: Duration,
    origins: Origins,
    readings: Vec<Reading>,
    sizes: Sizes,
    total: u32,
    left: u32,
    most_looks: u64,
    channel_max: u16,
}

/// A channel and what it holds.
#[derive(Debug)]
struct Reading {
    channel: Channel,
    /// `None` once it is cancelled.
    consumer: Option<Consumer>,
    prefetch: usize,
    /// Given out and not acknowledged.
    held: usize,
}

impl DeadLetters {
    /// Connects, and counts what stands in the dead-letter queue: what comes later is not looked
    /// at. Declares nothing. The signer tells which letters a worker has written.
    ///
    /// # Errors
    /// [`BrokerError`]: also when there is no such queue.
    pub async fn connect(config: &AmqpConfig, signer: &Signer) -> Result<Self, BrokerError> {
        let dead = Names::new(&config.queue, &config.retry_delays).dead;
        Self::connect_to(&dead, QUIET, config, signer)
            .await?
            .map_err(|refusal| explained(&dead, refusal))
    }

    /// As [`connect`](Self::connect), to a retry queue: what goes on to its next attempt meanwhile
    /// is passed over. `None` where there is no such queue.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn connect_to_retry(
        queue: &str,
        config: &AmqpConfig,
        signer: &Signer,
    ) -> Result<Option<Self>, BrokerError> {
        match Self::connect_to(queue, RETRY_QUIET, config, signer).await? {
            Ok(connected) => Ok(Some(connected)),
            Err(Refusal::Missing(_)) => Ok(None),
            Err(refusal) => Err(explained(queue, refusal)),
        }
    }

    async fn connect_to(
        queue: &str,
        quiet: Duration,
        config: &AmqpConfig,
        signer: &Signer,
    ) -> Result<Result<Self, Refusal>, BrokerError> {
        let signal = EndSignal::new();
        let blocked = Arc::new(watch::Sender::new(false));
        let allowance = Arc::new(Allowance::new(AHEAD_BYTES));
        let link =
            Link::connect_throttled(config, " dlq", &signal, &blocked, Some(&allowance)).await?;
        let names = Names::new(&config.queue, &config.retry_delays);
        let total = match count_or_refusal(&link, queue).await? {
            Ok(total) => total,
            Err(refusal) => return Ok(Err(refusal)),
        };
        // RabbitMQ before 4.2.6 counts the messages of a queue for users who may not read it.
        if let Some(problem) = refused_read(&link, queue).await? {
            return Err(BrokerError::Topology(vec![problem]));
        }
        let origins = Origins::new(signer, &names);
        Ok(Ok(Self {
            link,
            allowance,
            ended: signal.subscribe(),
            names,
            queue: queue.to_owned(),
            quiet,
            origins,
            readings: Vec::new(),
            sizes: Sizes::default(),
            total,
            left: total,
            most_looks: 0,
            channel_max: CHANNEL_MAX,
        }))
    }

    /// With fewer letters to a channel than the protocol allows: more channels for the same queue.
    #[must_use]
    pub fn with_channel_max(mut self, letters: std::num::NonZeroU16) -> Self {
        self.channel_max = letters.get().min(CHANNEL_MAX);
        self
    }

    /// How many letters there were at first.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Returns what signs copies of these letters.
    pub fn signer(&self) -> &Signer {
        self.origins.signer()
    }

    /// Returns how often the letter that was looked at most had been looked at before: each look
    /// counts as a failed delivery.
    pub fn most_looks(&self) -> u64 {
        self.most_looks
    }

    /// Returns the name of the queue that is looked through.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The names of the queues.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Looks whether the queue of events is there to replay to. RabbitMQ 4.2.6 and later need a
    /// permission for such a look; without it, publishing shows it.
    ///
    /// # Errors
    /// [`BrokerError`]: when it is not there.
    pub async fn find_main(&self) -> Result<(), BrokerError> {
        match self.allowance.granting(count_or_refusal(&self.link, &self.names.main)).await? {
            Err(Refusal::Forbidden(_)) => Ok(()),
            Err(refusal) => Err(explained(&self.names.main, refusal)),
            Ok(_) => Ok(()),
        }
    }

    /// Returns how many messages wait for workers: in the queue of events and in that of the slow
    /// lane.
    ///
    /// # Errors
    /// [`BrokerError`]: also when they may not be looked at.
    pub async fn waiting_for_workers(&self) -> Result<u32, BrokerError> {
        let main = self.allowance.granting(count(&self.link, &self.names.main)).await?;
        let slow = self.allowance.granting(count(&self.link, &self.names.slow)).await?;
        Ok(main.saturating_add(slow))
    }

    /// The next letters in the queue's order, `max` at most; none at the end. Letters that
    /// [`take`](Self::take) has not taken by the next call are held until [`close`](Self::close).
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn next_batch(&mut self, max: usize) -> Result<Vec<DeadLetter>, SessionEnded> {
        let mut batch = Vec::new();
        while batch.len() < max && self.left > 0 {
            // A channel is full only once everything of it that was to be taken is: so no later
            // letter ever comes to an earlier channel.
            if self.readings.last().is_none_or(|reading| reading.held >= reading.prefetch) {
                if !batch.is_empty() {
                    break;
                }
                self.open().await?;
            }
            let epoch = self.readings.len() as u64 - 1;
            let Some(Reading { consumer: Some(consumer), held, .. }) = self.readings.last_mut()
            else {
                break;
            };
            let mut next = consumer.next().now_or_never();
            // More is granted only where nothing has arrived, and only for the first of a batch:
            // the batch then is no larger than what may be read ahead, beside one letter.
            if next.is_none() && !batch.is_empty() {
                break;
            }
            let quiet = sleep(self.quiet);
            tokio::pin!(quiet);
            while next.is_none() && !quiet.is_elapsed() {
                self.allowance.took_all();
                tokio::select! {
                    biased;
                    ended = self.ended.wait_for(Option::is_some) => {
                        return Err(ended.ok().and_then(|cause| cause.clone()).unwrap_or_else(|| SessionEnded::new("dropped by us")));
                    }
                    first = consumer.next() => next = Some(first),
                    () = &mut quiet => {}
                    () = sleep(GRANT_INTERVAL) => {}
                }
            }
            let Some(next) = next else {
                if self.ready().await? == 0 {
                    self.left = 0;
                }
                continue;
            };
            let delivery = next.ok_or_else(|| {
                SessionEnded::new(
                    "the broker cancelled the consumer: the queue was deleted or has moved",
                )
            })??;
            *held += 1;
            self.left -= 1;
            self.sizes.came();
            let mut delivery = Delivery::new(epoch, delivery);
            self.origins.establish(&mut delivery);
            self.most_looks = self.most_looks.max(delivery.delivery_count());
            batch.push(death::read(delivery, &self.names));
        }
        if batch.is_empty() {
            // What comes later is not looked at, and needs no room.
            self.cancel().await?;
        }
        Ok(batch)
    }

    async fn open(&mut self) -> Result<(), SessionEnded> {
        let prefetch = self.sizes.next(self.allowance.read_bytes(), self.left, self.channel_max);
        let channel = self.allowance.granting(self.link.channel()).await?;
        let queue =
            short(&self.queue).ok_or_else(|| SessionEnded::new("the queue's name is too long"))?;
        let consuming = answered(consume(&channel, 1, queue, prefetch, FieldTable::default()));
        let consumer = Some(self.allowance.granting(consuming).await?);
        self.readings.push(Reading { channel, consumer, prefetch: usize::from(prefetch), held: 0 });
        Ok(())
    }

    async fn ready(&self) -> Result<u32, SessionEnded> {
        self.allowance.granting(ready(&self.link, &self.queue)).await
    }

    /// Takes letters out of the queue for good; waits until the broker has read that, unless so
    /// much is on its way that the answer would come behind it.
    ///
    /// # Errors
    /// When the connection is over: then some of them may come back.
    pub async fn take(&mut self, tags: &[Tag]) -> Result<(), SessionEnded> {
        for (epoch, reading) in (0_u64..).zip(&mut self.readings) {
            let mut numbers: Vec<u64> =
                tags.iter().filter(|tag| tag.epoch == epoch).map(|tag| tag.number).collect();
            let taken = numbers.len();
            if taken == reading.held {
                // One for all.
                numbers = numbers.into_iter().max().into_iter().collect();
            }
            let multiple = taken == reading.held;
            let acks = numbers
                .into_iter()
                .map(|number| reading.channel.basic_ack(number, BasicAckOptions { multiple }));
            answered(try_join_all(acks)).await?;
            if taken > 0 {
                // Its answer comes behind the acknowledgements. Without it, those of several
                // batches are on their way when the program is killed.
                let prefetch = u16::try_from(reading.prefetch).unwrap_or(u16::MAX);
                let asked = reading.channel.basic_qos(prefetch, BasicQosOptions::default());
                self.allowance.within(answered(asked)).await.transpose()?;
            }
            reading.held -= taken;
        }
        Ok(())
    }

    /// Gives back what was not taken, in its order, and waits until it is back.
    ///
    /// # Errors
    /// When the connection is over before that: then everything goes back as well, in whatever
    /// order the broker likes.
    pub async fn close(mut self) -> Result<(), SessionEnded> {
        self.give_back().await?;
        self.link.close().await;
        Ok(())
    }

    /// Gives back what was not taken, as [`close`](Self::close) does, and begins the look anew.
    /// Tags of before are not valid any more.
    ///
    /// # Errors
    /// As of [`close`](Self::close).
    pub async fn rewind(&mut self) -> Result<(), SessionEnded> {
        self.give_back().await?;
        self.total = self.ready().await?;
        self.left = self.total;
        Ok(())
    }

    /// Ends all consumers. What is on its way is held until its channel is closed.
    async fn cancel(&mut self) -> Result<(), SessionEnded> {
        for reading in &mut self.readings {
            let Some(mut consumer) = reading.consumer.take() else { continue };
            let tag = consumer.tag();
            let cancelled =
                answered(reading.channel.basic_cancel(tag, BasicCancelOptions::default()));
            // lapin ends the stream when the broker has confirmed, behind everything that came
            // before. Read meanwhile, that takes no room.
            let drained = async {
                while let Some(unread) = consumer.next().await {
                    unread?;
                    reading.held += 1;
                }
                Ok(())
            };
            self.allowance.granting(async { tokio::try_join!(cancelled, drained) }).await?;
        }
        Ok(())
    }

    async fn give_back(&mut self) -> Result<(), SessionEnded> {
        self.cancel().await?;
        let readings = std::mem::take(&mut self.readings);
        self.sizes = Sizes::default();
        // From here on nothing large is on its way.
        let mut back = self.ready().await?;
        let mut patient = true;
        for reading in &readings {
            // Thousands of letters go back: that takes its time.
            let closed = reading.channel.close(200, "bye".into());
            timeout(ANSWER_TIMEOUT, self.allowance.granting(closed))
                .await
                .map_err(|_| SessionEnded::new("no answer to the closing of a channel"))??;
            // The broker answers before the queue has heard of it, and the queue hears of two
            // channels in any order.
            back = back.saturating_add(u32::try_from(reading.held).unwrap_or(u32::MAX));
            patient = patient && self.has_back(back).await?;
        }
        Ok(())
    }

    /// Waits until so many are ready, for as long as they become more. Says whether they are:
    /// somebody else may have taken some.
    async fn has_back(&self, letters: u32) -> Result<bool, SessionEnded> {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            let ready = self.ready().await?;
            if ready >= letters {
                return Ok(true);
            }
            if ready > seen {
                (seen, since) = (ready, Instant::now());
            } else if since.elapsed() > RETURN_TIMEOUT {
                return Ok(false);
            }
            sleep(RETURN_INTERVAL).await;
        }
    }
}

async fn ready(link: &Link, queue: &str) -> Result<u32, SessionEnded> {
    count(link, queue).await.map_err(|error| SessionEnded::new(error.to_string()))
}

/// How many messages a queue holds; refused by name where there is none.
async fn count(link: &Link, queue: &str) -> Result<u32, BrokerError> {
    count_or_refusal(link, queue).await?.map_err(|refusal| explained(queue, refusal))
}

async fn count_or_refusal(link: &Link, queue: &str) -> Result<Result<u32, Refusal>, BrokerError> {
    let name = short(queue).ok_or_else(|| {
        BrokerError::Settings(format!("UNSTALE_QUEUE makes a name that is too long: {queue}"))
    })?;
    let channel = link.channel().await?;
    let options =
        QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    let asked =
        timeout(ANSWER_TIMEOUT, channel.queue_declare(name, options, FieldTable::default())).await;
    let declared = asked.map_err(|_| {
        BrokerError::Unreachable(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))
    })?;
    match declared {
        Ok(declared) => {
            let count = declared.message_count();
            answered(channel.close(200, "bye".into())).await?;
            Ok(Ok(count))
        }
        Err(error) => Ok(Err(Refusal::from(&error))),
    }
}

fn explained(queue: &str, refusal: Refusal) -> BrokerError {
    let problem = |what: String, advice: &str| {
        BrokerError::Topology(vec![TopologyProblem {
            object: format!("queue `{queue}`"),
            what,
            advice: advice.to_owned(),
        }])
    };
    match refusal {
        Refusal::Missing(words) => problem(
            words,
            "workers declare it when they start: start one with `unstale run`, or look at UNSTALE_QUEUE and at the virtual host in UNSTALE_AMQP_URL",
        ),
        Refusal::Forbidden(words) => problem(words, GRANT),
        Refusal::Differs(words) => problem(words, "somebody holds it for himself"),
        Refusal::Unsupported(words) | Refusal::Passing(words) => BrokerError::Unreachable(words),
    }
}

//! Reading of the dead-letter queue.
//!
//! The reader takes delivery of every dead letter, acknowledges few or none, and requeues the
//! others in their order.
//!
//! The obvious ways lose the order or the letters:
//! - A prefetch of 0 delivers 2,000 letters.
//! - A prefetch has 16 bits.
//! - A nack of many letters scrambles them.
//!
//! So the reader fills channels of up to 50,000 letters, one after the other. At the end it cancels
//! all consumers first. Then it closes the channels in the order of their opening, each once the
//! letters of the previous one are back.
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

pub use death::{DeadLetter, Death};

use super::consume::consume;
use super::convert::{Delivery, short};
use super::failure::{BrokerError, ContractObject, GRANT, SessionEnded, TopologyProblem};
use super::link::{ANSWER_TIMEOUT, EndSignal, Link, answered, no_answer};
use super::names::Names;
use super::origin::Origins;
use super::permitted::refused_read;
use super::refusal::{AmqpError, Refusal};
use super::signature::Signer;
use super::tag::Tag;
use super::throttle::{Allowance, GRANT_INTERVAL};
use crate::causes::Cause;
use crate::config::AmqpConfig;
use channels::{AHEAD_BYTES, Sizes};

/// Maximum number of letters held by one channel: the prefetch has 16 bits.
const CHANNEL_MAX: u16 = 50_000;

/// Time without a delivery after which the reader checks if any letters are left.
///
/// Another program may have taken them. A busy broker takes seconds to send the first of 50,000,
/// and none of them counts as ready until then.
const QUIET: Duration = Duration::from_secs(10);

/// Same as [`QUIET`], for a retry queue, whose messages may have moved on.
const RETRY_QUIET: Duration = Duration::from_secs(1);

/// Maximum time without progress until a closed channel's letters are back, and the time between
/// two checks.
const RETURN_TIMEOUT: Duration = Duration::from_secs(10);
const RETURN_INTERVAL: Duration = Duration::from_millis(5);

/// Reader of the dead-letter queue.
///
/// Until it ends, no other program sees the letters that it has read. Dropping it requeues all of
/// them.
#[derive(Debug)]
pub struct DeadLetters {
    /// First field: a drop then shuts the socket before the channels, and nothing is sent about
    /// them.
    link: Link,
    allowance: Arc<Allowance>,
    ended: watch::Receiver<Option<SessionEnded>>,
    names: Names,
    /// Queue that is read.
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

/// Channel and the letters that it holds.
#[derive(Debug)]
struct Reading {
    channel: Channel,
    /// `None` once it is cancelled.
    consumer: Option<Consumer>,
    prefetch: usize,
    /// Letters given out and not acknowledged.
    held: usize,
}

impl DeadLetters {
    /// Connects, and counts the letters in the dead-letter queue. Later letters are not read.
    ///
    /// Declares nothing. The signer decides which letters a worker has written.
    ///
    /// # Errors
    /// [`BrokerError`]: also when there is no such queue.
    pub async fn connect(config: &AmqpConfig, signer: &Signer) -> Result<Self, BrokerError> {
        let dead = Names::new(&config.queue, &config.retry_delays).dead;
        Self::connect_to(&dead, QUIET, config, signer)
            .await?
            .map_err(|refusal| explained(&dead, refusal))
    }

    /// Connects as [`connect`](Self::connect) does, to a retry queue; `None` if there is no such
    /// queue.
    ///
    /// The reader skips messages that move on to their next attempt meanwhile.
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
        // Before 4.2.6, RabbitMQ counts a queue's messages even for users who may not read it.
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

    /// Limits the letters per channel below the protocol's maximum, so that one queue needs more
    /// channels.
    #[must_use]
    pub fn with_channel_max(mut self, letters: std::num::NonZeroU16) -> Self {
        self.channel_max = letters.get().min(CHANNEL_MAX);
        self
    }

    /// Returns the number of letters at the start.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Returns the signer for messages republished from these letters.
    pub fn signer(&self) -> &Signer {
        self.origins.signer()
    }

    /// Returns the highest number of earlier looks at one letter.
    ///
    /// Each look counts as a failed delivery.
    pub fn most_looks(&self) -> u64 {
        self.most_looks
    }

    /// Returns the name of the queue that is read.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Returns the names of the queues.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Checks that the main queue exists, as the target of a replay.
    ///
    /// RabbitMQ 4.2.6 and later require a permission for this check. Without the permission,
    /// publishing shows the problem.
    ///
    /// # Errors
    /// [`BrokerError`]: when the queue does not exist.
    pub async fn find_main(&self) -> Result<(), BrokerError> {
        match self.allowance.granting(count_or_refusal(&self.link, &self.names.main)).await? {
            Err(Refusal::Forbidden(_)) => Ok(()),
            Err(refusal) => Err(explained(&self.names.main, refusal)),
            Ok(_) => Ok(()),
        }
    }

    /// Returns the number of messages that wait for workers, in the main and in the slow queue.
    ///
    /// # Errors
    /// [`BrokerError`]: also when the user may not look at them.
    pub async fn waiting_for_workers(&self) -> Result<u32, BrokerError> {
        let main = self.allowance.granting(count(&self.link, &self.names.main)).await?;
        let slow = self.allowance.granting(count(&self.link, &self.names.slow)).await?;
        Ok(main.saturating_add(slow))
    }

    /// Returns the next letters in the queue's order, `max` at most; none at the end.
    ///
    /// Letters not taken with [`take`](Self::take) before the next call are held until
    /// [`close`](Self::close).
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn next_batch(&mut self, max: usize) -> Result<Vec<DeadLetter>, SessionEnded> {
        let mut batch = Vec::new();
        while batch.len() < max && self.left > 0 {
            // A channel counts as full only once all of its letters that the caller wants were
            // taken. So no later letter ever comes to an earlier channel.
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
            // Later deliveries are not read, and need no room.
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

    /// Removes letters from the queue for good. Waits until the broker has read the
    /// acknowledgements, unless so much is on its way that the answer would come behind it.
    ///
    /// # Errors
    /// When the connection is over: then some of them may come back.
    pub async fn take(&mut self, tags: &[Tag]) -> Result<(), SessionEnded> {
        for (epoch, reading) in (0_u64..).zip(&mut self.readings) {
            let mut numbers: Vec<u64> =
                tags.iter().filter(|tag| tag.epoch == epoch).map(|tag| tag.number).collect();
            let taken = numbers.len();
            if taken == reading.held {
                // One acknowledgement covers all.
                numbers = numbers.into_iter().max().into_iter().collect();
            }
            let multiple = taken == reading.held;
            let acks = numbers
                .into_iter()
                .map(|number| reading.channel.basic_ack(number, BasicAckOptions { multiple }));
            answered(try_join_all(acks)).await?;
            if taken > 0 {
                // The answer comes after the acknowledgements. Without it, those of several batches
                // are still on their way if the program is killed.
                let prefetch = u16::try_from(reading.prefetch).unwrap_or(u16::MAX);
                let asked = reading.channel.basic_qos(prefetch, BasicQosOptions::default());
                self.allowance.within(answered(asked)).await.transpose()?;
            }
            reading.held -= taken;
        }
        Ok(())
    }

    /// Requeues the letters that were not taken, in their order, and waits until they are back.
    ///
    /// # Errors
    /// When the connection is over earlier. The letters go back anyway, in an order that the broker
    /// chooses.
    pub async fn close(mut self) -> Result<(), SessionEnded> {
        self.give_back().await?;
        self.link.close().await;
        Ok(())
    }

    /// Requeues the letters that were not taken, as [`close`](Self::close) does, and starts again.
    ///
    /// Earlier tags are no longer valid.
    ///
    /// # Errors
    /// As for [`close`](Self::close).
    pub async fn rewind(&mut self) -> Result<(), SessionEnded> {
        self.give_back().await?;
        self.total = self.ready().await?;
        self.left = self.total;
        Ok(())
    }

    /// Ends all consumers. Letters on their way are held until their channel is closed.
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
            // Thousands of letters go back, which takes time.
            let closed = reading.channel.close(200, "bye".into());
            timeout(ANSWER_TIMEOUT, self.allowance.granting(closed))
                .await
                .map_err(|_| SessionEnded::new("no answer to the closing of a channel"))??;
            // The broker answers before the queue knows of the close, and the queue learns of two
            // channels in any order.
            back = back.saturating_add(u32::try_from(reading.held).unwrap_or(u32::MAX));
            patient = patient && self.has_back(back).await?;
        }
        Ok(())
    }

    /// Waits until that many letters are ready, as long as their number grows. Returns whether they
    /// are.
    ///
    /// Another program may have taken some.
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
    count(link, queue).await.map_err(|error| SessionEnded::new(Cause::new(error)))
}

/// Returns the number of messages in a queue; a missing queue is a named refusal.
async fn count(link: &Link, queue: &str) -> Result<u32, BrokerError> {
    count_or_refusal(link, queue).await?.map_err(|refusal| explained(queue, refusal))
}

async fn count_or_refusal(link: &Link, queue: &str) -> Result<Result<u32, Refusal>, BrokerError> {
    let name = short(queue).ok_or_else(|| {
        BrokerError::Settings(
            format!("UNSTALE_QUEUE makes a name that is too long: {queue}").into(),
        )
    })?;
    let channel = link.channel().await?;
    let options =
        QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    let asked =
        timeout(ANSWER_TIMEOUT, channel.queue_declare(name, options, FieldTable::default())).await;
    let declared = asked.map_err(|_| BrokerError::Unreachable(no_answer(ANSWER_TIMEOUT)))?;
    match declared {
        Ok(declared) => {
            let count = declared.message_count();
            answered(channel.close(200, "bye".into())).await?;
            Ok(Ok(count))
        }
        Err(error) => Ok(Err(Refusal::from(error))),
    }
}

fn explained(queue: &str, refusal: Refusal) -> BrokerError {
    let problem = |error: AmqpError, advice: &'static str| {
        BrokerError::Topology(vec![TopologyProblem {
            object: ContractObject::Queue(queue.to_owned()),
            cause: error.into(),
            advice: advice.into(),
        }])
    };
    match refusal {
        Refusal::Missing(error) => problem(
            error,
            "workers declare it when they start: start one with `unstale run`, or look at UNSTALE_QUEUE and at the virtual host in UNSTALE_AMQP_URL",
        ),
        Refusal::Forbidden(error) => problem(error, GRANT),
        Refusal::Locked(error) => {
            problem(error, "another program declared it as exclusive: close that connection")
        }
        Refusal::Differs(error)
        | Refusal::AtLimit(error)
        | Refusal::Unsupported(error)
        | Refusal::Passing(error) => BrokerError::Unreachable(error.into()),
    }
}

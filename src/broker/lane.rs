//! A consumer and what it delivered: batches in, acknowledgements out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicGetOptions, BasicNackOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::watch;

use super::consume::consume;
use super::convert::Delivery;
use super::failure::SessionEnded;
use super::link::{EndSignal, STATE_INTERVAL, answered};
use super::origin::Origins;
use super::recent_acks::RecentAcks;

/// Numbers the lanes of this process: a tag means something on its own channel only.
static EPOCH: AtomicU64 = AtomicU64::new(0);

/// Bodies of one batch: what is larger waits for the next, so that the prefetch is adapted before
/// much more has arrived.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Which queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LaneName {
    /// Where events arrive.
    Main,
    /// What one round trip cannot finish.
    Slow,
}

/// Names a delivery of one lane; those of a lane come in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    pub(super) epoch: u64,
    pub(super) number: u64,
}

/// One channel with at most one consumer: `ack multiple` reaches across all consumers of a channel.
#[derive(Debug)]
pub struct Lane {
    queue: ShortString,
    acker: Acker,
    origins: Origins,
    consumer: Option<Consumer>,
    consumers_begun: u32,
    /// When the queue was last asked for a consumer, or for one message.
    asked_at: Option<Instant>,
    /// Has arrived and was not given out yet.
    left_over: VecDeque<Delivery>,
    left_over_bytes: usize,
    /// The number of the newest delivery that has arrived: a channel counts them from 1.
    newest: u64,
    ended: watch::Receiver<Option<SessionEnded>>,
}

impl Lane {
    pub(super) fn new(
        channel: Channel,
        queue: ShortString,
        signal: EndSignal,
        recent: RecentAcks,
        origins: Origins,
    ) -> Self {
        let ended = signal.subscribe();
        let epoch = EPOCH.fetch_add(1, Ordering::Relaxed);
        Self {
            queue,
            acker: Acker { channel, epoch, signal, recent, acknowledged: AtomicU64::new(0) },
            origins,
            consumer: None,
            consumers_begun: 0,
            asked_at: None,
            left_over: VecDeque::new(),
            left_over_bytes: 0,
            newest: 0,
            ended,
        }
    }

    /// Starts to consume with this prefetch; a consumer that stands is cancelled first, since a
    /// prefetch counts for new consumers only. What was delivered before stays valid, and what had
    /// arrived is given out first. A prefetch of 0 would be no limit and counts as 1.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn consume(&mut self, prefetch: u16) -> Result<(), SessionEnded> {
        let began = Instant::now();
        self.cancel().await?;
        // A number of its own: what an earlier one was given may not be acknowledged yet.
        self.consumers_begun += 1;
        let begun = consume(
            &self.acker.channel,
            self.consumers_begun,
            self.queue.clone(),
            prefetch.max(1),
            FieldTable::default(),
        );
        self.consumer = Some(answered(begun).await.map_err(|ended| self.acker.signal.end(ended))?);
        self.answered_since(began);
        Ok(())
    }

    /// Stops consuming. What had arrived by then is still given out by
    /// [`next_batch`](Self::next_batch), or given back by [`nack_all`](Self::nack_all).
    ///
    /// # Errors
    /// When the session is over.
    pub async fn cancel(&mut self) -> Result<(), SessionEnded> {
        let Some(mut consumer) = self.consumer.take() else { return Ok(()) };
        let cancelled =
            self.acker.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        answered(cancelled).await.map_err(|ended| self.acker.signal.end(ended))?;
        // lapin ends the stream when the broker has confirmed, behind everything that came before.
        while let Some(arrived) = consumer.next().await {
            let delivery = arrived.map_err(|error| self.acker.signal.end(error))?;
            let delivery = self.read(delivery);
            self.keep(delivery);
        }
        Ok(())
    }

    /// Returns how many deliveries have arrived on this lane and are not acknowledged.
    pub fn in_flight(&self) -> usize {
        usize::try_from(self.newest.saturating_sub(self.acker.acknowledged.load(Ordering::Relaxed)))
            .unwrap_or(usize::MAX)
    }

    /// Takes in what has arrived, without waiting, so that [`in_flight`](Self::in_flight) counts
    /// it. [`next_batch`](Self::next_batch) gives it out.
    ///
    /// # Errors
    /// When the session is over.
    pub fn take_in(&mut self) -> Result<(), SessionEnded> {
        while let Some(next) =
            self.consumer.as_mut().and_then(|consumer| consumer.next().now_or_never())
        {
            let delivery = self.arrived(next)?;
            self.keep(delivery);
        }
        Ok(())
    }

    /// Takes deliveries back that were given out last, in order: they are given out again before
    /// all others.
    pub fn put_back(&mut self, deliveries: Vec<Delivery>) {
        for delivery in deliveries.into_iter().rev() {
            self.left_over_bytes += delivery.body().len();
            self.left_over.push_front(delivery);
        }
    }

    /// Returns what has arrived and was not given out, as far as it was taken in.
    pub fn not_given_out(&self) -> impl Iterator<Item = &Delivery> {
        self.left_over.iter()
    }

    fn keep(&mut self, delivery: Delivery) {
        self.left_over_bytes += delivery.body().len();
        self.left_over.push_back(delivery);
    }

    fn give_out(&mut self) -> Option<Delivery> {
        let delivery = self.left_over.pop_front()?;
        self.left_over_bytes -= delivery.body().len();
        Some(delivery)
    }

    /// Whether something had arrived when the consumer was cancelled that
    /// [`next_batch`](Self::next_batch) has not given out.
    pub fn has_left_over(&self) -> bool {
        !self.left_over.is_empty()
    }

    /// Whether nothing that has arrived is left to be given out.
    ///
    /// # Errors
    /// When the session is over.
    pub fn all_read(&mut self) -> Result<bool, SessionEnded> {
        if self.left_over.is_empty()
            && let Some(next) =
                self.consumer.as_mut().and_then(|consumer| consumer.next().now_or_never())
        {
            let delivery = self.arrived(next)?;
            self.keep(delivery);
        }
        Ok(self.left_over.is_empty())
    }

    /// Waits for a delivery, and gives it with what else has arrived, `max` at most and no more
    /// than 4 MiB of bodies and one; never waits for more. Without a consumer it waits for the end
    /// of the session. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the session is over, for whatever reason: also when the broker cancels the consumer
    /// because the queue is gone.
    pub async fn next_batch(&mut self, max: usize) -> Result<Vec<Delivery>, SessionEnded> {
        self.next_batch_of(|_| true, max).await
    }

    /// As [`next_batch`](Self::next_batch), but waits until as many have arrived as are `enough`,
    /// or `max`, or 4 MiB of bodies. Whether they are is asked when one more arrives.
    ///
    /// # Errors
    /// As for [`next_batch`](Self::next_batch).
    pub async fn next_batch_of(
        &mut self,
        enough: impl Fn(usize) -> bool,
        max: usize,
    ) -> Result<Vec<Delivery>, SessionEnded> {
        let max = max.max(1);
        // Nothing more comes to what was left over by a consumer that is cancelled.
        let is_enough = |count| count > 0 && (count >= max || enough(count));
        while !is_enough(self.left_over.len())
            && self.left_over_bytes < BATCH_BYTES
            && !(self.consumer.is_none() && self.has_left_over())
        {
            let Some(consumer) = &mut self.consumer else { return Err(self.end().await) };
            let next = tokio::select! {
                // Once the session is over what was delivered can no longer be acknowledged.
                biased;
                ended = self.ended.wait_for(Option::is_some) => return Err(cause(ended.ok().as_deref())),
                arrived = consumer.next() => arrived,
            };
            let delivery = self.arrived(next)?;
            self.keep(delivery);
        }
        let mut batch: Vec<Delivery> = Vec::with_capacity(max.min(256));
        let mut body_bytes = 0;
        while batch.len() < max && body_bytes < BATCH_BYTES {
            let delivery = match self.give_out() {
                Some(delivery) => delivery,
                None => {
                    let Some(next) =
                        self.consumer.as_mut().and_then(|consumer| consumer.next().now_or_never())
                    else {
                        break;
                    };
                    match self.arrived(next) {
                        Ok(delivery) => delivery,
                        Err(ended) => {
                            // They had arrived, and nobody has seen them.
                            self.put_back(batch);
                            return Err(ended);
                        }
                    }
                }
            };
            body_bytes += delivery.body().len();
            batch.push(delivery);
        }
        Ok(batch)
    }

    /// By now the queue has put down all that came before it was asked the last time: it put down
    /// that question itself, and what the channel kept back until then went out with its answer.
    fn answered_since(&mut self, asked: Instant) {
        if let Some(last) = self.asked_at.replace(asked) {
            self.acker.recent.took_hold(last);
        }
    }

    /// Takes the next one from the queue without a consumer: whoever dies of it leaves none behind,
    /// to which a busy broker would give the next one in vain. `None` when the queue has none.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn get(&mut self) -> Result<Option<Delivery>, SessionEnded> {
        let asked = Instant::now();
        let got =
            self.acker.channel.basic_get(self.queue.clone(), BasicGetOptions { no_ack: false });
        let got = answered(got).await.map_err(|ended| self.acker.signal.end(ended))?;
        self.answered_since(asked);
        Ok(got.map(|message| self.read(message.delivery)))
    }

    fn read(&mut self, delivery: lapin::message::Delivery) -> Delivery {
        self.newest = delivery.delivery_tag;
        let mut delivery = Delivery::new(self.acker.epoch, delivery);
        self.origins.establish(&mut delivery);
        delivery
    }

    fn arrived(
        &mut self,
        next: Option<lapin::Result<lapin::message::Delivery>>,
    ) -> Result<Delivery, SessionEnded> {
        match next {
            Some(Ok(delivery)) => Ok(self.read(delivery)),
            Some(Err(error)) => Err(self.acker.signal.end(error)),
            None => {
                let why = format!(
                    "the broker cancelled the consumer of `{}`: the queue was deleted or has moved",
                    self.queue
                );
                Err(self.acker.signal.end(SessionEnded::by_deletion(why)))
            }
        }
    }

    /// Waits for the end of the session, for who waits for something else too: it may show on this
    /// channel alone, where else nobody looks. What arrives meanwhile is kept for
    /// [`next_batch`](Self::next_batch).
    pub async fn end(&mut self) -> SessionEnded {
        loop {
            let next = tokio::select! {
                biased;
                ended = self.ended.wait_for(Option::is_some) => return cause(ended.ok().as_deref()),
                next = next_of(&mut self.consumer) => next,
                // Without a consumer nothing else tells.
                () = tokio::time::sleep(STATE_INTERVAL) => {
                    if self.acker.channel.status().connected() {
                        continue;
                    }
                    return self.acker.signal.end(SessionEnded::new("the broker closed the channel"));
                }
            };
            match self.arrived(next) {
                Ok(delivery) => self.keep(delivery),
                Err(ended) => return ended,
            }
        }
    }

    /// Acknowledges this delivery and every earlier one of the lane. A tag of an earlier session is
    /// dropped: its delivery comes back anyway.
    ///
    /// # Errors
    /// When the session is over. What the broker says later ends the session, which is seen
    /// wherever it is waited on.
    pub fn ack_through(&self, tag: Tag) -> Result<(), SessionEnded> {
        self.acker.ack(tag, true)
    }

    /// Acknowledges this delivery alone.
    ///
    /// # Errors
    /// As for [`ack_through`](Self::ack_through).
    pub fn ack_one(&self, tag: Tag) -> Result<(), SessionEnded> {
        self.acker.ack(tag, false)
    }

    /// Waits until the acknowledgements made before hold even if this process dies; a second at
    /// most.
    pub async fn acks_take_hold(&self) {
        tokio::time::sleep(self.acker.recent.take_hold_in()).await;
        self.acker.recent.took_hold(Instant::now());
    }

    /// Gives everything unacknowledged back to the queue, in one go and after
    /// [`cancel`](Self::cancel), or it would come straight back. Up to RabbitMQ 4.2 this counts
    /// towards the delivery limit.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn nack_all(&mut self) -> Result<(), SessionEnded> {
        self.cancel().await?;
        self.left_over.clear();
        self.left_over_bytes = 0;
        // Delivery tag 0 means all (AMQP 0-9-1, basic.ack).
        let nacked =
            self.acker.channel.basic_nack(0, BasicNackOptions { multiple: true, requeue: true });
        answered(nacked).await.map_err(|ended| self.acker.signal.end(ended))
    }
}

/// Waits for ever where there is no consumer.
async fn next_of(
    consumer: &mut Option<Consumer>,
) -> Option<lapin::Result<lapin::message::Delivery>> {
    match consumer {
        Some(consumer) => consumer.next().await,
        None => std::future::pending().await,
    }
}

fn cause(ended: Option<&Option<SessionEnded>>) -> SessionEnded {
    ended.cloned().flatten().unwrap_or_else(|| SessionEnded::new("dropped by us"))
}

/// Acknowledges deliveries of one lane. Frames are queued and written by the connection's own
/// thread, many a write; nobody waits for that.
#[derive(Debug)]
struct Acker {
    channel: Channel,
    epoch: u64,
    signal: EndSignal,
    recent: RecentAcks,
    /// How many deliveries are acknowledged.
    acknowledged: AtomicU64,
}

impl Acker {
    fn ack(&self, tag: Tag, multiple: bool) -> Result<(), SessionEnded> {
        if tag.epoch != self.epoch {
            return Ok(());
        }
        self.recent.note();
        if multiple {
            // Single acknowledgements come before, never beyond it.
            self.acknowledged.store(tag.number, Ordering::Relaxed);
        } else {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        // The first poll queues the frame; the rest would be waiting until it is written.
        match self.channel.basic_ack(tag.number, BasicAckOptions { multiple }).now_or_never() {
            Some(Err(error)) => Err(self.signal.end(error)),
            Some(Ok(())) | None => self.signal.cause().map_or(Ok(()), Err),
        }
    }
}

//! Lane: one consumer on one channel, with batches in and acknowledgements out.

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
use super::tag::Tag;

/// Number of the next lane in this process. A tag is valid on its own channel only.
static EPOCH: AtomicU64 = AtomicU64::new(0);

/// Maximum size of the bodies in one batch.
///
/// Larger deliveries wait for the next batch, so that the prefetch adapts before much more arrives.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Number of deliveries for which room is made at once.
const BATCH_ROOM: usize = 256;

/// Queue of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LaneName {
    /// Queue that events arrive in.
    Main,
    /// Queue of events that one round trip cannot finish.
    Slow,
}

/// One channel with at most one consumer, because `ack multiple` covers all consumers of a channel.
#[derive(Debug)]
pub struct Lane {
    queue: ShortString,
    acker: Acker,
    origins: Origins,
    consumer: Option<Consumer>,
    consumers_begun: u32,
    /// Time of the last request to the queue, for a consumer or for one message.
    asked_at: Option<Instant>,
    /// Deliveries that have arrived and were not given out yet.
    left_over: VecDeque<Delivery>,
    left_over_bytes: usize,
    /// Number of the newest delivery that has arrived. A channel counts deliveries from 1.
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

    /// Starts to consume with this prefetch, and cancels the current consumer first.
    ///
    /// A prefetch counts for new consumers only. Earlier deliveries stay valid, and those that had
    /// arrived are given out first. A prefetch of 0 means no limit to AMQP, so it counts as 1.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn consume(&mut self, prefetch: u16) -> Result<(), SessionEnded> {
        let began = Instant::now();
        self.cancel().await?;
        // A number of its own: deliveries to an earlier consumer may not be acknowledged yet.
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

    /// Stops consuming.
    ///
    /// [`next_batch`](Self::next_batch) still gives out the deliveries that had arrived, or
    /// [`nack_all`](Self::nack_all) requeues them.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn cancel(&mut self) -> Result<(), SessionEnded> {
        let Some(mut consumer) = self.consumer.take() else { return Ok(()) };
        let cancelled =
            self.acker.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        answered(cancelled).await.map_err(|ended| self.acker.signal.end(ended))?;
        // lapin ends the stream when the broker has confirmed, after all earlier deliveries.
        while let Some(arrived) = consumer.next().await {
            let delivery = arrived.map_err(|error| self.acker.signal.end(error))?;
            self.keep(delivery);
        }
        Ok(())
    }

    /// Returns the number of deliveries that have arrived on this lane and are not acknowledged.
    pub fn in_flight(&self) -> usize {
        usize::try_from(self.newest.saturating_sub(self.acker.acknowledged.load(Ordering::Relaxed)))
            .unwrap_or(usize::MAX)
    }

    /// Takes in arrived deliveries without waiting, so that [`in_flight`](Self::in_flight) counts
    /// them.
    ///
    /// [`next_batch`](Self::next_batch) gives them out.
    ///
    /// # Errors
    /// When the session is over.
    pub fn take_in(&mut self) -> Result<(), SessionEnded> {
        self.left_over.reserve(BATCH_ROOM);
        while self.take_in_one()? {}
        Ok(())
    }

    /// Takes in the next delivery if it has arrived, and returns whether it had.
    fn take_in_one(&mut self) -> Result<bool, SessionEnded> {
        let Some(consumer) = &mut self.consumer else { return Ok(false) };
        let Some(next) = consumer.next().now_or_never() else { return Ok(false) };
        self.arrived(next)?;
        Ok(true)
    }

    /// Takes back the deliveries that were given out last, in order. They are given out again
    /// before all others.
    pub fn put_back(&mut self, deliveries: Vec<Delivery>) {
        for delivery in deliveries.into_iter().rev() {
            self.left_over_bytes += delivery.body().len();
            self.left_over.push_front(delivery);
        }
    }

    /// Returns the deliveries that were taken in and not given out.
    pub fn not_given_out(&self) -> impl Iterator<Item = &Delivery> {
        self.left_over.iter()
    }

    fn keep(&mut self, delivery: lapin::message::Delivery) {
        self.newest = delivery.delivery_tag;
        self.left_over_bytes += delivery.data.len();
        // Deliveries are large, so one is made where it stays.
        self.left_over.push_back(Delivery::new(self.acker.epoch, delivery));
        if let Some(delivery) = self.left_over.back_mut() {
            self.origins.establish(delivery);
        }
    }

    /// Gives out the first deliveries: at most `max`, up to the one that reaches [`BATCH_BYTES`].
    fn give_out(&mut self, max: usize) -> Vec<Delivery> {
        let (mut count, mut bytes) = (0, 0);
        while count < max
            && bytes < BATCH_BYTES
            && let Some(next) = self.left_over.get(count)
        {
            bytes += next.body().len();
            count += 1;
        }
        self.left_over_bytes -= bytes;
        if count < self.left_over.len() {
            return self.left_over.drain(..count).collect();
        }
        // The buffer itself becomes the batch, without a move of each delivery.
        std::mem::take(&mut self.left_over).into()
    }

    /// Returns whether deliveries were taken in that [`next_batch`](Self::next_batch) has not given
    /// out.
    pub fn has_left_over(&self) -> bool {
        !self.left_over.is_empty()
    }

    /// Returns whether every delivery that has arrived was given out.
    ///
    /// # Errors
    /// When the session is over.
    pub fn all_read(&mut self) -> Result<bool, SessionEnded> {
        Ok(self.left_over.is_empty() && !self.take_in_one()?)
    }

    /// Waits for a delivery, and returns it with the others that have arrived.
    ///
    /// A batch has at most `max` deliveries. It ends with the delivery that reaches 4 MiB of
    /// bodies. This waits for the first delivery only. Without a consumer it waits for the end of
    /// the session. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the session is over, for any reason. One reason: the broker cancels the consumer
    /// because the queue was deleted.
    pub async fn next_batch(&mut self, max: usize) -> Result<Vec<Delivery>, SessionEnded> {
        self.next_batch_of(|_| true, max).await
    }

    /// Waits for a batch as [`next_batch`](Self::next_batch) does, until it is large enough.
    ///
    /// A batch is large enough if `enough` returns true, or if it has `max` deliveries or 4 MiB of
    /// bodies. The lane calls `enough` at each arrival.
    ///
    /// # Errors
    /// As for [`next_batch`](Self::next_batch).
    pub async fn next_batch_of(
        &mut self,
        enough: impl Fn(usize) -> bool,
        max: usize,
    ) -> Result<Vec<Delivery>, SessionEnded> {
        let max = max.max(1);
        // A cancelled consumer delivers nothing more to the rest that it left.
        let is_enough = |count| count > 0 && (count >= max || enough(count));
        if self.left_over.is_empty() {
            self.left_over.reserve(max.min(BATCH_ROOM));
        }
        while !is_enough(self.left_over.len())
            && self.left_over_bytes < BATCH_BYTES
            && !(self.consumer.is_none() && self.has_left_over())
        {
            let Some(consumer) = &mut self.consumer else { return Err(self.end().await) };
            let next = tokio::select! {
                // Once the session is over, earlier deliveries can no longer be acknowledged.
                biased;
                ended = self.ended.wait_for(Option::is_some) => return Err(cause(ended.ok().as_deref())),
                arrived = consumer.next() => arrived,
            };
            self.arrived(next)?;
        }
        while self.left_over.len() < max
            && self.left_over_bytes < BATCH_BYTES
            && self.take_in_one()?
        {}
        Ok(self.give_out(max))
    }

    /// Notes that the queue answered a request made at `asked`.
    ///
    /// By now the queue has stored every acknowledgement made before the previous request. The
    /// queue stored that request too. When it answered, the channel passed on all acknowledgements
    /// that it had kept back.
    fn answered_since(&mut self, asked: Instant) {
        if let Some(last) = self.asked_at.replace(asked) {
            self.acker.recent.took_effect(last);
        }
    }

    /// Takes the next message from the queue without a consumer; `None` if the queue is empty.
    ///
    /// A worker that dies of the message leaves no consumer behind. A busy broker would deliver the
    /// next message to such a consumer, and count it as redelivered.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn get(&mut self) -> Result<Option<Delivery>, SessionEnded> {
        let asked = Instant::now();
        let got =
            self.acker.channel.basic_get(self.queue.clone(), BasicGetOptions { no_ack: false });
        let got = answered(got).await.map_err(|ended| self.acker.signal.end(ended))?;
        self.answered_since(asked);
        Ok(got.map(|message| {
            self.newest = message.delivery.delivery_tag;
            let mut delivery = Delivery::new(self.acker.epoch, message.delivery);
            self.origins.establish(&mut delivery);
            delivery
        }))
    }

    /// Keeps a delivery that has arrived, for [`next_batch`](Self::next_batch).
    fn arrived(
        &mut self,
        next: Option<lapin::Result<lapin::message::Delivery>>,
    ) -> Result<(), SessionEnded> {
        match next {
            Some(Ok(delivery)) => {
                self.keep(delivery);
                Ok(())
            }
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

    /// Waits for the end of the session, for callers that wait for something else too.
    ///
    /// The end may show on this channel alone, which nothing else watches. Deliveries that arrive
    /// meanwhile are kept for [`next_batch`](Self::next_batch).
    pub async fn end(&mut self) -> SessionEnded {
        loop {
            let next = tokio::select! {
                biased;
                ended = self.ended.wait_for(Option::is_some) => return cause(ended.ok().as_deref()),
                next = next_of(&mut self.consumer) => next,
                // Without a consumer nothing else shows the end.
                () = tokio::time::sleep(STATE_INTERVAL) => {
                    if self.acker.channel.status().connected() {
                        continue;
                    }
                    return self.acker.signal.end(SessionEnded::new("the broker closed the channel"));
                }
            };
            if let Err(ended) = self.arrived(next) {
                return ended;
            }
        }
    }

    /// Acknowledges this delivery and every earlier one of the lane.
    ///
    /// A tag of an earlier session is ignored, because the broker redelivers its message anyway.
    ///
    /// # Errors
    /// When the session is over. A later refusal by the broker ends the session, and every waiting
    /// call sees it.
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

    /// Waits until earlier acknowledgements take effect even if this process dies; a second at
    /// most.
    pub async fn acks_take_effect(&self) {
        tokio::time::sleep(self.acker.recent.take_effect_in()).await;
        self.acker.recent.took_effect(Instant::now());
    }

    /// Requeues everything unacknowledged at once, after [`cancel`](Self::cancel), or it would come
    /// back at once.
    ///
    /// Up to RabbitMQ 4.2 this counts towards the delivery limit.
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

/// Waits for the next delivery, or for ever if there is no consumer.
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

/// Acknowledges deliveries of one lane.
///
/// lapin queues the frames, and the connection's own thread writes many at a time. No caller waits
/// for that.
#[derive(Debug)]
struct Acker {
    channel: Channel,
    epoch: u64,
    signal: EndSignal,
    recent: RecentAcks,
    /// Number of deliveries that are acknowledged.
    acknowledged: AtomicU64,
}

impl Acker {
    fn ack(&self, tag: Tag, multiple: bool) -> Result<(), SessionEnded> {
        if tag.epoch != self.epoch {
            return Ok(());
        }
        self.recent.note();
        if multiple {
            // Single acknowledgements come earlier and never go beyond this number.
            self.acknowledged.store(tag.number, Ordering::Relaxed);
        } else {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        // The first poll queues the frame. Further polls would wait until it is written.
        match self.channel.basic_ack(tag.number, BasicAckOptions { multiple }).now_or_never() {
            Some(Err(error)) => Err(self.signal.end(error)),
            Some(Ok(())) | None => self.signal.cause().map_or(Ok(()), Err),
        }
    }
}

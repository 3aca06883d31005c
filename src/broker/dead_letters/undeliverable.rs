//! Undeliverable letters: the connection ends whenever the broker delivers one.
//!
//! A queue delivers its messages in order, so a reader can only read the letters before the first
//! undeliverable one. Requeued letters go behind those that were requeued before. So the letters
//! rotate, and most of them come before it in turn.

use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};
use tokio::time::{Instant, sleep};

use super::{DeadLetters, RETURN_INTERVAL, RETURN_TIMEOUT};
use crate::broker::convert::short;
use crate::broker::failure::{BrokerError, SessionEnded};
use crate::broker::link::{EndSignal, Link, answered};
use crate::broker::undeliverable::{cause_of, connect, count, get};

/// Maximum number of searches for the first undeliverable letter.
const SEARCHES_MAX: usize = 12;

/// First undeliverable letter of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UndeliverableLetter {
    /// Number of letters before it.
    pub before: u32,
    /// Number of letters in the queue.
    pub of: u32,
}

impl DeadLetters {
    /// Returns the first undeliverable letter, if reading has met it.
    pub fn undeliverable(&self) -> Option<UndeliverableLetter> {
        self.undeliverable
    }

    /// Finds the first undeliverable letter, and starts again. From now on, only the letters before
    /// it are read. Returns whether there is one.
    ///
    /// Earlier tags are no longer valid. A search costs a request for each letter before it. The
    /// letters that it met then go behind all letters that were requeued before. So this searches
    /// until the places repeat.
    ///
    /// # Errors
    /// [`BrokerError`]
    pub async fn rewind_before_undeliverable(&mut self) -> Result<bool, BrokerError> {
        let expected = self.total.saturating_sub(self.taken);
        self.reconnect().await?;
        (self.total, self.left, self.taken) = (expected, expected, 0);
        self.undeliverable = None;
        let mut places = Vec::new();
        while places.len() < SEARCHES_MAX {
            let Some(before) = self.search(expected).await? else { return Ok(false) };
            places.push(before);
            if let Some(before) = next_place(&places) {
                self.undeliverable = Some(UndeliverableLetter { before, of: expected });
                (self.total, self.left) = (before, before);
                return Ok(true);
            }
        }
        let cause = format!("`{}` holds many letters that RabbitMQ cannot deliver", self.queue);
        Err(BrokerError::Unreachable(cause.into()))
    }

    /// Returns the number of letters before the first undeliverable one, if there is one.
    async fn search(&self, expected: u32) -> Result<Option<u32>, BrokerError> {
        let Some((link, channel, signal)) = self.all_ready(expected).await? else {
            return Ok(None);
        };
        let mut before = 0;
        let found = loop {
            match get(&channel, &self.queue, false, &signal).await {
                Ok(Some(_)) => before += 1,
                Ok(None) => break None,
                Err(ended) if ended.by_undeliverable_message() => break Some(before),
                Err(ended) => return Err(ended.into()),
            }
        };
        drop((link, channel));
        self.wait_ready(expected).await?;
        Ok(found)
    }

    /// Drops the first undeliverable letter for good, after
    /// [`rewind_before_undeliverable`](Self::rewind_before_undeliverable) has found it. Returns
    /// whether it was still there.
    ///
    /// The broker removes the letter before it tries to deliver it. If another program has changed
    /// the queue meanwhile, a letter that was removed instead is published to it again.
    ///
    /// # Errors
    /// [`BrokerError`]
    pub async fn drop_undeliverable(&mut self) -> Result<bool, BrokerError> {
        let Some(letter) = self.undeliverable.take() else { return Ok(false) };
        let Some((link, channel, signal)) = self.all_ready(letter.of).await? else {
            return Ok(false);
        };
        for _ in 0..letter.before {
            if get(&channel, &self.queue, false, &signal).await?.is_none() {
                return Ok(false);
            }
        }
        let name = short(&self.queue).ok_or_else(|| SessionEnded::new("the name is too long"))?;
        // A letter that was taken by mistake must be published at once.
        let publisher = link.channel().await?;
        answered(publisher.confirm_select(ConfirmSelectOptions::default())).await?;
        let got = answered(channel.basic_get(name.clone(), BasicGetOptions { no_ack: true })).await;
        let is_dropped = match got {
            Err(ended) => {
                let ended = cause_of(ended, signal.subscribe()).await;
                if !ended.by_undeliverable_message() {
                    return Err(ended.into());
                }
                true
            }
            Ok(None) => false,
            Ok(Some(message)) => {
                let options = BasicPublishOptions { mandatory: true, immediate: false };
                let delivery = message.delivery;
                let published = publisher.basic_publish(
                    "".into(),
                    name,
                    options,
                    &delivery.data,
                    delivery.properties,
                );
                let confirm = answered(async { published.await?.await }).await?;
                if !matches!(confirm, Confirmation::Ack(None)) {
                    return Err(SessionEnded::new("the queue does not take a letter back").into());
                }
                false
            }
        };
        drop(link);
        let left = letter.of.saturating_sub(u32::from(is_dropped));
        self.wait_ready(left).await?;
        (self.total, self.left, self.taken) = (left, left, 0);
        Ok(is_dropped)
    }

    /// Opens a connection and a channel, and waits until that many letters are ready.
    ///
    /// Returns `None` if they are fewer: another program has taken some.
    async fn all_ready(
        &self,
        letters: u32,
    ) -> Result<Option<(Link, Channel, EndSignal)>, BrokerError> {
        let signal = EndSignal::new();
        let link = connect(&self.config, &signal).await?;
        if !wait_ready(&link, &self.queue, letters).await {
            return Ok(None);
        }
        let channel = link.channel().await?;
        Ok(Some((link, channel, signal)))
    }

    /// Waits until the letters of an ended connection are back.
    async fn wait_ready(&self, letters: u32) -> Result<(), BrokerError> {
        let link = connect(&self.config, &EndSignal::new()).await?;
        wait_ready(&link, &self.queue, letters).await;
        link.close().await;
        Ok(())
    }
}

/// Returns the place that the next search would find: the places repeat after as many searches as
/// there are undeliverable letters.
fn next_place(places: &[u32]) -> Option<u32> {
    (1..=places.len() / 2).find_map(|period| {
        let (before, last) = places[places.len() - 2 * period..].split_at(period);
        (before == last).then(|| last[0])
    })
}

/// Waits until that many letters are ready, as long as their number grows. Returns whether they
/// are.
async fn wait_ready(link: &Link, queue: &str, letters: u32) -> bool {
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        let ready = count(link, queue).await.unwrap_or(0);
        if ready >= letters {
            return true;
        }
        if ready > seen {
            (seen, since) = (ready, Instant::now());
        } else if since.elapsed() > RETURN_TIMEOUT {
            return false;
        }
        sleep(RETURN_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_place_is_known_once_the_places_repeat() {
        assert_eq!(next_place(&[]), None);
        assert_eq!(next_place(&[2]), None);
        assert_eq!(next_place(&[2, 3]), None);
        assert_eq!(next_place(&[2, 3, 3]), Some(3));
        assert_eq!(next_place(&[9, 1, 4, 1, 4]), Some(1));
        assert_eq!(next_place(&[1, 4, 2, 1, 4, 2]), Some(1));
    }
}

//! Queue depths and consumers, read on a session's own connection.

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::time::timeout;

use super::convert::short;
use super::link::{ANSWER_TIMEOUT, Link};
use super::names::Names;

/// Depth and consumers of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLook {
    /// Messages that wait. Those in flight do not wait.
    pub ready: u32,
    /// Consumers of all workers.
    pub consumers: u32,
}

impl QueueLook {
    /// Returns whether the queue is known to be empty.
    ///
    /// RabbitMQ also reports no message and no consumer for a queue whose leader does not answer
    /// within 250 ms.
    pub fn is_empty(self) -> bool {
        self.ready == 0 && self.consumers > 0
    }
}

/// Looks at queues by declaring them passively.
#[derive(Debug)]
pub struct Looker<'l> {
    link: &'l Link,
    lanes: [&'l str; 2],
    retries: Vec<&'l str>,
    channel: Option<Channel>,
    /// Channel of its own, because a refusal ends it.
    retry_channel: Option<Channel>,
    /// True once the broker has not reported a retry queue: it may be missing, or refused.
    is_retry_unknown: bool,
}

/// Messages that wait in queues; those in flight are not included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// In the main queue.
    pub main: QueueLook,
    /// In the slow queue.
    pub slow: QueueLook,
    /// In all retry queues; `None` if that was not asked, or the broker does not report it.
    ///
    /// The retry queues come first, so messages that move on meanwhile are counted in the other
    /// queues.
    pub retries: Option<u32>,
}

impl<'l> Looker<'l> {
    pub(super) fn new(link: &'l Link, names: &'l Names) -> Self {
        Self {
            link,
            lanes: [&names.main, &names.slow],
            retries: names.retry.iter().map(|(_, name)| name.as_str()).collect(),
            channel: None,
            retry_channel: None,
            is_retry_unknown: false,
        }
    }

    /// Looks at the main and the slow queue, and at the retry queues if asked to.
    ///
    /// Returns `None` if the broker does not report the main or the slow queue. Other code notices
    /// the end of a session.
    pub async fn waiting(&mut self, with_retries: bool) -> Option<Waiting> {
        let mut retries = None;
        if with_retries && !self.is_retry_unknown {
            retries = look(self.link, &mut self.retry_channel, &self.retries)
                .await
                .map(|looks| looks.iter().map(|look| look.ready).sum());
            self.is_retry_unknown = retries.is_none();
        }
        match look(self.link, &mut self.channel, &self.lanes).await?[..] {
            [main, slow] => Some(Waiting { main, slow, retries }),
            _ => None,
        }
    }
}

/// Looks at each queue. The channel is kept for the next call, unless it ended.
async fn look(link: &Link, kept: &mut Option<Channel>, queues: &[&str]) -> Option<Vec<QueueLook>> {
    let channel = match kept.take().filter(|channel| channel.status().connected()) {
        Some(channel) => channel,
        None => link.channel().await.ok()?,
    };
    let mut looks = Vec::with_capacity(queues.len());
    for queue in queues {
        let options =
            QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let asked = timeout(
            ANSWER_TIMEOUT,
            channel.queue_declare(short(queue)?, options, FieldTable::default()),
        )
        .await;
        let queue = asked.ok()?.ok()?;
        looks.push(QueueLook { ready: queue.message_count(), consumers: queue.consumer_count() });
    }
    *kept = Some(channel);
    Some(looks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_without_a_consumer_is_not_known_to_be_empty() {
        let is_empty = |ready, consumers| QueueLook { ready, consumers }.is_empty();
        assert!(is_empty(0, 1));
        assert!(!is_empty(1, 1) && !is_empty(0, 0));
    }
}

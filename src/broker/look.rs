//! How much waits in queues and who consumes, asked on a session's own connection.

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::time::timeout;

use super::convert::short;
use super::link::{ANSWER_TIMEOUT, Link};

/// What a look at a queue shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLook {
    /// Messages that wait. Those in flight do not wait.
    pub ready: u32,
    /// Consumers of all workers.
    pub consumers: u32,
}

impl QueueLook {
    /// Returns whether the queue is known to be empty. RabbitMQ also reports no message and no
    /// consumer for a queue whose leader does not answer within 250 ms.
    pub fn is_empty(self) -> bool {
        self.ready == 0 && self.consumers > 0
    }
}

/// Looks at queues by declaring them passively.
#[derive(Debug)]
pub struct Looker<'l> {
    link: &'l Link,
    queues: [&'l str; 2],
    channel: Option<Channel>,
}

impl<'l> Looker<'l> {
    pub(super) fn new(link: &'l Link, queues: [&'l String; 2]) -> Self {
        Self { link, queues: queues.map(String::as_str), channel: None }
    }

    /// Looks at both queues. `None` where the broker does not tell: what ends a session is noticed elsewhere.
    pub async fn look(&mut self) -> Option<[QueueLook; 2]> {
        let channel = match self.channel.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.link.channel().await.ok()?,
        };
        let mut looks = [QueueLook { ready: 0, consumers: 0 }; 2];
        for (look, queue) in looks.iter_mut().zip(self.queues) {
            let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
            let asked = timeout(ANSWER_TIMEOUT, channel.queue_declare(short(queue)?, options, FieldTable::default())).await;
            let queue = asked.ok()?.ok()?;
            *look = QueueLook { ready: queue.message_count(), consumers: queue.consumer_count() };
        }
        self.channel = Some(channel);
        Some(looks)
    }
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

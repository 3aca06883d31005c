//! How much waits in queues, asked on a session's own connection.

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::time::timeout;

use super::convert::short;
use super::link::{ANSWER_TIMEOUT, Link};

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

    /// How many messages wait in either queue; what is in a consumer's hand does not wait. `None` where the broker does not tell: what ends a session
    /// is noticed elsewhere.
    pub async fn waiting(&mut self) -> Option<[u32; 2]> {
        let channel = match self.channel.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.link.channel().await.ok()?,
        };
        let mut waiting = [0; 2];
        for (waiting, queue) in waiting.iter_mut().zip(self.queues) {
            let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
            let asked = timeout(ANSWER_TIMEOUT, channel.queue_declare(short(queue)?, options, FieldTable::default())).await;
            *waiting = asked.ok()?.ok()?.message_count();
        }
        self.channel = Some(channel);
        Some(waiting)
    }
}

//! Passes undeliverable messages: those at whose delivery the broker ends the connection.
//!
//! Only the broker can dead-letter such a message, at the queue's delivery limit. So the worker has
//! the message delivered again until the limit is reached, with nothing else in flight. The next
//! session then consumes the messages behind it.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::shared::Shared;
use crate::broker::Heads;

/// Maximum number of deliveries without a new dead letter: three times the usual delivery limit.
const DELIVERIES: u32 = 64;

/// Time between two deliveries. The broker writes a report of each into its log.
const PAUSE: Duration = Duration::from_millis(20);

/// Time for which further messages are counted instead of logged.
const COUNTED_FOR: Duration = Duration::from_secs(60);

/// Outcome of [`Undeliverable::pass`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Passing {
    /// An undeliverable message was passed.
    Passed,
    /// The message stays at the head of its queue, for this reason.
    Stuck(String),
    /// No undeliverable message was found.
    Nothing,
}

/// Counts the undeliverable messages of one worker.
#[derive(Debug, Default)]
pub(super) struct Undeliverable {
    /// Deliveries since the number of dead letters last grew.
    deliveries: u32,
    dead_letters: Option<u32>,
    /// Messages that were passed since the last log line.
    passed: u32,
    logged_at: Option<Instant>,
    is_stuck: bool,
}

impl Undeliverable {
    /// Has the message at the head of a queue delivered until the broker has dead-lettered it.
    ///
    /// Without a delivery limit the message stays. Then this ends after [`DELIVERIES`], and the
    /// next calls end after one.
    pub(super) async fn pass(&mut self, shared: &Shared, stop: &CancellationToken) -> Passing {
        let mut found = 0_u32;
        let mut is_logged = false;
        let mut letters_before = None;
        let mut found_in: Option<String> = None;
        loop {
            let looking = Heads::look(&shared.config.amqp, found_in.as_deref());
            let looked = stop.run_until_cancelled(looking).await;
            // The caller's back-off handles a broker that does not answer.
            let Some(Ok(heads)) = looked else { return Passing::Nothing };
            self.note_dead_letters(heads.dead_letters);
            letters_before = letters_before.or(heads.dead_letters);
            let Some(queue) = heads.undeliverable_in else { break };
            found += 1;
            self.deliveries += 1;
            shared.readiness.set_consuming(Err(cause(&queue).into()));
            if self.is_due() {
                is_logged = true;
                self.logged_at = Some(Instant::now());
                warn!(
                    queue,
                    "RabbitMQ ends the connection whenever it delivers the message at the head of this queue: the worker has it delivered \
                     until the delivery limit makes it a dead letter, and other events wait meanwhile"
                );
            }
            if self.deliveries >= DELIVERIES {
                self.log_stuck(&queue);
                return Passing::Stuck(cause(&queue));
            }
            found_in = Some(queue);
            if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                return Passing::Nothing;
            }
        }
        if found == 0 {
            return Passing::Nothing;
        }
        self.is_stuck = false;
        let letters = self.dead_letters.unwrap_or(0).saturating_sub(letters_before.unwrap_or(0));
        self.passed += letters.max(1);
        if is_logged {
            info!(
                messages = std::mem::take(&mut self.passed),
                deliveries = found,
                "passed messages that RabbitMQ cannot deliver, and that are dead letters now: `unstale dlq drop --undeliverable` removes \
                 them; find their publisher (docs/faults/rabbitmq.md)"
            );
        }
        Passing::Passed
    }

    /// Notes that a session lasted, so that the next deliveries may be quick again.
    pub(super) fn session_lasted(&mut self) {
        self.deliveries = 0;
        self.is_stuck = false;
    }

    /// Notes the number of dead letters. If it grew, the broker dead-letters at a limit.
    fn note_dead_letters(&mut self, now: Option<u32>) {
        if let (Some(before), Some(now)) = (self.dead_letters, now)
            && now > before
        {
            self.deliveries = 0;
        }
        self.dead_letters = now;
    }

    fn is_due(&self) -> bool {
        self.logged_at.is_none_or(|at| at.elapsed() >= COUNTED_FOR)
    }

    fn log_stuck(&mut self, queue: &str) {
        if !std::mem::replace(&mut self.is_stuck, true) {
            error!(
                queue,
                deliveries = self.deliveries,
                "the message that RabbitMQ cannot deliver is still at the head of the queue, and no event behind it is applied: give the \
                 queue a delivery limit (policy `delivery-limit`), and find the publisher (docs/faults/rabbitmq.md)"
            );
        }
    }
}

/// Returns why nothing is consumed.
fn cause(queue: &str) -> String {
    format!(
        "RabbitMQ ends the connection whenever it delivers the message at the head of `{queue}`: it becomes a dead letter at the queue's \
         delivery limit"
    )
}

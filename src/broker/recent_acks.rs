//! Time that a clean shutdown must wait for earlier acknowledgements.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Acknowledgements that a RabbitMQ channel passes on to a quorum queue at once
/// (`quorum_commands_soft_limit`, 32).
///
/// The channel keeps the rest until the queue has written those to disk. A channel that is closed
/// earlier forgets what it keeps, and the broker redelivers all of that. AMQP gives no signal to
/// wait for.
const PASSED_ON: usize = 32;

/// Maximum time for one write to disk. The channel then passes on what it kept, in one command.
const ONE_WRITE: Duration = Duration::from_secs(1);

/// Times of the latest acknowledgements on a channel.
#[derive(Debug, Clone, Default)]
pub(super) struct RecentAcks(Arc<Mutex<VecDeque<Instant>>>);

impl RecentAcks {
    /// Notes one more acknowledgement, made now.
    pub(super) fn note(&self) {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() == PASSED_ON {
            made.pop_front();
        }
        made.push_back(Instant::now());
    }

    /// Notes that the channel has passed on the acknowledgements made before that time.
    pub(super) fn took_effect(&self, before: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|made| *made >= before);
    }

    /// Returns the time until the broker has passed all of them on: zero unless many were made
    /// recently.
    pub(super) fn take_effect_in(&self) -> Duration {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (made.front(), made.back()) {
            (Some(first), Some(last)) if made.len() == PASSED_ON && first.elapsed() < ONE_WRITE => {
                ONE_WRITE.saturating_sub(last.elapsed())
            }
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_waits_for_many_recent_acknowledgements_and_not_for_few() {
        let acks = RecentAcks::default();
        for _ in 0..PASSED_ON - 1 {
            acks.note();
        }
        assert_eq!(acks.take_effect_in(), Duration::ZERO);
        acks.note();
        acks.note();
        assert!(acks.take_effect_in() > ONE_WRITE / 2);
        let passed_on = acks.0.lock().unwrap()[1];
        acks.took_effect(passed_on);
        assert_eq!(acks.take_effect_in(), Duration::ZERO);
        acks.note();
        assert!(acks.take_effect_in() > ONE_WRITE / 2);
        let long_ago = Instant::now().checked_sub(ONE_WRITE).unwrap();
        acks.0.lock().unwrap()[0] = long_ago;
        assert_eq!(acks.take_effect_in(), Duration::ZERO);
    }
}

//! Letters → copies in the queue of events; only then are they taken.

use super::Letter;
use crate::broker::{
    CopyHeaders, DeadLetter, DeadLetters, PublishError, Publisher, SessionEnded, copy_to,
};

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Confirmed in the queue, and taken.
    pub done: usize,
    /// Left where they were.
    pub left: usize,
    /// Why the first of those was left.
    pub problem: Option<PublishError>,
}

/// Publishes a copy of each letter to the queue of events, waits until each is confirmed and not
/// returned, and only then takes those letters out of the dead-letter queue. `now` is RFC 3339.
///
/// # Errors
/// When the connection that reads is over: what was published meanwhile may stand in both queues.
pub async fn replay_batch(
    letters: &mut DeadLetters,
    publisher: &mut Publisher,
    batch: &[(DeadLetter, Letter)],
    now: &str,
) -> Result<Replayed, SessionEnded> {
    let queue = letters.names().main.clone();
    let histories: Vec<String> = batch.iter().map(|(_, letter)| letter.history()).collect();
    let copies: Vec<_> = batch
        .iter()
        .zip(&histories)
        .map(|((dead, letter), history)| {
            let headers = CopyHeaders {
                attempt: 0,
                effects: letter.effects.as_ref().map(|(positions, _)| positions.as_slice()),
                earlier_reasons: Some(history),
                registry: letter.registry.as_deref().unwrap_or_default(),
                time: now,
                ..CopyHeaders::default()
            };
            copy_to(&queue, &dead.delivery, &headers, publisher.frame_max_bytes(), letters.signer())
        })
        .collect();
    let mut replayed = Replayed::default();
    let mut taken = Vec::with_capacity(batch.len());
    for ((_, letter), result) in batch.iter().zip(publisher.publish_all(&copies).await) {
        match result {
            Ok(()) => taken.push(letter.tag),
            Err(problem) => {
                replayed.left += 1;
                replayed.problem.get_or_insert(problem);
            }
        }
    }
    letters.take(&taken).await?;
    replayed.done = taken.len();
    Ok(replayed)
}

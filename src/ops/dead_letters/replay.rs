//! Replays letters: each is published to the queue of events, and only then taken out of the
//! dead-letter queue.

use super::Letter;
use crate::broker::{
    CopyHeaders, DeadLetter, DeadLetters, PublishError, Publisher, SessionEnded, copy_to,
};

/// The outcome of a batch.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Number of letters that were confirmed in the queue of events, and taken.
    pub done: usize,
    /// Number of letters that stay in the dead-letter queue.
    pub left: usize,
    /// Error of the first letter that stays.
    pub problem: Option<PublishError>,
}

/// Republishes each letter to the queue of events, and takes a letter once its message is confirmed
/// and not returned.
///
/// `now` is the time in RFC 3339.
///
/// # Errors
/// [`SessionEnded`] if the connection that reads has ended. Letters of this batch may then be in
/// both queues.
pub async fn replay_batch(
    letters: &mut DeadLetters,
    publisher: &mut Publisher,
    batch: &[(DeadLetter, Letter)],
    now: &str,
) -> Result<Replayed, SessionEnded> {
    let queue = letters.names().main.clone();
    let reasons: Vec<String> = batch.iter().map(|(_, letter)| letter.reasons()).collect();
    let republished: Vec<_> = batch
        .iter()
        .zip(&reasons)
        .map(|((dead, letter), reasons)| {
            let headers = CopyHeaders {
                attempt: 0,
                effects: letter.effects.as_ref().map(|(positions, _)| positions.as_slice()),
                earlier_reasons: Some(reasons),
                registry: letter.registry.as_deref().unwrap_or_default(),
                time: now,
                ..CopyHeaders::default()
            };
            copy_to(&queue, &dead.delivery, &headers, publisher.frame_max_bytes(), letters.signer())
        })
        .collect();
    let mut replayed = Replayed::default();
    let mut taken = Vec::with_capacity(batch.len());
    for ((_, letter), result) in batch.iter().zip(publisher.publish_all(&republished).await) {
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

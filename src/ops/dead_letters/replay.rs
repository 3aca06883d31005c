//! Replays letters: each is recorded in the history, then published to the queue of events, and
//! only then taken out of the dead-letter queue.
//!
//! The letter's event may be in the history too, far before its end. A heal does not read back to
//! there, but it reads what was recorded last.

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
    /// Error of the first letter that stays because the history does not take it.
    pub history_problem: Option<PublishError>,
    /// Number of replayed letters that are not in the history, because it does not exist.
    pub unrecorded: usize,
}

/// Republishes each letter to the queue of events, and takes a letter once its message is confirmed
/// and not returned.
///
/// With `record`, each letter is recorded in the history first. `now` is the time in RFC 3339.
///
/// # Errors
/// [`SessionEnded`] if the connection that reads has ended. Letters of this batch may then be in
/// both queues.
pub async fn replay_batch(
    letters: &mut DeadLetters,
    publisher: &mut Publisher,
    batch: &[(DeadLetter, Letter)],
    record: bool,
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
    let history = letters.names().history.clone();
    let mut recorded = vec![Ok(()); batch.len()];
    if record {
        let records: Vec<_> =
            republished.iter().map(|message| message.to_queue(&history)).collect();
        recorded = publisher.publish_all(&records).await;
    }
    let mut published = Vec::with_capacity(batch.len());
    let mut tags = Vec::with_capacity(batch.len());
    for ((message, (_, letter)), recorded) in republished.into_iter().zip(batch).zip(recorded) {
        match recorded {
            Ok(()) => {}
            Err(PublishError::Returned(_)) => replayed.unrecorded += 1,
            Err(problem) => {
                replayed.left += 1;
                replayed.history_problem.get_or_insert(problem);
                continue;
            }
        }
        published.push(message);
        tags.push(letter.tag);
    }
    let mut taken = Vec::with_capacity(tags.len());
    for (tag, result) in tags.into_iter().zip(publisher.publish_all(&published).await) {
        match result {
            Ok(()) => taken.push(tag),
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

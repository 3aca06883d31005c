//! Looks at the marks of the queues: a queue whose mark is missing was deleted, and declared again
//! by somebody. AMQP shows neither. RabbitMQ may attach the old consumers to the new queue, whose
//! deliveries then reach nobody.
//!
//! Events that waited in the deleted queue, or came before the new one was bound, are in the
//! history alone. So a heal is owed from the low watermark of the last look that found all marks.
//! Only after Redis holds that heal does a worker make the marks again.
//!
//! Redis counts how often each mark was made. A higher count than this worker's own shows that
//! another worker has replaced the mark. This worker's consumers are then those of the old queue.

pub(super) mod known;

use tracing::{debug, warn};

use super::heal_state::Heals;
use crate::broker::{BrokerError, Session};
use crate::cache::CommandError;
use crate::causes::Explain as _;

pub(super) use known::Look;

use known::Found;

/// Looks at all marks. Returns nothing if a server does not answer: the next look finds the same.
/// Without healing there are no checkpoints, and so no marks.
pub(super) async fn look(heals: Heals<'_>, session: &Session) -> Option<Look> {
    if !heals.config.heals() || !heals.gate.is_open() {
        return None;
    }
    // Whatever is deleted after this is unapplied as of this moment, or arrives later.
    let low = heals.state.watermark.now();
    match look_once(heals, session).await {
        Ok(look) => {
            if !look.any_replaced() {
                heals.state.owed.looked(low);
            }
            for found in look.queues.iter().filter(|found| found.is_replaced) {
                warn!(queue = found.queue, "the queue was deleted and declared again");
            }
            Some(look)
        }
        Err(cause) => {
            debug!(%cause, "the marks of the queues cannot be looked at");
            None
        }
    }
}

async fn look_once(heals: Heals<'_>, session: &Session) -> Result<Look, String> {
    let marks = heals.cache.read_checkpoints().await.map_err(redis)?;
    let at = session.broker().unwrap_or_default();
    let mut look = Look::default();
    let known = &heals.state.queue_marks;
    for queue in session.marked_queues() {
        if known.change(|state| state.hidden.contains(queue)) {
            continue;
        }
        match session.queue_mark_exists(queue).await.map_err(broker)? {
            Some(has_mark) => {
                look.queues.push(known.found(queue, has_mark, marks.queue_mark(queue, &at)));
            }
            // Each refusal is a line in the broker's log.
            None => {
                known.change(|state| state.hidden.insert(queue.to_owned()));
            }
        }
    }
    Ok(look)
}

/// Makes the marks that a look found missing, as far as this worker may, and binds the others.
/// Redis must hold the heal that is owed for replaced queues.
pub(super) async fn keep(heals: Heals<'_>, session: &Session, look: Option<Look>) {
    for found in look.into_iter().flat_map(|look| look.queues) {
        if let Err(cause) = keep_one(heals, session, found).await {
            debug!(%cause, "a mark of a queue cannot be made");
            return;
        }
    }
}

async fn keep_one(heals: Heals<'_>, session: &Session, found: Found) -> Result<(), String> {
    let Heals { cache, state, .. } = heals;
    let at = session.broker().unwrap_or_default();
    let Found { queue, has_mark, held, made, .. } = found;
    let is_settled = state.queue_marks.change(|state| state.settled.contains(&queue));
    let note = async |made| cache.note_queue_mark(&queue, &at, made).await.map_err(redis);
    let make = async || session.make_queue_mark(&queue).await.map_err(broker);
    let made = match made {
        // Redis may have gone back since.
        Some(made) if has_mark => {
            if held < Some(made) {
                note(Some(made)).await?;
            }
            if !is_settled {
                make().await?;
            }
            Some(made)
        }
        // Redis counts the mark first. If this worker dies in between, the next one finds the mark
        // missing, and owes the heal once more.
        Some(made) => {
            note(Some(made + 1)).await?;
            if make().await? {
                Some(made + 1)
            } else {
                note(None).await?;
                None
            }
        }
        // An exchange without a count may be another program's. Then the broker refuses.
        None if !is_settled && make().await? => {
            note(Some(1)).await?;
            Some(1)
        }
        None => None,
    };
    state.queue_marks.change(|state| {
        match made {
            Some(made) => state.made.insert(queue.clone(), made),
            None => {
                // Each look at a missing exchange is a line in the broker's log.
                state.hidden.insert(queue.clone());
                state.made.remove(&queue)
            }
        };
        state.settled.insert(queue);
    });
    Ok(())
}

fn broker(error: BrokerError) -> String {
    error.in_full()
}

fn redis(error: CommandError) -> String {
    error.in_full()
}

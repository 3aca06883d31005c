//! Looks at the mark of the history during a session. If workers made the mark and it is missing,
//! somebody deleted the history and declared it again.

use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::heal_state::Heals;
use crate::broker::{BrokerError, Session};
use crate::cache::CommandError;
use crate::causes::Explain as _;

/// Maximum time to save in Redis that a heal is owed. After it, the look ends and the next look
/// tries again.
const SAVED_WITHIN: Duration = Duration::from_secs(5);

/// Looks at the mark, and makes it if it is missing.
///
/// `saw_mark`: this session has found or made the mark before. Then the main queue is still the
/// same one, since a consumer notices the deletion of its queue. Otherwise somebody may have
/// deleted the queue too, so a heal is owed.
///
/// Redis records that the history is new before the mark is made again. Otherwise, if this worker
/// died in between, no worker would notice the new history.
pub(super) async fn look(heals: Heals<'_>, session: &Session, saw_mark: &mut bool) {
    if !heals.config.heals() || heals.config.amqp.history.is_none() || !heals.gate.is_open() {
        return;
    }
    let began = Instant::now();
    match look_once(heals, session, saw_mark).await {
        Ok(()) => {
            debug!(took_ms = began.elapsed().as_millis(), "looked at the mark of the history")
        }
        Err(cause) => debug!(%cause, "the mark of the history cannot be looked at"),
    }
}

async fn look_once(heals: Heals<'_>, session: &Session, saw_mark: &mut bool) -> Result<(), String> {
    let broker = |error: BrokerError| error.in_full();
    let redis = |error: CommandError| error.in_full();
    let history_start = &heals.state.history_start;
    let name = session.broker().unwrap_or_default();
    match session.history_mark_exists().await.map_err(broker)? {
        None => return Ok(()),
        Some(true) => {
            *saw_mark = true;
            if session.bind_history_mark().await.map_err(broker)? {
                history_start.made_mark(name);
            }
            return Ok(());
        }
        Some(false) => {}
    }
    let marks = heals.cache.read_checkpoints().await.map_err(redis)?;
    if history_start.knows_mark(&marks, &name) {
        warn!("the history was deleted and declared anew: a heal from before is not complete");
        history_start.is_now();
        if !*saw_mark && !session.has_declared_history_anew() {
            heals.state.owed.owe_from_low(
                "the history was deleted and declared anew while this worker had no session, and the queue may have been too",
            );
            // The mark must not be made before Redis holds the owed heal.
            let saved = tokio::time::timeout(SAVED_WITHIN, heals.state.owed.saved()).await;
            saved.map_err(|_| "Redis does not hold yet that a heal is owed".to_owned())?;
        }
        history_start.note(heals.cache, &marks).await.map_err(redis)?;
        history_start.forget_mark();
        heals.cache.forget_history_mark().await.map_err(redis)?;
    }
    if session.create_history_mark().await.map_err(broker)? {
        *saw_mark = true;
        history_start.made_mark(name);
    }
    Ok(())
}

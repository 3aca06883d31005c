//! Checks the broker's objects during a session, and declares and binds the missing ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::heal_state::{HealState, Heals};
use super::{history_mark, queue_marks};
use crate::broker::{DeletionSeen, Mended, Session, SessionEnded, Signer};
use crate::cache::{Cache, CommandError};
use crate::causes::Explain;
use crate::http::Readiness;

/// Minimum time between two checks.
const INTERVAL: Duration = Duration::from_secs(10);

/// Maximum random time added to the interval, so that workers do not check all at once.
const JITTER: Duration = Duration::from_secs(10);

/// Time added to the interval for each binding, since each needs a request.
const PER_BINDING: Duration = Duration::from_millis(20);

/// Logs and notes what a session found when it began.
pub(super) fn began(state: &HealState, session: &Session, is_first: bool) {
    for warning in session.warnings() {
        warn!("{warning}");
    }
    let declared = session.declared();
    if !declared.is_empty() {
        if is_first && !session.owes_heal() {
            info!(?declared, "declared what was missing in RabbitMQ");
        } else {
            warn!(?declared, "objects in RabbitMQ were missing: declared again");
        }
    }
    note_new_history(state, session.deletion_seen());
    if session.has_declared_history_anew() {
        state.history_start.is_now();
    }
    state.history_start.looked(session.history_is_missing());
    state.broker_identity.met(session.broker().as_deref());
    note_history(state, session.history_fault().map(str::to_owned));
    state.first_ever.send_if_modified(|known| {
        known.is_none() && known.replace(session.is_first_ever()).is_none()
    });
    session.deletion_seen().objects_exist();
}

/// Checks the objects again and again. Returns when a queue with consumers was replaced: the next
/// session owes a heal and consumes from the new queue.
pub(super) async fn keep(heals: Heals<'_>, signer: &Signer, session: &Session) -> SessionEnded {
    let Heals { cache, gate, readiness, state, .. } = heals;
    let mut logged = BTreeSet::new();
    let mut saw_mark = false;
    loop {
        history_mark::look(heals, session, &mut saw_mark).await;
        let bindings = u32::try_from(session.bindings()).unwrap_or(u32::MAX);
        tokio::time::sleep(
            INTERVAL + JITTER.mul_f64(fastrand::f64()) + PER_BINDING.saturating_mul(bindings),
        )
        .await;
        let mended = session.mend().await;
        let look = queue_marks::look(heals, session).await;
        if look.as_ref().is_some_and(|look| look.lane_is_replaced(session)) {
            return SessionEnded::by_deletion(
                "a queue was deleted and declared again: its consumers are lost",
            );
        }
        // Until Redis can be used, the deletion stays noted, since the start of the heal is unknown
        // before.
        let any_replaced = look.as_ref().is_some_and(queue_marks::Look::any_replaced);
        let owes = gate.is_open() && (session.deletion_seen().take() || any_replaced);
        if owes {
            state.owed.owe_from_low(
                "a queue or the exchange was deleted while workers ran: events may have gone to the history alone",
            );
        }
        let is_saved = owes && tokio::time::timeout(INTERVAL, state.owed.saved()).await.is_ok();
        if !any_replaced || is_saved {
            queue_marks::keep(heals, session, look).await;
        }
        note_new_history(state, session.deletion_seen());
        match mended {
            Ok(mended) => note(state, readiness, mended, &mut logged),
            // A failure that ends the session is noticed elsewhere.
            Err(error) => {
                debug!(cause = error.in_full(), "the objects in RabbitMQ cannot be looked at")
            }
        }
        // If Redis lost the old secret, another worker may have made a new one.
        if let Err(error) = learn_secret(cache, signer).await {
            debug!(cause = error.in_full(), "the signing secret cannot be looked at");
        }
    }
}

fn note(state: &HealState, readiness: &Readiness, mended: Mended, logged: &mut BTreeSet<String>) {
    if !mended.declared.is_empty() {
        warn!(declared = ?mended.declared, "objects in RabbitMQ were missing: declared again");
    }
    state.history_start.looked(mended.history_is_missing);
    for problem in &mended.problems {
        if logged.insert(problem.clone()) {
            error!(%problem, "an object in RabbitMQ is missing, or is not as it must be");
        }
    }
    logged.retain(|problem| mended.problems.contains(problem));
    readiness.set_objects(if mended.problems.is_empty() {
        Ok(())
    } else {
        Err(mended.problems.join("; ").into())
    });
    note_history(state, mended.history_fault);
}

/// Notes that this worker declared the history, unless it may be its first start.
pub(super) fn note_new_history(state: &HealState, seen: &DeletionSeen) {
    if seen.take_declared_history() && !seen.neither_existed() {
        state.history_start.is_now();
    }
}

/// Logs when the history becomes unusable, and when it is usable again.
fn note_history(state: &HealState, fault: Option<String>) {
    let before = state.history_fault.load();
    match (&fault, before.is_some()) {
        (Some(cause), false) => error!(
            %cause,
            "the history cannot be used: events are still applied, and are missing from the history; docs/reference/rabbitmq.md#history-that-the-broker-does-not-serve says what to do"
        ),
        (None, true) => info!("the history can be used again"),
        _ => {}
    }
    state.history_fault.store(fault.map(Arc::new));
}

/// Learns the secret with which the workers of this Redis sign republished messages.
pub(super) async fn learn_secret(cache: &Cache, signer: &Signer) -> Result<(), CommandError> {
    let secret = cache.signing_secret(signer.secret().as_deref()).await?;
    signer.learn(&secret);
    Ok(())
}

//! Checks the broker's objects during a session, and declares and binds the missing ones.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{debug, error, info, warn};

use super::Shared;
use crate::broker::{Mended, Session};
use crate::cache::HealFrom;
use crate::causes::Explain;
use crate::http::Readiness;
use crate::ops::heal::window;

/// Minimum time between two checks.
const INTERVAL: Duration = Duration::from_secs(10);

/// Maximum random time added to the interval, so that workers do not check all at once.
const JITTER: Duration = Duration::from_secs(10);

/// Time added to the interval for each binding, since each needs a request.
const PER_BINDING: Duration = Duration::from_millis(20);

/// Logs and notes what a session found when it began.
pub(super) fn began(shared: &Shared, session: &Session, is_first: bool) {
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
    if session.has_declared_history_anew() {
        shared.birth.is_now();
    }
    shared.birth.looked(session.history_is_missing());
    shared.brokers.met(session.broker().as_deref());
    note_history(shared, session.history_fault().map(str::to_owned));
    shared.first_ever.send_if_modified(|known| {
        known.is_none() && known.replace(session.is_first_ever()).is_none()
    });
}

/// Checks the objects again and again; never returns.
pub(super) async fn keep(shared: &Shared, readiness: &Readiness, session: &Session) -> Infallible {
    let mut told = BTreeSet::new();
    loop {
        let bindings = u32::try_from(session.bindings()).unwrap_or(u32::MAX);
        tokio::time::sleep(
            INTERVAL + JITTER.mul_f64(fastrand::f64()) + PER_BINDING.saturating_mul(bindings),
        )
        .await;
        let mended = session.mend().await;
        // Until Redis can be used, the deletion stays noted, since the start of the heal is unknown
        // before.
        if shared.gate.is_open() && session.deletion_seen().take() {
            owe_heal(
                shared,
                "a queue or the exchange was deleted while workers ran: events may have gone to the history alone",
            );
        }
        match mended {
            Ok(mended) => note(shared, readiness, mended, &mut told),
            // A failure that ends the session is noticed elsewhere.
            Err(error) => {
                debug!(cause = error.in_full(), "the objects in RabbitMQ cannot be looked at")
            }
        }
        // If Redis lost the old secret, another worker may have made a new one.
        if let Err(error) = shared.learn_secret().await {
            debug!(cause = error.in_full(), "the signing secret cannot be looked at");
        }
    }
}

fn note(shared: &Shared, readiness: &Readiness, mended: Mended, told: &mut BTreeSet<String>) {
    if !mended.declared.is_empty() {
        warn!(declared = ?mended.declared, "objects in RabbitMQ were missing: declared again");
    }
    if mended.has_declared_history {
        shared.birth.is_now();
    }
    shared.birth.looked(mended.history_is_missing);
    for problem in &mended.problems {
        if told.insert(problem.clone()) {
            error!(%problem, "an object in RabbitMQ is missing, or is not as it must be");
        }
    }
    told.retain(|problem| mended.problems.contains(problem));
    readiness.set_objects(if mended.problems.is_empty() {
        Ok(())
    } else {
        Err(mended.problems.join("; ").into())
    });
    note_history(shared, mended.history_fault);
}

/// Logs when the history becomes unusable, and when it is usable again.
fn note_history(shared: &Shared, fault: Option<String>) {
    let before = shared.history_fault.load();
    match (&fault, before.is_some()) {
        (Some(cause), false) => error!(
            %cause,
            "the history cannot be used: events are applied all the same, and are missing from it; docs/reference/rabbitmq.md#history-that-the-broker-does-not-serve says what to do"
        ),
        (None, true) => info!("the history can be used again"),
        _ => {}
    }
    shared.history_fault.store(fault.map(Arc::new));
}

/// Owes a heal if events may be in the history alone, and waits until Redis holds that. Callers
/// must wait until Redis can be used. Only then is the low watermark of stopped workers known.
pub(super) async fn owe_what_was_deleted(shared: &Shared, is_owed: &mut bool) {
    if std::mem::take(is_owed) {
        owe_heal(
            shared,
            "a queue or the exchange was deleted: events may have gone to the history alone",
        );
    }
    shared.owed.saved().await;
}

/// Owes a heal, and waits until Redis holds that.
pub(super) async fn owe(shared: &Shared, cause: &str) {
    owe_heal(shared, cause);
    shared.owed.saved().await;
}

fn owe_heal(shared: &Shared, cause: &str) {
    if !shared.config.heals() || shared.config.amqp.history.is_none() {
        error!(
            "{cause}; nothing makes up for it without a history and healing: flush what must be right"
        );
        return;
    }
    let low = shared.low.now();
    // If no low watermark exists, the heal begins UNSTALE_HEAL_WINDOW ago, or as long before the
    // history's end.
    let from = if low.time_ms == 0 { HealFrom::default() } else { HealFrom::low(low) }
        .or_window(window(&shared.config), Timestamp::now());
    warn!("{cause}; the history is applied again");
    shared.owed.owe(from, cause);
}

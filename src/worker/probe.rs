//! Probes Redis while the gate is closed, and has it healed before the gate opens.

use std::time::Duration;

use tracing::warn;

use super::gate::Gate;
use super::healing::{Healer, Unhealed};
use crate::cache::Cache;
use crate::causes::Explain;
use crate::http::Readiness;
use crate::telemetry::mentioned_if_slow;

/// Time between two attempts at a broker that refuses access to the history.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// Probes while the gate is closed, and opens it once Redis holds everything that it confirmed.
/// Returns only if the gate was never open and a server refuses the worker until a person acts.
pub(super) async fn keep_open(
    gate: &Gate,
    cache: &Cache,
    readiness: &Readiness,
    healer: &Healer<'_>,
) -> Unhealed {
    let mut opened_before = false;
    let mut logged = None;
    loop {
        gate.closed().await;
        // The probe paces itself.
        let probed = match &logged {
            None if !opened_before => {
                mentioned_if_slow(cache.probe(), || {
                    warn!(cause = "it has not answered yet", "waiting for Redis")
                })
                .await
            }
            _ => cache.probe().await,
        };
        let usable = match probed {
            Ok(()) => {
                // Set first: otherwise the worker would be ready for a moment.
                readiness.set_healed(Err(
                    "whether Redis holds all that it confirmed is not known yet".into(),
                ));
                readiness.set_redis(Ok(()));
                healer.ensure().await
            }
            Err(outage) => {
                gate.note_failed_probe();
                Err(outage.into())
            }
        };
        match usable {
            Ok(()) => {
                opened_before = true;
                logged = None;
                gate.set_open();
            }
            Err(refused) if refused.needs_person() && !opened_before => return refused,
            Err(Unhealed::Broker(error)) => {
                let cause = error.in_full();
                readiness
                    .set_healed(Err(
                        format!("the history cannot be read to heal Redis: {cause}").into()
                    ));
                warn!(cause, "the history cannot be read to heal Redis");
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            // It never occurs after the gate was open.
            Err(refused @ Unhealed::SharedMarks(_)) => return refused,
            Err(Unhealed::Redis(outage)) => {
                let cause = outage.in_full();
                readiness.set_redis(Err(cause.clone().into()));
                if logged.as_ref() != Some(&cause) {
                    warn!(cause, "waiting for Redis");
                    logged = Some(cause);
                }
            }
        }
    }
}

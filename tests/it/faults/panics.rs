//! A bug that panics while an event is read.
//!
//! No such bug is known, so the test brings its own. The worker runs in the test's process, and a
//! log subscriber panics at the chosen event.

use std::fmt;

use redis::AsyncCommands;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use unstale::config::{Config, Scope};
use unstale::http::Readiness;
use unstale::registry::{LoadOptions, Registry, STACK_BYTES};
use unstale::telemetry::Metrics;
use unstale::worker::{self, Ended, Signals};

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::wait_until;
use crate::support::worker::Metrics as Seen;

const RULES: &str = r#"events: { visit.made: { effects: [ { bump_version: "visits:{id}" } ] } }"#;

/// Number of events: fewer than a session requests after its first delivery, so all are in flight
/// together.
const EVENTS: u32 = 16;

/// Id of the event that triggers the bug: neither the first nor the last in flight.
const CULPRIT: &str = "culprit";

/// Subscriber that panics when the worker logs that it resolved the event.
struct Bug;

struct Names<'s>(&'s str, bool);

impl Visit for Names<'_> {
    fn record_debug(&mut self, _field: &Field, value: &dyn fmt::Debug) {
        self.1 |= format!("{value:?}") == self.0;
    }
}

impl<S: Subscriber> Layer<S> for Bug {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut names = Names(CULPRIT, false);
        event.record(&mut names);
        assert!(!names.1, "a bug");
    }
}

fn config(stage: &Stage) -> Config {
    let (redis, schemas) = (stage.redis.url(), stage.schemas.path().to_str().unwrap().to_owned());
    let pairs = [("UNSTALE_REDIS_URL", redis.as_str()), ("UNSTALE_SCHEMAS", &schemas)]
        .into_iter()
        .chain(stage.broker_settings());
    let pairs = pairs.map(|(name, value)| (name.into(), value.into()));
    Config::from_pairs(pairs, |_| unreachable!(), Scope::All).unwrap().0
}

/// Runs on one thread, because the subscriber belongs to it. The thread has the stack of the
/// worker's.
#[test]
fn a_panic_dead_letters_its_own_event_alone() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || runtime.block_on(dead_letters_a_panic_alone()))
        .unwrap()
        .join()
        .unwrap();
}

async fn dead_letters_a_panic_alone() {
    let stage = Stage::new(&[("visits.yaml", RULES)]).await;
    assert_eq!(stage.worker(&[]).await.terminate().await.code(), Some(0));
    let bump = async |id: u32| {
        let message_id = if id == EVENTS / 2 { CULPRIT.to_owned() } else { id.to_string() };
        let properties = lapin::BasicProperties::default().with_message_id(message_id.into());
        stage.publish_with("visit.made", properties, format!(r#"{{"id":{id}}}"#).as_bytes()).await;
    };
    for id in 0..EVENTS {
        bump(id).await;
    }
    let listening = tracing::subscriber::set_default(tracing_subscriber::registry().with(Bug));
    let (metrics, signals) = (Metrics::new(), Signals::default());
    let config = config(&stage);
    let registry = Registry::load(&LoadOptions::for_run(&config.registry)).unwrap().registry;
    let settled = || Seen::parse(&metrics.prometheus_text()).sum("unstale_events_total", &[]);
    let watching = async {
        wait_until(SOON, "all are settled", async || settled() >= f64::from(EVENTS)).await;
        // The worker continues.
        bump(EVENTS).await;
        wait_until(SOON, "so is one more", async || settled() > f64::from(EVENTS)).await;
        signals.stop.cancel();
    };
    let worker = worker::run(config, registry, metrics.clone(), Readiness::new(), signals.clone());
    let (ended, ()) = tokio::join!(worker, watching);
    assert_eq!(ended.unwrap(), Ended::Clean);
    drop(listening);
    let letters = stage.dead_letters(1).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].body, format!(r#"{{"id":{}}}"#, EVENTS / 2).as_bytes());
    assert_eq!(letters[0].header("unstale-reason").as_deref(), Some("panicked"));
    assert_eq!(stage.ready("").await + stage.ready(".slow").await, 0);
    let mut redis = stage.connection().await;
    for id in (0..=EVENTS).filter(|id| *id != EVENTS / 2) {
        // An absent key counts as 1: each event was applied, and once.
        let version: Option<u32> = redis.get(format!("visits:{id}")).await.unwrap();
        assert_eq!(version, Some(2), "visits:{id}");
    }
    let version: Option<u32> = redis.get(format!("visits:{}", EVENTS / 2)).await.unwrap();
    assert_eq!(version, None, "nothing of the culprit is applied");
}

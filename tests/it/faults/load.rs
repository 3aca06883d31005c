//! Load of events of every kind, their expected result, and a publisher that survives outages of
//! its broker.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::{BasicProperties, Confirmation};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;

use crate::end_to_end::stage::Stage;
use crate::support::{Redis, Worker, wait_until};

/// Settings of the worker: short retries, and a loader timeout of one second.
pub(super) const SETTINGS: &[(&str, &str)] = &[("UNSTALE_RETRY_DELAYS", "50ms,100ms,200ms,1s")];

/// Maximum time for everything to settle on a busy machine.
///
/// Leases of killed loads must expire first (1 s and a margin of 5 s).
pub(super) const SETTLES: Duration = Duration::from_secs(60);

const RULES: &str = r#"
defaults: { ttl: 1h }
loaders: { pages: { url: "{vars.PAGES_URL}", timeout: 1s } }
events:
  user.updated:
    effects: [ { delete: "user:{id}" } ]
  price.changed:
    effects: [ { write: "price:{id}", value: "{cents}", encoding: raw, tags: ["prices:{id}"] } ]
  tag.changed:
    effects: [ { invalidate_tags: "big:{id}" } ]
  page.changed:
    effects: [ { warm: "page:{id}", from: "pages:/{id}" } ]
"#;

/// Members of each big tag: more than one round trip deletes.
const MEMBERS: u32 = 600;

/// Returns a stage whose Redis keeps its data through a kill.
pub(super) async fn stage(amqp_url: &str) -> Stage {
    stage_with(amqp_url, &[]).await
}

/// Returns a stage as [`stage`] does, with more arguments for its Redis.
pub(super) async fn stage_with(amqp_url: &str, args: &[&str]) -> Stage {
    let args = [&["--appendonly", "yes", "--appendfsync", "always"], args].concat();
    let redis = Redis::start_with(&args).await;
    Stage::with(amqp_url, redis, &[("rules.yaml", RULES)]).await
}

/// Server for loaders: each tenth page fails the first time.
#[derive(Debug, Clone, Default)]
pub(super) struct Pages(Arc<Mutex<BTreeMap<u32, u32>>>);

impl Pages {
    pub(super) async fn serve() -> String {
        let app = Router::new().route("/{id}", get(Self::page)).with_state(Self::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        url
    }

    async fn page(State(pages): State<Self>, Path(id): Path<u32>) -> (StatusCode, String) {
        let loads = {
            let mut loads = pages.0.lock().unwrap();
            let loads = loads.entry(id).or_default();
            *loads += 1;
            *loads
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        if id.is_multiple_of(10) && loads == 1 {
            return (StatusCode::SERVICE_UNAVAILABLE, String::new());
        }
        (StatusCode::OK, format!("page {id}"))
    }
}

/// Events by number: mostly deletions and writes, with loads, retries and drains among them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kinds {
    /// One event in this many is a load.
    pub(super) loads: u32,
    /// One event in this many drains a tag.
    pub(super) drains: u32,
}

impl Kinds {
    pub(super) const MIXED: Self = Self { loads: 40, drains: 400 };
    /// No loads, so no event has a reason for a retry.
    pub(super) const QUICK: Self = Self { loads: u32::MAX, drains: 200 };

    fn event(self, n: u32) -> (&'static str, String) {
        if n % self.drains == 1 {
            ("tag.changed", format!(r#"{{"id":{n}}}"#))
        } else if n.is_multiple_of(self.loads) && n > 0 {
            ("page.changed", format!(r#"{{"id":{}}}"#, n / self.loads))
        } else if n.is_multiple_of(2) {
            ("user.updated", format!(r#"{{"id":{n}}}"#))
        } else {
            ("price.changed", format!(r#"{{"id":{n},"cents":{n}}}"#))
        }
    }

    fn key(self, n: u32) -> (String, Option<String>) {
        match self.event(n).0 {
            "tag.changed" => (format!("big:{n}:0"), None),
            "page.changed" => {
                (format!("page:{}", n / self.loads), Some(format!("page {}", n / self.loads)))
            }
            "user.updated" => (format!("user:{n}"), None),
            _ => (format!("price:{n}"), Some(n.to_string())),
        }
    }

    pub(super) async fn seed(self, stage: &Stage, numbers: std::ops::Range<u32>) {
        let mut redis = stage.connection().await;
        let numbers: Vec<u32> = numbers.collect();
        for chunk in numbers.chunks(500) {
            let mut pipe = redis::pipe();
            for &n in chunk {
                pipe.set(self.key(n).0, "old").ignore();
                if self.event(n).0 == "tag.changed" {
                    let members: Vec<String> =
                        (0..MEMBERS).map(|member| format!("big:{n}:{member}")).collect();
                    for member in &members {
                        pipe.set(member, "old").ignore();
                    }
                    pipe.sadd(format!("cache_tag:big:{n}"), members).ignore();
                }
            }
            let _: () = pipe.query_async(&mut redis).await.unwrap();
        }
    }

    /// Returns the keys that differ from the events, and remaining members of tags.
    ///
    /// After a heal, a value without a version may be absent.
    async fn wrong(
        self,
        stage: &Stage,
        numbers: std::ops::Range<u32>,
        healed: bool,
    ) -> Vec<String> {
        let Some(mut redis) = stage.redis.try_connection().await else {
            return vec!["Redis is away".into()];
        };
        let mut wrong = Vec::new();
        let range = numbers.clone();
        let numbers: Vec<u32> = numbers.collect();
        for chunk in numbers.chunks(1_000) {
            let mut pipe = redis::pipe();
            for &n in chunk {
                pipe.get(self.key(n).0);
            }
            let Ok(values) = pipe.query_async::<Vec<Option<String>>>(&mut redis).await else {
                return vec!["Redis is away".into()];
            };
            let pairs = chunk.iter().map(|&n| self.key(n)).zip(values);
            let is_wrong = |wanted: &Option<String>, found: &Option<String>| {
                wanted != found && !(healed && found.is_none())
            };
            wrong.extend(
                pairs
                    .filter(|((_, wanted), found)| is_wrong(wanted, found))
                    .map(|((key, _), found)| format!("{key}: {found:?}")),
            );
        }
        if let Ok(left) =
            redis::cmd("KEYS").arg("big:*").query_async::<Vec<String>>(&mut redis).await
        {
            let number =
                |key: &str| key.split(':').nth(1).and_then(|number| number.parse::<u32>().ok());
            wrong.extend(
                left.into_iter()
                    .filter(|key| number(key).is_some_and(|number| range.contains(&number))),
            );
        }
        wrong
    }

    /// Waits until that event is applied.
    pub(super) async fn reached(self, redis: &MultiplexedConnection, n: u32) {
        let (key, wanted) = self.key(n);
        let found = async || redis.clone().get::<_, Option<String>>(&key).await.unwrap();
        wait_until(SETTLES, "the worker is in the middle of it", async || found().await == wanted)
            .await;
    }

    /// Waits until Redis matches all events, and every queue except the dead-letter queue is empty.
    pub(super) async fn settled(
        self,
        stage: &Stage,
        workers: &[&Worker],
        numbers: std::ops::Range<u32>,
    ) {
        let start = std::time::Instant::now();
        let healed = async || {
            let mut heals = 0.0;
            for worker in workers {
                heals += worker.metrics().await.sum("unstale_heals_total", &[]);
            }
            heals > 0.0
        };
        loop {
            let last = self.wrong(stage, numbers.clone(), healed().await).await;
            if last.is_empty() {
                break;
            }
            if start.elapsed() > SETTLES {
                let logs: String = workers.iter().map(|worker| worker.stderr()).collect();
                let mut queues = String::new();
                for suffix in [
                    "",
                    ".slow",
                    ".retry.50ms",
                    ".retry.100ms",
                    ".retry.200ms",
                    ".retry.1s",
                    ".dead",
                ] {
                    let look = stage.look(&format!("{}{suffix}", stage.queue)).await;
                    queues += &format!("{suffix:?} {look:?}; ");
                }
                panic!(
                    "{} keys are wrong, such as {:?}; (messages, consumers): {queues}\n{logs}",
                    last.len(),
                    &last[..last.len().min(5)]
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stage.wait_settled(workers).await;
        let mut wrong = self.wrong(stage, numbers.clone(), healed().await).await;
        // A heal that has just begun deletes such values, and is counted at its end.
        if !wrong.is_empty() && wrong.iter().all(|key| key.ends_with(": None")) {
            wait_until(
                SETTLES,
                &format!("{} values are there, or a heal ends", wrong.len()),
                async || {
                    wrong = self.wrong(stage, numbers.clone(), healed().await).await;
                    wrong.is_empty()
                },
            )
            .await;
        }
        assert!(
            wrong.is_empty(),
            "{} keys are wrong once all is settled, such as {:?}",
            wrong.len(),
            &wrong[..wrong.len().min(5)]
        );
    }

    /// Publishes until each event is confirmed. Events in flight when the broker goes away are
    /// published again on a new connection.
    pub(super) async fn publish(
        self,
        stage: &mut Stage,
        numbers: std::ops::Range<u32>,
        pause: Duration,
    ) {
        let mut waiting: VecDeque<u32> = numbers.collect();
        while !waiting.is_empty() {
            let chunk: Vec<u32> = (0..100).map_while(|_| waiting.pop_front()).collect();
            if !self.publish_chunk(stage, &chunk).await {
                waiting.extend(chunk);
                wait_until(SETTLES, "the broker takes a connection", async || {
                    stage.try_reconnect().await
                })
                .await;
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn publish_chunk(self, stage: &Stage, chunk: &[u32]) -> bool {
        let mut confirms = FuturesUnordered::new();
        for &n in chunk {
            let (routing_key, body) = self.event(n);
            match stage
                .try_send(&stage.exchange, routing_key, BasicProperties::default(), body.as_bytes())
                .await
            {
                Ok(confirm) => confirms.push(confirm),
                Err(_) => return false,
            }
        }
        while let Some(confirm) = confirms.next().await {
            match confirm {
                Ok(Confirmation::Ack(None)) => {}
                // No queue is bound at the moment, or the broker is away.
                _ => return false,
            }
        }
        true
    }
}

/// Checks that no attempt was used and nothing was dead-lettered.
pub(super) async fn no_blame(stage: &Stage, workers: &[&Worker]) {
    assert_eq!(stage.ready(".dead").await, 0, "dead letters");
    for worker in workers {
        let metrics = worker.metrics().await;
        let blamed =
            metrics.sum("unstale_retries_total", &[]) + metrics.sum("unstale_dead_total", &[]);
        assert!(
            blamed.abs() < f64::EPSILON,
            "{blamed} retries or dead letters:\n{}",
            worker.stderr()
        );
    }
}

//! Application of the soak test, and the checker.
//!
//! The application has a source of truth, a cache filled from it, and an event for each change. The
//! checker knows all three.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use fastrand::Rng;
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::schedule::{Progress, Schedule};
use super::{NAIVE, OURS};
use crate::end_to_end::stage::Stage;
use crate::support;

/// Rules of the test.
///
/// Each event also deletes a key of its own, `pending:{n}`. A remaining one shows an event that was
/// never applied.
pub(super) const RULES: &str = r#"
defaults: { ttl: 7d }
loaders: { pages: { url: "{vars.PAGES_URL}", timeout: 1s } }
events:
  item.changed: { effects: [ { delete: ["item:{id}", "pending:{n}"] } ] }
  group.changed: { effects: [ { invalidate_tags: "group:{id}" }, { delete: "pending:{n}" } ] }
  crowd.changed: { effects: [ { invalidate_tags: "crowd:{id}" }, { delete: "pending:{n}" } ] }
  counter.changed: { effects: [ { bump_version: "counter:{id}" }, { delete: "pending:{n}" } ] }
  price.changed: { version: "{rev}", effects: [ { write: "price:{id}", value: "{rev}" }, { delete: "pending:{n}" } ] }
  page.changed: { effects: [ { warm: "page:{id}", from: "pages:/{id}" }, { delete: "pending:{n}" } ] }
"#;

/// Number of things of each kind.
const THINGS: u32 = 400;

/// Members of a group, and of a crowd. One round trip cannot delete a crowd.
const GROUP: u32 = 5;
const CROWD: u32 = 600;

/// Events published at a time, and the time after which unconfirmed ones are published again.
const CHUNK: u32 = 100;
const SENT_WITHIN: Duration = Duration::from_secs(30);

/// Subject of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Thing {
    Item,
    Group,
    Crowd,
    Counter,
    Price,
    Page,
}

/// Event with its number `n`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Event {
    pub(super) n: u32,
    pub(super) thing: Thing,
    pub(super) id: u32,
    pub(super) rev: u64,
}

impl Event {
    pub(super) fn read(body: &[u8]) -> Self {
        serde_json::from_slice(body).expect("only ours are published")
    }

    fn routing_key(self) -> &'static str {
        match self.thing {
            Thing::Item => "item.changed",
            Thing::Group => "group.changed",
            Thing::Crowd => "crowd.changed",
            Thing::Counter => "counter.changed",
            Thing::Price => "price.changed",
            Thing::Page => "page.changed",
        }
    }
}

/// Returns the keys that hold a thing's revision.
fn keys(thing: Thing, id: u32) -> Vec<String> {
    let members =
        |kind: &str, count: u32| (0..count).map(|member| format!("{kind}:{id}:{member}")).collect();
    match thing {
        Thing::Item => vec![format!("item:{id}")],
        Thing::Group => members("group", GROUP),
        Thing::Crowd => members("crowd", CROWD),
        Thing::Counter => vec![format!("counter:{id}")],
        Thing::Price => vec![format!("price:{id}")],
        Thing::Page => vec![format!("page:{id}")],
    }
}

/// Revision of each thing. A cache may hold this one, and nothing older.
#[derive(Debug, Default)]
struct Truth(Mutex<BTreeMap<(u8, u32), Arc<AtomicU64>>>);

impl Truth {
    fn of(&self, thing: Thing, id: u32) -> Arc<AtomicU64> {
        Arc::clone(self.0.lock().unwrap().entry((thing as u8, id)).or_default())
    }

    fn revision(&self, thing: Thing, id: u32) -> u64 {
        self.of(thing, id).load(Ordering::SeqCst)
    }
}

/// Findings of the checker.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Events that are neither applied nor dead-lettered.
    pending: Vec<u32>,
    dead: usize,
    /// Keys with a value that an event made stale.
    stale: Vec<String>,
}

impl Verdict {
    pub(super) fn lost(&self) -> usize {
        self.pending.len()
    }

    /// Returns whether nothing is lost, stale or dead-lettered; no event gives a reason for a dead
    /// letter.
    pub(super) fn is_clean(&self) -> bool {
        self.pending.is_empty() && self.stale.is_empty() && self.dead == 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} lost, {} stale, {} dead letters",
            self.pending.len(),
            self.stale.len(),
            self.dead
        )?;
        let few = |all: &[String]| all.iter().take(2).cloned().collect::<Vec<_>>().join(", ");
        if !self.stale.is_empty() {
            write!(f, " (such as {})", few(&self.stale))?;
        }
        Ok(())
    }
}

pub(super) struct Application {
    truth: Arc<Truth>,
    rng: Rng,
    exchange: String,
    amqp_url: String,
    channel: Option<(Connection, Channel)>,
    redis: [redis::Client; 2],
}

impl Application {
    /// Returns an application that does not publish yet, and the URL of its loader.
    pub(super) async fn start(stage: &Stage, seed: u64) -> (Self, String) {
        let truth = Arc::new(Truth::default());
        let loader = serve_pages(Arc::clone(&truth)).await;
        let client = |db| redis::Client::open(stage.redis.db_url(db)).unwrap();
        let application = Self {
            truth,
            rng: Rng::with_seed(seed),
            exchange: stage.exchange.clone(),
            amqp_url: stage.amqp_url().to_owned(),
            channel: None,
            redis: [client(OURS), client(NAIVE)],
        };
        (application, loader)
    }

    /// Fills the cache, changes the source and publishes, through every fault. Continues once
    /// everything is confirmed.
    pub(super) async fn publish(&mut self, events: u32, schedule: &Schedule, progress: &Progress) {
        for from in (0..events).step_by(CHUNK as usize) {
            let to = events.min(from + CHUNK);
            schedule.admits(to, progress).await;
            let mut chunk: Vec<Event> = (from..to).map(|n| self.event(n)).collect();
            while self.fill(&chunk).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            for event in &mut chunk {
                event.rev = self.truth.of(event.thing, event.id).fetch_add(1, Ordering::SeqCst) + 1;
            }
            // With a limit: a client that missed the broker's death would wait for its confirms for
            // ever.
            while !matches!(timeout(SENT_WITHIN, self.send(&chunk)).await, Ok(Ok(()))) {
                self.channel = None;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            progress.published(to);
        }
    }

    fn event(&mut self, n: u32) -> Event {
        let (thing, id) = match self.rng.u32(..1_000) {
            0..3 => (Thing::Crowd, self.rng.u32(..8)),
            3..53 => (Thing::Page, self.rng.u32(..THINGS)),
            53..203 => (Thing::Group, self.rng.u32(..THINGS)),
            203..303 => (Thing::Counter, self.rng.u32(..THINGS)),
            303..403 => (Thing::Price, self.rng.u32(..THINGS)),
            _ => (Thing::Item, self.rng.u32(..THINGS)),
        };
        Event { n, thing, id, rev: 0 }
    }

    /// Stores the state of the cache before the change: the present revision.
    async fn fill(&self, chunk: &[Event]) -> redis::RedisResult<()> {
        for client in &self.redis {
            let mut redis = support::redis::connect(client).await?;
            // In one transaction: no reader sees a tag's set without the values of its members.
            let mut pipe = redis::pipe();
            pipe.atomic();
            for event in chunk {
                pipe.set(format!("pending:{}", event.n), 1).ignore();
                let tag = match event.thing {
                    Thing::Group => Some(format!("cache_tag:group:{}", event.id)),
                    Thing::Crowd => Some(format!("cache_tag:crowd:{}", event.id)),
                    Thing::Counter => continue,
                    Thing::Item | Thing::Price | Thing::Page => None,
                };
                let (keys, revision) =
                    (keys(event.thing, event.id), self.truth.revision(event.thing, event.id));
                for key in &keys {
                    pipe.set(key, revision).ignore();
                }
                if let Some(tag) = tag {
                    pipe.sadd(tag, keys).ignore();
                }
            }
            pipe.query_async::<()>(&mut redis).await?;
        }
        Ok(())
    }

    async fn send(
        &mut self,
        chunk: &[Event],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if self.channel.is_none() {
            let connection = support::rabbitmq::connect(&self.amqp_url).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            self.channel = Some((connection, channel));
        }
        let Some((_, channel)) = &self.channel else { return Err("no channel".into()) };
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let mut confirms = Vec::with_capacity(chunk.len());
        for event in chunk {
            let body = serde_json::to_vec(event)?;
            let properties = BasicProperties::default().with_delivery_mode(2);
            let (exchange, routing_key) =
                (self.exchange.as_str().into(), event.routing_key().into());
            confirms.push(
                channel.basic_publish(exchange, routing_key, options, &body, properties).await?,
            );
        }
        for confirm in confirms {
            match confirm.await? {
                Confirmation::Ack(None) => {}
                _ => return Err("returned, or not taken".into()),
            }
        }
        Ok(())
    }

    /// Returns the numbers of the dead-lettered events.
    pub(super) async fn dead_letters(&self, stage: &Stage) -> HashSet<u32> {
        let connection = support::rabbitmq::connect(&self.amqp_url).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let queue = format!("{}.dead", stage.queue);
        let mut numbers = HashSet::new();
        while let Some(got) = channel
            .basic_get(queue.as_str().into(), BasicGetOptions { no_ack: false })
            .await
            .unwrap()
        {
            numbers.insert(Event::read(&got.delivery.data).n);
        }
        numbers
    }

    /// Compares a database with the events.
    pub(super) async fn check(&self, stage: &Stage, db: u8, dead: &HashSet<u32>) -> Verdict {
        let client = redis::Client::open(stage.redis.db_url(db)).unwrap();
        let mut redis = support::redis::connect(&client).await.unwrap();
        let mut verdict = Verdict { dead: dead.len(), ..Verdict::default() };
        let pending: Vec<String> =
            redis::cmd("KEYS").arg("pending:*").query_async(&mut redis).await.unwrap();
        let numbers = pending.iter().map(|key| key["pending:".len()..].parse::<u32>().unwrap());
        verdict.pending = numbers.filter(|n| !dead.contains(n)).collect();
        let truth: Vec<((u8, u32), u64)> = self
            .truth
            .0
            .lock()
            .unwrap()
            .iter()
            .map(|(thing, revision)| (*thing, revision.load(Ordering::SeqCst)))
            .collect();
        for ((kind, id), revision) in truth {
            let thing = [
                Thing::Item,
                Thing::Group,
                Thing::Crowd,
                Thing::Counter,
                Thing::Price,
                Thing::Page,
            ][usize::from(kind)];
            let keys = keys(thing, id);
            let values: Vec<Option<u64>> =
                redis::cmd("MGET").arg(&keys).query_async(&mut redis).await.unwrap();
            for (key, value) in keys.into_iter().zip(values) {
                let right = match thing {
                    // At least once: 1 before the first.
                    Thing::Counter => value.is_some_and(|value| value > revision),
                    // The events themselves write it, in any order: the highest version stays.
                    Thing::Price => value == Some(revision),
                    Thing::Item | Thing::Group | Thing::Crowd | Thing::Page => {
                        value.is_none_or(|value| value == revision)
                    }
                };
                if !right {
                    verdict.stale.push(format!("{key} holds {value:?} of {revision}"));
                }
            }
        }
        verdict
    }
}

/// Serves pages as the source has them. One load in twenty fails, and comes again through the retry
/// schedule.
async fn serve_pages(truth: Arc<Truth>) -> String {
    async fn page(State(truth): State<Arc<Truth>>, Path(id): Path<u32>) -> (StatusCode, String) {
        let loaded = truth.revision(Thing::Page, id);
        tokio::time::sleep(Duration::from_millis(5)).await;
        if fastrand::u32(..20) == 0 {
            return (StatusCode::SERVICE_UNAVAILABLE, String::new());
        }
        (StatusCode::OK, loaded.to_string())
    }
    let app = Router::new().route("/{id}", get(page)).with_state(truth);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

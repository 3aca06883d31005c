//! A message that ends every worker that begins it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;

use super::load::Pages;
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Proxy, RabbitMq, Tap, Way, Worker, wait_until};

const RULES: &str = r#"
defaults: { ttl: 1h }
loaders: { pages: { url: "{vars.PAGES_URL}", timeout: 20s } }
events:
  user.updated: { effects: [ { delete: "user:{id}" } ] }
  page.changed: { effects: [ { warm: "page:{id}", from: "pages:/{id}" } ] }
"#;

/// What its effect has in common with no other's.
const POISON: &str = "the-poison";

const WORKERS: usize = 6;

/// Enough for every worker's prefetch.
const NEIGHBOURS: u32 = 3_000;

/// How often each event was delivered, and with which `x-delivery-count` at most, as the wire says it.
#[derive(Debug, Clone, Default)]
struct Deliveries(Arc<Mutex<Wire>>);

#[derive(Debug, Default)]
struct Wire {
    /// By worker and number.
    connections: HashMap<(usize, u64), Unread>,
    /// By event: deliveries, and the highest count.
    events: BTreeMap<String, (u32, u64)>,
}

/// Bytes of a connection that are no whole frame yet, and the count in the last content header of each of its channels.
#[derive(Debug, Default)]
struct Unread {
    bytes: Vec<u8>,
    counts: HashMap<u16, u64>,
}

impl Deliveries {
    fn tap(&self, worker: usize) -> Tap {
        let deliveries = self.clone();
        Tap::new(move |number, way, bytes| {
            if way == Way::ToClient {
                deliveries.0.lock().unwrap().read((worker, number), bytes);
            }
            true
        })
    }

    /// The neighbour that was delivered most often, and the one with the highest count.
    fn worst(&self) -> (u32, u64) {
        let wire = self.0.lock().unwrap();
        let innocent = || wire.events.iter().filter(|(id, _)| *id != POISON).map(|(_, seen)| *seen);
        (innocent().map(|(deliveries, _)| deliveries).max().unwrap(), innocent().map(|(_, count)| count).max().unwrap())
    }
}

impl Wire {
    /// Frames: type, channel, size, payload, end. A content header (2) is followed by its body (3) on the same channel.
    fn read(&mut self, connection: (usize, u64), bytes: &[u8]) {
        let Unread { bytes: unread, counts } = self.connections.entry(connection).or_default();
        unread.extend_from_slice(bytes);
        while let Some(head) = unread.first_chunk::<7>() {
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let (kind, channel) = (head[0], u16::from_be_bytes([head[1], head[2]]));
            if unread.len() < size + 8 {
                break;
            }
            let payload: Vec<u8> = unread.drain(..size + 8).skip(7).take(size).collect();
            match kind {
                2 => _ = counts.insert(channel, in_vain(&payload)),
                3 => {
                    let event: serde_json::Value = serde_json::from_slice(&payload).unwrap();
                    let id = event["id"].as_str().map_or_else(|| event["id"].to_string(), str::to_owned);
                    let (deliveries, highest) = self.events.entry(id).or_default();
                    *deliveries += 1;
                    *highest = (*highest).max(counts[&channel]);
                }
                _ => {}
            }
        }
    }
}

/// How often the message was delivered in vain, itself and as what it is a copy of.
fn in_vain(content_header: &[u8]) -> u64 {
    let number = |name: &str| -> u64 {
        let Some(at) = content_header.windows(name.len()).position(|window| window == name.as_bytes()) else { return 0 };
        let value = &content_header[at + name.len()..];
        match value[0] {
            b'l' => u64::from_be_bytes(value[1..9].try_into().unwrap()),
            b'I' => u32::from_be_bytes(value[1..5].try_into().unwrap()).into(),
            other => panic!("{name}: {}", char::from(other)),
        }
    };
    number("x-delivery-count") + number("unstale-redelivered")
}

/// Several workers, each behind proxies of its own; a worker is dead as soon as it sends to Redis what begins the poison, and Redis never sees
/// that.
struct Scene {
    stage: Stage,
    broker: RabbitMq,
    pages: String,
    deliveries: Deliveries,
    proxies: Vec<(Proxy, Proxy)>,
    workers: Vec<Worker>,
    begun: mpsc::UnboundedReceiver<usize>,
}

impl Scene {
    async fn start(pages: &str, begins_it: fn(&[u8]) -> bool) -> Self {
        let broker = RabbitMq::start().await;
        let stage = Stage::on_broker(&broker, &[("rules.yaml", RULES)]).await;
        let deliveries = Deliveries::default();
        let (tell, begun) = mpsc::unbounded_channel();
        let mut proxies = Vec::new();
        for worker in 0..WORKERS {
            let tell = tell.clone();
            let tripwire = Tap::new(move |_, way, bytes| {
                let poisoned = way == Way::ToServer && begins_it(bytes);
                if poisoned {
                    tell.send(worker).unwrap();
                }
                !poisoned
            });
            let amqp = Proxy::start_tapped(&broker.addr(), deliveries.tap(worker)).await;
            proxies.push((amqp, Proxy::start_tapped(&stage.redis.addr(), tripwire).await));
        }
        let mut scene = Self { stage, broker, pages: pages.to_owned(), deliveries, proxies, workers: Vec::new(), begun };
        for worker in 0..WORKERS {
            let mut worker = scene.start_worker(worker);
            worker.wait_ready().await;
            scene.workers.push(worker);
        }
        scene
    }

    fn start_worker(&self, at: usize) -> Worker {
        let (amqp, redis) = &self.proxies[at];
        let amqp_url = self.broker.url().replace(&self.broker.addr(), &amqp.addr());
        let redis_url = format!("redis://{}/0", redis.addr());
        let settings = [
            ("UNSTALE_PREFETCH", "64"),
            ("UNSTALE_BATCH", "64"),
            ("UNSTALE_AMQP_URL", amqp_url.as_str()),
            ("UNSTALE_REDIS_URL", &redis_url),
            ("UNSTALE_VAR_PAGES_URL", &self.pages),
        ];
        self.stage.start_worker(&settings)
    }

    /// Lets every worker come to its full prefetch.
    async fn warm_up(&self) {
        let ids: Vec<u32> = (1_000_000..1_000_000 + 100 * u32::try_from(WORKERS).unwrap()).collect();
        self.publish("user.updated", ids.iter().map(u32::to_string)).await;
        self.stage.wait_settled(&self.workers.iter().collect::<Vec<_>>()).await;
    }

    async fn publish(&self, routing_key: &str, ids: impl Iterator<Item = String>) {
        let mut confirms = Vec::new();
        for id in ids {
            let body = format!(r#"{{"id":"{id}"}}"#);
            confirms.push(self.stage.send(&self.stage.exchange, routing_key, Default::default(), body.as_bytes()).await);
        }
        for confirm in confirms {
            assert!(matches!(confirm.await, Ok(lapin::Confirmation::Ack(None))));
        }
    }

    /// Kills whoever begins the poison, and starts it again, until the dead-letter queue has it and all else is settled. How many died.
    async fn until_it_is_dead(&mut self) -> u32 {
        let mut died = 0;
        while self.stage.ready(".dead").await == 0 {
            match tokio::time::timeout(Duration::from_millis(100), self.begun.recv()).await {
                Ok(worker) => {
                    let at = worker.unwrap();
                    died += 1;
                    // Dropped, the old one is killed.
                    self.workers[at] = self.start_worker(at);
                }
                Err(_) => assert!(died < 40, "{died} workers died, and it is not dead-lettered yet"),
            }
        }
        for worker in &mut self.workers {
            worker.wait_ready().await;
        }
        self.stage.wait_settled(&self.workers.iter().collect::<Vec<_>>()).await;
        died
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// As the worst neighbour has it, and the dead-letter queue.
async fn assert_no_neighbour_suffered(scene: &Scene, died: u32) {
    let letter = scene.stage.dead_letters(1).await.pop().unwrap();
    assert!(holds(&letter.body, POISON), "an innocent is dead-lettered");
    let (deliveries, in_vain) = scene.deliveries.worst();
    assert!(in_vain <= 3, "a neighbour was delivered {in_vain} times in vain; {died} workers died");
    // Set aside, unbegun, by each worker that found it among suspects; and once more in the slow lane.
    assert!(deliveries as usize <= 4 + WORKERS, "a neighbour was delivered {deliveries} times; {died} workers died");
}

async fn seed(scene: &Scene, kind: &str, ids: std::ops::Range<u32>) {
    let old: Vec<(String, &str)> = ids.map(|id| (format!("{kind}:{id}"), "old")).collect();
    let _: () = redis::cmd("MSET").arg(old).query_async(&mut scene.stage.connection().await).await.unwrap();
}

async fn old_ones(scene: &Scene) -> usize {
    let mut redis = scene.stage.connection().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("[up]*:*").query_async(&mut redis).await.unwrap();
    let values: Vec<Option<String>> = match keys.as_slice() {
        [] => Vec::new(),
        keys => redis::cmd("MGET").arg(keys).query_async(&mut redis).await.unwrap(),
    };
    values.into_iter().flatten().filter(|value| value == "old").count()
}

/// Around it in the queue while six workers are in full swing.
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_costs_no_neighbour_more_than_three_redeliveries() {
    let mut scene = Scene::start("http://127.0.0.1:9", |bytes| holds(bytes, POISON)).await;
    scene.warm_up().await;
    // Slow answers of Redis: what is prefetched is still in hand when a worker dies.
    scene.proxies.iter().for_each(|(_, redis)| redis.delay(Duration::from_millis(100)));
    seed(&scene, "user", 0..NEIGHBOURS).await;
    let third = NEIGHBOURS / 3;
    let ids = (0..third).map(|id| id.to_string()).chain([POISON.to_owned()]).chain((third..NEIGHBOURS).map(|id| id.to_string()));
    scene.publish("user.updated", ids).await;
    let died = scene.until_it_is_dead().await;
    assert_no_neighbour_suffered(&scene, died).await;
    wait_until(SOON, "every neighbour is applied", async || old_ones(&scene).await == 0).await;
}

/// Its load ends the worker: neighbours are in both lanes.
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_in_the_slow_lane_harms_neither_lane() {
    const PAGES: u32 = 300;
    let pages = Pages::serve().await;
    // The main lane deletes the key; the slow lane asks for a lease, by a script.
    let mut scene = Scene::start(&pages, |bytes| holds(bytes, POISON) && holds(bytes, "EVAL")).await;
    scene.warm_up().await;
    scene.proxies.iter().for_each(|(_, redis)| redis.delay(Duration::from_millis(50)));
    seed(&scene, "user", 0..NEIGHBOURS).await;
    seed(&scene, "page", 1..PAGES).await;
    let ids = (1..PAGES / 2).map(|id| id.to_string()).chain([POISON.to_owned()]).chain((PAGES / 2..PAGES).map(|id| id.to_string()));
    scene.publish("page.changed", ids).await;
    scene.publish("user.updated", (0..NEIGHBOURS).map(|id| id.to_string())).await;
    let died = scene.until_it_is_dead().await;
    assert_no_neighbour_suffered(&scene, died).await;
    wait_until(SOON, "every neighbour is applied", async || old_ones(&scene).await == 0).await;
}

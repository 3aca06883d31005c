//! A poison message, which ends every worker that begins it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::load::Pages;
use super::wire::Deliveries;
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Flow, Proxy, RabbitMq, Tap, Way, Worker};

const RULES: &str = r#"
defaults: { ttl: 1h }
loaders: { pages: { url: "{vars.PAGES_URL}", timeout: 20s } }
events:
  user.updated: { effects: [ { delete: "user:{id}" } ] }
  page.changed: { effects: [ { warm: "page:{id}", from: "pages:/{id}" } ] }
"#;

/// Name that occurs in its effect and in no other.
const POISON: &str = "the-poison";

const WORKERS: usize = 6;

/// Number of other messages: enough for every worker's prefetch.
const NEIGHBOURS: u32 = 3_000;

/// Several workers, each behind proxies of its own.
///
/// A worker is dead as soon as it sends Redis a command of the poison message. Redis never receives
/// that command.
struct Scene {
    stage: Stage,
    broker: RabbitMq,
    pages: String,
    deliveries: Deliveries,
    proxies: Vec<(Proxy, Proxy)>,
    workers: Vec<Worker>,
    begun: mpsc::UnboundedReceiver<usize>,
    /// Workers that have begun it and are not dead yet.
    halted: Arc<[AtomicBool; WORKERS]>,
}

impl Scene {
    async fn start(pages: &str, begins_it: fn(&[u8]) -> bool) -> Self {
        let broker = RabbitMq::start().await;
        let stage = Stage::on_broker(&broker, &[("rules.yaml", RULES)]).await;
        let deliveries = Deliveries::default();
        let (tell, begun) = mpsc::unbounded_channel();
        let halted: Arc<[AtomicBool; WORKERS]> = Arc::default();
        let mut proxies = Vec::new();
        for worker in 0..WORKERS {
            let (tell, halted) = (tell.clone(), Arc::clone(&halted));
            let tripwire = Tap::new(move |_, way, bytes| {
                let poisoned = way == Way::ToServer && begins_it(bytes);
                // It may try again before it is killed, which is not a second death.
                if poisoned && !halted[worker].swap(true, Ordering::SeqCst) {
                    tell.send(worker).unwrap();
                }
                if poisoned { Flow::Halt } else { Flow::Pass }
            });
            let amqp = Proxy::start_tapped(&broker.addr(), deliveries.tap(worker)).await;
            proxies.push((amqp, Proxy::start_tapped(&stage.redis.addr(), tripwire).await));
        }
        let mut scene = Self {
            stage,
            broker,
            pages: pages.to_owned(),
            deliveries,
            proxies,
            workers: Vec::new(),
            begun,
            halted,
        };
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

    /// Lets every worker reach its full prefetch.
    async fn warm_up(&self) {
        let ids: Vec<u32> =
            (1_000_000..1_000_000 + 100 * u32::try_from(WORKERS).unwrap()).collect();
        self.publish("user.updated", ids.iter().map(u32::to_string)).await;
        self.stage.wait_settled(&self.workers.iter().collect::<Vec<_>>()).await;
    }

    async fn publish(&self, routing_key: &str, ids: impl Iterator<Item = String>) {
        let mut confirms = Vec::new();
        for id in ids {
            let body = format!(r#"{{"id":"{id}"}}"#);
            confirms.push(
                self.stage
                    .send(&self.stage.exchange, routing_key, Default::default(), body.as_bytes())
                    .await,
            );
        }
        for confirm in confirms {
            assert!(matches!(confirm.await, Ok(lapin::Confirmation::Ack(None))));
        }
    }

    /// Kills each worker that begins the poison message, and starts it again. Returns the number of
    /// deaths.
    ///
    /// It ends when the message is in the dead-letter queue, every other message is applied and
    /// nothing is left. A worker that dies between the confirm of the dead letter and the
    /// acknowledgement leaves two dead letters.
    async fn until_it_is_dead(&mut self) -> u32 {
        let (mut died, began) = (0, Instant::now());
        loop {
            match tokio::time::timeout(Duration::from_millis(100), self.begun.recv()).await {
                Ok(worker) => {
                    let at = worker.unwrap();
                    died += 1;
                    self.workers.remove(at).kill();
                    self.deliveries.died(at);
                    self.halted[at].store(false, Ordering::SeqCst);
                    self.workers.insert(at, self.start_worker(at));
                }
                Err(_) if self.is_over().await => return died,
                Err(_) => {
                    assert!(
                        died < 80 && began.elapsed() < 3 * SOON,
                        "{died} workers died, and it is not over: {}",
                        self.state().await
                    )
                }
            }
        }
    }

    async fn is_over(&self) -> bool {
        if self.stage.ready(".dead").await == 0 || !old_ones(&self.stage).await.is_empty() {
            return false;
        }
        for worker in &self.workers {
            if !matches!(worker.get("/readyz").await, Some((200, _))) {
                return false;
            }
        }
        self.stage.is_settled(&self.workers.iter().collect::<Vec<_>>()).await
    }

    /// Returns the state, to explain a failure.
    async fn state(&self) -> String {
        let dead = self.stage.ready(".dead").await;
        let left: Vec<_> = old_ones(&self.stage).await;
        let seen = left
            .iter()
            .take(10)
            .map(|key| (key, self.deliveries.of(key.split_once(':').unwrap().1)))
            .collect::<Vec<_>>();
        format!(
            "{dead} dead letters; the poison: {:?}; {} neighbours left: {seen:?}",
            self.deliveries.of(POISON),
            left.len()
        )
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Checks the other message with the worst figures, over its deliveries in both lanes and the
/// dead-letter queue.
#[expect(clippy::print_stderr, reason = "what it came to")]
async fn assert_no_neighbour_suffered(scene: &Scene, died: u32) {
    assert!(died >= 10, "it killed {died} workers, and did not end for that");
    let letter = scene.stage.dead_letters(1).await.pop().unwrap();
    assert!(holds(&letter.body, POISON), "an innocent is dead-lettered");
    let worst =
        scene.deliveries.worst(POISON, |seen| (seen.died_with, seen.redelivered, seen.in_vain));
    eprintln!("the worst of its neighbours: {worst:?}; {died} workers died");
    let culprit = scene.deliveries.of(POISON);
    assert!(
        worst.died_with <= 3,
        "too many died with it in hand: {worst:?}\nthe culprit: {culprit:?}"
    );
    // RabbitMQ also counts as redelivered what was on its way to a consumer that ended, and that no
    // worker received. More redeliveries would mean lost acknowledgements.
    let worst = scene.deliveries.worst(POISON, |seen| (seen.redelivered, seen.in_vain));
    assert!(
        worst.redelivered <= 5,
        "the broker gave it out too often: {worst:?}\nthe culprit: {culprit:?}"
    );
    let worst = scene.deliveries.worst(POISON, |seen| seen.in_vain);
    assert!(
        worst.in_vain <= 6,
        "the broker counted it too often: {worst:?}\nthe culprit: {culprit:?}"
    );
}

async fn seed(scene: &Scene, kind: &str, ids: std::ops::Range<u32>) {
    let old: Vec<(String, &str)> = ids.map(|id| (format!("{kind}:{id}"), "old")).collect();
    let _: () =
        redis::cmd("MSET").arg(old).query_async(&mut scene.stage.connection().await).await.unwrap();
}

/// Returns the keys that no event has changed.
async fn old_ones(stage: &Stage) -> Vec<String> {
    let mut redis = stage.connection().await;
    let keys: Vec<String> =
        redis::cmd("KEYS").arg("[up]*:*").query_async(&mut redis).await.unwrap();
    let values: Vec<Option<String>> = match keys.as_slice() {
        [] => Vec::new(),
        keys => redis::cmd("MGET").arg(keys).query_async(&mut redis).await.unwrap(),
    };
    let old = keys.into_iter().zip(values).filter(|(_, value)| value.as_deref() == Some("old"));
    old.map(|(key, _)| key).collect()
}

/// Other messages surround it in the queue while six workers run at full speed.
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_harms_no_neighbour() {
    let mut scene = Scene::start("http://127.0.0.1:9", |bytes| holds(bytes, POISON)).await;
    scene.warm_up().await;
    // Redis answers slowly, so that prefetched messages are still in flight when a worker dies.
    scene.proxies.iter().for_each(|(_, redis)| redis.delay(Duration::from_millis(100)));
    seed(&scene, "user", 0..NEIGHBOURS).await;
    let third = NEIGHBOURS / 3;
    let ids = (0..third)
        .map(|id| id.to_string())
        .chain([POISON.to_owned()])
        .chain((third..NEIGHBOURS).map(|id| id.to_string()));
    scene.publish("user.updated", ids).await;
    let died = scene.until_it_is_dead().await;
    assert_no_neighbour_suffered(&scene, died).await;
}

/// Its load ends the worker, with other messages in both lanes.
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_in_the_slow_lane_harms_neither_lane() {
    const PAGES: u32 = 300;
    // Key of the load's claim, which only the slow lane takes: the main lane has deleted the key.
    const LOAD: &str = "unstale:load/{page:the-poison}";
    let pages = Pages::serve().await;
    let mut scene = Scene::start(&pages, |bytes| holds(bytes, LOAD)).await;
    scene.warm_up().await;
    scene.proxies.iter().for_each(|(_, redis)| redis.delay(Duration::from_millis(50)));
    // No number occurs twice, because the wire identifies events by them.
    let users = PAGES..PAGES + NEIGHBOURS;
    seed(&scene, "user", users.clone()).await;
    seed(&scene, "page", 1..PAGES).await;
    let ids = (1..PAGES / 2)
        .map(|id| id.to_string())
        .chain([POISON.to_owned()])
        .chain((PAGES / 2..PAGES).map(|id| id.to_string()));
    scene.publish("page.changed", ids).await;
    scene.publish("user.updated", users.map(|id| id.to_string())).await;
    let died = scene.until_it_is_dead().await;
    assert_no_neighbour_suffered(&scene, died).await;
}

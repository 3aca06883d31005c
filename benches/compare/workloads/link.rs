//! (i) One millisecond, each way, between the contender and both servers.

use std::time::Duration;

use super::{ONE_DELETE, drain};
use crate::contender::Contender;
use crate::results::Results;
use crate::stage::Stage;
use crate::support::Proxy;
use crate::support::rabbitmq::url_at;

const EVENTS: u64 = 200_000;
const DELAY: Duration = Duration::from_millis(1);

pub(super) async fn run(stage: &Stage, rounds: usize, results: &mut Results) {
    let (amqp, redis) = (Proxy::start(&stage.broker.addr()).await, Proxy::start(&stage.redis.addr()).await);
    for proxy in [&amqp, &redis] {
        proxy.delay(DELAY);
    }
    let target = stage.target("link", ONE_DELETE).await;
    let target = target.by_way_of(url_at(&amqp.addr(), "guest", "guest", "/"), format!("redis://{}/0", redis.addr()));
    for _ in 0..rounds {
        for contender in [Contender::Bare, Contender::Unstale] {
            drain::one_delete(stage, contender, &target, EVENTS).await.note(results, 'i', contender.name());
        }
    }
}

//! (i) A delay of one millisecond in each direction between the contender and both servers.
//!
//! The number of events in flight limits the rate, since the round trip to Redis takes that time
//! too.

use std::time::Duration;

use super::{NARROW_UNSTALE, ONE_DELETE, drain, narrow};
use crate::contender::{Contender, Target};
use crate::results::Results;
use crate::stage::Stage;
use crate::support::Proxy;
use crate::support::rabbitmq::url_at;

const EVENTS: u64 = 200_000;
const DELAY: Duration = Duration::from_millis(1);

pub(super) async fn run(stage: &Stage, rounds: usize, results: &mut Results) {
    let (amqp, redis) =
        (Proxy::start(&stage.broker.addr()).await, Proxy::start(&stage.redis.addr()).await);
    for proxy in [&amqp, &redis] {
        proxy.delay(DELAY);
    }
    let by_link = |target: Target| {
        target.by_way_of(
            url_at(&amqp.addr(), "guest", "guest", "/"),
            format!("redis://{}/0", redis.addr()),
        )
    };
    let target = by_link(stage.target("link", ONE_DELETE).await);
    let narrow = by_link(stage.target_with("link-narrow", ONE_DELETE, narrow()).await);
    for _ in 0..rounds {
        for contender in [Contender::Bare, Contender::BareWide, Contender::Unstale] {
            drain::one_delete(stage, contender, &target, EVENTS).await.note(
                results,
                'i',
                contender.name(),
            );
        }
        drain::one_delete(stage, Contender::Unstale, &narrow, EVENTS).await.note(
            results,
            'i',
            NARROW_UNSTALE,
        );
    }
}

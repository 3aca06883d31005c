//! The time at which a key is deleted, from the invalidation messages of Redis' client-side
//! caching.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind, Value,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::stage::Stage;

/// A connection that receives one message for each key it has read, when the key changes.
pub(super) struct Tracker {
    connection: MultiplexedConnection,
    pushes: UnboundedReceiver<PushInfo>,
}

impl Tracker {
    pub(super) async fn start(stage: &Stage) -> Self {
        let (sender, pushes) = unbounded_channel();
        let url = stage.redis.url().into_connection_info().expect("the URL is ours");
        let settings = url.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client =
            redis::Client::open(url.set_redis_settings(settings)).expect("the URL is ours");
        let config = AsyncConnectionConfig::new()
            .set_push_sender(sender)
            .set_response_timeout(Some(Duration::from_secs(10)));
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .expect("Redis takes a connection");
        let _: Value = redis::cmd("CLIENT")
            .arg("TRACKING")
            .arg("ON")
            .query_async(&mut connection)
            .await
            .expect("Redis tracks");
        Self { connection, pushes }
    }

    /// Reads keys, so that a message announces their deletion.
    pub(super) async fn watch(&mut self, keys: &[String]) {
        for keys in keys.chunks(1_000) {
            let values: Vec<Option<String>> = redis::cmd("MGET")
                .arg(keys)
                .query_async(&mut self.connection)
                .await
                .expect("Redis answers");
            assert!(values.iter().all(Option::is_some), "every watched key exists");
        }
    }

    /// Returns the latencies of keys in milliseconds, by the time when their events were published.
    /// Waits until all are deleted, at most `patience` for each.
    pub(super) async fn latencies(
        &mut self,
        mut published: UnboundedReceiver<(String, Instant)>,
        patience: Duration,
    ) -> Vec<f64> {
        let (mut sent, mut gone) = (HashMap::new(), HashMap::new());
        let (mut latencies, mut all_sent) = (Vec::new(), false);
        while !all_sent || !sent.is_empty() {
            tokio::select! {
                publish = published.recv(), if !all_sent => match publish {
                    Some((key, at)) => match gone.remove(&key) {
                        Some(end) => latencies.push(millis(at, end)),
                        None => drop(sent.insert(key, at)),
                    },
                    None => all_sent = true,
                },
                push = tokio::time::timeout(patience, self.pushes.recv()) => {
                    let now = Instant::now();
                    let push = push.expect("events are applied in time").expect("the connection is open");
                    for key in keys_of(&push) {
                        match sent.remove(&key) {
                            Some(at) => latencies.push(millis(at, now)),
                            None => drop(gone.insert(key, now)),
                        }
                    }
                }
            }
        }
        latencies
    }
}

fn millis(from: Instant, to: Instant) -> f64 {
    (to - from).as_secs_f64() * 1e3
}

fn keys_of(push: &PushInfo) -> Vec<String> {
    if push.kind != PushKind::Invalidate {
        return Vec::new();
    }
    let keys = push
        .data
        .iter()
        .filter_map(|value| if let Value::Array(keys) = value { Some(keys) } else { None })
        .flatten();
    keys.filter_map(|key| {
        if let Value::BulkString(key) = key { String::from_utf8(key.clone()).ok() } else { None }
    })
    .collect()
}

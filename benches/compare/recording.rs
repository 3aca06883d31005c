//! Records the commands that a worker sends to Redis, and sends them again without a worker. So the
//! time of Redis alone can be measured.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::contender::Target;
use crate::process;
use crate::stage::Stage;
use crate::support::{Flow, Proxy, Tap, Way};

/// The last command of a recording, and the end of its answer.
const LAST: &[u8] = b"*2\r\n$4\r\nECHO\r\n$17\r\nthis-was-the-last\r\n";
const LAST_ANSWER: &[u8] = b"this-was-the-last\r\n";

/// A proxy between a worker and Redis that records commands.
pub(crate) struct Recorder {
    proxy: Proxy,
    /// By the number of the connection.
    sent: Arc<Mutex<BTreeMap<u64, Vec<u8>>>>,
}

impl Recorder {
    pub(crate) async fn start(stage: &Stage) -> Self {
        let sent: Arc<Mutex<BTreeMap<u64, Vec<u8>>>> = Arc::default();
        let keeps = Arc::clone(&sent);
        let tap = Tap::new(move |connection, way, bytes| {
            if way == Way::ToServer {
                keeps
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(connection)
                    .or_default()
                    .extend_from_slice(bytes);
            }
            Flow::Pass
        });
        Self { proxy: Proxy::start_tapped(&stage.redis.addr(), tap).await, sent }
    }

    /// Returns the target with the proxy's address.
    pub(crate) fn target(&self, stage: &Stage, target: Target) -> Target {
        target.by_way_of(stage.broker.url(), format!("redis://{}/0", self.proxy.addr()))
    }

    /// Returns the bytes of the connection with the most traffic, which is the one of batches.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        let sent = std::mem::take(&mut *self.sent.lock().unwrap_or_else(PoisonError::into_inner));
        sent.into_values().max_by_key(Vec::len).unwrap_or_default()
    }
}

/// Sends a recording as fast as Redis accepts it. Returns the time it took, and the CPU time of
/// Redis.
pub(crate) async fn replay(stage: &Stage, sent: Vec<u8>) -> (Duration, Duration) {
    let redis_cpu = || stage.redis.pid().map_or(Duration::ZERO, process::cpu_of_group);
    let connection =
        TcpStream::connect(stage.redis.addr()).await.expect("Redis takes a connection");
    let (mut answers, mut commands) = connection.into_split();
    let (start, cpu) = (Instant::now(), redis_cpu());
    let write = tokio::spawn(async move {
        commands.write_all(&sent).await.expect("Redis reads");
        commands.write_all(LAST).await.expect("Redis reads");
        commands
    });
    let (mut buffer, mut end) = (vec![0; 256 * 1024], Vec::new());
    while !end.ends_with(LAST_ANSWER) {
        let read = answers.read(&mut buffer).await.expect("Redis answers");
        assert!(read > 0, "Redis closed the connection");
        end.extend_from_slice(&buffer[read.saturating_sub(LAST_ANSWER.len())..read]);
        end.drain(..end.len().saturating_sub(LAST_ANSWER.len()));
    }
    let took = (start.elapsed(), redis_cpu().saturating_sub(cpu));
    drop(write.await);
    took
}

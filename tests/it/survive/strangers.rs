//! Connections to the HTTP port that never send a whole request, and event types that are all new.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Boxed, READY, publish, stage, stale, store};
use crate::support::{RabbitMq, full_runs, wait_until};

/// Half-open connections, again and again: as many as an attacker needs to take every descriptor.
const HALF_OPEN: usize = 1_000;

/// Connections opened again every 200 ms, for those that the worker has closed.
const REOPENED: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_and_new_types_hold_up_nothing_in_a_small_box() {
    // This takes minutes on two cores, so only `make survive` runs it. `http::` holds the
    // connections in `make test`.
    if !full_runs() {
        return;
    }
    let kinds = 10_000;
    let broker = RabbitMq::start().await;
    let stage = stage(&broker).await;
    let boxed = Boxed::start(&stage);
    boxed.ready_within(READY).await;
    let http = boxed.worker.http_addr();
    let crowd = tokio::spawn(async move {
        let (mut crowd, mut is_full): (Vec<TcpStream>, _) = (Vec::new(), false);
        loop {
            // Connections that the worker has closed are opened again.
            crowd.retain(|stream| stream.try_read(&mut [0; 64]).is_err());
            for _ in
                crowd.len()..HALF_OPEN.min(crowd.len() + if is_full { REOPENED } else { HALF_OPEN })
            {
                let Ok(Ok(mut stream)) =
                    tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(http)).await
                else {
                    break;
                };
                let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: worker\r\nX-Slow: ").await;
                crowd.push(stream);
            }
            is_full = true;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    store(&stage, "kind", 0..kinds).await;
    publish(&stage, |n| format!("kind.{n}"), 0..kinds, 10).await;
    wait_until(READY * 2, "every type is applied", async || {
        boxed.usage();
        stale(&stage, "kind").await == Some(0)
    })
    .await;
    // Both servers go away and come back. The worker must have descriptors left for them.
    stage.redis.restart().await;
    broker.restart().await;
    let mut stage = stage;
    stage.reconnect().await;
    store(&stage, "body", 0..50).await;
    publish(&stage, |_| "body.changed".to_owned(), 0..50, 10).await;
    wait_until(READY * 2, "events are applied after both servers came back", async || {
        stale(&stage, "body").await == Some(0)
    })
    .await;
    wait_until(READY, "a probe is answered among them", async || {
        matches!(boxed.worker.get("/livez").await, Some((200, _)))
    })
    .await;
    crowd.abort();
    let _ = crowd.await;
    boxed.ready_within(READY).await;
    eprintln!("{kinds} types and {HALF_OPEN} half-open connections: {:?}", boxed.usage());
}

//! Accepts the connections of the HTTP server, and bounds their number and their lifetime.
//!
//! Any client that reaches the port can open connections and send nothing. Such a client must not
//! use up the file descriptors that the worker needs for RabbitMQ and Redis, or block a health
//! check. So at the maximum number of connections, a new one closes the oldest.

use std::collections::VecDeque;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// Maximum number of open connections.
pub const MAX_CONNECTIONS: usize = 64;

/// Minimum time before a connection may be closed for a new one.
const MIN_LIFETIME: Duration = Duration::from_millis(20);

/// Maximum time for the head of a request to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum lifetime of a connection, from its acceptance to the last byte of the response.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum size of a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1_024;

/// Maximum time that open connections may take to finish once the server stops.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// Serves one request for each connection until `shutdown`, then finishes open connections within
/// [`STOP_GRACE`].
pub(super) async fn serve(mut listener: TcpListener, routes: Router, shutdown: &CancellationToken) {
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false);
    let mut open = Connections::default();
    // `Listener` waits and tries again if the process has no descriptor left.
    while let Some((socket, _)) =
        shutdown.run_until_cancelled(Listener::accept(&mut listener)).await
    {
        open.make_room().await;
        open.spawn(socket, &server, routes.clone());
    }
    drop(listener);
    open.finish_within(STOP_GRACE).await;
}

/// The open connections, the oldest first. Dropping it closes them.
#[derive(Debug, Default)]
struct Connections {
    tasks: JoinSet<()>,
    by_age: VecDeque<Connection>,
}

#[derive(Debug)]
struct Connection {
    accepted_at: Instant,
    task: AbortHandle,
}

impl Connections {
    /// Closes the oldest connection if there are [`MAX_CONNECTIONS`].
    async fn make_room(&mut self) {
        self.forget_ended();
        if self.by_age.len() < MAX_CONNECTIONS {
            return;
        }
        if let Some(oldest) = self.by_age.front() {
            sleep_until(oldest.accepted_at + MIN_LIFETIME).await;
        }
        self.forget_ended();
        if self.by_age.len() >= MAX_CONNECTIONS
            && let Some(oldest) = self.by_age.pop_front()
        {
            oldest.task.abort();
        }
    }

    fn forget_ended(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.by_age.retain(|connection| !connection.task.is_finished());
    }

    fn spawn(&mut self, socket: TcpStream, server: &http1::Builder, routes: Router) {
        let connection =
            server.serve_connection(TokioIo::new(socket), TowerToHyperService::new(routes));
        let task = self.tasks.spawn(async {
            // Errors are ignored: a client may be slow, disconnect, or not speak HTTP.
            let _ = timeout(CONNECTION_TIMEOUT, connection).await;
        });
        self.by_age.push_back(Connection { accepted_at: Instant::now(), task });
    }

    async fn finish_within(&mut self, grace: Duration) {
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        tokio::select! {
            () = all_ended => {}
            () = sleep(grace) => {}
        }
    }
}

//! A loader with a fixed delay for each page, and its maximum rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

const TAKES: Duration = Duration::from_millis(20);

/// Time for which its maximum rate is measured.
const TRIAL: Duration = Duration::from_secs(3);

pub(super) struct Loader {
    addr: String,
    loads: Arc<AtomicU64>,
    _server: AbortOnDropHandle<()>,
}

impl Loader {
    pub(super) async fn start() -> Self {
        let loads = Arc::new(AtomicU64::new(0));
        let app = Router::new().route("/pages/{id}", get(page)).with_state(Arc::clone(&loads));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
        let addr = listener.local_addr().expect("it is bound").to_string();
        let server =
            tokio::spawn(
                async move { axum::serve(listener, app).await.expect("the loader serves") },
            );
        Self { addr, loads, _server: AbortOnDropHandle::new(server) }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Returns the number of pages it has served.
    pub(super) fn loads(&self) -> u64 {
        self.loads.load(Ordering::Relaxed)
    }

    /// Returns the pages per second for this many clients, each of which asks for the next page
    /// after the last.
    pub(super) async fn limit(&self, clients: usize) -> f64 {
        let (before, start) = (self.loads(), Instant::now());
        join_all((0..clients).map(|_| self.ask_again_and_again(start))).await;
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let loads = (self.loads() - before) as f64;
        loads / start.elapsed().as_secs_f64()
    }

    async fn ask_again_and_again(&self, start: Instant) {
        let mut stream = TcpStream::connect(&self.addr).await.expect("the loader listens");
        stream.set_nodelay(true).expect("a TCP socket");
        let mut answer = [0; 4_096];
        while start.elapsed() < TRIAL {
            stream
                .write_all(b"GET /pages/1 HTTP/1.1\r\nHost: loader\r\n\r\n")
                .await
                .expect("the loader reads");
            let read = stream.read(&mut answer).await.expect("the loader answers");
            assert!(read > 0, "the loader hung up");
        }
    }
}

async fn page(State(loads): State<Arc<AtomicU64>>) -> &'static str {
    tokio::time::sleep(TAKES).await;
    loads.fetch_add(1, Ordering::Relaxed);
    "a page of some length, as a loader would give it"
}

//! A TCP proxy that injects network faults.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::port;

/// Maximum number of chunks in transit before the proxy stops reading. A chunk has up to 64 KiB.
const CHUNKS_UNDER_WAY: usize = 256;

#[derive(Debug, Clone, Default)]
struct Faults {
    refuse: bool,
    stall: bool,
    /// True if the first half of the next chunk is passed on during a stall.
    halve: bool,
    delay: Duration,
    /// Connections made before this count are closed.
    cuts: u64,
    /// The server for new connections.
    upstream: Option<SocketAddr>,
}

fn address(upstream: &str) -> SocketAddr {
    upstream.parse().expect("host:port")
}

/// The number of open connections, by the count of cuts at which each was made.
type Open = BTreeMap<u64, usize>;

/// The direction of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

/// The treatment of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Pass,
    /// The chunk is lost, and later chunks pass.
    Swallow,
    /// That direction of the connection stops here.
    Halt,
}

/// A function that sees every chunk, with the number of its connection, and determines its
/// treatment.
#[derive(Clone)]
pub(crate) struct Tap(Arc<Sees>);

type Sees = dyn Fn(u64, Way, &[u8]) -> Flow + Send + Sync;

impl Tap {
    pub(crate) fn new(sees: impl Fn(u64, Way, &[u8]) -> Flow + Send + Sync + 'static) -> Self {
        Self(Arc::new(sees))
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap")
    }
}

/// A proxy before a server (`host:port`), on its own port. Dropping it closes the port and all
/// connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    faults: watch::Sender<Faults>,
    listening: watch::Receiver<bool>,
    open: watch::Receiver<Open>,
    _stop: DropGuard,
}

impl Proxy {
    pub(crate) async fn start(upstream: &str) -> Self {
        Self::start_tapped(upstream, Tap::new(|_, _, _| Flow::Pass)).await
    }

    /// Starts a proxy with a tap.
    pub(crate) async fn start_tapped(upstream: &str, tap: Tap) -> Self {
        let port = port::free();
        let (faults, seen) =
            watch::channel(Faults { upstream: Some(address(upstream)), ..Faults::default() });
        let (listening_tx, mut listening) = watch::channel(false);
        let (open_tx, open) = watch::channel(Open::new());
        let stop = CancellationToken::new();
        let accept = accept(port, tap, seen, listening_tx, open_tx);
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept));
        listening.wait_for(|up| *up).await.expect("the proxy runs");
        Self { port, faults, listening, open, _stop: stop.drop_guard() }
    }

    pub(crate) fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the number of open connections.
    pub(crate) fn connections(&self) -> usize {
        self.open.borrow().values().sum()
    }

    /// Closes every open connection, and returns when all are closed. New connections are accepted.
    pub(crate) async fn cut(&self) {
        let mut cuts = 0;
        self.faults.send_modify(|faults| {
            faults.cuts += 1;
            cuts = faults.cuts;
        });
        self.open
            .clone()
            .wait_for(|open| open.range(..cuts).all(|(_, count)| *count == 0))
            .await
            .expect("the proxy runs");
    }

    /// Accepts and reads, but passes nothing on in either direction, until
    /// [`resume`](Self::resume).
    pub(crate) fn stall(&self) {
        self.faults.send_modify(|faults| faults.stall = true);
    }

    /// Stalls as [`stall`](Self::stall) does, but first passes on half of the next chunk, so that
    /// it stops in the middle of a frame.
    pub(crate) fn stall_half_way(&self) {
        self.faults.send_modify(|faults| (faults.stall, faults.halve) = (true, true));
    }

    /// Refuses new connections until [`resume`](Self::resume). Open connections stay: see
    /// [`cut`](Self::cut).
    pub(crate) async fn refuse(&self) {
        self.faults.send_modify(|faults| faults.refuse = true);
        self.listening.clone().wait_for(|up| !up).await.expect("the proxy runs");
    }

    /// Simulates a missing server: refuses new connections and closes the open ones.
    pub(crate) async fn down(&self) {
        self.refuse().await;
        self.cut().await;
    }

    /// Leads new connections to another server, and closes the open ones.
    pub(crate) async fn redirect(&self, upstream: &str) {
        self.faults.send_modify(|faults| faults.upstream = Some(address(upstream)));
        self.cut().await;
    }

    /// Delays everything by that time, in each direction.
    pub(crate) fn delay(&self, delay: Duration) {
        self.faults.send_modify(|faults| faults.delay = delay);
    }

    /// Ends all faults, and passes on what was held back.
    pub(crate) async fn resume(&self) {
        self.faults.send_modify(|faults| {
            *faults = Faults { cuts: faults.cuts, upstream: faults.upstream, ..Faults::default() }
        });
        self.listening.clone().wait_for(|up| *up).await.expect("the proxy runs");
    }
}

async fn accept(
    port: u16,
    tap: Tap,
    mut faults: watch::Receiver<Faults>,
    listening: watch::Sender<bool>,
    open: watch::Sender<Open>,
) {
    // Ends the connections with the proxy.
    let stop = CancellationToken::new();
    let _stop_with_us = stop.clone().drop_guard();
    let mut number = 0;
    loop {
        if faults.wait_for(|faults| !faults.refuse).await.is_err() {
            return;
        }
        let listener =
            TcpListener::bind(("127.0.0.1", port)).await.expect("the proxy's port is ours");
        listening.send_replace(true);
        loop {
            let client = tokio::select! {
                accepted = listener.accept() => accepted,
                refused = faults.wait_for(|faults| faults.refuse) => if refused.is_ok() { break } else { return },
            };
            let Ok((client, _)) = client else { continue };
            number += 1;
            let (tap, faults, open, stop) =
                (tap.clone(), faults.clone(), open.clone(), stop.clone());
            let born = faults.borrow().cuts;
            open.send_modify(|open| *open.entry(born).or_default() += 1);
            tokio::spawn(async move {
                let mut cut = faults.clone();
                tokio::select! {
                    () = relay(client, (number, tap), faults) => {}
                    _ = cut.wait_for(|faults| faults.cuts > born) => {}
                    () = stop.cancelled() => {}
                }
                open.send_modify(|open| *open.entry(born).or_default() -= 1);
            });
        }
        drop(listener);
        listening.send_replace(false);
    }
}

async fn relay(client: TcpStream, (number, tap): (u64, Tap), faults: watch::Receiver<Faults>) {
    let upstream = faults.borrow().upstream.expect("it is set at the start");
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let back = tap.clone();
    let there = move |bytes: &[u8]| (tap.0)(number, Way::ToServer, bytes);
    let back = move |bytes: &[u8]| (back.0)(number, Way::ToClient, bytes);
    tokio::join!(
        pump(client_read, server_write, there, faults.clone()),
        pump(server_read, client_write, back, faults)
    );
}

/// Waits until `due`, precisely. The runtime's timers are accurate to a millisecond, which would be
/// as long as the delays. A thread's timers are accurate to about 60 µs.
async fn sleep_exactly_until(due: Instant) {
    const COARSE: Duration = Duration::from_millis(2);
    tokio::time::sleep_until(due - COARSE.min(due.saturating_duration_since(Instant::now()))).await;
    let left = due.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        let _ = tokio::task::spawn_blocking(move || std::thread::sleep(left)).await;
    }
}

/// Passes chunks from one side to the other. Reading and writing are separate, so that a delay adds
/// latency and does not reduce throughput.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    tap: impl Fn(&[u8]) -> Flow,
    mut faults: watch::Receiver<Faults>,
) {
    let (chunks_tx, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_UNDER_WAY);
    let delays = faults.clone();
    let read = async move {
        loop {
            let mut chunk = Vec::with_capacity(64 * 1024);
            match from.read_buf(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            match tap(&chunk) {
                Flow::Pass => {}
                Flow::Swallow => continue,
                Flow::Halt => return std::future::pending().await,
            }
            let due = Instant::now() + delays.borrow().delay;
            if chunks_tx.send((due, chunk)).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, chunk)) = chunks.recv().await {
            sleep_exactly_until(due).await;
            let half = if faults.borrow().halve { chunk.len() / 2 } else { 0 };
            let (first, rest) = chunk.split_at(half);
            if to.write_all(first).await.is_err()
                || faults.wait_for(|faults| !faults.stall).await.is_err()
                || to.write_all(rest).await.is_err()
            {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

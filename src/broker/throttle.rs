//! Limit on the bytes that a connection may read ahead of its reader.
//!
//! lapin reads everything that the socket holds and keeps it until a reader takes it. Nothing else
//! limits a stream's deliveries: up to 3.12, RabbitMQ sends a whole chunk, with any prefetch. So
//! this module stops reading the socket, and TCP holds the broker back.

use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::Stream;
use futures_util::future::Either;
use futures_util::task::AtomicWaker;
use rustls_connector::AsyncTlsStream;
use tokio::time::timeout;

use super::nesting::Levelled;

/// Time between two grants of more bytes while something is waited for.
pub(super) const GRANT_INTERVAL: Duration = Duration::from_millis(2);

/// Bytes that a connection may still read. The reader grants more as it takes data.
#[derive(Debug)]
pub(super) struct Allowance {
    window_bytes: u64,
    read_bytes: AtomicU64,
    limit_bytes: AtomicU64,
    stopped: AtomicWaker,
}

impl Allowance {
    /// Permits that many bytes to be read ahead.
    pub(super) fn new(window_bytes: u64) -> Self {
        Self {
            window_bytes,
            read_bytes: AtomicU64::new(0),
            limit_bytes: AtomicU64::new(window_bytes),
            stopped: AtomicWaker::new(),
        }
    }

    /// Grants as many bytes as the reader has taken.
    pub(super) fn took(&self, bytes: usize) {
        self.limit_bytes.fetch_add(bytes as u64, Ordering::AcqRel);
        self.stopped.wake();
    }

    /// Grants a whole window: the reader has taken everything that arrived.
    pub(super) fn took_all(&self) {
        let limit = self.read_bytes.load(Ordering::Acquire).saturating_add(self.window_bytes);
        self.limit_bytes.fetch_max(limit, Ordering::AcqRel);
        self.stopped.wake();
    }

    /// Awaits what the broker answers, and grants a window again and again until it does: the
    /// answer comes after all that was sent before.
    pub(super) async fn granting<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        loop {
            self.took_all();
            if let Ok(answer) = timeout(GRANT_INTERVAL, &mut answer).await {
                return answer;
            }
        }
    }

    /// Awaits what the broker answers, as long as the connection may read; `None` once it may not.
    pub(super) async fn within<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        let mut answer = pin!(answer);
        loop {
            match timeout(GRANT_INTERVAL, &mut answer).await {
                Ok(answer) => return Some(answer),
                Err(_) if self.left() == 0 => return None,
                Err(_) => {}
            }
        }
    }

    /// Returns how many bytes were read so far.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Acquire)
    }

    fn left(&self) -> usize {
        let left = self
            .limit_bytes
            .load(Ordering::Acquire)
            .saturating_sub(self.read_bytes.load(Ordering::Acquire));
        usize::try_from(left).unwrap_or(usize::MAX)
    }

    fn poll_left(&self, cx: &Context<'_>) -> Poll<usize> {
        if self.left() == 0 {
            self.stopped.register(cx.waker());
        }
        // Second check: the grant may have come before the waker was registered.
        match self.left() {
            0 => Poll::Pending,
            left => Poll::Ready(left),
        }
    }

    fn read(&self, read: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = read {
            self.read_bytes.fetch_add(*bytes as u64, Ordering::AcqRel);
        }
    }
}

/// Socket that reads no further than its allowance, if it has one.
#[derive(Debug)]
pub(super) struct Throttled<S> {
    socket: S,
    allowance: Option<Arc<Allowance>>,
}

impl<S> Throttled<S> {
    /// Returns the inner socket.
    pub(super) fn socket(&self) -> &S {
        &self.socket
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Throttled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { socket, allowance } = &mut *self;
        let Some(allowance) = allowance else { return Pin::new(socket).poll_read(cx, buffer) };
        let Poll::Ready(left) = allowance.poll_left(cx) else { return Poll::Pending };
        let end = buffer.len().min(left);
        let read = Pin::new(socket).poll_read(cx, &mut buffer[..end]);
        allowance.read(&read);
        read
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { socket, allowance } = &mut *self;
        let Some(allowance) = allowance else {
            return Pin::new(socket).poll_read_vectored(cx, buffers);
        };
        let Poll::Ready(left) = allowance.poll_left(cx) else { return Poll::Pending };
        let read = if buffers.iter().map(|buffer| buffer.len()).sum::<usize>() <= left {
            Pin::new(socket).poll_read_vectored(cx, buffers)
        } else if let Some(buffer) = buffers.iter_mut().find(|buffer| !buffer.is_empty()) {
            let end = buffer.len().min(left);
            Pin::new(socket).poll_read(cx, &mut buffer[..end])
        } else {
            Poll::Ready(Ok(0))
        };
        allowance.read(&read);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Throttled<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

/// Stream with or without TLS.
type MaybeTls<S> = Either<S, AsyncTlsStream<S>>;

/// Tokio runtime for lapin, with throttled sockets whose frames have limited nesting.
#[derive(Debug, Clone)]
pub(super) struct ThrottledTokio {
    tokio: Tokio,
    allowance: Option<Arc<Allowance>>,
}

impl ThrottledTokio {
    /// Returns a runtime on the current Tokio runtime.
    pub(super) fn current(allowance: Option<Arc<Allowance>>) -> Runtime<Self> {
        Runtime::new(Self { tokio: Tokio::current(), allowance })
    }
}

impl RuntimeKit for ThrottledTokio {}

impl Executor for ThrottledTokio {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.tokio.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        future: F,
    ) -> Task<Self::Task<T>> {
        self.tokio.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> Task<Self::Task<T>> {
        self.tokio.spawn_blocking(work)
    }
}

impl Reactor for ThrottledTokio {
    type TcpStream = Levelled<MaybeTls<Throttled<<Tokio as Reactor>::TcpStream>>>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.tokio.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.tokio.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.tokio.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let (connecting, allowance) =
            (self.tokio.tcp_connect_addr(address), self.allowance.clone());
        async move {
            Ok(Levelled::new(Either::Left(Throttled { socket: connecting.await?, allowance })))
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_fn;

    use super::*;

    /// Socket that always has more data.
    struct Endless;

    impl AsyncRead for Endless {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buffer.len()))
        }
    }

    /// Reads until the allowance ends; returns the number of bytes read.
    async fn read_on(socket: &mut Throttled<Endless>, vectored: bool) -> usize {
        let mut buffer = [0; 64];
        let mut read = 0;
        poll_fn(|cx| {
            loop {
                let (one, other) = buffer.split_at_mut(24);
                let mut both = [IoSliceMut::new(one), IoSliceMut::new(other)];
                let polled = if vectored {
                    Pin::new(&mut *socket).poll_read_vectored(cx, &mut both)
                } else {
                    Pin::new(&mut *socket).poll_read(cx, &mut both[1])
                };
                match polled {
                    Poll::Ready(bytes) => read += bytes.unwrap(),
                    Poll::Pending => return Poll::Ready(read),
                }
            }
        })
        .await
    }

    #[tokio::test]
    async fn nothing_is_read_beyond_the_allowance() {
        for vectored in [false, true] {
            let allowance = Arc::new(Allowance::new(1_000));
            let mut socket = Throttled { socket: Endless, allowance: Some(Arc::clone(&allowance)) };
            assert_eq!(read_on(&mut socket, vectored).await, 1_000);
            assert_eq!(read_on(&mut socket, vectored).await, 0);
            allowance.took(70);
            assert_eq!(read_on(&mut socket, vectored).await, 70);
            allowance.took_all();
            allowance.took_all();
            assert_eq!(read_on(&mut socket, vectored).await, 1_000);
        }
    }

    #[tokio::test]
    async fn an_answer_behind_more_than_a_window_comes_only_by_grants() {
        let allowance = Arc::new(Allowance::new(10));
        let mut socket = Throttled { socket: Endless, allowance: Some(Arc::clone(&allowance)) };
        let mut answer = pin!(async {
            let (mut buffer, mut read) = ([0; 64], 0);
            while read < 35 {
                read +=
                    poll_fn(|cx| Pin::new(&mut socket).poll_read(cx, &mut buffer)).await.unwrap();
            }
            read
        });
        assert_eq!(allowance.within(&mut answer).await, None);
        assert_eq!(allowance.read_bytes(), 10);
        assert_eq!(allowance.granting(&mut answer).await, 40);
    }

    #[tokio::test]
    async fn a_grant_wakes_what_waits_for_it() {
        let allowance = Arc::new(Allowance::new(10));
        let mut socket = Throttled { socket: Endless, allowance: Some(Arc::clone(&allowance)) };
        assert_eq!(read_on(&mut socket, false).await, 10);
        let mut buffer = [0; 64];
        let waits = poll_fn(|cx| Pin::new(&mut socket).poll_read(cx, &mut buffer));
        let grants = async {
            tokio::task::yield_now().await;
            allowance.took(7);
        };
        assert_eq!(tokio::join!(waits, grants).0.unwrap(), 7);
    }
}

//! Starts private Redis servers.

use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tempfile::TempDir;

use super::guard::{Guarded, tail};
use super::port;
use super::programs::server_command;

/// Maximum time a test waits for an answer or a connection. The defaults of redis-rs, 500 ms and a
/// second, may be too short on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns a connection that waits as long as a busy machine needs.
pub(crate) async fn connect(client: &redis::Client) -> redis::RedisResult<MultiplexedConnection> {
    let patient = redis::AsyncConnectionConfig::new()
        .set_response_timeout(Some(PATIENCE))
        .set_connection_timeout(Some(PATIENCE));
    client.get_multiplexed_async_connection_with_config(&patient).await
}

/// A `redis-server` on its own port, without persistence unless a test asks for it.
#[derive(Debug)]
pub(crate) struct Redis {
    port: u16,
    args: Vec<String>,
    /// Hours by which its clock is ahead of the test's clock.
    hours_ahead: AtomicI32,
    /// Declared before `folder`, so that the server ends before its files are removed.
    process: Mutex<Option<Guarded>>,
    folder: TempDir,
}

impl Redis {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with more arguments, such as `["--appendonly", "yes", "--appendfsync",
    /// "always"]` for data that survives [`kill`](Self::kill).
    pub(crate) async fn start_with(args: &[&str]) -> Self {
        Self::start_at(0, args).await
    }

    /// Starts a server with a clock that many hours ahead of the test's clock.
    pub(crate) async fn start_at(hours_ahead: i32, args: &[&str]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("unstale-redis-")
            .tempdir()
            .expect("a temporary folder");
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let server = Self {
            port: port::free(),
            args,
            hours_ahead: AtomicI32::new(hours_ahead),
            process: Mutex::new(None),
            folder,
        };
        server.launch().await;
        server
    }

    async fn launch(&self) {
        let log = self.folder.path().join("log");
        let output =
            std::fs::File::options().create(true).append(true).open(&log).expect("the log opens");
        let mut command = server_command("redis-server");
        command
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &self.port.to_string(),
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
            ])
            .arg(self.folder.path())
            .args(&self.args)
            .envs(super::clock::settings(
                self.hours_ahead.load(Ordering::Relaxed),
                self.folder.path(),
            ))
            .stdout(output)
            .stderr(Stdio::null());
        let mut process = Guarded::spawn(command, Some(self.folder.path()));
        super::wait_until(Duration::from_secs(20), "redis-server answers PING", async || {
            if let Some(status) = process.exited() {
                panic!("redis-server ended at start with {status}:\n{}", tail(&log));
            }
            let Some(mut connection) = self.try_connection().await else { return false };
            // A server that asks for a password answers too.
            redis::cmd("PING")
                .query_async::<String>(&mut connection)
                .await
                .map_or_else(|error| error.code() == Some("NOAUTH"), |_| true)
        })
        .await;
        *self.process.lock().unwrap() = Some(process);
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn url(&self) -> String {
        self.db_url(0)
    }

    /// Returns the URL of a database. Redis has databases 0 to 15.
    pub(crate) fn db_url(&self, db: u8) -> String {
        format!("redis://127.0.0.1:{}/{db}", self.port)
    }

    pub(crate) fn client(&self) -> redis::Client {
        redis::Client::open(self.url()).expect("the URL is ours")
    }

    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        connect(&self.client()).await.expect("Redis takes a connection")
    }

    /// Returns a connection as [`connection`](Self::connection) does, or `None` if Redis is away.
    pub(crate) async fn try_connection(&self) -> Option<MultiplexedConnection> {
        connect(&self.client()).await.ok()
    }

    /// Sends `kill -9`, and waits for the end.
    pub(crate) fn kill(&self) {
        drop(self.process.lock().unwrap().take());
    }

    /// Kills the server if it runs, and starts it again on the same port and folder.
    pub(crate) async fn restart(&self) {
        self.kill();
        self.launch().await;
    }

    /// Returns the current data as a snapshot.
    pub(crate) async fn snapshot(&self) -> Vec<u8> {
        redis::cmd("SAVE").exec_async(&mut self.connection().await).await.expect("Redis saves");
        std::fs::read(self.folder.path().join("dump.rdb")).expect("the snapshot is there")
    }

    /// Simulates a disaster: kills the server, and starts it again from that snapshot. It does not
    /// work with an append-only file.
    pub(crate) async fn restore(&self, snapshot: &[u8]) {
        self.kill();
        std::fs::write(self.folder.path().join("dump.rdb"), snapshot).expect("the folder is ours");
        self.launch().await;
    }

    /// Does the same with a clock that many hours ahead of the test's clock.
    pub(crate) async fn restore_at(&self, hours_ahead: i32, snapshot: &[u8]) {
        self.hours_ahead.store(hours_ahead, Ordering::Relaxed);
        self.restore(snapshot).await;
    }

    /// Freezes the server until [`thaw`](Self::thaw). Its connections stay open, and it answers
    /// nothing.
    pub(crate) fn freeze(&self) {
        self.process.lock().unwrap().as_ref().expect("Redis runs").signal("STOP");
    }

    pub(crate) fn thaw(&self) {
        self.process.lock().unwrap().as_ref().expect("Redis runs").signal("CONT");
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.lock().unwrap().as_ref().map(Guarded::pid)
    }
}

//! Starts a primary, a replica, and three sentinels that watch them.

use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use super::guard::Guarded;
use super::programs::server_command;
use super::redis::connect;
use super::{Redis, port, wait_until};

/// The primary's name for the sentinels.
pub(crate) const NAME: &str = "main";

/// A primary with one replica and three sentinels. Dropping it ends all of them.
#[derive(Debug)]
pub(crate) struct Sentinels {
    /// The first one is the primary until the sentinels choose the other.
    pub(crate) servers: [Redis; 2],
    sentinels: Vec<Sentinel>,
}

#[derive(Debug)]
struct Sentinel {
    port: u16,
    password: String,
    _process: Guarded,
    _folder: TempDir,
}

impl Sentinels {
    /// Starts them. Returns when every sentinel knows the others and the replica. The sentinels
    /// replace a primary that does not answer for three seconds. On a busy machine a live one may
    /// not answer for one second.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[], "", "").await
    }

    /// Starts them as [`start`](Self::start) does, with a password for servers and sentinels.
    /// `args` and `lines` configure it.
    pub(crate) async fn start_secured(args: &[&str], lines: &str, password: &str) -> Self {
        Self::start_with(args, lines, password).await
    }

    async fn start_with(args: &[&str], lines: &str, password: &str) -> Self {
        let primary = Redis::start_with(args).await;
        let port = primary.port().to_string();
        let replica = Redis::start_with(
            &[&["--replicaof", "127.0.0.1", &port, "--repl-diskless-sync-delay", "0"], args]
                .concat(),
        )
        .await;
        let sentinels: Vec<_> =
            (0..3).map(|_| Sentinel::start(primary.port(), lines, password)).collect();
        let sentinels = Self { servers: [primary, replica], sentinels };
        wait_until(
            Duration::from_secs(20),
            "the sentinels know each other and the replica",
            async || {
                for sentinel in &sentinels.sentinels {
                    let Some(fields) = sentinel.master().await else { return false };
                    let field = |name: &str| {
                        fields.chunks(2).find(|pair| pair[0] == name).map(|pair| pair[1].clone())
                    };
                    if field("num-other-sentinels").as_deref() != Some("2")
                        || field("num-slaves").as_deref() != Some("1")
                    {
                        return false;
                    }
                }
                true
            },
        )
        .await;
        sentinels
    }

    /// Starts them with sentinels that monitor the replica. Returns at once.
    pub(crate) async fn start_at_replica() -> Self {
        let primary = Redis::start().await;
        let port = primary.port().to_string();
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]).await;
        let sentinels = (0..3).map(|_| Sentinel::start(replica.port(), "", "")).collect();
        Self { servers: [primary, replica], sentinels }
    }

    /// Returns the sentinels' addresses in the form of `UNSTALE_REDIS_URL`.
    pub(crate) fn urls(&self) -> String {
        let hosts: Vec<_> =
            self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        format!("redis://{}/0", hosts.join(","))
    }

    /// Makes the sentinels replace the primary now, though it is alive. Returns false if they
    /// refuse.
    pub(crate) async fn try_fail_over(&self) -> bool {
        let Ok(mut connection) = connect(&self.sentinels[0].client()).await else { return false };
        redis::cmd("SENTINEL").arg("FAILOVER").arg(NAME).exec_async(&mut connection).await.is_ok()
    }

    /// Returns true if a server reports itself as a primary.
    pub(crate) async fn is_primary(&self, server: usize) -> bool {
        let Some(mut connection) = self.servers[server].try_connection().await else {
            return false;
        };
        let role: redis::RedisResult<Vec<redis::Value>> =
            redis::cmd("ROLE").query_async(&mut connection).await;
        role.is_ok_and(|role| role.first() == Some(&redis::Value::BulkString(b"master".to_vec())))
    }
}

impl Sentinel {
    fn start(primary: u16, lines: &str, password: &str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("unstale-sentinel-")
            .tempdir()
            .expect("a temporary folder");
        let (port, dir) = (port::free(), folder.path().display().to_string());
        let configuration = format!(
            "port {port}\nbind 127.0.0.1\ndir {dir}\nsentinel monitor {NAME} 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds {NAME} 3000\nsentinel failover-timeout {NAME} 5000\n{lines}\n"
        );
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, configuration).expect("the folder is ours");
        let mut command = server_command("redis-server");
        command.arg(&file).arg("--sentinel").stdout(Stdio::null()).stderr(Stdio::null());
        Self {
            port,
            password: password.to_owned(),
            _process: Guarded::spawn(command, Some(folder.path())),
            _folder: folder,
        }
    }

    fn client(&self) -> redis::Client {
        let user =
            if self.password.is_empty() { String::new() } else { format!(":{}@", self.password) };
        redis::Client::open(format!("redis://{user}127.0.0.1:{}/", self.port))
            .expect("the URL is ours")
    }

    async fn master(&self) -> Option<Vec<String>> {
        let mut connection = connect(&self.client()).await.ok()?;
        redis::cmd("SENTINEL").arg("MASTER").arg(NAME).query_async(&mut connection).await.ok()
    }
}

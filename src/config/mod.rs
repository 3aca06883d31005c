//! Reads the environment into a checked [`Config`]. No other module reads the environment.
//!
//! - `settings`: the table of all settings with their defaults.
//! - `environment`: our variables as text, with values from files. `scope` says which of them a
//!   command reads, and `vars` holds those for rule files.
//! - `parse`: text → checked settings, and checks across settings.
//! - `values`, `nodes`, `secret_url`, `certificates`: text → checked value, one kind each.
//! - `problem`: all errors of one run, and warnings.
//! - `describe`: the effective settings as one line.
//!
//! There is no configuration file. Errors name settings and never quote values, since a value may
//! be a secret in the wrong variable.

mod certificates;
mod describe;
mod environment;
mod nodes;
mod parse;
mod problem;
mod scope;
mod secret_url;
mod settings;
#[cfg(test)]
mod tests;
mod values;
mod vars;

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use describe::Description;
use environment::Environment;
pub use problem::{ConfigProblem, ConfigProblems, Warning};
pub use scope::Scope;
pub use secret_url::SecretUrl;
use settings::setting;
pub use settings::{SETTINGS, Setting};
pub use vars::Vars;

use crate::event::Reading;
use crate::quantity::Rate;

/// Maximum size of a file that a `_FILE` variable names, in bytes. A larger file is not a setting.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// All settings, checked.
///
/// ```
/// use unstale::config::{Config, Scope};
///
/// let read = |pairs: &[(&str, &str)]| {
///     let pairs = pairs.iter().map(|(name, value)| (name.into(), value.into()));
///     Config::from_pairs(pairs, |path| std::fs::read(path), Scope::All)
/// };
/// let (config, warnings) = read(&[
///     ("UNSTALE_AMQP_URL", "amqp://rabbit/%2f"),
///     ("UNSTALE_REDIS_URL", "redis://redis/0"),
///     ("UNSTALE_SHUTDOWN_GRACE", "10s"),
/// ])?;
/// assert_eq!(config.shutdown_grace.as_secs(), 10);
/// assert!(warnings.is_empty());
///
/// // Every problem is reported at once.
/// let problems = read(&[("UNSTALE_BATCH", "many"), ("UNSTALE_LOG_FORMAT", "xml")]).unwrap_err();
/// assert!(problems.problems.len() >= 2);
/// # Ok::<(), unstale::config::ConfigProblems>(())
/// ```
#[derive(Debug, Clone)]
pub struct Config {
    /// Settings for RabbitMQ.
    pub amqp: AmqpConfig,
    /// Settings for Redis.
    pub redis: RedisConfig,
    /// Place of the registry, and the values it reads.
    pub registry: RegistryConfig,
    /// Limits for all loaders together.
    pub warm: WarmConfig,
    /// `UNSTALE_BATCH`: maximum number of events that are applied together. By default it is at
    /// most the prefetch.
    pub batch: usize,
    /// `UNSTALE_UNKNOWN`: treatment of an event that no event definition matches.
    pub unknown: UnknownPolicy,
    /// `UNSTALE_MAX_BODY_BYTES` and `UNSTALE_TYPE_FROM`
    pub reading: Reading,
    /// `UNSTALE_HTTP_ADDR`; `None` is `off`.
    pub http_addr: Option<SocketAddr>,
    /// `UNSTALE_LOG`: directives of `tracing-subscriber`'s `EnvFilter`.
    pub log: String,
    /// `UNSTALE_LOG_FORMAT`
    pub log_format: LogFormat,
    /// `UNSTALE_SHUTDOWN_GRACE`: maximum time for deliveries in flight to settle at shutdown.
    pub shutdown_grace: Duration,
    /// `UNSTALE_HEAL_WINDOW`; `None` is `off`.
    pub heal_window: Option<Duration>,
    /// `UNSTALE_REDIS_EVICTION` is `refuse`: the worker does not start with a Redis that may evict
    /// keys.
    pub refuses_eviction: bool,
    /// `UNSTALE_TAG_MAINTENANCE`
    pub tag_maintenance: TagMaintenance,
}

impl Config {
    /// Returns whether workers check that Redis lost no writes, and heal it.
    pub fn heals(&self) -> bool {
        self.heal_window.is_some()
    }

    /// Returns whether dead members are removed from tag sets.
    pub fn maintains_tags(&self) -> bool {
        match self.tag_maintenance {
            TagMaintenance::Auto => {
                setting::tag_prefix.default == Some(self.redis.tag_prefix.as_str())
            }
            TagMaintenance::On => true,
            TagMaintenance::Off => false,
        }
    }

    /// Reads the environment of this process, and the files that it names.
    ///
    /// # Errors
    /// [`ConfigProblems`] with every setting that cannot be used.
    pub fn from_env(scope: Scope) -> Result<(Self, Vec<Warning>), ConfigProblems> {
        Self::from_pairs(std::env::vars_os(), read_file, scope)
    }

    /// Reads the given variables, with the given function for files.
    ///
    /// # Errors
    /// [`ConfigProblems`] with every setting that cannot be used.
    pub fn from_pairs(
        pairs: impl IntoIterator<Item = (OsString, OsString)>,
        read_file: impl Fn(&Path) -> io::Result<Vec<u8>>,
        scope: Scope,
    ) -> Result<(Self, Vec<Warning>), ConfigProblems> {
        Environment::read(pairs.into_iter(), read_file, scope).check()
    }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// Settings for RabbitMQ.
#[derive(Debug, Clone)]
pub struct AmqpConfig {
    /// `UNSTALE_AMQP_URL`: the nodes of one cluster, tried in turn.
    pub urls: Vec<SecretUrl>,
    /// `UNSTALE_AMQP_TLS_*`
    pub tls: TlsConfig,
    /// `UNSTALE_EXCHANGE`
    pub exchange: String,
    /// `UNSTALE_QUEUE`: the prefix of all our queue names.
    pub queue: String,
    /// `UNSTALE_BIND`: routing keys to bind in addition to those of the registry.
    pub bind: Vec<String>,
    /// `UNSTALE_DECLARE`
    pub declare: DeclarePolicy,
    /// `UNSTALE_PREFETCH`
    pub prefetch: u16,
    /// The prefetch while the queue has a backlog: six times `UNSTALE_PREFETCH`, or equal to it if
    /// it is set.
    pub backlog_prefetch: u16,
    /// `UNSTALE_RETRY_DELAYS`: the retry steps, in order.
    pub retry_delays: Vec<Duration>,
    /// `UNSTALE_HISTORY`, `_MAX_AGE`, `_MAX_BYTES`; `None` is `off`.
    pub history: Option<HistoryConfig>,
}

/// Retention of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryConfig {
    /// Older segments are removed.
    pub max_age: Duration,
    /// Above this size the oldest segments are removed. In bytes.
    pub max_bytes: u64,
}

/// Objects that the worker may create on the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeclarePolicy {
    /// The exchange, the queues and their bindings.
    #[default]
    All,
    /// The queues and their bindings.
    Queues,
    /// Nothing.
    None,
}

/// Treatment of an event that no event definition matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownPolicy {
    /// The retry schedule, then the dead-letter queue. During an upgrade, an older worker may
    /// receive a newer event.
    #[default]
    Retry,
    /// The dead-letter queue at once.
    Dead,
    /// The event is acknowledged and counted.
    Drop,
}

/// Settings for Redis.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// `UNSTALE_REDIS_URL`: one server, the known nodes of a cluster, or the sentinels.
    pub urls: Vec<SecretUrl>,
    /// `UNSTALE_REDIS_MODE`
    pub mode: RedisMode,
    /// `UNSTALE_REDIS_TLS_*`
    pub tls: TlsConfig,
    /// `UNSTALE_TAG_PREFIX`: the prefix of tag set names.
    pub tag_prefix: String,
    /// `UNSTALE_FENCE_TTL`
    pub fence_ttl: Duration,
}

/// Policy for the removal of dead members from tag sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TagMaintenance {
    /// Only with the default tag prefix. Sets under another prefix may belong to a library or an
    /// application, and their members need not be keys.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Kind of Redis deployment, and the source of the primary's address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RedisMode {
    /// One server, or one address in front of it.
    #[default]
    Single,
    /// Redis Cluster.
    Cluster,
    /// Sentinels that watch the named primary.
    Sentinel {
        /// `UNSTALE_REDIS_SENTINEL_MASTER`
        master: String,
    },
}

/// PEM texts, from the variable itself or from the file that its `_FILE` form names.
#[derive(Clone, Default)]
pub struct TlsConfig {
    /// Certificates to trust instead of the system's.
    pub ca_pem: Option<String>,
    /// The client certificate.
    pub cert_pem: Option<String>,
    /// Its private key.
    pub key_pem: Option<String>,
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig")
            .field("ca", &self.ca_pem.is_some())
            .field("cert", &self.cert_pem.is_some())
            .field("key", &self.key_pem.is_some())
            .finish()
    }
}

/// Place of the registry, and the values it reads.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// `UNSTALE_SCHEMAS`
    pub schemas: PathBuf,
    /// `UNSTALE_KEY_PREFIX`: the prefix of every key, before a file's own.
    pub key_prefix: String,
    /// `UNSTALE_VAR_<NAME>` by `NAME`, the values of `{vars.NAME}`.
    pub vars: Vars,
    /// `UNSTALE_TAG_PREFIX`: no rule may change a key that begins with it.
    pub tag_prefix: String,
    /// `UNSTALE_MAX_KEYS_PER_EVENT`
    pub max_keys_per_event: usize,
}

/// Limits for all loaders together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmConfig {
    /// `UNSTALE_WARM_CONCURRENCY`: maximum number of loads at once.
    pub concurrency: usize,
    /// `UNSTALE_WARM_TIMEOUT`: maximum time of one load, unless the loader has its own.
    pub timeout: Duration,
    /// `UNSTALE_WARM_RATE`; `None` is `off`.
    pub rate: Option<Rate>,
    /// `UNSTALE_WARM_MAX_BYTES`: maximum size of one answer in bytes, unless the loader has its
    /// own.
    pub max_bytes: usize,
}

/// Format of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One line of text for each record, for people.
    #[default]
    Text,
    /// One JSON object for each record.
    Json,
}

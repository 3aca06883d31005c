//! Environment → checked [`Config`]; the only reader of the environment.

mod certificates;
mod describe;
mod environment;
mod nodes;
mod parse;
mod problem;
mod secret_url;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
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
pub use secret_url::SecretUrl;
use settings::setting;
pub use settings::{SETTINGS, Setting};

use crate::event::Reading;
use crate::quantity::Rate;

/// The largest file that a `_FILE` variable may name, in bytes: what is larger is no setting.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Which settings are read: what a command does not need cannot fail it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// What resolving events takes: the registry, its limits, and the logs. The others have their
    /// defaults.
    Offline,
}

impl Scope {
    fn reads(self, name: &str) -> bool {
        const OFFLINE: [Setting; 9] = [
            setting::schemas,
            setting::key_prefix,
            setting::tag_prefix,
            setting::unknown,
            setting::type_from,
            setting::max_keys_per_event,
            setting::max_body_bytes,
            setting::log,
            setting::log_format,
        ];
        self == Self::All || OFFLINE.iter().any(|setting| setting.name == name)
    }
}

/// Every setting, checked.
///
/// ```
/// use unstale::config::{Config, Scope};
///
/// let read = |pairs: &[(&str, &str)]| {
///     let pairs = pairs.iter().map(|(name, value)| (name.into(), value.into()));
///     Config::from_pairs(pairs, |path| std::fs::read(path), Scope::All)
/// };
/// let (config, warnings) = read(&[
///     ("UNSTALE_AMQP_URL", "amqp://rabbit/"),
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
    /// The broker's side.
    pub amqp: AmqpConfig,
    /// The cache's side.
    pub redis: RedisConfig,
    /// Where the registry is and what it reads.
    pub registry: RegistryConfig,
    /// Limits over all loaders.
    pub warm: WarmConfig,
    /// `UNSTALE_BATCH`: how many events are applied together at most; by default no more than the
    /// prefetch.
    pub batch: usize,
    /// `UNSTALE_UNKNOWN`: what becomes of an event that no entry knows.
    pub unknown: UnknownPolicy,
    /// `UNSTALE_MAX_BODY_BYTES` and `UNSTALE_TYPE_FROM`
    pub reading: Reading,
    /// `UNSTALE_HTTP_ADDR`; `None` is `off`.
    pub http_addr: Option<SocketAddr>,
    /// `UNSTALE_LOG`: directives of `tracing-subscriber`'s `EnvFilter`.
    pub log: String,
    /// `UNSTALE_LOG_FORMAT`
    pub log_format: LogFormat,
    /// `UNSTALE_SHUTDOWN_GRACE`: how long what is in hand may take to settle.
    pub shutdown_grace: Duration,
    /// `UNSTALE_HEAL_WINDOW`; `None` is `off`.
    pub heal_window: Option<Duration>,
    /// `UNSTALE_REDIS_EVICTION` is `refuse`: a Redis that may evict keys is refused.
    pub refuses_eviction: bool,
    /// `UNSTALE_TAG_MAINTENANCE`
    pub tag_maintenance: TagMaintenance,
}

impl Config {
    /// Whether anybody looks whether Redis went back, and heals it.
    pub fn heals(&self) -> bool {
        self.heal_window.is_some()
    }

    /// Returns whether members whose keys are gone are taken out of the sets of tags.
    pub fn maintains_tags(&self) -> bool {
        match self.tag_maintenance {
            TagMaintenance::Auto => {
                setting::tag_prefix.default == Some(self.redis.tag_prefix.as_str())
            }
            TagMaintenance::On => true,
            TagMaintenance::Off => false,
        }
    }

    /// Reads the environment of this process, and the files it names.
    ///
    /// # Errors
    /// [`ConfigProblems`]: every setting that cannot be used.
    pub fn from_env(scope: Scope) -> Result<(Self, Vec<Warning>), ConfigProblems> {
        Self::from_pairs(std::env::vars_os(), read_file, scope)
    }

    /// Reads variables from wherever they come, and files however they are read.
    ///
    /// # Errors
    /// [`ConfigProblems`]: every setting that cannot be used.
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

/// The broker's side.
#[derive(Debug, Clone)]
pub struct AmqpConfig {
    /// `UNSTALE_AMQP_URL`: the nodes of one cluster, tried in turn.
    pub urls: Vec<SecretUrl>,
    /// `UNSTALE_AMQP_TLS_*`
    pub tls: TlsConfig,
    /// `UNSTALE_EXCHANGE`
    pub exchange: String,
    /// `UNSTALE_QUEUE`: names every queue of ours.
    pub queue: String,
    /// `UNSTALE_BIND`: routing keys to bind beside the registry's.
    pub bind: Vec<String>,
    /// `UNSTALE_DECLARE`
    pub declare: DeclarePolicy,
    /// `UNSTALE_PREFETCH`
    pub prefetch: u16,
    /// The same while a backlog waits: six times as many, unless `UNSTALE_PREFETCH` is set.
    pub backlog_prefetch: u16,
    /// `UNSTALE_RETRY_DELAYS`: the rungs of the ladder, in order.
    pub retry_delays: Vec<Duration>,
    /// `UNSTALE_HISTORY`, `_MAX_AGE`, `_MAX_BYTES`; `None` is `off`.
    pub history: Option<HistoryConfig>,
}

/// How much of the past the history keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryConfig {
    /// Older segments go.
    pub max_age: Duration,
    /// Beyond it the oldest segments go.
    pub max_bytes: u64,
}

/// What may be created on the broker.
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

/// What becomes of an event that no entry of the registry knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownPolicy {
    /// The ladder, then the dead-letter queue: an older worker may meet a newer event.
    #[default]
    Retry,
    /// The dead-letter queue at once.
    Dead,
    /// Acknowledged and counted.
    Drop,
}

/// The cache's side.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// `UNSTALE_REDIS_URL`: one server, or the known nodes of a cluster, or the sentinels.
    pub urls: Vec<SecretUrl>,
    /// `UNSTALE_REDIS_MODE`
    pub mode: RedisMode,
    /// `UNSTALE_REDIS_TLS_*`
    pub tls: TlsConfig,
    /// `UNSTALE_TAG_PREFIX`: before the name of a tag's set.
    pub tag_prefix: String,
    /// `UNSTALE_FENCE_TTL`
    pub fence_ttl: Duration,
}

/// Whether members whose keys are gone are taken out of the sets of tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TagMaintenance {
    /// With the default tag prefix. Sets under another prefix may belong to a library or an
    /// application, and their members need not be keys.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How many Redis servers there are and who says which of them is the primary.
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

/// PEM texts: from the variable itself, or from the file its `_FILE` form names.
#[derive(Clone, Default)]
pub struct TlsConfig {
    /// Certificates to trust instead of the system's.
    pub ca_pem: Option<String>,
    /// Our certificate.
    pub cert_pem: Option<String>,
    /// Its key.
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

/// Where the registry is and what it reads.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// `UNSTALE_SCHEMAS`
    pub schemas: PathBuf,
    /// `UNSTALE_KEY_PREFIX`: before every key, ahead of a file's own.
    pub key_prefix: String,
    /// `UNSTALE_VAR_<NAME>` by `NAME`: what `{vars.NAME}` reads.
    pub vars: Vars,
    /// `UNSTALE_TAG_PREFIX`: no rule may reach a key that begins with it.
    pub tag_prefix: String,
    /// `UNSTALE_MAX_KEYS_PER_EVENT`
    pub max_keys_per_event: usize,
}

/// What `{vars.NAME}` reads. May hold secrets: `Debug` shows names alone.
#[derive(Clone, Default)]
pub struct Vars(pub BTreeMap<String, String>);

impl Vars {
    /// Values shorter than this are masked nowhere: they are no secrets, and parts of too many
    /// words.
    const MIN_MASKED_BYTES: usize = 4;

    /// Returns the text with the name of each variable, as `{vars.NAME}`, in the place of its
    /// value.
    pub fn mask(&self, text: &str) -> String {
        // The longest first: one value may hold another.
        let mut by_length: Vec<_> =
            self.0.iter().map(|(name, value)| (name, value.trim_end_matches('/'))).collect();
        by_length.retain(|(_, value)| value.len() >= Self::MIN_MASKED_BYTES);
        by_length.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
        by_length.into_iter().fold(text.to_owned(), |text, (name, value)| {
            text.replace(value, &format!("{{vars.{name}}}"))
        })
    }
}

impl fmt::Debug for Vars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Limits over all loaders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmConfig {
    /// `UNSTALE_WARM_CONCURRENCY`: loads at once.
    pub concurrency: usize,
    /// `UNSTALE_WARM_TIMEOUT`: of one load, where the loader has none of its own.
    pub timeout: Duration,
    /// `UNSTALE_WARM_RATE`; `None` is `off`.
    pub rate: Option<Rate>,
    /// `UNSTALE_WARM_MAX_BYTES`: of one answer, where the loader has none of its own.
    pub max_bytes: usize,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

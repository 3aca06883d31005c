//! The meaning of Redis' errors: whether they concern the server or one command, and whether a
//! retry can help.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use redis::{ConnectionAddr, ErrorKind, RedisError, ServerError, Value};

use super::error_text::{self, Plain};
use crate::causes::{Cause, Explain, chain};
use crate::plan::EffectOutcome;
use crate::reason::Reason;
use crate::tls;

/// Settings that no connection can be made with.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CacheError {
    /// The URLs are not usable. The text never quotes a URL, which may hold a password.
    #[error("UNSTALE_REDIS_URL")]
    Url(#[source] Cause),
    /// The PEM texts are not usable.
    #[error("UNSTALE_REDIS_TLS_{{CA,CERT,KEY}}")]
    Tls(#[source] Cause),
}

impl Explain for CacheError {}

/// Redis is not usable. No event is at fault: the whole request is repeated later.
///
/// Its texts have Redis' code and its meaning, never keys or values.
#[derive(Debug, Clone)]
pub struct Outage {
    cause: Cause,
    /// Waiting does not end it: an operator must fix credentials, rights or versions.
    pub needs_person: bool,
    /// Redis has reached `maxmemory` and takes only deletions:
    /// [`Cache::delete_now`](super::Cache::delete_now).
    pub out_of_memory: bool,
    /// The checkpoint after a batch was not what the batch must have left. Only the caller with
    /// that batch sees this.
    pub broke_checkpoint: bool,
    /// The connection was lost while a request was on its way. The request itself may be the
    /// reason, such as a value that is too large. Only callers with such a request see this.
    pub lost_connection: bool,
}

impl Outage {
    /// Returns an outage that waiting may end.
    pub fn new(cause: impl Into<Cause>) -> Self {
        Self {
            cause: cause.into(),
            needs_person: false,
            out_of_memory: false,
            broke_checkpoint: false,
            lost_connection: false,
        }
    }

    /// Returns the outage of a Redis that lost confirmed writes.
    pub fn lost_writes() -> Self {
        Self::new("Redis has lost writes that it had confirmed")
    }

    /// Returns the outage of a batch whose checkpoint is broken: Redis lost writes, or the batch
    /// itself changed the checkpoint.
    pub(super) fn broke_checkpoint() -> Self {
        Self { broke_checkpoint: true, ..Self::lost_writes() }
    }

    /// Returns the outage of a connection that was lost with a request on its way.
    fn lost_connection(cause: impl Into<Cause>) -> Self {
        Self { lost_connection: true, ..Self::new(cause) }
    }

    /// Returns the outage without what concerns only the batch that met it.
    #[must_use]
    pub fn for_others(&self) -> Self {
        Self { broke_checkpoint: false, lost_connection: false, ..self.clone() }
    }

    /// Returns the outage of a replaced server, which may have lost other workers' writes.
    pub fn replaced() -> Self {
        Self::new(
            "Redis was restarted or replaced by a replica, and may have lost writes that it had confirmed",
        )
    }

    /// Returns the outage of a heal whose lock another worker has taken.
    pub(super) fn lost_turn() -> Self {
        Self::new("the turn to heal Redis is another worker's now")
    }

    /// Returns the outage of a Redis that refuses checkpoints, without which lost writes go
    /// unnoticed.
    pub fn no_checkpoints(cause: Cause) -> Self {
        Self::refused(
            "Redis refuses our checkpoints: the ACL of our user needs ~unstale:* and the commands in docs/reference/redis-permissions.md",
            cause,
        )
    }

    /// Returns the outage of one node of a cluster.
    pub(super) fn at_node(self, address: impl ToString) -> Self {
        let cause = Cause::new(Meaning { what: address.to_string().into(), cause: self.cause });
        Self { cause, ..self }
    }

    fn for_person(cause: impl Into<Cause>) -> Self {
        Self { needs_person: true, ..Self::new(cause) }
    }

    fn refused(meaning: &'static str, cause: Cause) -> Self {
        Self::for_person(Cause::new(Meaning { what: meaning.into(), cause }))
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl Error for Outage {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.source()
    }
}

impl Explain for Outage {}

/// Meaning of an error, above the error itself.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Meaning {
    what: Cow<'static, str>,
    #[source]
    cause: Cause,
}

/// Reason why a command outside a batch was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommandError {
    /// Redis is not usable.
    #[error(transparent)]
    Outage(#[from] Outage),
    /// Redis refuses this command on this key for good. The text has the command and Redis' code.
    #[error(transparent)]
    Refused(Cause),
    /// Redis refuses the command because of our user's rights, or does not have it. An operator can
    /// permit it later. The text has the command and Redis' code.
    #[error(transparent)]
    NotPermitted(Cause),
    /// Redis did not do this command, for a reason that may pass.
    #[error(transparent)]
    Failed(Cause),
}

impl Explain for CommandError {}

impl CommandError {
    /// Returns what the error means for the effect that the command was for.
    ///
    /// # Errors
    /// The outage: no effect is at fault.
    pub fn into_outcome(self) -> Result<EffectOutcome, Outage> {
        let dead = |cause: Cause, may_be_permitted| EffectOutcome::Dead {
            reason: Reason::RedisRefused,
            message: chain(&cause).to_string(),
            may_be_permitted,
        };
        match self {
            Self::Outage(outage) => Err(outage),
            Self::Refused(cause) => Ok(dead(cause, false)),
            Self::NotPermitted(cause) => Ok(dead(cause, true)),
            Self::Failed(cause) => {
                Ok(EffectOutcome::Retry { message: chain(&cause).to_string(), after: None })
            }
        }
    }

    /// Returns the outage that a failure means for work that cannot go on without the command.
    pub fn into_outage(self) -> Outage {
        self.outage_or(Outage::new)
    }

    /// Returns the outage, or else the one that a refusal or failure means.
    pub fn outage_or(self, meaning: impl FnOnce(Cause) -> Outage) -> Outage {
        match self {
            Self::Outage(outage) => outage,
            Self::Refused(cause) | Self::NotPermitted(cause) | Self::Failed(cause) => {
                meaning(cause)
            }
        }
    }
}

/// Codes of errors that concern the server and not the command, with their meanings. NOSCRIPT is
/// among them: the whole batch must run again, before later ones.
const OUTAGES: [(&str, &str); 19] = [
    ("LOADING", "Redis is loading its data"),
    ("READONLY", "Redis is a read-only replica"),
    ("OOM", "Redis has reached maxmemory"),
    ("MISCONF", "Redis cannot save to disk and refuses writes"),
    ("BUSY", "Redis is busy with a script"),
    ("UNKILLABLE", "Redis is busy with a script"),
    ("MASTERDOWN", "Redis is a replica that has lost its primary"),
    ("CLUSTERDOWN", "the Redis cluster is down"),
    ("TRYAGAIN", "the Redis cluster is moving slots"),
    ("MOVED", IS_CLUSTER),
    ("ASK", IS_CLUSTER),
    ("NOREPLICAS", "Redis has too few replicas to accept writes"),
    ("NOAUTH", "Redis requires a password: set it in UNSTALE_REDIS_URL"),
    ("WRONGPASS", "Redis refuses the credentials in UNSTALE_REDIS_URL"),
    ("DENIED", "Redis is in protected mode: set a password or protected-mode no"),
    ("NOSCRIPT", "Redis lost its scripts in the middle of a batch"),
    ("EXECABORT", "Redis aborted a transaction"),
    ("INPROG", "Redis is failing over"),
    ("NOMASTERLINK", "Redis is a replica that has lost its primary"),
];

const IS_CLUSTER: &str = "Redis is a node of a cluster: set UNSTALE_REDIS_MODE=cluster";

/// Codes that waiting does not end.
const FOR_A_PERSON: [&str; 5] = ["NOAUTH", "WRONGPASS", "DENIED", "MOVED", "ASK"];

/// Returns the meaning of an error for the named command.
pub(super) fn classify(command: &str, error: &ServerError) -> CommandError {
    let details = error.details().unwrap_or_default();
    let code = code(error, details);
    if let Some((code, meaning)) = OUTAGES.iter().find(|(outage, _)| *outage == code) {
        let cause = format!("{meaning} ({code})");
        let outage = Outage {
            out_of_memory: *code == "OOM",
            needs_person: FOR_A_PERSON.contains(code),
            ..Outage::new(cause)
        };
        return outage.into();
    }
    let cause = |meaning: &str| Cause::from(format!("{command}: ERR {meaning}"));
    let refused = |meaning| CommandError::Refused(cause(meaning));
    let not_permitted = |meaning| CommandError::NotPermitted(cause(meaning));
    match code {
        "ERR" => match error_text::plain(details) {
            Some(Plain::TooManyClients) => Outage::new("Redis has reached maxclients").into(),
            Some(Plain::NoInteger) => refused("not an integer or out of range"),
            Some(Plain::Overflow) => refused("the counter would overflow"),
            Some(Plain::InvalidExpire) => refused("invalid expire time"),
            Some(Plain::UnknownCommand) => not_permitted(
                "unknown command: Redis 7.0 or newer is needed, with no command renamed",
            ),
            Some(Plain::UnsupportedOption) => {
                refused("unsupported option: Redis 7.0 or newer is needed")
            }
            Some(Plain::NoPermission) => not_permitted("no permission"),
            Some(Plain::UnknownPrimary) | None => {
                CommandError::Failed(format!("{command}: ERR").into())
            }
        },
        "WRONGTYPE" | "CROSSSLOT" => CommandError::Refused(format!("{command}: {code}").into()),
        "NOPERM" => CommandError::NotPermitted(format!("{command}: {code}").into()),
        _ => CommandError::Failed(format!("{command}: {code}").into()),
    }
}

/// Returns the answer to the named command, or the meaning of its error.
pub(super) fn of_answer(name: &str, answer: Option<Value>) -> Result<Value, CommandError> {
    match answer {
        Some(Value::ServerError(error)) => Err(classify(name, &error)),
        Some(value) => Ok(value),
        None => Err(CommandError::Failed(format!("{name}: no answer").into())),
    }
}

/// Returns Redis' code. Before 7.0, errors within scripts came as `ERR` with the code inside the
/// text.
fn code<'e>(error: &'e ServerError, details: &'e str) -> &'e str {
    let known =
        |word: &str| OUTAGES.iter().any(|(outage, _)| *outage == word) || word == "WRONGTYPE";
    match error.code() {
        "ERR" => error_text::code_in_script(details, known).unwrap_or("ERR"),
        code => code,
    }
}

/// Returns the outage of an address where nothing usable answers.
pub(super) fn unreachable(address: &ConnectionAddr, cause: impl Into<Cause>) -> Outage {
    let what = format!("Redis cannot be reached at {address}").into();
    Outage::new(Cause::new(Meaning { what, cause: cause.into() }))
}

/// Returns the outage of an address that does not answer in time. A server that waits for plain
/// commands does not answer a TLS handshake.
pub(super) fn timed_out(address: &ConnectionAddr) -> Outage {
    match address {
        ConnectionAddr::TcpTls { .. } => unreachable(
            address,
            "timed out; does the port speak TLS? If not, write redis:// instead of rediss:// in UNSTALE_REDIS_URL",
        ),
        _ => unreachable(address, "timed out"),
    }
}

/// Returns the reason why a connection was not made.
pub(super) fn not_connected(address: &ConnectionAddr, error: &RedisError) -> Outage {
    if let Some(explained) = tls::REDIS.explain(error) {
        return unreachable(address, Cause::new(explained));
    }
    match error.kind() {
        _ if error.is_connection_refusal() => unreachable(address, "connection refused"),
        _ if error.is_timeout() => timed_out(address),
        // A server that waits for TLS answers plain commands with an alert, or closes the
        // connection.
        ErrorKind::Parse => unreachable(
            address,
            format!("what answers there does not speak its protocol{}", speaks_tls(address)),
        ),
        _ if error.is_connection_dropped() => unreachable(
            address,
            format!("the connection was closed at once{}", speaks_tls(address)),
        ),
        ErrorKind::Io if !error.is_connection_dropped() => {
            unreachable(address, Cause::new(error.clone()))
        }
        _ => broken(error),
    }
}

fn speaks_tls(address: &ConnectionAddr) -> &'static str {
    match address {
        ConnectionAddr::Tcp(..) => {
            "; if the port speaks TLS, write rediss:// instead of redis:// in UNSTALE_REDIS_URL"
        }
        _ => "",
    }
}

/// Returns whether a sentinel does not watch a primary of that name. Its answer has the code
/// `ERR`.
pub(super) fn is_unknown_primary(error: &ServerError) -> bool {
    error.code() == "ERR"
        && error.details().and_then(error_text::plain) == Some(Plain::UnknownPrimary)
}

/// Returns the outage that an error of the connection means.
pub(super) fn broken(error: &RedisError) -> Outage {
    match error.kind() {
        ErrorKind::AuthenticationFailed => {
            Outage::for_person("Redis refuses the credentials in UNSTALE_REDIS_URL")
        }
        ErrorKind::Server(_) | ErrorKind::Extension => {
            match error.clone().into_server_errors().as_deref() {
                Some([(_, error), ..]) => classify("connect", error).outage_or(|cause| {
                    let what = "Redis refuses the connection".into();
                    Outage::new(Cause::new(Meaning { what, cause }))
                }),
                _ if error_text::is_refused_database(error) => Outage::for_person(
                    "Redis refuses the database in UNSTALE_REDIS_URL: check its number (`databases`), and grant our user +select",
                ),
                _ => Outage::new(format!("Redis refuses the connection: {}", error.category())),
            }
        }
        _ if error.is_connection_dropped() => {
            Outage::lost_connection("the connection to Redis was lost")
        }
        ErrorKind::Parse => Outage::new(
            "the connection to Redis was given up: the server does not speak its protocol",
        ),
        _ => {
            let what = "the connection to Redis was lost".into();
            Outage::lost_connection(Cause::new(Meaning { what, cause: Cause::new(error.clone()) }))
        }
    }
}

/// Returns the outage of a version that lacks commands of the scripts (`PEXPIRE … LT` and `GT`).
pub(super) fn too_old(version: &str) -> Outage {
    Outage::for_person(format!("Redis is {version}: 7.0 or newer is needed"))
}

/// Returns the outage of a Redis that evicts, which a setting forbids.
pub(super) fn evicts(why: &str) -> Outage {
    Outage::for_person(format!("UNSTALE_REDIS_EVICTION=refuse: {why}"))
}

/// Returns the outage of a cluster's node where the settings name a single server.
pub(super) fn is_cluster() -> Outage {
    Outage::for_person(IS_CLUSTER)
}

/// Returns the outage of a cluster's address that leads to something else.
pub(super) fn no_cluster(cause: Cause) -> Outage {
    Outage::refused(
        "Redis does not show the owners of its slots: check that it is a cluster, and grant our user +cluster",
        cause,
    )
}

/// Returns the outage of a server that may be a replica, without the right to ask.
pub(super) fn no_right_to_role(cause: Cause) -> Outage {
    Outage::refused("Redis does not show its role: the ACL of our user needs +role", cause)
}

/// Returns the outage of a name that no sentinel knows.
pub(super) fn unknown_primary(name: &str) -> Outage {
    Outage::for_person(format!(
        "the sentinels watch no primary named {name}: check UNSTALE_REDIS_SENTINEL_MASTER"
    ))
}

/// Returns the outage of a sentinel that refuses to name the primary.
pub(super) fn of_sentinel(error: &ServerError) -> Outage {
    Outage::for_person(format!(
        "a sentinel refuses us ({}): check its address and the credentials in UNSTALE_REDIS_URL, and grant our user +sentinel|master",
        error.code()
    ))
}

/// Returns the meaning of a probe's error.
pub(super) fn takes_no_writes(error: &ServerError) -> Outage {
    match classify("SET", error) {
        CommandError::Outage(outage) => outage,
        CommandError::NotPermitted(_) if error.code() == "NOPERM" => Outage::for_person(
            "Redis refuses writes to our own keys: the ACL of our user needs ~unstale:* (NOPERM)",
        ),
        CommandError::Refused(cause)
        | CommandError::NotPermitted(cause)
        | CommandError::Failed(cause) => {
            let what = "Redis takes no writes".into();
            Outage::new(Cause::new(Meaning { what, cause }))
        }
    }
}

#[cfg(test)]
mod tests;

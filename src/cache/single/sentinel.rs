//! Finds the primary by sentinels: what they report, and whether the server agrees.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Pipeline, Value};
use tokio::sync::Mutex;
use url::Url;

use super::super::address::Address;
use super::super::answer::text;
use super::super::connection_state::LiveConnection;
use super::super::failure::{self, CacheError, Outage};
use super::super::socket::{self, Socket};
use crate::causes::Cause;
use crate::config::{RedisConfig, TlsConfig};

/// Maximum time to wait for the sentinels' answers. One that is away must not delay the answers of
/// the others.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Time between two checks that the primary is still the same. A primary that was replaced while
/// cut off still takes writes, which are lost.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum duration of a failover in which sentinels name a replica as the primary.
const FAILOVER_MAX: Duration = Duration::from_secs(60);

/// Server that the sentinels name as the primary.
#[derive(Debug)]
pub(super) struct SentinelPrimary {
    sentinels: Arc<Sentinels>,
    /// Template of the primary's URL: everything except the address.
    url: Url,
    tls: TlsConfig,
    probe_key: String,
}

#[derive(Debug)]
struct Sentinels {
    master: String,
    all: Vec<Sentinel>,
}

#[derive(Debug)]
struct Sentinel {
    open: redis::Client,
    /// Client for a sentinel that requires a password.
    with_credentials: redis::Client,
    connection: Mutex<Option<Socket>>,
}

/// Answer of a sentinel.
#[derive(Debug, PartialEq, Eq)]
struct SentinelAnswer {
    /// Number of the failover that the sentinel knows. If two sentinels disagree, the higher number
    /// is right.
    epoch: u64,
    primary: Address,
    /// Time for which that server has reported itself as a replica, if it does.
    replica_for: Option<Duration>,
}

/// Reason why a sentinel gave no address.
enum NoAnswer {
    Away,
    /// It watches no primary of that name.
    Unknown,
    Outage(Outage),
}

impl SentinelPrimary {
    pub(super) fn new(
        config: &RedisConfig,
        master: &str,
        probe_key: String,
    ) -> Result<Self, CacheError> {
        let Some(first) = config.urls.first() else {
            return Err(CacheError::Url("no sentinel is set".into()));
        };
        let sentinel = |url: &Url| {
            let mut bare = url.clone();
            bare.set_path("");
            let with_credentials = socket::client(&bare, &config.tls)?;
            let removed = bare.set_username("").and(bare.set_password(None));
            removed.map_err(|()| CacheError::Url("not a URL".into()))?;
            Ok(Sentinel {
                open: socket::client(&bare, &config.tls)?,
                with_credentials,
                connection: Mutex::default(),
            })
        };
        let all = config
            .urls
            .iter()
            .map(|url| sentinel(url.expose()))
            .collect::<Result<_, CacheError>>()?;
        let sentinels = Arc::new(Sentinels { master: master.to_owned(), all });
        // Checks the URL's part for the data nodes now, so that its faults show at once.
        socket::client(first.expose(), &config.tls)?;
        Ok(Self { sentinels, url: first.expose().clone(), tls: config.tls.clone(), probe_key })
    }

    /// Connects to the server that the sentinels name, and watches them from then on.
    pub(super) async fn connect(&self) -> Result<Arc<Socket>, Outage> {
        let SentinelAnswer { primary: address, replica_for, .. } =
            self.sentinels.newest_answer().await?;
        let url = address.in_url(&self.url)?;
        let client =
            socket::client(&url, &self.tls).map_err(|error| Outage::new(Cause::new(error)))?;
        let socket = Arc::new(Socket::connect(&client).await?);
        if !is_primary(&socket).await? {
            return Err(named_replica(&address, replica_for));
        }
        tracing::info!(primary = %address, "redis primary found");
        tokio::spawn(watch(Arc::clone(&self.sentinels), address, Arc::downgrade(&socket)));
        Ok(socket)
    }

    /// Checks that the server is still a primary, and takes writes.
    pub(super) async fn check(&self, live: &Socket) -> Result<(), Outage> {
        if !is_primary(live).await? {
            return Err(Outage::new("Redis is a replica now: a failover is in progress"));
        }
        live.check(&self.probe_key).await
    }
}

/// Gives the connection up once the sentinels name another primary. Ends with the connection.
async fn watch(sentinels: Arc<Sentinels>, address: Address, socket: Weak<Socket>) {
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        if socket.strong_count() == 0 {
            return;
        }
        if let Ok(answer) = sentinels.newest_answer().await
            && answer.primary != address
            && let Some(socket) = socket.upgrade()
        {
            return socket.give_up(&Outage::new("the sentinels name another primary"));
        }
    }
}

/// Returns whether the server is a primary. A server that sentinels name may have another role at
/// this moment.
async fn is_primary(socket: &Socket) -> Result<bool, Outage> {
    let mut role = Pipeline::new();
    role.cmd("ROLE");
    match socket.ask(&role).await?.into_iter().next() {
        Some(Value::ServerError(error)) => {
            Err(failure::classify("ROLE", &error).outage_or(failure::no_right_to_role))
        }
        Some(Value::Array(role)) => Ok(role.first().and_then(text) == Some("master")),
        _ => Ok(false),
    }
}

/// Returns the outage of a replica that the sentinels name as the primary, and for how long it has
/// been one.
fn named_replica(address: &Address, replica_for: Option<Duration>) -> Outage {
    let fact = format!("Redis at {address} is a replica that the sentinels name as the primary");
    Outage::new(if replica_for.is_some_and(|time| time > FAILOVER_MAX) {
        format!(
            "{fact}, for longer than a failover takes: check that `sentinel monitor` of each sentinel names the primary"
        )
    } else {
        format!("{fact}: a failover is in progress")
    })
}

impl Sentinels {
    /// Returns the newest of the sentinels' answers.
    async fn newest_answer(&self) -> Result<SentinelAnswer, Outage> {
        let ask = |sentinel| async move {
            tokio::time::timeout(ANSWER_TIMEOUT, self.ask(sentinel))
                .await
                .unwrap_or(Err(NoAnswer::Away))
        };
        let answers = join_all(self.all.iter().map(ask)).await;
        let (mut newest, mut why) = (None::<SentinelAnswer>, NoAnswer::Away);
        for answer in answers {
            match answer {
                Ok(answer) if newest.as_ref().is_none_or(|newest| answer.epoch > newest.epoch) => {
                    newest = Some(answer)
                }
                Ok(_) | Err(NoAnswer::Away) => {}
                Err(no_answer) => why = no_answer,
            }
        }
        newest.ok_or_else(|| match why {
            NoAnswer::Away => Outage::new("no sentinel in UNSTALE_REDIS_URL answers"),
            NoAnswer::Unknown => failure::unknown_primary(&self.master),
            NoAnswer::Outage(outage) => outage,
        })
    }

    async fn ask(&self, sentinel: &Sentinel) -> Result<SentinelAnswer, NoAnswer> {
        let mut connection = sentinel.connection.lock().await;
        let socket = match connection.take() {
            Some(socket) => socket,
            None => sentinel.connect().await?,
        };
        let mut question = Pipeline::new();
        question.cmd("SENTINEL").arg("MASTER").arg(&self.master);
        let answer = socket.ask(&question).await.map_err(|_| NoAnswer::Away)?.into_iter().next();
        *connection = Some(socket);
        match answer {
            Some(Value::ServerError(error)) if failure::is_unknown_primary(&error) => {
                Err(NoAnswer::Unknown)
            }
            Some(Value::ServerError(error)) => Err(NoAnswer::Outage(failure::of_sentinel(&error))),
            Some(answer) => read_answer(&answer).ok_or(NoAnswer::Away),
            None => Err(NoAnswer::Away),
        }
    }
}

impl Sentinel {
    /// Connects without credentials, or with those of its URL if the sentinel asks for some.
    async fn connect(&self) -> Result<Socket, NoAnswer> {
        let socket = Socket::connect_to_any(&self.open).await.map_err(|_| NoAnswer::Away)?;
        let mut ping = Pipeline::new();
        ping.cmd("PING");
        match socket.ask(&ping).await.map_err(|_| NoAnswer::Away)?.first() {
            Some(Value::ServerError(error)) if error.code() == "NOAUTH" => {
                Socket::connect_to_any(&self.with_credentials)
                    .await
                    .map_err(|_| NoAnswer::Outage(failure::of_sentinel(error)))
            }
            _ => Ok(socket),
        }
    }
}

/// Reads the answer to `SENTINEL MASTER`: names and values in turn.
fn read_answer(answer: &Value) -> Option<SentinelAnswer> {
    let Value::Array(fields) = answer else { return None };
    let field = |name: &str| {
        fields
            .chunks_exact(2)
            .find(|pair| pair.first().and_then(text) == Some(name))
            .and_then(|pair| pair.get(1).and_then(text))
    };
    let primary = Address { host: field("ip")?.to_owned(), port: field("port")?.parse().ok()? };
    let is_replica = field("role-reported") == Some("slave");
    let reported_ms = field("role-reported-time").and_then(|time| time.parse().ok());
    Some(SentinelAnswer {
        epoch: field("config-epoch")?.parse().ok()?,
        primary,
        replica_for: reported_ms.filter(|_| is_replica).map(Duration::from_millis),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causes::Explain as _;

    #[test]
    fn a_sentinels_answer_has_address_and_epoch() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let fields =
            ["name", "main", "ip", "::1", "port", "6380", "flags", "master", "config-epoch", "7"];
        let answer = Value::Array(fields.iter().map(|field| bulk(field)).collect());
        let address = || Address { host: "::1".into(), port: 6380 };
        let expected = SentinelAnswer { epoch: 7, primary: address(), replica_for: None };
        assert_eq!(read_answer(&answer), Some(expected));
        for (role, replica_for) in [("master", None), ("slave", Some(Duration::from_secs(61)))] {
            let reported = ["role-reported-time", "61000", "role-reported", role];
            let all = fields.iter().chain(&reported).map(|field| bulk(field)).collect();
            let expected = SentinelAnswer { epoch: 7, primary: address(), replica_for };
            assert_eq!(read_answer(&Value::Array(all)), Some(expected));
        }
        assert_eq!(read_answer(&Value::Array(vec![bulk("ip"), bulk("a")])), None);
    }

    #[test]
    fn after_a_minute_the_advice_is_to_check_the_sentinels() {
        let address = Address { host: "a".into(), port: 1 };
        let cause = |seconds: Option<u64>| {
            named_replica(&address, seconds.map(Duration::from_secs)).in_full()
        };
        for seconds in [None, Some(0), Some(60)] {
            assert!(cause(seconds).contains("a failover is in progress"), "{seconds:?}");
        }
        assert!(cause(Some(61)).contains("check that `sentinel monitor`"));
    }
}

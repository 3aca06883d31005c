//! Which server is the primary: what the sentinels say, and whether the server agrees.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Pipeline, Value};
use tokio::sync::Mutex;
use url::Url;

use super::address::Address;
use super::connection::CacheError;
use super::failure::{self, CommandError, Outage};
use super::socket::{self, Socket};
use super::standing::{Connect, Live};
use crate::config::{RedisConfig, TlsConfig};

/// For all sentinels together: one that is away must not keep us from what the others know.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Between two looks at whether the primary is still the same. A primary that was replaced while it
/// was cut off goes on taking writes, which are lost.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// A connection to the primary that the sentinels name.
#[derive(Debug)]
pub(super) struct Primary {
    sentinels: Arc<Sentinels>,
    /// Everything but the address.
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
    /// For one that asks for a password.
    with_credentials: redis::Client,
    standing: Mutex<Option<Socket>>,
}

/// What a sentinel says.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    /// Of two that disagree, the one that knows the later failover is right.
    epoch: u64,
    primary: Address,
}

/// Why a sentinel says nothing.
enum Mute {
    Away,
    /// It watches no primary of that name.
    Unknown,
    Outage(Outage),
}

impl Primary {
    pub(super) fn new(
        config: &RedisConfig,
        master: &str,
        probe_key: String,
    ) -> Result<Self, CacheError> {
        let Some(first) = config.urls.first() else {
            return Err(CacheError::Url("no sentinel is named".into()));
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
                standing: Mutex::default(),
            })
        };
        let all = config
            .urls
            .iter()
            .map(|url| sentinel(url.expose()))
            .collect::<Result<_, CacheError>>()?;
        let sentinels = Arc::new(Sentinels { master: master.to_owned(), all });
        // So that what is wrong with the data nodes' part of the URL shows at once.
        socket::client(first.expose(), &config.tls)?;
        Ok(Self { sentinels, url: first.expose().clone(), tls: config.tls.clone(), probe_key })
    }
}

impl Connect for Primary {
    type Live = Socket;

    async fn connect(&self) -> Result<Arc<Socket>, Outage> {
        let address = self.sentinels.primary().await?;
        let url = address.in_url(&self.url)?;
        let client =
            socket::client(&url, &self.tls).map_err(|error| Outage::new(error.to_string()))?;
        let socket = Arc::new(Socket::connect(&client).await?);
        is_primary(&socket).await?;
        tracing::info!(primary = %address, "the sentinels name the primary");
        tokio::spawn(watch(Arc::clone(&self.sentinels), address, Arc::downgrade(&socket)));
        Ok(socket)
    }

    async fn check(&self, live: &Socket) -> Result<(), Outage> {
        is_primary(live).await?;
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
        if let Ok(primary) = sentinels.primary().await
            && primary != address
            && let Some(socket) = socket.upgrade()
        {
            return socket.give_up(&Outage::new("the sentinels name another primary"));
        }
    }
}

/// A server that sentinels name may not be one yet, or no more.
async fn is_primary(socket: &Socket) -> Result<(), Outage> {
    let mut role = Pipeline::new();
    role.cmd("ROLE");
    match socket.ask(&role).await?.into_iter().next() {
        Some(Value::ServerError(error)) => match failure::classify("ROLE", &error) {
            CommandError::Outage(outage) => Err(outage),
            CommandError::Refused(cause) | CommandError::Failed(cause) => {
                Err(failure::no_right_to_role(&cause))
            }
        },
        Some(Value::Array(role)) if text(role.first()) == Some("master") => Ok(()),
        _ => Err(Outage::new(
            "Redis is a replica that the sentinels call the primary: a failover is under way",
        )),
    }
}

impl Sentinels {
    /// What those that answer know, the newest of it.
    async fn primary(&self) -> Result<Address, Outage> {
        let ask = |sentinel| async move {
            tokio::time::timeout(ANSWER_TIMEOUT, self.ask(sentinel))
                .await
                .unwrap_or(Err(Mute::Away))
        };
        let answers = join_all(self.all.iter().map(ask)).await;
        let (mut newest, mut why) = (None::<Said>, Mute::Away);
        for answer in answers {
            match answer {
                Ok(said) if newest.as_ref().is_none_or(|newest| said.epoch > newest.epoch) => {
                    newest = Some(said)
                }
                Ok(_) | Err(Mute::Away) => {}
                Err(mute) => why = mute,
            }
        }
        newest.map(|said| said.primary).ok_or_else(|| match why {
            Mute::Away => Outage::new("no sentinel in UNSTALE_REDIS_URL answers"),
            Mute::Unknown => failure::unknown_primary(&self.master),
            Mute::Outage(outage) => outage,
        })
    }

    async fn ask(&self, sentinel: &Sentinel) -> Result<Said, Mute> {
        let mut standing = sentinel.standing.lock().await;
        let socket = match standing.take() {
            Some(socket) => socket,
            None => sentinel.connect().await?,
        };
        let mut question = Pipeline::new();
        question.cmd("SENTINEL").arg("MASTER").arg(&self.master);
        let answer = socket.ask(&question).await.map_err(|_| Mute::Away)?.into_iter().next();
        *standing = Some(socket);
        match answer {
            Some(Value::ServerError(error)) if failure::is_unknown_primary(&error) => {
                Err(Mute::Unknown)
            }
            Some(Value::ServerError(error)) => Err(Mute::Outage(failure::of_sentinel(&error))),
            Some(answer) => said(&answer).ok_or(Mute::Away),
            None => Err(Mute::Away),
        }
    }
}

impl Sentinel {
    /// Without credentials, and where the sentinel asks for some, with those of its URL.
    async fn connect(&self) -> Result<Socket, Mute> {
        let socket = Socket::connect_to_any(&self.open).await.map_err(|_| Mute::Away)?;
        let mut ping = Pipeline::new();
        ping.cmd("PING");
        match socket.ask(&ping).await.map_err(|_| Mute::Away)?.first() {
            Some(Value::ServerError(error)) if error.code() == "NOAUTH" => {
                Socket::connect_to_any(&self.with_credentials)
                    .await
                    .map_err(|_| Mute::Outage(failure::of_sentinel(error)))
            }
            _ => Ok(socket),
        }
    }
}

/// `SENTINEL MASTER`: names and values in turn.
fn said(answer: &Value) -> Option<Said> {
    let Value::Array(fields) = answer else { return None };
    let field = |name: &str| {
        fields
            .chunks_exact(2)
            .find(|pair| text(pair.first()) == Some(name))
            .and_then(|pair| text(pair.get(1)))
    };
    let primary = Address { host: field("ip")?.to_owned(), port: field("port")?.parse().ok()? };
    Some(Said { epoch: field("config-epoch")?.parse().ok()?, primary })
}

pub(super) fn text(value: Option<&Value>) -> Option<&str> {
    match value? {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentinels_answer_names_address_and_epoch() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let fields =
            ["name", "main", "ip", "::1", "port", "6380", "flags", "master", "config-epoch", "7"];
        let answer = Value::Array(fields.iter().map(|field| bulk(field)).collect());
        let expected = Said { epoch: 7, primary: Address { host: "::1".into(), port: 6380 } };
        assert_eq!(said(&answer), Some(expected));
        assert_eq!(said(&Value::Array(vec![bulk("ip"), bulk("a")])), None);
    }
}

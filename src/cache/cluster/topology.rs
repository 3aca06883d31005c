//! Finds a cluster's primaries: asks any node that answers, trusts the one that knows the latest
//! failover, and connects to all primaries.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::{Pipeline, Value};
use url::Url;

use super::super::address::Address;
use super::super::answer::text;
use super::super::connection_state::Connect;
use super::super::failure::{self, CacheError, CommandError, Outage};
use super::super::side_keys;
use super::super::slot::{self, SLOTS};
use super::super::socket::{self, Socket};
use super::nodes::{Node, Nodes};
use crate::config::{RedisConfig, TlsConfig};

/// Maximum time to wait for other nodes after the first answer. One of them may know a later
/// failover.
const OTHERS_WAIT: Duration = Duration::from_millis(250);

/// Maximum number of remembered nodes, beside those of `UNSTALE_REDIS_URL`.
const MOST_KNOWN: usize = 64;

/// Owner of a slot that no node serves.
const NOBODY: u16 = u16::MAX;

/// Settings and addresses for finding nodes.
#[derive(Debug)]
pub(in crate::cache) struct Topology {
    seeds: Vec<Address>,
    /// Nodes of the last answer, replicas included: all seeds may be gone one day.
    known: Mutex<Vec<Address>>,
    /// Template of the nodes' URLs: everything except the address.
    url: Url,
    tls: TlsConfig,
    queue: String,
}

/// Answer of a node.
#[derive(Debug, Default)]
struct View {
    /// Number of the latest failover or move that the node knows.
    epoch: u64,
    ranges: Vec<Range>,
}

/// Consecutive slots, ends included, with their primary and its replicas.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    nodes: Vec<Address>,
}

impl Topology {
    pub(super) fn new(config: &RedisConfig, queue: &str) -> Result<Self, CacheError> {
        let Some(first) = config.urls.first().map(crate::config::SecretUrl::expose) else {
            return Err(CacheError::Url("no node is set".into()));
        };
        if !matches!(first.path().trim_start_matches('/'), "" | "0") {
            return Err(CacheError::Url(
                "a cluster has only database 0: remove the database from the URL".into(),
            ));
        }
        socket::client(first, &config.tls)?;
        let seeds = config.urls.iter().map(|url| Address::of(url.expose())).collect();
        Ok(Self {
            seeds,
            known: Mutex::default(),
            url: first.clone(),
            tls: config.tls.clone(),
            queue: queue.to_owned(),
        })
    }

    /// Connects to a node.
    pub(super) async fn node(
        &self,
        address: &Address,
        slots: &[(u16, u16)],
    ) -> Result<Node, Outage> {
        let probe_key = (!slots.is_empty())
            .then(|| side_keys::probe_with_tag(&slot::tag_within(slots), &self.queue));
        Ok(Node {
            socket: Socket::connect(&self.client(address)?).await?,
            address: address.clone(),
            probe_key,
        })
    }

    fn client(&self, address: &Address) -> Result<redis::Client, Outage> {
        let url = address.in_url(&self.url)?;
        socket::client(&url, &self.tls).map_err(|error| Outage::new(error.to_string()))
    }

    /// Returns the answer of the node with the latest knowledge, among those that answer in time.
    async fn view(&self) -> Result<View, Outage> {
        let mut addresses = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        addresses.extend(
            self.seeds.iter().filter(|seed| !addresses.contains(seed)).cloned().collect::<Vec<_>>(),
        );
        let mut asked: FuturesUnordered<_> =
            addresses.iter().map(|address| self.view_of(address)).collect();
        let mut failure = Outage::new("no node of the Redis cluster answers");
        let mut best: Option<View> = None;
        while best.is_none() {
            match asked.next().await {
                Some(Ok(view)) => best = Some(view),
                Some(Err(outage)) => failure = outage,
                None => return Err(failure),
            }
        }
        let mut best = best.unwrap_or_default();
        let others = async {
            while let Some(view) = asked.next().await {
                if let Ok(view) = view
                    && view.epoch > best.epoch
                {
                    best = view;
                }
            }
        };
        let _those_in_time = tokio::time::timeout(OTHERS_WAIT, others).await;
        Ok(best)
    }

    async fn view_of(&self, address: &Address) -> Result<View, Outage> {
        let socket = Socket::connect_to_any(&self.client(address)?).await?;
        let mut questions = Pipeline::new();
        questions.cmd("CLUSTER").arg("INFO");
        questions.cmd("CLUSTER").arg("SLOTS");
        let answers = socket.ask(&questions).await?;
        for answer in &answers {
            if let Value::ServerError(error) = answer {
                return Err(match failure::classify("CLUSTER SLOTS", error) {
                    CommandError::Outage(outage) => outage,
                    CommandError::Refused(cause) | CommandError::Failed(cause) => {
                        failure::no_cluster(&cause)
                    }
                });
            }
        }
        let [info, slots] = answers.as_slice() else {
            return Err(Outage::new("a node of the Redis cluster does not answer CLUSTER INFO"));
        };
        let epoch = epoch(info).unwrap_or(0);
        let Value::Array(slots) = slots else {
            return Err(Outage::new("a node of the Redis cluster does not answer CLUSTER SLOTS"));
        };
        Ok(View { epoch, ranges: slots.iter().filter_map(|entry| range(entry, address)).collect() })
    }
}

impl Connect for Topology {
    type Live = Nodes;

    async fn connect(&self) -> Result<Arc<Nodes>, Outage> {
        let view = self.view().await?;
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            *known = Vec::new();
            for address in view.ranges.iter().flat_map(|range| &range.nodes) {
                if !known.contains(address) && known.len() < MOST_KNOWN {
                    known.push(address.clone());
                }
            }
        }
        let mut owners = vec![NOBODY; usize::from(SLOTS)];
        let mut primaries: Vec<(&Address, Vec<(u16, u16)>)> = Vec::new();
        let mut places = HashMap::new();
        for Range { first, last, nodes } in &view.ranges {
            let Some(primary) = nodes.first() else { continue };
            let place = *places.entry(primary).or_insert_with(|| {
                primaries.push((primary, Vec::new()));
                primaries.len() - 1
            });
            primaries[place].1.push((*first, *last));
            owners[usize::from(*first)..=usize::from(*last)]
                .fill(u16::try_from(place).unwrap_or(NOBODY));
        }
        let unserved = owners.iter().filter(|&&owner| owner == NOBODY).count();
        if unserved > 0 {
            return Err(Outage::new(format!(
                "no node serves {unserved} of the Redis cluster's {SLOTS} slots"
            )));
        }
        let connecting = primaries.iter().map(|(address, slots)| async move {
            let named = |outage: Outage| Outage { cause: format!("{address}: {outage}"), ..outage };
            self.node(address, slots).await.map(Arc::new).map_err(named)
        });
        Ok(Arc::new(Nodes::new(try_join_all(connecting).await?, owners)))
    }

    /// Checks that every primary takes writes: events reach them all.
    async fn check(&self, live: &Nodes) -> Result<(), Outage> {
        let nodes = live.read(|nodes, _| nodes.to_vec());
        let check = |node: Arc<Node>| async move {
            let Some(key) = node.probe_key.as_deref() else { return Ok(()) };
            match node.socket.write_probe(key).await? {
                Some(error) if ["ASK", "TRYAGAIN"].contains(&error.code()) => Ok(()),
                Some(error) if error.code() == "MOVED" => {
                    Err(Outage::new("the Redis cluster has moved slots (MOVED)"))
                }
                Some(error) => Err(failure::takes_no_writes(&error)),
                None => Ok(()),
            }
        };
        join_all(nodes.into_iter().map(check)).await.into_iter().collect()
    }
}

/// Reads `cluster_current_epoch` of `CLUSTER INFO`.
fn epoch(info: &Value) -> Option<u64> {
    text(info)?
        .lines()
        .find_map(|line| line.strip_prefix("cluster_current_epoch:"))?
        .trim()
        .parse()
        .ok()
}

/// Reads an entry of `CLUSTER SLOTS`: first, last, then nodes as host, port, and more. A node that
/// does not know its own host leaves it empty.
fn range(entry: &Value, asked: &Address) -> Option<Range> {
    let Value::Array(parts) = entry else { return None };
    let [Value::Int(first), Value::Int(last), nodes @ ..] = parts.as_slice() else { return None };
    let address = |node: &Value| {
        let Value::Array(node) = node else { return None };
        let (host, Some(Value::Int(port))) = (node.first().and_then(text), node.get(1)) else {
            return None;
        };
        Some(
            Address { host: host.unwrap_or_default().to_owned(), port: u16::try_from(*port).ok()? }
                .or_host_of(asked),
        )
    };
    let (first, last) =
        (u16::try_from(*first).ok()?, u16::try_from(*last).ok().filter(|last| *last < SLOTS)?);
    (first <= last).then(|| Range {
        first,
        last,
        nodes: nodes.iter().filter_map(address).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_cluster_slots_is_read() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let node = |host: Value, port: i64| {
            Value::Array(vec![host, Value::Int(port), bulk("id"), Value::Array(vec![])])
        };
        let asked = Address { host: "seed".into(), port: 1 };
        let entry = |first, last, nodes: Vec<Value>| {
            Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
        };
        let address = |host: &str, port| Address { host: host.into(), port };
        let read = range(
            &entry(0, 5_460, vec![node(bulk("10.0.0.1"), 7_000), node(Value::Nil, 7_003)]),
            &asked,
        );
        assert_eq!(
            read,
            Some(Range {
                first: 0,
                last: 5_460,
                nodes: vec![address("10.0.0.1", 7_000), address("seed", 7_003)]
            })
        );
        assert_eq!(range(&entry(5, 4, vec![]), &asked), None);
        assert_eq!(range(&entry(0, 16_384, vec![]), &asked), None);
        assert_eq!(range(&Value::Int(1), &asked), None);
        assert_eq!(epoch(&bulk("cluster_state:ok\r\ncluster_current_epoch:12\r\n")), Some(12));
    }
}

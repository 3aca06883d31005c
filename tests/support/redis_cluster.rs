//! Starts a Redis Cluster of three primaries with one replica each.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster_async::ClusterConnection;

use super::{Redis, port, wait_for, wait_until};

const PRIMARIES: usize = 3;
const SLOTS: u16 = 16_384;

/// Starts a single node that is in no cluster yet. Its bus has a reserved port, since the default
/// one may be in use.
pub(crate) async fn lone_node(args: &[&str]) -> Redis {
    let bus = port::free().to_string();
    Redis::start_with(&[&["--cluster-enabled", "yes", "--cluster-port", &bus], args].concat()).await
}

/// A cluster of six servers. Dropping it ends all of them.
#[derive(Debug)]
pub(crate) struct RedisCluster {
    /// The primaries, then the replica of each, until a failover changes that.
    pub(crate) nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts a cluster in which no node fails over by itself.
    pub(crate) async fn start() -> Self {
        Self::start_with(Duration::from_secs(60), &[]).await
    }

    /// Starts a cluster that replaces a primary after it has not answered for that time. `args` are
    /// more arguments for the servers. Returns when all six agree and every replica has its
    /// primary's data.
    pub(crate) async fn start_with(node_timeout: Duration, args: &[&str]) -> Self {
        let node_timeout = node_timeout.as_millis().to_string();
        let starting = (0..2 * PRIMARIES).map(|_| async {
            let bus = port::free().to_string();
            let own = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus,
                "--cluster-node-timeout",
                &node_timeout,
                "--cluster-replica-validity-factor",
                "0",
                "--repl-diskless-sync-delay",
                "0",
            ];
            (Redis::start_with(&[&own, args].concat()).await, bus)
        });
        let (nodes, buses): (Vec<_>, Vec<_>) =
            futures_util::future::join_all(starting).await.into_iter().unzip();
        let cluster = Self { nodes };
        cluster.assemble(&buses).await;
        cluster
    }

    async fn assemble(&self, buses: &[String]) {
        for (node, part) in (0..PRIMARIES).zip(0u16..) {
            let share = SLOTS.div_ceil(PRIMARIES as u16);
            let (first, last) = (part * share, (part * share + share).min(SLOTS) - 1);
            self.ask::<()>(
                node,
                &["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()],
            )
            .await;
        }
        for node in 0..self.nodes.len() {
            self.ask::<()>(node, &["CLUSTER", "SET-CONFIG-EPOCH", &(node + 1).to_string()]).await;
        }
        for (node, bus) in self.nodes.iter().zip(buses).skip(1) {
            self.ask::<()>(0, &["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), bus])
                .await;
        }
        let all = self.nodes.len();
        for node in 0..all {
            wait_until(Duration::from_secs(20), "every node knows the others", async || {
                let known: String = self.ask(node, &["CLUSTER", "NODES"]).await;
                known.lines().count() == all && !known.contains("handshake")
            })
            .await;
        }
        for replica in PRIMARIES..all {
            let primary = self.id(replica - PRIMARIES).await;
            self.ask::<()>(replica, &["CLUSTER", "REPLICATE", &primary]).await;
        }
        for node in 0..all {
            wait_until(Duration::from_secs(30), "the cluster is whole", async || {
                let info: String = self.ask(node, &["CLUSTER", "INFO"]).await;
                let nodes: String = self.ask(node, &["CLUSTER", "NODES"]).await;
                let replication: String = self.ask(node, &["INFO", "replication"]).await;
                let linked = node < PRIMARIES || replication.contains("master_link_status:up");
                info.contains("cluster_state:ok")
                    && nodes.matches(" slave ").count() + nodes.matches("myself,slave").count() == 3
                    && linked
            })
            .await;
        }
    }

    /// Returns the nodes' addresses in the form of `UNSTALE_REDIS_URL`.
    pub(crate) fn urls(&self) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(Redis::addr).collect();
        format!("redis://{}", hosts.join(","))
    }

    /// Returns an independent client that finds the nodes by itself. With its defaults it would
    /// wait for minutes between two attempts.
    pub(crate) async fn client(&self) -> ClusterConnection {
        let builder = redis::cluster::ClusterClient::builder(self.nodes.iter().map(Redis::url));
        let builder = builder
            .response_timeout(Duration::from_secs(5))
            .retries(8)
            .min_retry_wait(10)
            .max_retry_wait(250);
        builder
            .build()
            .expect("the URLs are ours")
            .get_async_connection()
            .await
            .expect("the cluster takes a connection")
    }

    pub(crate) async fn connection(&self, node: usize) -> MultiplexedConnection {
        self.nodes[node].connection().await
    }

    pub(crate) async fn ask<T: redis::FromRedisValue>(&self, node: usize, command: &[&str]) -> T {
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]);
        cmd.query_async(&mut self.connection(node).await)
            .await
            .unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    pub(crate) async fn id(&self, node: usize) -> String {
        self.ask(node, &["CLUSTER", "MYID"]).await
    }

    /// Returns the slot of a key, as Redis computes it.
    pub(crate) async fn slot(&self, key: &str) -> u16 {
        self.ask(0, &["CLUSTER", "KEYSLOT", key]).await
    }

    /// Returns the node that serves a slot, in the view of `by`.
    pub(crate) async fn owner(&self, slot: u16, by: usize) -> usize {
        let ranges: Vec<(u16, u16, Vec<redis::Value>)> = self
            .ask::<Vec<Vec<redis::Value>>>(by, &["CLUSTER", "SLOTS"])
            .await
            .into_iter()
            .map(range)
            .collect();
        let (_, _, node) = ranges
            .into_iter()
            .find(|(first, last, _)| (*first..=*last).contains(&slot))
            .expect("a slot that is served");
        let port: u16 = redis::from_redis_value(node[1].clone()).unwrap();
        self.nodes.iter().position(|node| node.port() == port).expect("a node of ours")
    }

    /// Returns connections for moving many slots, each from one node to another.
    pub(crate) async fn mover(&self) -> Mover {
        let mut nodes = Vec::new();
        for (place, node) in self.nodes.iter().enumerate() {
            nodes.push((
                self.connection(place).await,
                self.id(place).await,
                node.port().to_string(),
            ));
        }
        Mover(nodes)
    }
}

/// Moves slots as `redis-cli --cluster reshard` does.
#[derive(Debug)]
pub(crate) struct Mover(Vec<(MultiplexedConnection, String, String)>);

impl Mover {
    async fn ask<T: redis::FromRedisValue>(&self, node: usize, command: &[&str]) -> T {
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]);
        cmd.query_async(&mut self.0[node].0.clone())
            .await
            .unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Begins to move a slot. From now on the source answers ASK for keys that it does not have.
    pub(crate) async fn begin(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        self.ask::<()>(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.0[from].1]).await;
        self.ask::<()>(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.0[to].1]).await;
    }

    /// Returns the epoch of a node's configuration, as `by` knows it.
    async fn epoch(&self, node: usize, by: usize) -> u64 {
        let nodes: String = self.ask(by, &["CLUSTER", "NODES"]).await;
        let line = nodes
            .lines()
            .find(|line| line.starts_with(&self.0[node].1))
            .expect("a node that all know");
        line.split(' ')
            .nth(6)
            .expect("id, address, flags, primary, ping, pong, epoch")
            .parse()
            .expect("a number")
    }

    /// Moves keys of a slot that is being moved.
    pub(crate) async fn migrate(&self, keys: &[String], from: usize, to: usize) {
        let mut migrate = vec!["MIGRATE", "127.0.0.1", &self.0[to].2, "", "0", "5000", "KEYS"];
        migrate.extend(keys.iter().map(String::as_str));
        self.ask::<String>(from, &migrate).await;
    }

    /// Moves the remaining keys, and then the slot.
    pub(crate) async fn end(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        loop {
            let keys: Vec<String> =
                self.ask(from, &["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).await;
            if keys.is_empty() {
                break;
            }
            self.migrate(&keys, from, to).await;
        }
        // The importer must know the epoch of the source's configuration. Otherwise it may take the
        // slot with an older epoch, and lose it to the source's latest announcement. Then each of
        // the two nodes reports that the slot belongs to the other.
        wait_until(Duration::from_secs(10), "the importer knows the other's epoch", async || {
            self.epoch(from, to).await == self.epoch(from, from).await
        })
        .await;
        // The importer comes first: no client may be redirected to a node that does not serve the
        // slot yet.
        for node in [to, from] {
            self.ask::<()>(node, &["CLUSTER", "SETSLOT", &slot, "NODE", &self.0[to].1]).await;
        }
    }
}

fn range(range: Vec<redis::Value>) -> (u16, u16, Vec<redis::Value>) {
    let mut range = range.into_iter();
    let mut next = || range.next().expect("first, last, nodes");
    let (first, last) =
        (redis::from_redis_value(next()).unwrap(), redis::from_redis_value(next()).unwrap());
    (first, last, redis::from_redis_value(next()).unwrap())
}

//! Redis Cluster: commands go to the node that serves their slot, and follow a slot that moves.
//!
//! The order is kept as follows. A plan is sent once the previous one is done
//! ([`Cluster::in_turn`]). Within a plan, the commands of a slot are in one pipeline, in order. If
//! a node redirects one of them, the rest of its slot is repeated after it, one by one. A repeated
//! command leaves the cache as a single one would. So events never see a redirection; they wait for
//! it.
//!
//! The files, in reading order:
//!
//! - `topology`: finds the primaries
//! - `nodes`: the primaries, their connections, and the owner of each slot
//! - `apply`: a plan in four steps
//! - `checkpoint_writes`: checkpoints behind the commands of each primary
//! - `tags`, `lease`, `tag_maintenance`: what takes one script on a single server and several steps
//!   here
//!
//! The cluster client of redis-rs is not used: it keeps no order among commands of a slot, and
//! hides which node ran a command. Checkpoints need both.

mod apply;
mod lease;
mod nodes;
pub(super) mod prune;
mod seal;
mod tags;
mod topology;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use redis::{Arg, Cmd, Pipeline, ServerError, Value};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::Cache;
use super::address::Address;
use super::commands::{CHUNK_BYTES, CHUNK_COMMANDS};
use super::connection::CacheError;
use super::failure::{self, CommandError, Outage};
use super::marks::Seal;
use super::script;
use super::slot;
use super::socket::poll_once_each;
use super::standing::{Connect, Live, Standing, State};
use crate::config::RedisConfig;
use nodes::Node;
pub(super) use nodes::Nodes;
pub(super) use seal::Unsealed;
use topology::Topology;

/// Maximum time for which one command follows redirections or waits for its slot to move. After it,
/// the cluster counts as down.
const FOLLOW: Duration = Duration::from_secs(10);

/// Pause before a command is sent again while its keys move, or after a second redirection. Nodes
/// that disagree about a slot redirect to and fro.
const MOVING_PAUSE: Duration = Duration::from_millis(20);

/// Maximum number of slots that are followed at once.
const FOLLOWED_AT_ONCE: usize = 64;

/// A cluster that all callers share.
#[derive(Debug)]
pub(super) struct Cluster {
    standing: Standing<Topology>,
    turn: Mutex<()>,
}

/// Where a node redirects a command to.
#[derive(Debug, PartialEq, Eq)]
enum Elsewhere {
    /// Another node serves the slot.
    Moved(Address),
    /// Another node serves this command once.
    Ask(Address),
    /// Nowhere: some of the keys are here and some have moved.
    Wait,
    /// The same node, but with the script's source: the script is not known.
    Script,
}

impl Cluster {
    pub(super) fn new(config: &RedisConfig, queue: &str) -> Result<Self, CacheError> {
        Ok(Self { standing: Standing::new(Topology::new(config, queue)?), turn: Mutex::default() })
    }

    pub(super) fn state(&self) -> State {
        self.standing.state()
    }

    pub(super) async fn probe(&self) -> Result<(), Outage> {
        self.standing.probe().await
    }

    /// Opens other connections, to primaries that need not take writes.
    pub(super) async fn connect_apart(&self) -> Result<Arc<Nodes>, Outage> {
        self.standing.connect().connect().await
    }

    /// Gives the connections up, so that nothing more is sent before the next probe.
    pub(super) fn give_up(&self, outage: &Outage) {
        if let Ok(nodes) = self.standing.live() {
            self.standing.give_up(&nodes, outage);
        }
    }

    /// Waits for the right to send a plan or other commands with checkpoints. It is granted in the
    /// order of the first polls.
    async fn in_turn(&self) -> Result<(Arc<Nodes>, MutexGuard<'_, ()>), Outage> {
        let nodes = self.standing.live()?;
        // Unconstrained: a task without budget left must still queue, or later plans would overtake
        // this one.
        let turn = tokio::task::unconstrained(self.turn.lock()).await;
        // An outage of the previous plan is one of this plan too: it must not take effect before
        // that one is applied again.
        nodes.given_up().map_or(Ok(()), |outage| Err(outage.clone()))?;
        Ok((nodes, turn))
    }

    /// Runs one command by itself.
    pub(super) async fn call(&self, name: &str, command: &Cmd) -> Result<Value, CommandError> {
        let nodes = self.standing.live()?;
        let answer = match self.follow(&nodes, slot::of_command(command), command).await {
            Ok((answer, _)) => failure::of_answer(name, Some(answer)),
            Err(outage) => Err(outage.into()),
        };
        if let Err(CommandError::Outage(outage)) = &answer {
            self.standing.give_up(&nodes, outage);
        }
        answer
    }

    /// Runs commands as [`run`](Self::run) does, outside any plan.
    async fn run_standing(&self, commands: &[Cmd]) -> Result<Vec<Value>, Outage> {
        let nodes = self.standing.live()?;
        self.run(&nodes, &commands.iter().collect::<Vec<_>>(), None, &mut Unsealed::default()).await
    }

    /// Sends commands, those of a slot in order, and awaits their answers, which include errors of
    /// single commands. An outage of one node is one of the whole cluster.
    ///
    /// With `checkpoints` the caller must have the turn. Then a checkpoint is written behind all
    /// commands, and behind those of `unconfirmed` nodes. Without, nodes that ran a command are
    /// added to `unconfirmed`.
    async fn run(
        &self,
        nodes: &Nodes,
        commands: &[&Cmd],
        seals: Option<&Cache>,
        unsealed: &mut Unsealed,
    ) -> Result<Vec<Value>, Outage> {
        self.run_or_fail(nodes, commands, seals, unsealed)
            .await
            .inspect_err(|outage| self.standing.give_up(nodes, outage))
    }

    pub(super) async fn run_or_fail(
        &self,
        nodes: &Nodes,
        commands: &[&Cmd],
        seals: Option<&Cache>,
        unsealed: &mut Unsealed,
    ) -> Result<Vec<Value>, Outage> {
        let slots: Vec<u16> = commands.iter().map(|command| slot::of_command(command)).collect();
        let mut answers = vec![Value::Nil; commands.len()];
        {
            let mut batches = by_node(nodes, commands, &slots);
            if let Some(cache) = seals {
                seal::seal_batches(cache, nodes, &mut batches, unsealed);
            }
            let mut under_way: Vec<_> = batches
                .iter()
                .map(|batch| Box::pin(batch.node.socket.send(&batch.pipeline)))
                .collect();
            let first_poll = poll_once_each(&mut under_way).await;
            for ((future, ready), batch) in under_way.into_iter().zip(first_poll).zip(&batches) {
                let mut values = match ready {
                    Some(result) => result?,
                    None => future.await?,
                };
                let sealed = batch.seal.map(|seal| (seal, values.pop().unwrap_or(Value::Nil)));
                for (&place, value) in batch.places.iter().zip(values) {
                    if elsewhere(&value).is_none() {
                        unsealed.add(&batch.node);
                    }
                    answers[place] = value;
                }
                if let (Some(cache), Some((seal, answer))) = (seals, sealed) {
                    Self::note_seal(cache, unsealed, &batch.node, seal, &answer)?;
                }
            }
        }
        self.follow_all(nodes, commands, &slots, &mut answers, unsealed).await?;
        if let Some(cache) = seals {
            self.seal_rest(cache, nodes, unsealed).await?;
        }
        Ok(answers)
    }

    /// Sends redirected commands to their new nodes, and repeats the commands after them in the
    /// same slot.
    async fn follow_all(
        &self,
        nodes: &Nodes,
        commands: &[&Cmd],
        slots: &[u16],
        answers: &mut [Value],
        unsealed: &mut Unsealed,
    ) -> Result<(), Outage> {
        let mut left: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for (place, answer) in answers.iter().enumerate() {
            if let Some(places) = left.get_mut(&slots[place]) {
                places.push(place);
            } else if elsewhere(answer).is_some() {
                left.insert(slots[place], vec![place]);
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        let follow = async |(slot, places): (u16, Vec<usize>)| {
            let mut followed = Vec::with_capacity(places.len());
            for place in places {
                followed.push((place, self.follow(nodes, slot, commands[place]).await?));
            }
            Ok::<_, Outage>(followed)
        };
        let followed: Vec<_> =
            stream::iter(left).map(follow).buffer_unordered(FOLLOWED_AT_ONCE).try_collect().await?;
        for (place, (answer, node)) in followed.into_iter().flatten() {
            unsealed.add(&node);
            answers[place] = match (&answers[place], answer) {
                // The command ran twice: the existence at the first time counts.
                (Value::Int(first), Value::Int(again)) => Value::Int(again.max(*first)),
                (_, answer) => answer,
            };
        }
        Ok(())
    }

    /// Sends a command, follows its redirections, and returns the answer with the node that ran it.
    async fn follow(
        &self,
        nodes: &Nodes,
        slot: u16,
        command: &Cmd,
    ) -> Result<(Value, Arc<Node>), Outage> {
        let deadline = Instant::now() + FOLLOW;
        let mut whole = None;
        let mut asking = None;
        let mut moved = false;
        loop {
            let node = asking.take();
            let mut pipeline = Pipeline::with_capacity(2);
            if node.is_some() {
                pipeline.cmd("ASKING");
            }
            pipeline.add_command(whole.as_ref().unwrap_or(command).clone());
            let node = node.unwrap_or_else(|| nodes.owner(slot));
            let answer = node.socket.send(&pipeline).await?.pop().unwrap_or(Value::Nil);
            let late = Instant::now() > deadline;
            match elsewhere(&answer) {
                None => return Ok((answer, node)),
                Some(_) if late => {
                    return Err(Outage::new(
                        "the Redis cluster is moving slots and does not come to an end",
                    ));
                }
                Some(Elsewhere::Moved(to)) => {
                    if std::mem::replace(&mut moved, true) {
                        tokio::time::sleep(MOVING_PAUSE).await;
                    }
                    nodes.move_slot(slot, &self.node(nodes, &to.or_host_of(&node.address)).await?);
                }
                Some(Elsewhere::Ask(to)) => {
                    asking = Some(self.node(nodes, &to.or_host_of(&node.address)).await?)
                }
                Some(Elsewhere::Wait) => tokio::time::sleep(MOVING_PAUSE).await,
                Some(Elsewhere::Script) => match script::whole(command) {
                    Some(script) if whole.is_none() => whole = Some(script),
                    _ => {
                        return Err(Outage::new(
                            "Redis lost its scripts in the middle of a batch (NOSCRIPT)",
                        ));
                    }
                },
            }
        }
    }

    /// Returns the node at an address, and connects if it is new.
    async fn node(&self, nodes: &Nodes, address: &Address) -> Result<Arc<Node>, Outage> {
        match nodes.at(address) {
            Some(node) => Ok(node),
            None => Ok(nodes.add(self.standing.connect().node(address, &[]).await?)),
        }
    }
}

/// Commands for one node in one pipeline.
struct NodeBatch {
    node: Arc<Node>,
    pipeline: Pipeline,
    bytes: usize,
    /// Places of its commands in the list of all commands.
    places: Vec<usize>,
    /// Checkpoint write behind the commands.
    seal: Option<Seal>,
}

impl NodeBatch {
    fn empty(node: Arc<Node>) -> Self {
        Self { node, pipeline: Pipeline::new(), bytes: 0, places: Vec::new(), seal: None }
    }
}

fn by_node(nodes: &Nodes, commands: &[&Cmd], slots: &[u16]) -> Vec<NodeBatch> {
    nodes.read(|nodes, owners| {
        let mut batches: Vec<NodeBatch> = Vec::with_capacity(nodes.len());
        let mut open: Vec<Option<usize>> = vec![None; nodes.len()];
        for (place, (command, &slot)) in commands.iter().zip(slots).enumerate() {
            let owner = usize::from(owners[usize::from(slot)]);
            let bytes: usize = command
                .args_iter()
                .map(|argument| if let Arg::Simple(bytes) = argument { bytes.len() } else { 0 })
                .sum();
            let full = |batch: &NodeBatch| {
                batch.places.len() >= CHUNK_COMMANDS || batch.bytes + bytes > CHUNK_BYTES
            };
            let batch = match open[owner] {
                Some(batch) if !full(&batches[batch]) => batch,
                _ => {
                    batches.push(NodeBatch::empty(Arc::clone(&nodes[owner])));
                    batches.len() - 1
                }
            };
            open[owner] = Some(batch);
            let batch = &mut batches[batch];
            batch.pipeline.add_command((*command).clone());
            batch.bytes += bytes;
            batch.places.push(place);
        }
        batches
    })
}

fn elsewhere(answer: &Value) -> Option<Elsewhere> {
    let Value::ServerError(error) = answer else { return None };
    match error.code() {
        "MOVED" => address(error).map(Elsewhere::Moved),
        "ASK" => address(error).map(Elsewhere::Ask),
        "TRYAGAIN" => Some(Elsewhere::Wait),
        "NOSCRIPT" => Some(Elsewhere::Script),
        _ => None,
    }
}

/// Reads `slot host:port`.
fn address(error: &ServerError) -> Option<Address> {
    let (_, endpoint) = error.details()?.split_once(' ')?;
    let (host, port) = endpoint.trim().rsplit_once(':')?;
    Some(Address { host: host.to_owned(), port: port.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: &str, details: &str) -> Option<Elsewhere> {
        let error = redis::make_extension_error(code.into(), Some(details.into()));
        let errors = error.into_server_errors().unwrap();
        elsewhere(&Value::ServerError(errors[0].1.clone()))
    }

    #[test]
    fn redirections_say_where_to() {
        let at = |host: &str, port| Address { host: host.into(), port };
        assert_eq!(
            answered("MOVED", "3999 127.0.0.1:6381"),
            Some(Elsewhere::Moved(at("127.0.0.1", 6_381)))
        );
        assert_eq!(answered("ASK", "3999 ::1:6381"), Some(Elsewhere::Ask(at("::1", 6_381))));
        let nameless = at("", 6_381);
        assert_eq!(answered("MOVED", "3999 :6381"), Some(Elsewhere::Moved(nameless.clone())));
        assert_eq!(nameless.or_host_of(&at("h", 1)), at("h", 6_381));
        assert_eq!(
            answered("TRYAGAIN", "Multiple keys request during rehashing of slot"),
            Some(Elsewhere::Wait)
        );
        assert_eq!(answered("WRONGTYPE", ""), None);
        assert_eq!(elsewhere(&Value::Int(1)), None);
    }
}

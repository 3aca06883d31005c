//! Redis Cluster: commands go to the node that serves their slot, and follow a slot that moves.
//!
//! Commands take effect in order. A plan is sent once the previous one is done
//! ([`Cluster::in_turn`]). Within a plan, the commands of a slot are in one pipeline, in order. If
//! a node redirects one of them, it and all later commands of its slot are sent again, one by one.
//! A command that runs twice has the same result as one that runs once. So a redirection delays
//! events and has no other effect on them.
//!
//! `single` has files of the same names for the same subjects. A table in `docs/architecture.md`
//! compares the two. The files of this folder, in reading order:
//!
//! - `topology`: finds the primaries
//! - `nodes`: the primaries, their connections, and the owner of each slot
//! - `apply`: a plan in four steps
//! - `checkpoint_writes`: writes checkpoints behind the commands of each primary
//! - `tags`, `lease`, `tag_maintenance`: operations that are one script on a single server, and
//!   several steps here
//! - `heal`, `without_memory`: the turn to heal, and deletions on connections of their own
//!
//! The cluster client of redis-rs is not used: it keeps no order among commands of a slot, and
//! hides which node ran a command. Checkpoints need both.

mod apply;
mod checkpoint_writes;
mod heal;
mod lease;
mod nodes;
mod tag_maintenance;
mod tags;
mod topology;
mod without_memory;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use redis::{Arg, Cmd, Pipeline, ServerError, Value};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::Cache;
use super::address::Address;
use super::checkpoints::CheckpointWrite;
use super::commands::{CHUNK_BYTES, CHUNK_COMMANDS};
use super::connection_state::{ConnectionState, LiveConnection, SharedConnection};
use super::failure::{self, CacheError, CommandError, Outage};
use super::script::{self, Sent};
use super::slot;
use super::socket::poll_once_each;
use crate::config::RedisConfig;
use checkpoint_writes::Unconfirmed;
use nodes::{Node, Nodes};
use topology::Topology;

/// Maximum time for which one command follows redirections, or waits for its slot to move. After
/// that time the cluster counts as down.
const FOLLOW: Duration = Duration::from_secs(10);

/// Pause before a command is sent again while its keys move, or after a second redirection. Two
/// nodes that disagree about a slot redirect to each other.
const MOVING_PAUSE: Duration = Duration::from_millis(20);

/// Refusal of a key or tag whose side keys would be in another slot.
const SIDE_KEYS_APART: &str = "a } in a key or tag without a {…} before it: in a Redis Cluster, its side keys would be in another slot";

/// Maximum number of slots that are followed at once.
const FOLLOWED_AT_ONCE: usize = 64;

/// A cluster that all callers share.
#[derive(Debug)]
pub(super) struct Cluster {
    connection: SharedConnection<Topology>,
    turn: Mutex<()>,
    /// Connections for deletions alone.
    apart: Mutex<Option<Arc<Nodes>>>,
}

/// Instruction of a node to send a command again.
#[derive(Debug, PartialEq, Eq)]
enum Redirection {
    /// Another node serves the slot.
    Moved(Address),
    /// Another node serves this command once.
    Ask(Address),
    /// The same node serves it later: some of its keys have moved, and some have not.
    Wait,
    /// The same node needs the script's source: it does not know the script.
    Script,
}

impl Cluster {
    pub(super) fn new(config: &RedisConfig, queue: &str) -> Result<Self, CacheError> {
        Ok(Self {
            connection: SharedConnection::new(Topology::new(config, queue)?),
            turn: Mutex::default(),
            apart: Mutex::default(),
        })
    }

    pub(super) fn state(&self) -> ConnectionState {
        self.connection.state()
    }

    pub(super) async fn probe(&self) -> Result<(), Outage> {
        self.connection.probe().await
    }

    /// Gives the connections up, so that nothing more is sent before the next probe.
    pub(super) fn give_up(&self, outage: &Outage) {
        if let Ok(nodes) = self.connection.live() {
            self.connection.give_up(&nodes, outage);
        }
    }

    /// Returns that every script counts as sent. A node that lacks one says so, and then gets it.
    pub(super) fn sent(&self) -> Sent {
        Sent::all()
    }

    pub(super) fn moves_slots(&self) -> bool {
        true
    }

    /// Waits for the right to send a plan or other commands with checkpoints. It is granted in the
    /// order of the first polls.
    async fn in_turn(&self) -> Result<(Arc<Nodes>, MutexGuard<'_, ()>), Outage> {
        let nodes = self.connection.live()?;
        // Unconstrained: a task without budget left must still queue, or later plans would overtake
        // this one.
        let turn = tokio::task::unconstrained(self.turn.lock()).await;
        // An outage of the previous plan fails this plan too: this one must not take effect before
        // the previous one is applied again.
        nodes.given_up().map_or(Ok(()), |outage| Err(outage.clone()))?;
        Ok((nodes, turn))
    }

    /// Runs one command by itself.
    pub(super) async fn call(&self, name: &str, command: Cmd) -> Result<Value, CommandError> {
        let nodes = self.connection.live()?;
        let answer = match self.follow(&nodes, slot::of_command(&command), &command).await {
            Ok((answer, _)) => failure::of_answer(name, Some(answer)),
            Err(outage) => Err(outage.into()),
        };
        if let Err(CommandError::Outage(outage)) = &answer {
            self.connection.give_up(&nodes, outage);
        }
        answer
    }

    /// Runs commands as [`run`](Self::run) does, outside any plan.
    async fn run_alone(&self, commands: &[Cmd]) -> Result<Vec<Value>, Outage> {
        let nodes = self.connection.live()?;
        self.run(&nodes, &commands.iter().collect::<Vec<_>>(), None, &mut Unconfirmed::default())
            .await
    }

    /// Sends commands, those of a slot in order, and awaits their answers. An error of a single
    /// command is its answer. An outage of one node counts as an outage of the whole cluster.
    ///
    /// With `checkpoints`, the caller must have the turn. A checkpoint is then written behind all
    /// commands, and on the `unconfirmed` nodes. Without `checkpoints`, the nodes that ran a
    /// command are added to `unconfirmed`.
    async fn run(
        &self,
        nodes: &Nodes,
        commands: &[&Cmd],
        checkpoints: Option<&Cache>,
        unconfirmed: &mut Unconfirmed,
    ) -> Result<Vec<Value>, Outage> {
        self.run_or_fail(nodes, commands, checkpoints, unconfirmed)
            .await
            .inspect_err(|outage| self.connection.give_up(nodes, outage))
    }

    async fn run_or_fail(
        &self,
        nodes: &Nodes,
        commands: &[&Cmd],
        checkpoints: Option<&Cache>,
        unconfirmed: &mut Unconfirmed,
    ) -> Result<Vec<Value>, Outage> {
        let slots: Vec<u16> = commands.iter().map(|command| slot::of_command(command)).collect();
        let mut answers = vec![Value::Nil; commands.len()];
        {
            let mut batches = by_node(nodes, commands, &slots);
            if let Some(cache) = checkpoints {
                checkpoint_writes::add_to_batches(cache, nodes, &mut batches, unconfirmed);
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
                let written = batch.write.map(|write| (write, values.pop().unwrap_or(Value::Nil)));
                for (&place, value) in batch.places.iter().zip(values) {
                    if redirection(&value).is_none() {
                        unconfirmed.add(&batch.node);
                    }
                    answers[place] = value;
                }
                if let (Some(cache), Some((write, answer))) = (checkpoints, written) {
                    Self::note_write(cache, unconfirmed, &batch.node, write, &answer)?;
                }
            }
        }
        self.follow_all(nodes, commands, &slots, &mut answers, unconfirmed).await?;
        if let Some(cache) = checkpoints {
            self.write_rest(cache, nodes, unconfirmed).await?;
        }
        Ok(answers)
    }

    /// Sends redirected commands to their new nodes. Repeats all later commands of the same slots.
    async fn follow_all(
        &self,
        nodes: &Nodes,
        commands: &[&Cmd],
        slots: &[u16],
        answers: &mut [Value],
        unconfirmed: &mut Unconfirmed,
    ) -> Result<(), Outage> {
        let mut left: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for (place, answer) in answers.iter().enumerate() {
            if let Some(places) = left.get_mut(&slots[place]) {
                places.push(place);
            } else if redirection(answer).is_some() {
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
            unconfirmed.add(&node);
            answers[place] = match (&answers[place], answer) {
                // The command may have run twice. A key that the first run deleted did exist.
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
            match redirection(&answer) {
                None => return Ok((answer, node)),
                Some(_) if late => {
                    return Err(Outage::new(
                        "the Redis cluster has been moving slots for more than 10 s",
                    ));
                }
                Some(Redirection::Moved(to)) => {
                    if std::mem::replace(&mut moved, true) {
                        tokio::time::sleep(MOVING_PAUSE).await;
                    }
                    nodes.move_slot(slot, &self.node(nodes, &to.or_host_of(&node.address)).await?);
                }
                Some(Redirection::Ask(to)) => {
                    asking = Some(self.node(nodes, &to.or_host_of(&node.address)).await?)
                }
                Some(Redirection::Wait) => tokio::time::sleep(MOVING_PAUSE).await,
                Some(Redirection::Script) => match script::whole(command) {
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
        if let Some(node) = nodes.at(address) {
            return Ok(node);
        }
        // Boxed, since a new node is rare and would make the future of each plan much larger.
        let connecting = Box::pin(self.connection.connect().node(address, &[]));
        Ok(nodes.add(connecting.await?))
    }
}

/// Commands for one node in one pipeline.
struct NodeBatch {
    node: Arc<Node>,
    pipeline: Pipeline,
    bytes: usize,
    /// Positions of its commands in the list of all commands.
    places: Vec<usize>,
    /// The checkpoint write behind the commands, if any.
    write: Option<CheckpointWrite>,
}

impl NodeBatch {
    fn empty(node: Arc<Node>) -> Self {
        Self { node, pipeline: Pipeline::new(), bytes: 0, places: Vec::new(), write: None }
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

fn redirection(answer: &Value) -> Option<Redirection> {
    let Value::ServerError(error) = answer else { return None };
    match error.code() {
        "MOVED" => address(error).map(Redirection::Moved),
        "ASK" => address(error).map(Redirection::Ask),
        "TRYAGAIN" => Some(Redirection::Wait),
        "NOSCRIPT" => Some(Redirection::Script),
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

    fn answered(code: &str, details: &str) -> Option<Redirection> {
        let error = redis::make_extension_error(code.into(), Some(details.into()));
        let errors = error.into_server_errors().unwrap();
        redirection(&Value::ServerError(errors[0].1.clone()))
    }

    #[test]
    fn redirections_are_read() {
        let at = |host: &str, port| Address { host: host.into(), port };
        assert_eq!(
            answered("MOVED", "3999 127.0.0.1:6381"),
            Some(Redirection::Moved(at("127.0.0.1", 6_381)))
        );
        assert_eq!(answered("ASK", "3999 ::1:6381"), Some(Redirection::Ask(at("::1", 6_381))));
        let nameless = at("", 6_381);
        assert_eq!(answered("MOVED", "3999 :6381"), Some(Redirection::Moved(nameless.clone())));
        assert_eq!(nameless.or_host_of(&at("h", 1)), at("h", 6_381));
        assert_eq!(
            answered("TRYAGAIN", "Multiple keys request during rehashing of slot"),
            Some(Redirection::Wait)
        );
        assert_eq!(answered("WRONGTYPE", ""), None);
        assert_eq!(redirection(&Value::Int(1)), None);
    }
}

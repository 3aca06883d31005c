//! Runs commands on the nodes that serve their slots, and follows redirections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use redis::{Cmd, Pipeline, Value};
use tokio::time::Instant;

use super::super::address::Address;
use super::super::context::Context;
use super::super::failure::Outage;
use super::super::script;
use super::super::slot;
use super::super::socket::poll_once_each;
use super::Cluster;
use super::checkpoint_writes::{self, Unconfirmed};
use super::node_batch::by_node;
use super::nodes::{Node, Nodes};
use super::redirection::{Redirection, redirection};

/// Maximum time for which one command follows redirections, or waits for its slot to move. After
/// that time the cluster counts as down.
const FOLLOW: Duration = Duration::from_secs(10);

/// Pause before a command is sent again while its keys move, or after a second redirection. Two
/// nodes that disagree about a slot redirect to each other.
const MOVING_PAUSE: Duration = Duration::from_millis(20);

/// Maximum number of slots that are followed at once.
const FOLLOWED_AT_ONCE: usize = 64;

impl Cluster {
    /// Runs commands as [`run`](Self::run) does, outside any plan.
    pub(super) async fn run_alone(&self, commands: &[Cmd]) -> Result<Vec<Value>, Outage> {
        let nodes = self.connection.live()?;
        self.run(&nodes, &commands.iter().collect::<Vec<_>>(), None, &mut Unconfirmed::default())
            .await
    }

    /// Sends commands, those of a slot in order, and awaits their answers. An error of a single
    /// command is its answer. An outage of one node counts as an outage of the whole cluster.
    ///
    /// With `checkpoints`, the caller must have the turn. A checkpoint is then written after all
    /// commands, and on the `unconfirmed` nodes. Without `checkpoints`, the nodes that ran a
    /// command are added to `unconfirmed`.
    pub(super) async fn run(
        &self,
        nodes: &Nodes,
        commands: &[&Cmd],
        checkpoints: Option<&Context>,
        unconfirmed: &mut Unconfirmed,
    ) -> Result<Vec<Value>, Outage> {
        self.run_or_fail(nodes, commands, checkpoints, unconfirmed)
            .await
            .inspect_err(|outage| self.connection.give_up(nodes, outage))
    }

    pub(super) async fn run_or_fail(
        &self,
        nodes: &Nodes,
        commands: &[&Cmd],
        checkpoints: Option<&Context>,
        unconfirmed: &mut Unconfirmed,
    ) -> Result<Vec<Value>, Outage> {
        let slots: Vec<u16> = commands.iter().map(|command| slot::of_command(command)).collect();
        let mut answers = vec![Value::Nil; commands.len()];
        {
            let mut batches = by_node(nodes, commands, &slots);
            if let Some(context) = checkpoints {
                checkpoint_writes::add_to_batches(context, nodes, &mut batches, unconfirmed);
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
                if let (Some(context), Some((write, answer))) = (checkpoints, written) {
                    Self::note_write(context, unconfirmed, &batch.node, write, &answer)?;
                }
            }
        }
        self.follow_all(nodes, commands, &slots, &mut answers, unconfirmed).await?;
        if let Some(context) = checkpoints {
            self.write_rest(context, nodes, unconfirmed).await?;
        }
        Ok(answers)
    }

    /// Sends redirected commands to their new nodes. Repeats all later commands of the same slots.
    pub(super) async fn follow_all(
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
    pub(super) async fn follow(
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
    pub(super) async fn node(&self, nodes: &Nodes, address: &Address) -> Result<Arc<Node>, Outage> {
        if let Some(node) = nodes.at(address) {
            return Ok(node);
        }
        // Boxed, since a new node is rare and would make the future of each plan much larger.
        let connecting = Box::pin(self.connection.connect().node(address, &[]));
        Ok(nodes.add(connecting.await?))
    }
}

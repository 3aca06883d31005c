//! A connection for the production reader, each of whose commands is a turn of its actor.

use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value};
use tokio::sync::{mpsc, oneshot};

use super::tap::shown;
use super::turns::Turns;
use super::world::World;

type Asked = (Cmd, oneshot::Sender<RedisResult<Value>>);

/// To a server, or to a cluster that is found by itself.
#[derive(Clone)]
pub(super) struct Seat(mpsc::UnboundedSender<Asked>);

impl Seat {
    /// Does the work over such a connection.
    pub(super) async fn with<T>(world: &World, turns: &Turns, work: impl AsyncFnOnce(Self) -> T) -> T {
        let (asks, mut asked) = mpsc::unbounded_channel::<Asked>();
        let serve = async {
            while let Some((command, answer)) = asked.recv().await {
                turns.next().await;
                let answered = world.try_ask(&command).await;
                turns.show(|| format!("{} -> {answered:?}", shown(&command.get_packed_command())));
                let _nobody_waits = answer.send(answered);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            done = work(Self(asks)) => done,
            () = serve => unreachable!("it serves for ever"),
        }
    }
}

impl ConnectionLike for Seat {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let (answer, answered) = oneshot::channel();
        self.0.send((command.clone(), answer)).expect("it is served");
        Box::pin(async move { answered.await.expect("it is served") })
    }

    fn req_packed_commands<'a>(&'a mut self, _: &'a Pipeline, _: usize, _: usize) -> RedisFuture<'a, Vec<Value>> {
        unreachable!("a reader sends one command at a time")
    }

    fn get_db(&self) -> i64 {
        0
    }
}

//! Connection for the production reader, each of whose commands is a turn of its actor.

use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value};
use tokio::sync::{mpsc, oneshot};

use super::tap::shown;
use super::turns::Turns;
use super::world::World;

type Asked = (Cmd, oneshot::Sender<RedisResult<Value>>);

/// Connection to a server, or to a cluster.
#[derive(Clone)]
pub(super) struct Seat(mpsc::UnboundedSender<Asked>);

impl Seat {
    /// Does the work over such a connection, which breaks after that many commands.
    ///
    /// A dead reader sends nothing more to Redis.
    pub(super) async fn with<T>(
        world: &World,
        turns: &Turns,
        breaks_after: Option<u32>,
        work: impl AsyncFnOnce(Self) -> T,
    ) -> T {
        let (asks, mut asked) = mpsc::unbounded_channel::<Asked>();
        let serve = async {
            for passed in 0.. {
                let Some((command, answer)) = asked.recv().await else { break };
                if breaks_after.is_some_and(|commands| passed >= commands) {
                    let _nobody_waits = answer.send(Err(broken()));
                    continue;
                }
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
        // A task that a reader leaves behind may send this after its turns are over.
        let _nobody_serves = self.0.send((command.clone(), answer));
        Box::pin(async move { answered.await.unwrap_or_else(|_| Err(broken())) })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a Pipeline,
        _: usize,
        _: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        unreachable!("a reader sends one command at a time")
    }

    fn get_db(&self) -> i64 {
        0
    }
}

fn broken() -> redis::RedisError {
    std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()
}

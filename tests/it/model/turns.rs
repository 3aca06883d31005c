//! Turns: actors run one at a time, each from one round trip to its next, in an order that a seed
//! decides.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use tokio::sync::{mpsc, oneshot};

enum Notice {
    Waits { actor: usize, go: oneshot::Sender<()> },
    Ended,
}

/// Place of one actor.
#[derive(Clone)]
pub(super) struct Turns {
    actor: usize,
    notices: mpsc::UnboundedSender<Notice>,
    steps: Rc<Cell<u64>>,
    is_shown: bool,
}

impl Turns {
    /// Waits for this actor's turn. Everything before the next call is one step.
    pub(super) async fn next(&self) {
        let (go, gone) = oneshot::channel();
        self.notices.send(Notice::Waits { actor: self.actor, go }).expect("the scheduler lives");
        gone.await.expect("the scheduler lives");
        self.steps.set(self.steps.get() + 1);
    }

    /// Waits for some turns. Otherwise an actor with little work would always work at the
    /// beginning.
    pub(super) async fn rest(&self, random: &mut fastrand::Rng) {
        for _ in 0..=random.u8(..16) {
            self.next().await;
        }
    }

    /// Returns a token that no actor has had before.
    pub(super) fn token(&self) -> String {
        format!("{}-{}", self.actor, self.now())
    }

    /// Shows what this actor does now, if steps are printed.
    pub(super) fn show(&self, what: impl FnOnce() -> String) {
        if self.is_shown {
            println!("{:5} {:2} {}", self.now(), self.actor, what());
        }
    }

    /// Returns the number of steps of all actors.
    pub(super) fn now(&self) -> u64 {
        self.steps.get()
    }
}

/// Actor, which runs with its place.
pub(super) type Actor<'a> = Box<dyn FnOnce(Turns) -> Pin<Box<dyn Future<Output = ()> + 'a>> + 'a>;

/// Runs all actors to their ends, each after a number of steps of others. Returns the number of
/// steps.
///
/// `choose` picks one of the waiting actors. With `is_shown`, their steps are printed.
pub(super) async fn interleave(
    actors: Vec<Actor<'_>>,
    after: u64,
    is_shown: bool,
    mut choose: impl FnMut(usize) -> usize,
) -> u64 {
    let (notices, mut noticed) = mpsc::unbounded_channel();
    let steps = Rc::new(Cell::new(after));
    let mut running = actors.len();
    let seated = actors.into_iter().enumerate().map(|(actor, run)| {
        let turns = Turns { actor, notices: notices.clone(), steps: Rc::clone(&steps), is_shown };
        async move {
            run(turns.clone()).await;
            turns.notices.send(Notice::Ended).expect("the scheduler lives");
        }
    });
    let all = futures_util::future::join_all(seated);
    let schedule = async {
        let mut waiting: Vec<(usize, oneshot::Sender<()>)> = Vec::new();
        loop {
            // All actors wait or have ended before the next is chosen, so only the seed decides.
            while running > 0 {
                match noticed.recv().await.expect("a sender is kept") {
                    Notice::Waits { actor, go } => waiting.push((actor, go)),
                    Notice::Ended => {}
                }
                running -= 1;
            }
            if waiting.is_empty() {
                return;
            }
            waiting.sort_unstable_by_key(|(actor, _)| *actor);
            let (_, go) = waiting.swap_remove(choose(waiting.len()));
            running += 1;
            go.send(()).expect("the actor waits");
        }
    };
    futures_util::future::join(all, schedule).await;
    steps.get()
}

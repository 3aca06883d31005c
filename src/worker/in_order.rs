//! Runs several pieces of work at once, which begin and end in one order.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Futures that begin in order and end in order. Each is polled once when it is pushed, so what it
/// sends leaves in the order of the pushes. Afterwards only the oldest is polled: replies to the
/// others arrive without a poll.
pub(super) struct InOrder<'w, T> {
    queue: VecDeque<Work<'w, T>>,
}

/// A piece of work that has begun.
enum Work<'w, T> {
    Runs(Pin<Box<dyn Future<Output = T> + 'w>>),
    IsDone(T),
}

impl<'w, T> InOrder<'w, T> {
    pub(super) fn new() -> Self {
        Self { queue: VecDeque::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Begins a piece of work after all others.
    pub(super) async fn push(&mut self, work: impl Future<Output = T> + 'w) {
        let mut work = Box::pin(work);
        let begun = poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await;
        self.queue.push_back(match begun {
            Poll::Ready(output) => Work::IsDone(output),
            Poll::Pending => Work::Runs(work),
        });
    }

    /// Returns the oldest piece's result. Waits for ever while there is none. Cancel-safe.
    pub(super) async fn next(&mut self) -> T {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<T> {
        let output = match self.queue.front_mut() {
            None => return Poll::Pending,
            Some(Work::Runs(work)) => Some(ready!(work.as_mut().poll(context))),
            Some(Work::IsDone(_)) => None,
        };
        match (output, self.queue.pop_front()) {
            (Some(output), _) | (None, Some(Work::IsDone(output))) => Poll::Ready(output),
            (None, _) => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn begins_at_once_and_ends_in_order() {
        let begun = Mutex::new(Vec::new());
        let (mut senders, mut in_order) = (Vec::new(), InOrder::new());
        for n in 0..3 {
            let (sender, receiver) = oneshot::channel();
            senders.push(sender);
            let begun = &begun;
            in_order
                .push(async move {
                    begun.lock().unwrap().push(n);
                    receiver.await.unwrap()
                })
                .await;
        }
        assert_eq!(*begun.lock().unwrap(), [0, 1, 2]);
        let mut senders = senders.into_iter();
        let (first, second, third) =
            (senders.next().unwrap(), senders.next().unwrap(), senders.next().unwrap());
        third.send("third").unwrap();
        assert!(
            futures_util::FutureExt::now_or_never(in_order.next()).is_none(),
            "the oldest is not done"
        );
        first.send("first").unwrap();
        assert_eq!(in_order.next().await, "first");
        second.send("second").unwrap();
        assert_eq!(in_order.next().await, "second");
        assert_eq!(in_order.next().await, "third");
        assert!(in_order.is_empty());
    }
}

//! Messages that the broker itself cannot read.
//!
//! The broker ends the connection (`INTERNAL_ERROR`) instead of sending such a message. RabbitMQ
//! keeps every message of a stream as AMQP 1.0. A client of the stream protocol has written these
//! in another form, or the broker cannot convert them to AMQP 0-9-1. RabbitMQ 3.10 fails over a
//! whole chunk of messages, later versions over the one message.

use std::time::Duration;

use lapin::types::AMQPValue;
use tokio::time::timeout;

use super::super::failure::BrokerError;
use super::attach::{Attached, long_long};
use super::survey::{attach_all, comes, comes_before};
use super::{History, cause};

/// Maximum time after the end of a connection until its cause is known.
const CAUSE_WITHIN: Duration = Duration::from_millis(200);

impl History {
    /// Returns whether the broker itself failed. `error` may be only a consequence of that.
    pub(super) async fn broker_failed(&mut self, error: &BrokerError) -> bool {
        if error.is_internal_error() {
            return true;
        }
        let Some(connected) = &mut self.connected else { return false };
        timeout(CAUSE_WITHIN, connected.ended.wait_for(Option::is_some))
            .await
            .is_ok_and(|ended| cause(ended.ok().as_deref()).is_internal_error())
    }

    /// Moves on to the next offset that the broker can read, and notes those between.
    pub(super) async fn get_behind(&mut self) -> Result<(), BrokerError> {
        let from = self.next;
        let (mut bad, mut good) = (from, self.end.max(from + 1));
        let mut step = 1;
        while bad + step < good {
            match self.try_at(long_long(bad + step), None).await? {
                Attached::Unreadable => (bad, step) = (bad + step, step * 2),
                Attached::At(_) | Attached::Nothing => good = bad + step,
            }
        }
        while good - bad > 1 {
            let middle = bad + (good - bad) / 2;
            match self.try_at(long_long(middle), None).await? {
                Attached::Unreadable => bad = middle,
                Attached::At(_) | Attached::Nothing => good = middle,
            }
        }
        tracing::error!(
            from_offset = from,
            to_offset = good,
            queue = self.queue,
            "RabbitMQ cannot deliver messages of the history, which are left out: their publisher uses AMQP 1.0 or the stream protocol"
        );
        self.unreadable.push(from..good);
        self.next = good;
        self.failures.forget();
        self.cautious_for = 0;
        self.connected = None;
        Ok(())
    }

    /// Attaches at one place, on a connection of its own.
    ///
    /// If `readable` names a place with a readable message, this waits for a slow broker.
    pub(super) async fn try_at(
        &mut self,
        place: AMQPValue,
        readable: Option<AMQPValue>,
    ) -> Result<Attached, BrokerError> {
        self.reconnect().await?;
        let Some(connected) = &self.connected else {
            return Err(BrokerError::Unreachable("no connection".into()));
        };
        let tried = async {
            let mut probes = Vec::new();
            attach_all(connected, &self.queue, vec![(1, place)], &mut probes).await?;
            let came = match readable {
                Some(readable) => {
                    comes_before(connected, &self.queue, &mut probes, readable).await?
                }
                None => comes(connected, &self.queue, &mut probes).await?,
            };
            Ok(probes[0].first.filter(|_| came).map_or(Attached::Nothing, Attached::At))
        };
        let tried: Result<Attached, BrokerError> = tried.await;
        match tried {
            Ok(attached) => Ok(attached),
            Err(error) => {
                if self.broker_failed(&error).await {
                    Ok(Attached::Unreadable)
                } else {
                    Err(error)
                }
            }
        }
    }
}

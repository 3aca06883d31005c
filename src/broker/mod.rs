//! The only user of `lapin`: sessions, topology, consuming, publishing and acknowledging.
//!
//! A [`Session`] holds two connections and finds or declares the objects of the contract. A session
//! is never repaired: any fault ends it ([`SessionEnded`]). Its owner drops it and opens another
//! after a [back-off](crate::backoff) with [`RECONNECT_PAUSES`].
//!
//! In reading order:
//! - Connection: `session`, `link`, `greeting`, `nesting`, `short_text`, `throttle`, `failure`,
//!   `refusal`, `reply_text`.
//! - Objects: `names`, `queue_specs`, `topology`, `deletion`, `queue_mark`, `history_object`,
//!   `permitted`.
//! - Consuming: `consume`, `lane`, `prefetch`, `recent_acks`, `convert`, `origin`, `signature`,
//!   `owned`.
//! - Publishing: `publisher`, `copy`, `wire`.
//! - Reading beside the lanes: `dead_letters`, `history`, `inspect`, `look`, `census`,
//!   `undeliverable`.
//!
//! Deliberately absent: rule files, the decision which queue a message goes to, and Redis.

mod census;
mod consume;
mod convert;
mod copy;
mod dead_letters;
mod deletion;
mod failure;
mod greeting;
mod history;
mod history_object;
mod inspect;
mod lane;
mod link;
mod look;
mod names;
mod nesting;
mod origin;
mod owned;
mod permitted;
mod prefetch;
mod publisher;
mod queue_mark;
mod queue_specs;
mod recent_acks;
mod refusal;
mod replay_record;
mod reply_text;
mod session;
mod session_watch;
mod short_text;
mod signature;
mod tag;
mod throttle;
mod topology;
mod undeliverable;
mod wire;

pub use census::{Census, Count};
pub use convert::Delivery;
pub use copy::{CopyHeaders, copy_to};
pub use dead_letters::{DeadLetter, DeadLetters, Death, UndeliverableLetter};
pub use deletion::DeletionSeen;
pub use failure::{
    BrokerError, ContractObject, HistoryProblem, PublishError, SessionEnded, TopologyProblem,
};
pub use history::{Found, History, Place, Survey};
pub use inspect::{Inspector, QueueState};
pub use lane::{Lane, LaneName};
pub use link::RECONNECT_PAUSES;
pub use look::{Looker, QueueLook, Waiting};
pub use names::Names;
pub use prefetch::Prefetch;
pub use publisher::{Outgoing, Publisher};
pub use queue_specs::DELIVERIES_AT_MOST;
pub use refusal::AmqpError;
pub use replay_record::replay_record;
pub use session::{Mended, Rebound, Session, Start};
pub use session_watch::SessionWatch;
pub use signature::Signer;
pub use tag::Tag;
pub use undeliverable::Heads;

//! The only user of `lapin`: session, topology, consume, publish, settle.
//!
//! A [`Session`] is two connections and the objects of the contract, found or declared. It is never
//! repaired: whatever goes wrong ends it ([`SessionEnded`]), its owner drops it whole and opens
//! another after a [back-off](crate::backoff), whose pauses are [`RECONNECT_PAUSES`].

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
mod queue_specs;
mod recent_acks;
pub mod reply_text;
mod session;
mod short_text;
mod signature;
mod throttle;
mod topology;
mod wire;

pub use census::{Census, Count};
pub use convert::Delivery;
pub use copy::{CopyHeaders, copy_to};
pub use dead_letters::{DeadLetter, DeadLetters, Death};
pub use deletion::DeletionSeen;
pub use failure::{BrokerError, HistoryProblem, PublishError, SessionEnded, TopologyProblem};
pub use history::{Found, History, Place, Survey};
pub use inspect::{Inspector, QueueState};
pub use lane::{Lane, LaneName, Tag};
pub use link::RECONNECT_PAUSES;
pub use look::{Looker, QueueLook, Waiting};
pub use names::Names;
pub use prefetch::Prefetch;
pub use publisher::{Outgoing, Publisher};
pub use queue_specs::DELIVERIES_AT_MOST;
pub use session::{Mended, Rebound, Session, SessionWatch, Start};
pub use signature::Signer;

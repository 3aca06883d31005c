//! The only user of `lapin`: session, topology, consume, publish, settle.
//!
//! A [`Session`] is two connections and the objects of the contract, found or declared. It is never repaired: whatever goes wrong ends it
//! ([`SessionEnded`]), its owner drops it whole and opens another after a [`Backoff`].

mod backoff;
mod consume;
mod convert;
mod copy;
mod dead_letters;
mod failure;
mod history;
mod inspect;
mod lane;
mod link;
mod look;
mod names;
mod owned;
mod prefetch;
mod publisher;
mod recent_acks;
mod session;
mod topology;
mod wire;

pub use backoff::Backoff;
pub use convert::Delivery;
pub use copy::{CopyHeaders, copy_to};
pub use dead_letters::{DeadLetter, DeadLetters, Death};
pub use failure::{BrokerError, PublishError, SessionEnded, TopologyProblem};
pub use history::{History, Place, Survey};
pub use inspect::{Inspector, QueueState};
pub use lane::{Lane, LaneName, Tag};
pub use look::Looker;
pub use names::Names;
pub use prefetch::Prefetch;
pub use publisher::{Outgoing, Publisher};
pub use session::{Rebound, Session, SessionWatch};
pub use topology::DELIVERIES_AT_MOST;

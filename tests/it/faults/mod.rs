//! Servers and workers that fail while events are in flight.
//!
//! Nothing is lost, no event uses up an attempt, and nothing stays stuck.
//!
//! In reading order:
//! - Tools: `load` publishes and checks events, `wire` reads the deliveries.
//! - Servers: `brokers`, `caches`, `cluster`, `replicas`, `outage`, `memory`, `order`.
//! - Objects of the broker: `deleted`, `replaced`, `away`.
//! - Workers: `crashes`, `stops`, `stalls`, `panics`, `checkpoints`, `watermark`.
//! - Messages: `poison`, `suspects`, `neighbours`, `limits`, `headers`, `forged`,
//!   `copies`, `closers`, `undeliverable`.
//!
//! Deliberately absent: loss of confirmed writes by Redis, which is in `heal`.

pub(crate) mod away;
mod brokers;
mod caches;
mod checkpoints;
pub(crate) mod closers;
mod cluster;
mod copies;
mod crashes;
pub(crate) mod deleted;
mod forged;
mod full;
mod headers;
mod limits;
mod load;
mod memory;
mod neighbours;
mod order;
mod outage;
mod panics;
mod poison;
mod replaced;
mod replicas;
mod stalls;
mod stops;
mod suspects;
mod undeliverable;
mod watermark;
mod wire;

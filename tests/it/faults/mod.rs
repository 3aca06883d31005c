//! Servers and workers that break while events are under way: nothing is lost, nothing is blamed on
//! an event, nothing stays stuck.

mod away;
mod brokers;
mod caches;
mod checkpoints;
mod cluster;
mod copies;
mod crashes;
mod deleted;
mod forged;
mod headers;
mod limits;
mod load;
mod memory;
mod neighbours;
mod order;
mod outage;
mod panics;
mod poison;
mod replicas;
mod stalls;
mod stops;
mod suspects;
mod unreadable;
mod watermark;
mod wire;

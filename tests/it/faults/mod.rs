//! Servers and workers that break while events are under way: nothing is lost, nothing is blamed on an event, nothing stays stuck.

mod brokers;
mod caches;
mod crashes;
mod load;
mod order;
mod poison;
mod stops;
mod unreadable;

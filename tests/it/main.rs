//! Integration tests against real servers that the tests start themselves.
//!
//! They are one binary, so that they share the servers.

#![allow(clippy::disallowed_methods, reason = "tests block, wait and read what `make` sets")]

#[path = "../support/mod.rs"]
mod support;

#[cfg(target_os = "linux")]
mod attacks;
mod broker;
mod cache;
mod cases;
mod circles;
mod cli;
mod cluster;
mod dlq;
mod docs;
mod end_to_end;
mod envelopes;
mod events;
mod faults;
mod heal;
mod http;
mod loader;
mod logs;
mod model;
mod permissions;
mod readers;
mod registries;
mod registry;
mod replay;
mod repository;
mod sentinel;
mod soak;
mod status;
mod support_self;
#[cfg(target_os = "linux")]
mod survive;
mod tags;
mod tls;
mod waits;

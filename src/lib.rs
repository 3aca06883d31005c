//! # unstale
//!
//! Keeps Redis honest: events from RabbitMQ, resolved into the cache keys and tags they make stale.

pub mod broker;
pub mod cache;
pub mod cli;
pub mod config;
pub mod descriptors;
pub mod event;
pub mod http;
pub mod loader;
pub mod ops;
pub mod plan;
pub mod printable;
pub mod quantity;
pub mod reader;
pub mod reason;
pub mod registry;
pub mod telemetry;
pub mod tls;
pub mod worker;

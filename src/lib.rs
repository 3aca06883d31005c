//! Workers that invalidate Redis keys and tags when RabbitMQ delivers domain events.
//!
//! # Map
//!
//! A delivery passes these modules, in this order:
//!
//! - [`broker`]: connections, queues, deliveries and republished messages on RabbitMQ.
//! - [`worker`]: lanes, batches and acknowledgements. Start here: [`worker::run`].
//! - [`event`]: bytes → event, for every form in which publishers write one.
//! - [`registry`]: rule files → compiled rules; event → effects.
//! - [`plan`]: effects → the fewest operations for Redis; outcomes → settlement.
//! - [`cache`]: operations on one Redis server, on a cluster, or behind Sentinel.
//! - [`loader`]: supplies the values for `warm` rules.
//!
//! Around them:
//!
//! - [`cli`]: the commands. `ops`: what the commands do on the servers.
//! - [`config`]: settings. [`telemetry`]: logs and metrics. `http`: the endpoints for both.
//! - [`causes`], [`reason`], [`quantity`], `backoff`, `printable`, `tls`, `descriptors`: small
//!   common parts.
//!
//! `event`, `registry` and `plan` use no socket and no runtime. `registry` reads rule files, and
//! its budget of an event may have a deadline. Nothing else in them depends on a file or a clock.
//!
//! The library exists for the program `unstale` and for its tests. Applications that read the cache
//! use the package `unstale-reader`. It has the protocol between readers and workers, and this
//! crate uses it too.

pub mod broker;
pub mod cache;
pub mod causes;
pub mod cli;
pub mod config;
pub(crate) mod descriptors;
pub mod event;
pub mod http;
pub mod loader;
pub mod ops;
pub mod plan;
pub(crate) mod printable;
pub mod quantity;
pub mod reason;
pub mod registry;
pub mod telemetry;
pub(crate) mod tls;
pub mod worker;

pub(crate) use unstale_reader::backoff;

//! End to end, from a publisher's message to a fresh cache: the real worker, a real broker, a real
//! Redis.
//!
//! In reading order: `stage` sets up a test, and `catalogue` serves loaders. `forms`, `verbs` and
//! `publish` test single events. `warm`, `warm_options`, `breaker` and `again` test loads and
//! second deletes. `lifecycle`, `reload`, `load`, `window` and `consumers` test the worker as a
//! whole.
//!
//! Deliberately absent: servers that fail, which are in `faults`.

mod again;
mod breaker;
pub(crate) mod catalogue;
mod consumers;
mod forms;
mod lifecycle;
mod load;
mod many_types;
mod publish;
mod reload;
pub(crate) mod stage;
mod verbs;
mod warm;
mod warm_options;
mod window;

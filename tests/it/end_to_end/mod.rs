//! End to end, from a publisher's message to a fresh cache: the real worker, a real broker, a real
//! Redis.

mod again;
mod breaker;
pub(crate) mod catalogue;
mod consumers;
mod forms;
mod lifecycle;
mod load;
mod publish;
pub(crate) mod stage;
mod verbs;
mod warm;
mod warm_options;
mod window;

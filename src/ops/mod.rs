//! What people do to a running system: look, replay, repair.

pub mod dead_letters;
mod pace;
pub mod replay;
pub mod status;

pub use pace::Pace;

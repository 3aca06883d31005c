//! What people do to a running system: look, replay, repair.

pub mod dead_letters;
pub mod heal;
mod mark;
mod pace;
pub mod replay;
pub mod status;

pub use mark::Mark;
pub use pace::Pace;

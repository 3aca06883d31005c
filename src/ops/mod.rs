//! What people do to a running system: look, replay, repair.

pub mod dead_letters;
pub mod status;

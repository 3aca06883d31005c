//! The meaning of one line of the input.

use crate::event::Event;
use crate::reason::Reason;
use crate::registry::{Effect, Matched, Note};

/// The meaning of one line, and its effects.
pub(super) struct Plan<'e> {
    /// `None` if the line is not an event.
    pub(super) event: Option<&'e Event<'e>>,
    pub(super) matched: Matched,
    pub(super) effects: Vec<Effect>,
    pub(super) error: Option<(Reason, String)>,
    /// Reasons why rules had no effect, or another one.
    pub(super) notes: Vec<Note>,
}

//! Reads messages as events: bytes → [`Event`].
//!
//! A message has one of several forms. [`decode`] chooses the form and reads it. Files in reading
//! order:
//!
//! - `message`, `form`, `decoded`: a message, the form that it has, and the event that it is.
//! - `decode`: the table of forms.
//! - `draft`: the fields that all forms have in common.
//! - `cloudevents` (with `attributes`), `debezium`, `envelope`: one file for each family of forms.
//! - `provenance`, `header`: the headers of a republished message, and their names.
//! - `body`, `amqp10`: the bytes of a body.
//! - `object`, `json`: the JSON of a body.
//! - `place`, `identity`, `time`: where the type is, the event's id, and times as text.
//! - `line`: a message as a line of JSON.
//!
//! There is no socket, no clock and no runtime here. Validation against a schema is in `registry`.

mod amqp10;
mod attributes;
mod body;
mod cloudevents;
mod debezium;
mod decode;
mod decoded;
mod draft;
mod envelope;
mod form;
pub mod header;
mod identity;
pub mod json;
pub mod line;
mod message;
mod object;
mod place;
mod provenance;
mod time;

pub use decode::{Reading, decode};
pub use decoded::{Attribute, Decoded, Event, Malformed};
pub use form::Form;
pub use identity::EventId;
pub use json::Json;
pub use line::{LineError, OwnedMessage, OwnedProperties, OwnedValue};
pub use message::{HeaderValue, Headers, Message, Origin, Properties};
pub use place::TypeFrom;
pub use provenance::Provenance;

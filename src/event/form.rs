//! The forms in which a message may be an event.

/// The form of an event. A republished message is read in the same form again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// A CloudEvent with its attributes in headers.
    Binary,
    /// A CloudEvent with its attributes beside the data.
    Structured,
    /// A change event of Debezium.
    Debezium,
    /// The type is in the header `unstale-event-type`, and the body is the data.
    Header,
    /// The body has `type` and `data`, or the names that frameworks use for them.
    Envelope,
    /// The body is the data.
    Bare,
}

impl Form {
    /// All forms, in order of precedence.
    pub const ALL: [Self; 6] =
        [Self::Binary, Self::Structured, Self::Debezium, Self::Header, Self::Envelope, Self::Bare];

    /// Returns the name in the header `unstale-form`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Structured => "structured",
            Self::Debezium => "debezium",
            Self::Header => "header",
            Self::Envelope => "envelope",
            Self::Bare => "bare",
        }
    }

    /// Returns the form of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.as_str() == name)
    }
}

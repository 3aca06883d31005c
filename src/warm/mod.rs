//! Loaders: where `warm` gets its values from.

//! Values as bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

pub(super) trait Codec<T> {
    /// Returns the bytes of a value, or `None` if it has none.
    fn encode(value: &T) -> Option<Vec<u8>>;
    /// Returns the value of bytes, or `None` if they are something else.
    fn decode(bytes: &[u8]) -> Option<T>;
}

pub(super) struct Bytes;

impl Codec<Vec<u8>> for Bytes {
    fn encode(value: &Vec<u8>) -> Option<Vec<u8>> {
        Some(value.clone())
    }

    fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
        Some(bytes.to_vec())
    }
}

pub(super) struct Json;

impl<T: Serialize + DeserializeOwned> Codec<T> for Json {
    fn encode(value: &T) -> Option<Vec<u8>> {
        serde_json::to_vec(value).ok()
    }

    fn decode(bytes: &[u8]) -> Option<T> {
        serde_json::from_slice(bytes).ok()
    }
}

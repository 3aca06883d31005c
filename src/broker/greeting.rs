//! Name of the broker's cluster, read from the first frame that the broker sends.
//!
//! lapin does not pass the name on.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Maximum bytes in which the name is searched.
const BYTES_MAX: usize = 16 << 10;

/// Bytes of a frame beside its payload and its end mark: type, channel and size.
const FRAME_HEAD: usize = 7;

/// Start of the entry in the table of server properties: the name with its length, and the type of
/// a long text.
const CLUSTER_NAME: &[u8] = b"\x0ccluster_nameS";

/// First frame of a connection, as it arrives.
#[derive(Debug, Clone, Default)]
pub(super) struct Greeting(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    bytes: Mutex<Vec<u8>>,
    /// Set once the frame is complete, or too long.
    cluster: OnceLock<Option<String>>,
}

impl Greeting {
    /// Takes in bytes that have arrived, until the frame is complete.
    pub(super) fn take(&self, arrived: &[u8]) {
        if self.0.cluster.get().is_some() {
            return;
        }
        let mut bytes = self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.extend_from_slice(&arrived[..arrived.len().min(BYTES_MAX)]);
        let size =
            bytes.get(3..FRAME_HEAD).and_then(|size| size.try_into().ok()).map(u32::from_be_bytes);
        let Some(end) =
            size.map(|size| FRAME_HEAD.saturating_add(usize::try_from(size).unwrap_or(usize::MAX)))
        else {
            return;
        };
        if bytes.len() >= end.min(BYTES_MAX) {
            let _ = self.0.cluster.set(cluster_name(&bytes));
            *bytes = Vec::new();
        }
    }

    /// Returns the name of the cluster; `None` if the broker does not send it.
    pub(super) fn cluster(&self) -> Option<&str> {
        self.0.cluster.get()?.as_deref()
    }
}

fn cluster_name(frame: &[u8]) -> Option<String> {
    let at = frame.windows(CLUSTER_NAME.len()).position(|window| window == CLUSTER_NAME)?
        + CLUSTER_NAME.len();
    let (size, rest) = frame.get(at..)?.split_first_chunk::<4>()?;
    let name = rest.get(..usize::try_from(u32::from_be_bytes(*size)).ok()?)?;
    String::from_utf8(name.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `connection.start` as RabbitMQ sends it.
    fn frame(properties: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 10, 0, 10, 0, 9];
        payload.extend(u32::try_from(properties.len()).unwrap().to_be_bytes());
        payload.extend(properties);
        payload.extend(b"\0\0\0\x05PLAIN\0\0\0\x05en_US");
        let mut frame = vec![1, 0, 0];
        frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        frame
    }

    #[test]
    fn the_name_is_read_whatever_way_the_bytes_arrive() {
        let named = frame(b"\x0ccluster_nameS\0\0\0\x08rabbit@a\x07productS\0\0\0\x08RabbitMQ");
        for chunk in [1, 5, named.len()] {
            let greeting = Greeting::default();
            named.chunks(chunk).for_each(|bytes| greeting.take(bytes));
            greeting.take(b"\x0ccluster_nameS\0\0\0\x01x");
            assert_eq!(greeting.cluster(), Some("rabbit@a"), "{chunk} bytes at a time");
        }
        let greeting = Greeting::default();
        greeting.take(&frame(b"\x07productS\0\0\0\x08LavinMQ "));
        assert_eq!(greeting.cluster(), None);
    }

    #[test]
    fn no_bytes_are_kept_beyond_a_bound() {
        let greeting = Greeting::default();
        greeting.take(&[0xff; 7]);
        for _ in 0..100 {
            greeting.take(&[0xff; 1_000]);
        }
        assert_eq!(greeting.cluster(), None);
        assert!(greeting.0.bytes.lock().unwrap().is_empty(), "it has given up");
    }
}

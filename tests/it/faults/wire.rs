//! What RabbitMQ delivers, as the wire says it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use crate::support::{Flow, Tap, Way};

/// How often each event was delivered, and with which `x-delivery-count` at most, as the wire says it.
#[derive(Debug, Clone, Default)]
pub(super) struct Deliveries(Arc<Mutex<Wire>>);

#[derive(Debug, Default)]
struct Wire {
    /// By worker and number.
    connections: HashMap<(usize, u64), Unread>,
    /// By event: deliveries, and the highest count.
    events: BTreeMap<String, (u32, u64)>,
}

/// Bytes of a connection that are no whole frame yet, and the count in the last content header of each of its channels.
#[derive(Debug, Default)]
struct Unread {
    bytes: Vec<u8>,
    counts: HashMap<u16, u64>,
}

impl Deliveries {
    pub(super) fn tap(&self, worker: usize) -> Tap {
        let deliveries = self.clone();
        Tap::new(move |number, way, bytes| {
            if way == Way::ToClient {
                deliveries.0.lock().unwrap().read((worker, number), bytes);
            }
            Flow::Pass
        })
    }

    /// Of all events but that one: the most deliveries, and the highest count.
    pub(super) fn worst(&self, but: &str) -> (u32, u64) {
        let wire = self.0.lock().unwrap();
        let innocent = || wire.events.iter().filter(|(id, _)| *id != but).map(|(_, seen)| *seen);
        (innocent().map(|(deliveries, _)| deliveries).max().unwrap(), innocent().map(|(_, count)| count).max().unwrap())
    }
}

impl Wire {
    /// Frames: type, channel, size, payload, end. A content header (2) is followed by its body (3) on the same channel.
    fn read(&mut self, connection: (usize, u64), bytes: &[u8]) {
        let Unread { bytes: unread, counts } = self.connections.entry(connection).or_default();
        unread.extend_from_slice(bytes);
        while let Some(head) = unread.first_chunk::<7>() {
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let (kind, channel) = (head[0], u16::from_be_bytes([head[1], head[2]]));
            if unread.len() < size + 8 {
                break;
            }
            let payload: Vec<u8> = unread.drain(..size + 8).skip(7).take(size).collect();
            match kind {
                2 => _ = counts.insert(channel, in_vain(&payload)),
                3 => {
                    let event: serde_json::Value = serde_json::from_slice(&payload).unwrap();
                    let id = event["id"].as_str().map_or_else(|| event["id"].to_string(), str::to_owned);
                    let (deliveries, highest) = self.events.entry(id).or_default();
                    *deliveries += 1;
                    *highest = (*highest).max(counts[&channel]);
                }
                _ => {}
            }
        }
    }
}

/// How often the message was delivered in vain, itself and as what it is a copy of.
fn in_vain(content_header: &[u8]) -> u64 {
    let number = |name: &str| -> u64 {
        let Some(at) = content_header.windows(name.len()).position(|window| window == name.as_bytes()) else { return 0 };
        let value = &content_header[at + name.len()..];
        match value[0] {
            b'l' => u64::from_be_bytes(value[1..9].try_into().unwrap()),
            b'I' => u32::from_be_bytes(value[1..5].try_into().unwrap()).into(),
            other => panic!("{name}: {}", char::from(other)),
        }
    };
    number("x-delivery-count") + number("unstale-redelivered")
}

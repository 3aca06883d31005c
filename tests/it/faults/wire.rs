//! What RabbitMQ delivers, as the wire says it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::support::{Flow, Tap, Way};

/// How often each event was delivered again, as the wire says it.
#[derive(Debug, Clone, Default)]
pub(super) struct Deliveries(Arc<Mutex<Wire>>);

/// Of an event, itself and all that were published in its place.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Every delivery: when, to which worker, on which channel, and with which count.
    deliveries: Vec<(u128, usize, u16, u64)>,
    /// Those that the broker calls redelivered.
    pub(super) redelivered: u32,
    /// The highest count that a delivery carried: `x-delivery-count`, and what the worker adds to it on its copies.
    pub(super) in_vain: u64,
}

#[derive(Debug, Default)]
struct Wire {
    /// By worker and number.
    connections: HashMap<(usize, u64), Unread>,
    events: BTreeMap<String, Seen>,
    start: Option<Instant>,
}

/// Bytes of a connection that are no whole frame yet, and what the last method and content header of each of its channels said.
#[derive(Debug, Default)]
struct Unread {
    bytes: Vec<u8>,
    redelivered: HashMap<u16, bool>,
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

    /// What came redelivered most often, of all events but that one.
    pub(super) fn worst(&self, but: &str) -> Seen {
        let wire = self.0.lock().unwrap();
        let innocent = wire.events.iter().filter(|(id, _)| *id != but).map(|(_, seen)| seen);
        innocent.max_by_key(|seen| (seen.redelivered, seen.in_vain, seen.deliveries.len())).unwrap().clone()
    }

    /// The broker's highest count of deliveries in vain, of all events but that one.
    pub(super) fn most_in_vain(&self, but: &str) -> u64 {
        let wire = self.0.lock().unwrap();
        wire.events.iter().filter(|(id, _)| *id != but).map(|(_, seen)| seen.in_vain).max().unwrap()
    }

    /// What became of that one.
    pub(super) fn of(&self, id: &str) -> Seen {
        self.0.lock().unwrap().events.get(id).cloned().unwrap_or_default()
    }
}

impl Wire {
    /// Frames: type, channel, size, payload, end. A method (1) that delivers is followed by a content header (2) and its body (3) on the
    /// same channel.
    fn read(&mut self, connection: (usize, u64), bytes: &[u8]) {
        let Unread { bytes: unread, redelivered, counts } = self.connections.entry(connection).or_default();
        unread.extend_from_slice(bytes);
        let start = *self.start.get_or_insert_with(Instant::now);
        while let Some(head) = unread.first_chunk::<7>() {
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let (kind, channel) = (head[0], u16::from_be_bytes([head[1], head[2]]));
            if unread.len() < size + 8 {
                break;
            }
            let payload: Vec<u8> = unread.drain(..size + 8).skip(7).take(size).collect();
            match kind {
                1 => _ = is_redelivered(&payload).map(|again| redelivered.insert(channel, again)),
                2 => _ = counts.insert(channel, in_vain(&payload)),
                3 => {
                    let event: serde_json::Value = serde_json::from_slice(&payload).unwrap();
                    let id = event["id"].as_str().map_or_else(|| event["id"].to_string(), str::to_owned);
                    let seen = self.events.entry(id).or_default();
                    seen.deliveries.push((start.elapsed().as_millis(), connection.0, channel, counts[&channel]));
                    seen.redelivered += u32::from(redelivered[&channel]);
                    seen.in_vain = seen.in_vain.max(counts[&channel]);
                }
                _ => {}
            }
        }
    }
}

/// Of `basic.deliver` (class 60, method 60): consumer tag, delivery tag, redelivered, and where it came from.
fn is_redelivered(method: &[u8]) -> Option<bool> {
    let arguments = method.strip_prefix(&[0, 60, 0, 60])?;
    let consumer_tag = usize::from(arguments[0]);
    Some(arguments[1 + consumer_tag + 8] != 0)
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

//! RabbitMQ's deliveries, as read on the wire.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::support::{Flow, Tap, Way};

/// Redeliveries of each event, as read on the wire.
#[derive(Debug, Clone, Default)]
pub(super) struct Deliveries(Arc<Mutex<Wire>>);

/// Deliveries of one event, including those of its republished messages.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Every delivery: time, worker, channel and count.
    deliveries: Vec<(u128, usize, u16, u64)>,
    /// Deliveries that the broker marks as redelivered.
    ///
    /// It also marks those that never arrived, because they were on their way to a consumer that
    /// ended.
    pub(super) redelivered: u32,
    /// Workers that died with an unacknowledged delivery of it.
    pub(super) died_with: u32,
    /// Highest count of a delivery: `x-delivery-count`, plus the count that the worker adds to
    /// republished messages.
    pub(super) in_vain: u64,
}

#[derive(Debug, Default)]
struct Wire {
    /// Connections by worker and number.
    connections: HashMap<(usize, u64), Connection>,
    events: BTreeMap<String, Seen>,
    start: Option<Instant>,
}

#[derive(Debug, Default)]
struct Connection {
    from_broker: Unread,
    from_worker: Unread,
    is_dead: bool,
    channels: HashMap<u16, Channel>,
}

/// Bytes of one direction that are not a whole frame yet.
#[derive(Debug, Default)]
struct Unread(Vec<u8>);

/// Contents of the last method and content header, and the unacknowledged events.
#[derive(Debug, Default)]
struct Channel {
    delivery_tag: u64,
    redelivered: bool,
    in_vain: u64,
    is_history: bool,
    in_hand: BTreeMap<u64, String>,
}

struct Frame {
    kind: u8,
    channel: u16,
    payload: Vec<u8>,
}

impl Deliveries {
    pub(super) fn tap(&self, worker: usize) -> Tap {
        let deliveries = self.clone();
        Tap::new(move |number, way, bytes| {
            let mut wire = deliveries.0.lock().unwrap();
            match way {
                Way::ToClient => wire.read((worker, number), bytes),
                Way::ToServer => wire.read_acks((worker, number), bytes),
            }
            Flow::Pass
        })
    }

    /// Notes that the worker is dead: later frames of its connections have no receiver.
    pub(super) fn died(&self, worker: usize) {
        let mut wire = self.0.lock().unwrap();
        let Wire { connections, events, .. } = &mut *wire;
        let of_its = connections
            .iter_mut()
            .filter(|((of, _), connection)| *of == worker && !connection.is_dead);
        // An event and its republished message may both be in flight.
        let mut in_hand = BTreeSet::new();
        for (_, connection) in of_its {
            connection.is_dead = true;
            in_hand.extend(
                connection.channels.drain().flat_map(|(_, channel)| channel.in_hand.into_values()),
            );
        }
        for id in in_hand {
            events.entry(id).or_default().died_with += 1;
        }
    }

    /// Returns the event with the highest such figure, among all events except that one.
    pub(super) fn worst<O: Ord>(&self, but: &str, figure: impl Fn(&Seen) -> O) -> Seen {
        let wire = self.0.lock().unwrap();
        let innocent = wire.events.iter().filter(|(id, _)| *id != but).map(|(_, seen)| seen);
        innocent.max_by_key(|seen| figure(seen)).unwrap().clone()
    }

    /// Returns the deliveries of that event.
    pub(super) fn of(&self, id: &str) -> Seen {
        self.0.lock().unwrap().events.get(id).cloned().unwrap_or_default()
    }
}

impl Wire {
    /// Reads frames: a method (1) that delivers is followed by a content header (2) and its body
    /// (3) on the same channel.
    fn read(&mut self, connection: (usize, u64), bytes: &[u8]) {
        let start = *self.start.get_or_insert_with(Instant::now);
        let Connection { from_broker, channels, is_dead, .. } =
            self.connections.entry(connection).or_default();
        if *is_dead {
            return;
        }
        for Frame { kind, channel: number, payload } in from_broker.frames(bytes) {
            let channel = channels.entry(number).or_default();
            match kind {
                1 => {
                    if let Some(delivered) = delivered(&payload) {
                        (channel.delivery_tag, channel.redelivered) = delivered;
                    }
                }
                2 => {
                    channel.in_vain = in_vain(&payload);
                    channel.is_history = holds(&payload, "x-stream-offset");
                }
                // No worker acknowledges what a heal reads.
                3 if channel.is_history => {}
                3 => {
                    let event: serde_json::Value = serde_json::from_slice(&payload).unwrap();
                    let id =
                        event["id"].as_str().map_or_else(|| event["id"].to_string(), str::to_owned);
                    let seen = self.events.entry(id.clone()).or_default();
                    seen.deliveries.push((
                        start.elapsed().as_millis(),
                        connection.0,
                        number,
                        channel.in_vain,
                    ));
                    seen.redelivered += u32::from(channel.redelivered);
                    seen.in_vain = seen.in_vain.max(channel.in_vain);
                    channel.in_hand.insert(channel.delivery_tag, id);
                }
                _ => {}
            }
        }
    }

    fn read_acks(&mut self, connection: (usize, u64), bytes: &[u8]) {
        let Connection { from_worker, channels, is_dead, .. } =
            self.connections.entry(connection).or_default();
        if *is_dead {
            return;
        }
        for Frame { kind, channel, payload } in from_worker.frames(bytes) {
            if kind == 1
                && let Some((tag, multiple)) = acknowledged(&payload)
            {
                let in_hand = &mut channels.entry(channel).or_default().in_hand;
                if multiple {
                    in_hand.retain(|other, _| *other > tag);
                } else {
                    in_hand.remove(&tag);
                }
            }
        }
    }
}

impl Unread {
    /// Takes the whole frames: type, channel, size, payload, end.
    fn frames(&mut self, bytes: &[u8]) -> Vec<Frame> {
        /// Header that a client sends first, which is not a frame.
        const PROTOCOL_HEADER: &[u8] = b"AMQP\0\0\x09\x01";
        let Self(unread) = self;
        unread.extend_from_slice(bytes);
        if unread.starts_with(PROTOCOL_HEADER) {
            unread.drain(..PROTOCOL_HEADER.len());
        }
        let mut frames = Vec::new();
        while let Some(head) = unread.first_chunk::<7>() {
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let (kind, channel) = (head[0], u16::from_be_bytes([head[1], head[2]]));
            if unread.len() < size + 8 {
                break;
            }
            frames.push(Frame {
                kind,
                channel,
                payload: unread.drain(..size + 8).skip(7).take(size).collect(),
            });
        }
        frames
    }
}

/// Returns the delivery tag and whether it is redelivered, of `basic.deliver` or `basic.get-ok`.
///
/// `basic.deliver` is class 60, method 60, and has the consumer's tag before them. `basic.get-ok`
/// is method 71.
fn delivered(method: &[u8]) -> Option<(u64, bool)> {
    let arguments = match method.strip_prefix(&[0, 60, 0, 60]) {
        Some(arguments) => &arguments[1 + usize::from(arguments[0])..],
        None => method.strip_prefix(&[0, 60, 0, 71])?,
    };
    Some(tag_and_bit(arguments))
}

/// Returns the delivery tag of `basic.ack` (class 60, method 80), and whether it covers all earlier
/// ones.
fn acknowledged(method: &[u8]) -> Option<(u64, bool)> {
    Some(tag_and_bit(method.strip_prefix(&[0, 60, 0, 80])?))
}

fn tag_and_bit(arguments: &[u8]) -> (u64, bool) {
    let (tag, rest) = arguments.split_first_chunk::<8>().unwrap();
    (u64::from_be_bytes(*tag), rest[0] != 0)
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Returns how often the message was redelivered, including as its earlier republished message.
fn in_vain(content_header: &[u8]) -> u64 {
    let number = |name: &str| -> u64 {
        let Some(at) =
            content_header.windows(name.len()).position(|window| window == name.as_bytes())
        else {
            return 0;
        };
        let value = &content_header[at + name.len()..];
        match value[0] {
            b'l' => u64::from_be_bytes(value[1..9].try_into().unwrap()),
            b'I' => u32::from_be_bytes(value[1..5].try_into().unwrap()).into(),
            other => panic!("{name}: {}", char::from(other)),
        }
    };
    number("x-delivery-count") + number("unstale-redelivered")
}

//! What a publisher may send and lapin cannot read is changed in place, before lapin reads it.
//!
//! The bytes that arrive are looked through first, above TLS:
//! - lapin's parser calls itself for each table within a table. A publisher's header of some
//!   kilobytes can hold thousands of levels: they would overflow the stack and end the process. A
//!   table or array beyond [`LEVELS_MAX`] becomes a byte array, which has the same layout.
//! - lapin's parser ends the session over a short text that is not UTF-8. RabbitMQ does not look at
//!   them. Such a text becomes UTF-8 of the same length ([`super::short_text`]).
//!
//! The layout is that of AMQP 0-9-1, sections 4.2.3 (frames), 4.2.5.5 (tables) and 4.2.6
//! (properties), with RabbitMQ's own types of values.

use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_io::{AsyncRead, AsyncWrite};

use super::greeting::Greeting;
use super::short_text::Mending;

/// Maximum nesting of tables and arrays in headers.
pub(super) const LEVELS_MAX: usize = 64;

/// The types of frames with a method, and with a message's properties.
const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;

/// Bytes that name a method: its class and its number.
const METHOD_HEAD_BYTES: u64 = 4;

/// Bytes of a frame's head: type, channel, size of the payload.
const FRAME_HEAD_BYTES: u32 = 7;

/// Bytes before the properties: class, weight, size of the body. The flags follow.
const CONTENT_HEAD_BYTES: u32 = 12;

/// A part of a method, or a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    /// That many bytes.
    Fixed(u8),
    /// A short text.
    Text,
    /// Headers.
    Headers,
}

/// The properties of a message, from the highest bit of the flags on.
const PROPERTIES: [Field; 14] = [
    Field::Text,     // content type
    Field::Text,     // content encoding
    Field::Headers,  // headers
    Field::Fixed(1), // delivery mode
    Field::Fixed(1), // priority
    Field::Text,     // correlation id
    Field::Text,     // reply to
    Field::Text,     // expiration
    Field::Text,     // message id
    Field::Fixed(8), // timestamp
    Field::Text,     // type
    Field::Text,     // user id
    Field::Text,     // app id
    Field::Text,     // cluster id
];

/// Returns the fields of a method, up to the last text that others than us may write.
fn fields_of(method: u32) -> &'static [Field] {
    const DELIVERED: [Field; 4] = [Field::Text, Field::Fixed(9), Field::Text, Field::Text];
    const RETURNED: [Field; 4] = [Field::Fixed(2), Field::Text, Field::Text, Field::Text];
    match (method >> 16, method & 0xffff) {
        // basic.deliver: consumer tag; delivery tag and whether redelivered; exchange; routing key.
        (60, 60) => &DELIVERED,
        // basic.get-ok: the same without the consumer tag.
        (60, 71) => &DELIVERED[1..],
        // basic.return: code; words; exchange; routing key.
        (60, 50) => &RETURNED,
        // connection.close and channel.close: code; words, which the broker cuts at 255 bytes.
        (10, 50) | (20, 40) => &RETURNED[..2],
        _ => &[],
    }
}

/// A stream whose frames are nested no deeper than lapin can read.
#[derive(Debug)]
pub(super) struct Levelled<S> {
    stream: S,
    frames: Frames,
    greeting: Greeting,
}

impl<S> Levelled<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, frames: Frames::default(), greeting: Greeting::default() }
    }

    /// The first frame, as it arrives.
    pub(super) fn greeting(&self) -> Greeting {
        self.greeting.clone()
    }

    /// The stream within. Nothing may have been read yet.
    pub(super) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Levelled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, frames, greeting } = &mut *self;
        let read = Pin::new(stream).poll_read(cx, buffer);
        if let Poll::Ready(Ok(bytes)) = read {
            greeting.take(&buffer[..bytes]);
            frames.level(&mut buffer[..bytes]);
        }
        read
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, frames, greeting } = &mut *self;
        let read = Pin::new(stream).poll_read_vectored(cx, buffers);
        if let Poll::Ready(Ok(mut bytes)) = read {
            for buffer in buffers {
                let filled = buffer.len().min(bytes);
                greeting.take(&buffer[..filled]);
                frames.level(&mut buffer[..filled]);
                bytes -= filled;
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Levelled<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The head of a frame.
    FrameHead,
    /// What comes before a content header's flags.
    ContentHead,
    Flags,
    /// What names a method.
    MethodHead,
    /// The length of a short text that is a field.
    ShortTextLength,
    ShortText,
    /// A field that is no text.
    Fixed,
    /// The length of the headers, or of a table or array within.
    Length,
    /// The length of a member's name.
    NameLength,
    Name,
    /// The type of a value.
    Type,
    /// The length of a long text or a byte array.
    TextLength,
    /// A value without values within.
    Value,
    /// What is left of a frame, its end mark included.
    Rest,
}

/// A table or an array that has begun.
#[derive(Debug, Clone, Copy, Default)]
struct Level {
    /// Its end, from the beginning of the payload.
    end: u64,
    is_table: bool,
}

/// How far the frames of a connection are looked through.
#[derive(Debug)]
struct Frames {
    part: Part,
    /// Bytes of the part that are still to come.
    left: u64,
    /// The bytes of the part so far, as a number in network order: its last eight.
    number: u64,
    /// Bytes of the payload, and how many of them were looked through.
    size: u64,
    at: u64,
    /// The fields that are still to come of a method or of the properties, and of these, which
    /// ones there are.
    fields: &'static [Field],
    flags: u16,
    mending: Mending,
    next_is_table: bool,
    levels: [Level; LEVELS_MAX],
    depth: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            part: Part::FrameHead,
            left: FRAME_HEAD_BYTES.into(),
            number: 0,
            size: 0,
            at: 0,
            fields: &[],
            flags: 0,
            mending: Mending::default(),
            next_is_table: true,
            levels: [Level::default(); LEVELS_MAX],
            depth: 0,
        }
    }
}

impl Frames {
    /// Looks through the next bytes of the connection, flattens what is nested too deep, and mends
    /// short texts.
    fn level(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (part, rest) = std::mem::take(&mut bytes).split_at_mut(taken);
            bytes = rest;
            self.left -= taken as u64;
            if self.part != Part::FrameHead {
                self.at += taken as u64;
            }
            if self.is_number() {
                self.number =
                    part.iter().fold(self.number, |number, &byte| number << 8 | u64::from(byte));
            }
            if matches!(self.part, Part::ShortText | Part::Name) {
                self.mending.mend(part, self.left);
            }
            // A part without bytes ends as soon as it begins.
            let mut last = part.last_mut();
            while self.left == 0 {
                self.end_part(last.take());
            }
        }
    }

    fn is_number(&self) -> bool {
        !matches!(
            self.part,
            Part::ShortText
                | Part::Fixed
                | Part::Name
                | Part::Value
                | Part::Rest
                | Part::ContentHead
        )
    }

    /// All bytes of the part came; `last` is its last one.
    fn end_part(&mut self, last: Option<&mut u8>) {
        let number = std::mem::take(&mut self.number);
        match self.part {
            Part::FrameHead => {
                (self.size, self.at) = (number & 0xffff_ffff, 0);
                match (number >> 48) as u8 {
                    CONTENT_HEADER => self.begin(Part::ContentHead, CONTENT_HEAD_BYTES.into()),
                    METHOD => self.begin(Part::MethodHead, METHOD_HEAD_BYTES),
                    _ => self.rest(),
                }
            }
            Part::ContentHead => self.begin(Part::Flags, 2),
            Part::Flags => {
                // A further word of flags is none to lapin either.
                (self.fields, self.flags) = (&PROPERTIES, number as u16);
                self.field();
            }
            Part::MethodHead => {
                (self.fields, self.flags) = (fields_of(number as u32), u16::MAX);
                self.field();
            }
            Part::ShortTextLength => self.begin(Part::ShortText, number),
            Part::ShortText | Part::Fixed => self.field(),
            Part::Length => {
                let end = self.at + number;
                let most =
                    self.depth.checked_sub(1).map_or(self.size, |within| self.levels[within].end);
                // lapin does not read on either where a table ends behind what it is in.
                if end > most {
                    return self.rest();
                }
                self.levels[self.depth] = Level { end, is_table: self.next_is_table };
                self.depth += 1;
                self.element();
            }
            Part::NameLength => self.begin(Part::Name, number),
            Part::Name => self.begin(Part::Type, 1),
            Part::Type => match number as u8 {
                b'V' => self.element(),
                b't' | b'b' | b'B' => self.begin(Part::Value, 1),
                b's' | b'U' | b'u' => self.begin(Part::Value, 2),
                b'I' | b'i' | b'f' => self.begin(Part::Value, 4),
                b'D' => self.begin(Part::Value, 5),
                b'L' | b'l' | b'd' | b'T' => self.begin(Part::Value, 8),
                b'S' | b'x' => self.begin(Part::TextLength, 4),
                b'A' | b'F' if self.depth == LEVELS_MAX => {
                    if let Some(value_type) = last {
                        *value_type = b'x';
                    }
                    self.begin(Part::TextLength, 4);
                }
                nested @ (b'A' | b'F') => {
                    self.next_is_table = nested == b'F';
                    self.begin(Part::Length, 4);
                }
                // lapin does not know it either.
                _ => self.rest(),
            },
            Part::TextLength => self.begin(Part::Value, number),
            Part::Value => self.element(),
            Part::Rest => {
                self.depth = 0;
                self.part = Part::FrameHead;
                self.left = FRAME_HEAD_BYTES.into();
            }
        }
    }

    /// Begins a part, if the frame is that long.
    fn begin(&mut self, part: Part, bytes: u64) {
        if self.at.saturating_add(bytes) > self.size {
            return self.rest();
        }
        (self.part, self.left) = (part, bytes);
    }

    /// Goes on with the next field that there is.
    fn field(&mut self) {
        while let Some((field, later)) = self.fields.split_first() {
            self.fields = later;
            let is_there = self.flags & 1 << 15 != 0;
            self.flags <<= 1;
            if !is_there {
                continue;
            }
            return match field {
                Field::Fixed(bytes) => self.begin(Part::Fixed, (*bytes).into()),
                Field::Text => self.begin(Part::ShortTextLength, 1),
                Field::Headers => {
                    self.next_is_table = true;
                    self.begin(Part::Length, 4);
                }
            };
        }
        self.rest();
    }

    /// Goes on with the next member or element, behind the levels that end here.
    fn element(&mut self) {
        while let Some(within) = self.depth.checked_sub(1) {
            let Level { end, is_table } = self.levels[within];
            if self.at < end {
                return self.begin(if is_table { Part::NameLength } else { Part::Type }, 1);
            }
            self.depth = within;
        }
        self.field();
    }

    /// Passes over what is left of the frame.
    fn rest(&mut self) {
        self.part = Part::Rest;
        self.left = self.size.saturating_sub(self.at) + 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame with that payload.
    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 1];
        frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        frame
    }

    /// A content header with a content type and these headers.
    fn content_header(headers: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
        payload.extend((1u16 << 15 | 1 << 13 | 1 << 12).to_be_bytes());
        payload.extend([4, b'j', b's', b'o', b'n']);
        payload.extend(u32::try_from(headers.len()).unwrap().to_be_bytes());
        payload.extend(headers);
        payload.push(2);
        frame(CONTENT_HEADER, &payload)
    }

    fn nested(value_type: u8, levels: usize) -> Vec<u8> {
        let mut value = vec![b't', 1];
        for _ in 0..levels {
            let inner = if value_type == b'F' { [&[1, b'k'][..], &value].concat() } else { value };
            value = [&[value_type][..], &u32::try_from(inner.len()).unwrap().to_be_bytes(), &inner]
                .concat();
        }
        value
    }

    fn member(value: &[u8]) -> Vec<u8> {
        [&[1, b'h'][..], value].concat()
    }

    /// How deep the values of a table or array are nested, as lapin would read them.
    fn depth(mut bytes: &[u8], is_table: bool) -> usize {
        let mut deepest = 0;
        while !bytes.is_empty() {
            if is_table {
                bytes = &bytes[1 + usize::from(bytes[0])..];
            }
            let (value_type, rest) = (bytes[0], &bytes[1..]);
            let fixed = match value_type {
                b'V' => 0,
                b't' | b'b' | b'B' => 1,
                b's' | b'U' | b'u' => 2,
                b'I' | b'i' | b'f' => 4,
                b'D' => 5,
                b'L' | b'l' | b'd' | b'T' => 8,
                _ => {
                    let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
                    if matches!(value_type, b'A' | b'F') {
                        deepest = deepest.max(1 + depth(&rest[4..4 + length], value_type == b'F'));
                    }
                    4 + length
                }
            };
            bytes = &rest[fixed..];
        }
        deepest
    }

    fn headers_of(content_header: &[u8]) -> &[u8] {
        let from = 7 + 14 + 5 + 4;
        &content_header[from..content_header.len() - 2]
    }

    /// Looks through the bytes in pieces of that size.
    fn levelled(bytes: &[u8], piece: usize) -> Vec<u8> {
        let mut frames = Frames::default();
        let mut bytes = bytes.to_vec();
        for piece in bytes.chunks_mut(piece) {
            frames.level(piece);
        }
        assert_eq!((frames.part, frames.left), (Part::FrameHead, 7), "it ends where a frame does");
        bytes
    }

    #[test]
    fn a_value_beyond_the_limit_becomes_bytes_and_nothing_else_changes() {
        for value_type in [b'A', b'F'] {
            for (levels, expected) in [
                (1, 1),
                (LEVELS_MAX - 1, LEVELS_MAX - 1),
                (LEVELS_MAX, LEVELS_MAX - 1),
                (9_000, LEVELS_MAX - 1),
            ] {
                let beside = [
                    member(b"S\0\0\0\x02hi"),
                    member(&nested(value_type, levels)),
                    member(b"V"),
                    member(&[b't', 0]),
                ]
                .concat();
                let stream =
                    [frame(1, b"deliver"), content_header(&beside), frame(3, b"{}"), frame(8, b"")]
                        .concat();
                for piece in [1, 7, 1_000, usize::MAX] {
                    let found = levelled(&stream, piece);
                    let header = &found[15..];
                    assert_eq!(
                        depth(headers_of(&header[..header.len() - 10 - 8]), true),
                        expected,
                        "{levels} levels"
                    );
                    let changed =
                        found.iter().zip(&stream).filter(|(found, sent)| found != sent).count();
                    assert_eq!(
                        changed,
                        usize::from(levels > expected),
                        "{levels} levels in pieces of {piece}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_type_of_value_is_passed_over() {
        let values: [&[u8]; 13] = [
            b"V",
            b"t1",
            b"b1",
            b"B1",
            b"s12",
            b"U12",
            b"u12",
            b"I1234",
            b"f1234",
            b"D12345",
            b"l12345678",
            b"T12345678",
            b"x\0\0\0\x01A",
        ];
        let before: Vec<u8> = values.iter().flat_map(|value| member(value)).collect();
        let headers = [before, member(&nested(b'A', 500))].concat();
        let found = levelled(&content_header(&headers), 3);
        assert_eq!(depth(headers_of(&found), true), LEVELS_MAX - 1);
    }

    /// A short text.
    fn short(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()][..], text].concat()
    }

    #[test]
    fn every_short_text_becomes_utf_8() {
        let bad = short(b"\xff.\xc3");
        let mended = short(b"?.?");
        let stream = |text: &[u8]| {
            let delivered = [&[0; 9][..], text, text].concat();
            let inner = [text, b"t\x01"].concat();
            let inner = [&[0, 0, 0, 6][..], &inner].concat();
            let headers = [text, b"F", &inner, text, b"S\0\0\0\x01\xff"].concat();
            let mut header = vec![0; 12];
            header.extend(0xfffc_u16.to_be_bytes());
            header.extend([text, text].concat());
            header.extend(u32::try_from(headers.len()).unwrap().to_be_bytes());
            header.extend([&headers[..], &[2, 255], text, text, text, text, &[255; 8]].concat());
            header.extend([text, text, text, text].concat());
            [
                frame(METHOD, &[&[0, 60, 0, 60][..], text, &delivered].concat()),
                frame(CONTENT_HEADER, &header),
                frame(3, b"\xff\xfe"),
                frame(METHOD, &[&[0, 60, 0, 71][..], &delivered, &[0; 4]].concat()),
                frame(METHOD, &[&[0, 60, 0, 50, 1, 56][..], text, text, text].concat()),
                frame(METHOD, &[&[0, 20, 0, 40, 1, 150][..], text, &[0; 4]].concat()),
                frame(METHOD, &[&[0, 10, 0, 50, 1, 150][..], text, &[0; 4]].concat()),
                frame(METHOD, &[&[0, 60, 0, 80][..], &[255; 9]].concat()),
            ]
            .concat()
        };
        for piece in [1, 2, 3, 50, usize::MAX] {
            assert_eq!(levelled(&stream(&bad), piece), stream(&mended), "in pieces of {piece}");
        }
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_passed_on_and_the_next_frame_is_found(
            payload in prop::collection::vec(any::<u8>(), 0..200), with_headers in any::<bool>(), piece in 1usize..40,
        ) {
            let odd = if with_headers { content_header(&payload) } else { frame(CONTENT_HEADER, &payload) };
            let stream = [odd, content_header(&member(&nested(b'F', 200)))].concat();
            let found = levelled(&stream, piece);
            let header = content_header(&member(&nested(b'F', 200)));
            prop_assert_eq!(depth(headers_of(&found[found.len() - header.len()..]), true), LEVELS_MAX - 1);
        }
    }
}

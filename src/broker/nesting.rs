//! Repair of incoming bytes that lapin cannot read, in place and before lapin reads them.
//!
//! This module scans the arriving bytes, above TLS:
//! - lapin's parser calls itself for each table within a table. A publisher's header of some
//!   kilobytes can hold thousands of levels, which would overflow the stack and end the process. A
//!   table or array beyond [`LEVELS_MAX`] becomes a byte array, which has the same layout.
//! - lapin's parser ends the session over a short text that is not UTF-8. RabbitMQ does not check
//!   short texts. Such a text becomes UTF-8 of the same length ([`super::short_text`]).
//!
//! The layout is that of AMQP 0-9-1, sections 4.2.3 (frames), 4.2.5.5 (tables) and 4.2.6
//! (properties), with RabbitMQ's own types of values.
//!
//! - `fields.rs`: the layout of methods and properties.
//! - `plain.rs`: recognizes frames that need no repair, which are almost all.

mod fields;
mod plain;
#[cfg(test)]
mod tests;

use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_io::{AsyncRead, AsyncWrite};

use super::greeting::Greeting;
use super::short_text::Mending;
use fields::{
    CONTENT_HEAD_BYTES, CONTENT_HEADER, FRAME_HEAD_BYTES, Field, METHOD, METHOD_HEAD_BYTES,
    PROPERTIES, fields_of,
};

pub(super) use fields::LEVELS_MAX;

/// Stream whose frames are nested no deeper than lapin can read.
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

    /// Returns the first frame, as it arrives.
    pub(super) fn greeting(&self) -> Greeting {
        self.greeting.clone()
    }

    /// Returns the inner stream. It must not have been read yet.
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

/// Kind of the next bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Head of a frame.
    FrameHead,
    /// Bytes before a content header's flags.
    ContentHead,
    Flags,
    /// Class and number of a method.
    MethodHead,
    /// Length of a short text that is a field.
    ShortTextLength,
    ShortText,
    /// Field that is not a text.
    Fixed,
    /// Length of the headers, or of a table or array within.
    Length,
    /// Length of a member's name.
    NameLength,
    Name,
    /// Type of a value.
    Type,
    /// Length of a long text or a byte array.
    TextLength,
    /// Value without values within.
    Value,
    /// Rest of a frame, including its end mark.
    Rest,
}

/// Table or array that has begun.
#[derive(Debug, Clone, Copy, Default)]
struct Level {
    /// Its end, from the beginning of the payload.
    end: u64,
    is_table: bool,
}

/// Progress of the scan through the frames of a connection.
#[derive(Debug)]
struct Frames {
    part: Part,
    /// Bytes of the part that are still to come.
    left: u64,
    /// Last eight bytes of the part so far, as a number in network order.
    number: u64,
    /// Bytes of the payload, and how many of them were scanned.
    size: u64,
    at: u64,
    /// Remaining fields of a method or of the properties, and the flags that show which of them are
    /// present.
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
            left: FRAME_HEAD_BYTES as u64,
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
    /// Scans the next bytes of the connection, flattens too deep nesting, and repairs short texts.
    fn level(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            if self.is_at_frame() {
                let plain_bytes = plain::frames(bytes);
                bytes = &mut std::mem::take(&mut bytes)[plain_bytes..];
            }
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

    /// Returns whether the next byte is the first one of a frame.
    fn is_at_frame(&self) -> bool {
        self.part == Part::FrameHead && self.left == FRAME_HEAD_BYTES as u64
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

    /// Ends a part, all bytes of which have arrived; `last` is its last one.
    fn end_part(&mut self, last: Option<&mut u8>) {
        let number = std::mem::take(&mut self.number);
        match self.part {
            Part::FrameHead => {
                (self.size, self.at) = (number & 0xffff_ffff, 0);
                match (number >> 48) as u8 {
                    CONTENT_HEADER => self.begin(Part::ContentHead, CONTENT_HEAD_BYTES as u64),
                    METHOD => self.begin(Part::MethodHead, METHOD_HEAD_BYTES as u64),
                    _ => self.rest(),
                }
            }
            Part::ContentHead => self.begin(Part::Flags, 2),
            Part::Flags => {
                // lapin does not support a further word of flags either.
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
                // lapin does not read on either if a table ends beyond the value that contains it.
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
                // lapin does not know this type either.
                _ => self.rest(),
            },
            Part::TextLength => self.begin(Part::Value, number),
            Part::Value => self.element(),
            Part::Rest => {
                self.depth = 0;
                self.part = Part::FrameHead;
                self.left = FRAME_HEAD_BYTES as u64;
            }
        }
    }

    /// Begins a part, if the frame is long enough.
    fn begin(&mut self, part: Part, bytes: u64) {
        if self.at.saturating_add(bytes) > self.size {
            return self.rest();
        }
        (self.part, self.left) = (part, bytes);
    }

    /// Continues with the next field that is present.
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

    /// Continues with the next member or element, after the levels that end here.
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

    /// Skips the rest of the frame.
    fn rest(&mut self) {
        self.part = Part::Rest;
        self.left = self.size.saturating_sub(self.at) + 1;
    }
}

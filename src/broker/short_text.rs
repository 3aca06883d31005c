//! Short texts of AMQP that are not UTF-8 → UTF-8 of the same length.
//!
//! A publisher may write any bytes into a message's id, type or routing key, or into the name of a
//! header. The text comes in pieces as the socket has them, and what has been passed on cannot be
//! changed any more. So each byte is decided on by those before it: the outcome does not depend on
//! where a piece ends.

use std::ops::RangeInclusive;

/// How far a text has been read.
#[derive(Debug, Clone)]
pub(super) struct Mending {
    /// Bytes that the character which has begun still needs.
    needs: u8,
    /// What the next of them may be.
    may_be: RangeInclusive<u8>,
}

/// What the second byte of most characters may be, and each byte after it.
const CONTINUATION: RangeInclusive<u8> = 0x80..=0xbf;

impl Default for Mending {
    fn default() -> Self {
        Self { needs: 0, may_be: CONTINUATION }
    }
}

impl Mending {
    /// Makes UTF-8 of the next piece of a text, of which `left` more bytes are to come. UTF-8 stays
    /// as it is.
    #[inline]
    pub(super) fn mend(&mut self, piece: &mut [u8], left: u64) {
        if self.needs > 0 || std::str::from_utf8(piece).is_err() {
            self.mend_bytes(piece, left);
        }
    }

    #[cold]
    fn mend_bytes(&mut self, piece: &mut [u8], left: u64) {
        let mut left = left + piece.len() as u64;
        for byte in piece {
            left -= 1;
            if self.needs > 0 {
                if !self.may_be.contains(byte) {
                    *byte = *self.may_be.start();
                }
                self.needs -= 1;
                self.may_be = CONTINUATION;
                continue;
            }
            // The Unicode Standard, table 3-7.
            let (needs, may_be) = match *byte {
                0x00..=0x7f => (0, CONTINUATION),
                0xc2..=0xdf => (1, CONTINUATION),
                0xe0 => (2, 0xa0..=0xbf),
                0xed => (2, 0x80..=0x9f),
                0xe1..=0xef => (2, CONTINUATION),
                0xf0 => (3, 0x90..=0xbf),
                0xf1..=0xf3 => (3, CONTINUATION),
                0xf4 => (3, 0x80..=0x8f),
                _ => (u8::MAX, CONTINUATION),
            };
            if u64::from(needs) > left {
                *byte = b'?';
            } else {
                (self.needs, self.may_be) = (needs, may_be);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mended(text: &[u8], piece: usize) -> Vec<u8> {
        let mut text = text.to_vec();
        let mut mending = Mending::default();
        let mut left = text.len();
        for piece in text.chunks_mut(piece) {
            left -= piece.len();
            mending.mend(piece, left as u64);
        }
        text
    }

    #[test]
    fn what_is_not_utf_8_becomes_it() {
        for (text, expected) in [
            (&b""[..], ""),
            (b"user.updated", "user.updated"),
            ("sch\u{f6}n \u{20ac} \u{1f600}".as_bytes(), "sch\u{f6}n \u{20ac} \u{1f600}"),
            (b"\xff\xfe", "??"),
            (b"user.\xc3", "user.?"),
            (b"\x80a", "?a"),
            (b"\xc3a", "\u{c0}"),
            (b"\xed\xa0\x80", "\u{d000}"),
            (b"\xf4\x90\x80\x80", "\u{100000}"),
        ] {
            assert_eq!(String::from_utf8(mended(text, usize::MAX)).unwrap(), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_become_the_same_utf_8_in_pieces_of_any_size(
            text in prop::collection::vec(any::<u8>(), 0..255), piece in 1usize..9,
        ) {
            let whole = mended(&text, usize::MAX);
            prop_assert!(std::str::from_utf8(&whole).is_ok());
            prop_assert_eq!(&mended(&text, piece), &whole);
            prop_assert_eq!(mended(&whole, piece), whole);
        }

        #[test]
        fn utf_8_stays_as_it_is(text in "\\PC{0,60}", piece in 1usize..9) {
            prop_assert_eq!(mended(text.as_bytes(), piece), text.as_bytes());
        }
    }
}

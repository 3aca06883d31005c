//! How many letters the next channel takes: as many as are likely to fit well into what is
//! read ahead.

/// Bytes that the connection reads ahead of its reader, beside one letter.
pub(super) const AHEAD_BYTES: u64 = 8 << 20;

/// Letters of the first channel, where the size of letters is not known.
const FIRST: u32 = 16;

/// How many times as many the next channel may have.
const GROWTH: u32 = 8;

/// Channels that a look may open. The broker allows 2,047, and closing each takes its time.
const CHANNELS_MAX: u32 = 500;

/// Follows the size of letters, headers and all, from channel to channel.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    channels: u32,
    letters: u32,
    read_bytes_before: u64,
    most: u32,
}

impl Sizes {
    /// Notes that one more letter came to the channel that was opened last.
    pub(super) fn came(&mut self) {
        self.letters += 1;
    }

    /// Returns how many letters the next channel takes: `channel_max` at most, unless channels
    /// would run out. All that the channel
    /// before it was to take has come: `read_bytes` is what the connection has read so far. `left`
    /// letters are to be read yet.
    pub(super) fn next(&mut self, read_bytes: u64, left: u32, channel_max: u16) -> u16 {
        let came_bytes = read_bytes.saturating_sub(self.read_bytes_before);
        let fitting = match u64::from(self.letters) {
            0 => FIRST,
            letters => {
                let mean_bytes = (came_bytes / letters).max(1);
                u32::try_from(AHEAD_BYTES / 2 / mean_bytes)
                    .unwrap_or(u32::MAX)
                    .min(self.most.saturating_mul(GROWTH))
            }
        };
        // Before channels run out, memory of the broker is the lesser evil: ours stays bounded.
        let least = left.div_ceil(CHANNELS_MAX.saturating_sub(self.channels).max(1));
        let most = fitting.min(u32::from(channel_max)).max(least).min(left).max(1);
        *self =
            Self { channels: self.channels + 1, letters: 0, read_bytes_before: read_bytes, most };
        u16::try_from(most).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads letters of one size to their end; returns what each channel took.
    fn channels(letters: u32, letter_bytes: u64, channel_max: u16) -> Vec<u16> {
        let (mut sizes, mut read_bytes, mut left) = (Sizes::default(), 1_000, letters);
        let mut channels = Vec::new();
        while left > 0 {
            let taken = sizes.next(read_bytes, left, channel_max);
            (0..taken).for_each(|_| sizes.came());
            read_bytes += letter_bytes * u64::from(taken);
            left -= u32::from(taken);
            channels.push(taken);
        }
        channels
    }

    #[test]
    fn small_letters_widen_it_and_large_ones_do_not() {
        assert_eq!(channels(20_000, 300, 50_000), [40, 320, 2_560, 13_981, 3_099]);
        assert_eq!(channels(100, 1 << 20, 50_000)[..3], [16, 4, 4]);
        assert_eq!(channels(20, 1 << 30, 50_000), [&[16][..], &[1; 4]].concat());
        assert_eq!(channels(3_000, 300, 700), [16, 128, 700, 700, 700, 700, 56]);
    }

    #[test]
    fn channels_do_not_run_out() {
        for letter_bytes in [1, 1 << 20, 1 << 30] {
            let channels = channels(1_000_000, letter_bytes, 10);
            assert!(channels.len() <= 500, "{letter_bytes}: {}", channels.len());
        }
    }
}

//! The slot of a key in a Redis Cluster, by the rules of its specification.

use redis::{Arg, Cmd};

pub(crate) use unstale_reader::protocol::slot::{has_side_keys, hash_tag};

/// Number of slots in every cluster.
pub(crate) const SLOTS: u16 = 16_384;

/// Returns the slot of a key.
pub(crate) fn slot(key: &[u8]) -> u16 {
    crc16(hash_tag(key)) % SLOTS
}

/// Returns the slot of a command's first key. All its keys are in that slot.
pub(crate) fn of_command(command: &Cmd) -> u16 {
    let argument = |position: usize| match command.args_iter().nth(position) {
        Some(Arg::Simple(bytes)) => bytes,
        _ => b"",
    };
    slot(argument(if argument(0).starts_with(b"EVAL") { 3 } else { 1 }))
}

/// Returns a hash tag whose slot is in one of these ranges, ends included.
pub(crate) fn tag_within(ranges: &[(u16, u16)]) -> String {
    let within = |tag: &String| {
        ranges.iter().any(|(first, last)| (*first..=*last).contains(&slot(tag.as_bytes())))
    };
    // Some thousand numbers reach every slot. An empty range gives a tag of another node.
    (0_u32..1_000_000).map(|number| number.to_string()).find(within).unwrap_or_default()
}

/// Returns a hash tag for each of these slots.
pub(crate) fn tags_of(slots: impl Iterator<Item = u16>) -> Vec<String> {
    let wanted: Vec<u16> = slots.collect();
    let mut tags = vec![String::new(); wanted.len()];
    let mut left = wanted.len();
    for tag in (0_u32..10_000_000).map(|number| number.to_string()) {
        if left == 0 {
            break;
        }
        let slot = slot(tag.as_bytes());
        for (found, _) in tags
            .iter_mut()
            .zip(&wanted)
            .filter(|(found, wanted)| found.is_empty() && **wanted == slot)
        {
            found.clone_from(&tag);
            left -= 1;
        }
    }
    tags
}

/// Returns the CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)])
}

const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        // The numbers are from `CLUSTER KEYSLOT` of Redis 7.0.
        for (key, expected) in [
            ("foo", 12_182),
            ("somekey", 11_058),
            ("foo{hash_tag}", 2_515),
            ("", 0),
            ("{}a", slot_of("{}a")),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
        for (key, same) in [
            ("{user1000}.following", "user1000"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("x{y", "x{y"),
        ] {
            assert_eq!(slot(key.as_bytes()), slot_of(same), "{key}");
        }
    }

    fn slot_of(hashed: &str) -> u16 {
        crc16(hashed.as_bytes()) % SLOTS
    }

    #[test]
    fn a_command_goes_to_the_slot_of_its_first_key() {
        let mut unlink = redis::cmd("UNLINK");
        unlink.arg("foo").arg("other");
        assert_eq!(of_command(&unlink), slot(b"foo"));
        for name in ["EVAL", "EVALSHA"] {
            let mut script = redis::cmd(name);
            script.arg("return 1").arg(1).arg("foo").arg("argument");
            assert_eq!(of_command(&script), slot(b"foo"));
        }
    }

    #[test]
    fn has_side_keys_is_true_exactly_if_they_share_the_slot() {
        use super::super::side_keys::{Kind, side_key};
        for key in ["", "a", "{a}", "x:{u:{42}:p}", "{a", "a}b", "{}{x}", "{}a", "a}{b}"] {
            let shares = slot(&side_key(Kind::Lease, key.as_bytes())) == slot(key.as_bytes());
            assert_eq!(has_side_keys(key.as_bytes()), shares, "{key}");
        }
    }

    #[test]
    fn every_range_of_slots_has_a_hash_tag() {
        for range in [(0, 0), (16_383, 16_383), (5_461, 10_922)] {
            let tag = tag_within(&[range]);
            assert!((range.0..=range.1).contains(&slot(tag.as_bytes())), "{range:?}: {tag}");
        }
    }
}

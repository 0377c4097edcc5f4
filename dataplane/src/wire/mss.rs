//! The maximum segment size that a SYN tells (RFC 9293, 3.7.1).

use super::checksum::{Delta, mend};
use super::read16;
use super::transport::TCP_CHECKSUM;

mod field {
    pub const OFFSET: usize = 12;
    pub const OPTIONS: usize = 20;
}

mod option {
    pub const END: u8 = 0;
    pub const NOTHING: u8 = 1;
    pub const MSS: u8 = 2;
}

/// Length of the option: its kind, its length, and the size.
const LENGTH: usize = 4;

/// Lowers the size that a TCP segment tells to `limit`, if it is more, and mends the checksum. A segment that tells none stays as it
/// is (whoever gets it assumes 536), and so does one whose options make no sense.
pub fn clamp(segment: &mut [u8], limit: u16) {
    change(segment, |told| told.min(limit));
}

/// Lowers the size that a TCP segment tells by so much, in the same way.
pub fn lower(segment: &mut [u8], by: u16) {
    change(segment, |told| told.saturating_sub(by));
}

fn change(segment: &mut [u8], change: impl Fn(u16) -> u16) {
    let Some(at) = find(segment) else { return };
    let old = read16(segment, at);
    let limit = change(old);
    if old == limit {
        return;
    }
    segment[at..at + 2].copy_from_slice(&limit.to_be_bytes());
    // At an odd place its bytes count the other way round: the low one is the high half of the next word.
    let delta = match at % 2 {
        0 => Delta::word(old, limit),
        _ => Delta::word(old.swap_bytes(), limit.swap_bytes()),
    };
    mend(segment, TCP_CHECKSUM, delta);
}

/// Where the size stands.
fn find(segment: &[u8]) -> Option<usize> {
    let header = usize::from(segment.get(field::OFFSET)? >> 4) * 4;
    let options = segment.get(..header)?;
    let mut at = field::OPTIONS;
    loop {
        match *options.get(at)? {
            option::END => return None,
            option::NOTHING => at += 1,
            kind => {
                let length = usize::from(*options.get(at + 1)?);
                if length < 2 || at + length > header {
                    return None;
                }
                if kind == option::MSS && length == LENGTH {
                    return Some(at + 2);
                }
                at += length;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::checksum;
    use super::*;

    /// A SYN with these options, whose sum is right (without a pseudo-header, which does not change).
    fn syn(options: &[u8]) -> Vec<u8> {
        let offset = (5 + options.len() / 4) as u8;
        let mut segment =
            vec![0x9C, 0xB0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, offset << 4, 2, 0xFA, 0xF0, 0, 0, 0, 0];
        segment.extend(options);
        let sum = !checksum::sum(&segment);
        segment[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    #[test]
    fn what_linux_sends_by_hand() {
        // MSS 1460, SACK permitted, timestamps, window scale: the options of a SYN of Linux.
        let options = [2, 4, 0x05, 0xB4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
        let mut segment = syn(&options);
        let before = segment.clone();
        assert_eq!(read16(&segment, TCP_CHECKSUM), 0xAC36);
        clamp(&mut segment, 1460);
        assert_eq!(segment, before);
        clamp(&mut segment, 1440);
        assert_eq!(segment[20..24], [2, 4, 0x05, 0xA0]);
        // 0x14 less in the sum, so 0x14 more in its complement.
        assert_eq!(read16(&segment, TCP_CHECKSUM), 0xAC4A);
        assert_eq!(
            (&segment[..16], &segment[18..22], &segment[24..]),
            (&before[..16], &before[18..22], &before[24..])
        );
    }

    #[test]
    fn nonsense_stays() {
        for options in
            [&[0, 2, 4, 5][..], &[2, 0, 5, 0xB4], &[2, 5, 5, 0xB4], &[1, 1, 1, 2], &[3, 200, 5, 5], &[]]
        {
            let mut segment = syn(options);
            let before = segment.clone();
            clamp(&mut segment, 536);
            assert_eq!(segment, before, "{options:?}");
        }
        for length in 0..20 {
            clamp(&mut syn(&[2, 4, 5, 0xB4])[..length], 536);
        }
    }

    proptest! {
        #[test]
        fn the_sum_follows_wherever_the_option_stands(
            nothing in 0usize..8, told in any::<u16>(), limit in any::<u16>(), rest in prop::collection::vec(any::<u8>(), 0..24),
        ) {
            let mut options = vec![option::NOTHING; nothing];
            options.extend([option::MSS, 4, (told >> 8) as u8, told as u8]);
            let at = field::OPTIONS + nothing + 2;
            options.extend(rest);
            options.truncate(options.len().min(40));
            options.resize(options.len().next_multiple_of(4), 0);
            let mut segment = syn(&options);
            clamp(&mut segment, limit);
            prop_assert_eq!(read16(&segment, at), told.min(limit));
            prop_assert_eq!(checksum::sum(&segment), 0xFFFF);
        }

        #[test]
        fn no_bytes_are_a_panic(mut segment in prop::collection::vec(any::<u8>(), 0..70), limit in any::<u16>()) {
            clamp(&mut segment, limit);
        }
    }
}

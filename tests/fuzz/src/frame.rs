//! What is true of an IPv4 packet in a frame, computed from all its bytes (RFC 791, RFC 1071).

/// What is true of it.
pub(crate) struct Facts {
    pub source: u32,
    pub destination: u32,
    pub ttl: u8,
    /// Whether the header's checksum is right.
    pub header_is_right: bool,
    /// Whether the checksum of TCP, UDP or ICMP is; none where there is none.
    pub payload_is_right: Option<bool>,
}

impl Facts {
    /// None if it is no IPv4 packet with all its bytes.
    pub fn of(frame: &[u8]) -> Option<Facts> {
        let packet = frame.get(14..)?;
        let header: &[u8; 20] = packet.first_chunk()?;
        let length = usize::from(header[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if frame[12..14] != [8, 0] || header[0] >> 4 != 4 || length < 20 {
            return None;
        }
        let (header, payload) = packet.get(..total)?.split_at_checked(length)?;
        let word =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        // The pseudo header's sum: addresses, protocol, length.
        let pseudo = [&header[12..20], &[0, header[9]], &(payload.len() as u16).to_be_bytes()].concat();
        // A fragment has a part of what its checksum is about.
        let is_fragment = header[6] & 0x3F != 0 || header[7] != 0;
        let payload_is_right = match header[9] {
            _ if is_fragment => None,
            17 if payload.get(6..8) == Some(&[0, 0]) => None,
            6 | 17 => Some(sum(&[pseudo, payload.to_vec()].concat()) == 0xFFFF),
            1 => Some(sum(payload) == 0xFFFF),
            _ => None,
        };
        let header_is_right = sum(header) == 0xFFFF;
        Some(Facts {
            source: word(12),
            destination: word(16),
            ttl: header[8],
            header_is_right,
            payload_is_right,
        })
    }
}

/// The sum in one's complement, over an even number of bytes or one that is filled up.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xFFFF) + (sum >> 16);
    ((folded & 0xFFFF) + (folded >> 16)) as u16
}

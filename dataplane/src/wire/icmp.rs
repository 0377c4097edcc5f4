//! ICMP (RFC 792), as far as errors quote the packet that they are about.

use super::{read16, read32};

mod field {
    pub const TYPE: usize = 0;
    /// Where the quoted packet begins.
    pub const QUOTE: usize = 8;
}

/// What an error quotes of a packet: the IP header and at least eight bytes behind it, which TCP and UDP begin
/// with their ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Protocol number.
    pub protocol: u8,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

/// The packet that an ICMP error is about; `None` if the message is no error, or quotes too little to tell.
pub fn quoted(message: &[u8]) -> Option<Quote> {
    // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
    if !matches!(*message.get(field::TYPE)?, 3 | 4 | 5 | 11 | 12) {
        return None;
    }
    let packet = message.get(field::QUOTE..)?;
    let header = packet.first_chunk::<20>()?;
    let ports = packet.get(usize::from(header[0] & 0x0F) * 4..)?.first_chunk::<4>()?;
    Some(Quote {
        protocol: header[9],
        source: read32(header, 12),
        destination: read32(header, 16),
        source_port: read16(ports, 0),
        destination_port: read16(ports, 2),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_quoted_ports_behind_options() {
        let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
        message.extend([0x46, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 198, 51, 100, 7, 10, 0, 0, 1]);
        message.extend([1, 1, 1, 0]);
        message.extend([0x9C, 0xB0, 0, 53, 0, 8, 0, 0]);
        let quote = quoted(&message).unwrap();
        assert_eq!((quote.protocol, quote.source, quote.destination), (17, 0xC633_6407, 0x0A00_0001));
        assert_eq!((quote.source_port, quote.destination_port), (40112, 53));
        for length in 0..36 {
            assert_eq!(quoted(&message[..length]), None, "cut to {length}");
        }
        message[0] = 8;
        assert_eq!(quoted(&message), None, "an echo request is no error");
    }
}

//! ICMP (RFC 792) and ICMPv6 (RFC 4443), as far as errors quote the packet that they are about.

use super::checksum::{self, Delta, mend};
use super::transport::{self, updated_checksum};
use super::version::Version;
use super::{ipv4, read16, sctp};
use crate::service::Protocol;

/// Type and code of an error.
pub type Kind = (u8, u8);

mod field {
    pub const TYPE: usize = 0;
    pub const CODE: usize = 1;
    pub const CHECKSUM: usize = 2;
    /// In "fragmentation needed" of IPv4. ICMPv6 has 32 bits for it, of which these are the lower half.
    pub const MTU: usize = 6;
    /// Where the quoted packet begins.
    pub const QUOTE: usize = 8;
    /// Of an echo and its reply.
    pub const IDENTIFIER: usize = 4;
}

/// Length of the header.
pub const HEADER: usize = field::QUOTE;

/// What an error quotes of a packet: the IP header and at least eight bytes behind it, which TCP, UDP and SCTP begin
/// with their ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote<A> {
    /// Whether the error concerns only the host that it was sent to.
    pub is_redirect: bool,
    /// Protocol number.
    pub protocol: u8,
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

/// An error about a packet, with the MTU if the kind has one: a packet that quotes as much as there is room for.
pub fn error<A: Version>(from: A, to: A, kind: Kind, mtu: u16, packet: &[u8]) -> Vec<u8> {
    let quote = &packet[..packet.len().min(A::LONGEST_ERROR - A::HEADER - field::QUOTE)];
    let length = (field::QUOTE + quote.len()) as u16;
    let mut error = A::header(A::HEADER as u16 + length, A::ICMP, from, to);
    let [mtu_high, mtu_low] = mtu.to_be_bytes();
    error.extend([kind.0, kind.1, 0, 0, 0, 0, mtu_high, mtu_low]);
    error.extend(quote);
    let message = &mut error[A::HEADER..];
    let addresses = if A::ICMP_COVERS_ADDRESSES { A::pseudo_sum(from, to, A::ICMP, length) } else { 0 };
    let sum = !checksum::fold(u32::from(checksum::sum(message)) + u32::from(addresses));
    message[field::CHECKSUM..field::CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    error
}

/// Type and code of a message, the MTU if its kind has one, and what it quotes of a packet.
pub fn told(message: &[u8]) -> Option<(Kind, u16, &[u8])> {
    let (headers, quote) = message.split_first_chunk::<{ field::QUOTE }>()?;
    Some(((headers[field::TYPE], headers[field::CODE]), read16(headers, field::MTU), quote))
}

/// Whether a message is as it was sent, by its checksum, in a packet with these addresses.
pub fn is_intact<A: Version>(source: A, destination: A, message: &[u8]) -> bool {
    let addresses = match A::ICMP_COVERS_ADDRESSES {
        true => A::pseudo_sum(source, destination, A::ICMP, message.len() as u16),
        false => 0,
    };
    checksum::fold(u32::from(checksum::sum(message)) + u32::from(addresses)) == 0xFFFF
}

/// An end of a quoted packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its source.
    Source,
    /// Its destination.
    Destination,
}

/// The packet that an ICMP error is about; `None` if the message is no error, or quotes too little to tell, or a fragment
/// that has no ports.
pub fn quoted<A: Version>(message: &[u8]) -> Option<Quote<A>> {
    let is_redirect = A::is_error(*message.get(field::TYPE)?)?;
    let quote = quote(message.get(field::QUOTE..)?)?;
    Some(Quote { is_redirect, ..quote })
}

/// A packet, as far as an error quotes it; `None` as with [`quoted`].
pub fn quote<A: Version>(packet: &[u8]) -> Option<Quote<A>> {
    let ip = A::quoted(packet)?;
    if ip.fragment.is_some_and(|fragment| fragment.offset > 0) {
        return None;
    }
    // Eight bytes behind it, by RFC 792.
    let ports = packet.get(ip.header_length..)?.first_chunk::<8>()?;
    Some(Quote {
        is_redirect: false,
        protocol: ip.protocol,
        source: ip.source,
        destination: ip.destination,
        source_port: read16(ports, 0),
        destination_port: read16(ports, 2),
    })
}

/// Gives an end of the packet that a message quotes ([`quoted`] has found it there) another address and port, and mends
/// what covers them: the quoted header's checksum, if it has one, that of its TCP or UDP if it is quoted so far, and the message's own
/// (RFC 5508, section 4.2). A message that was damaged stays so. `outside` is the change of the message's checksum by what has
/// become of the addresses of its own packet.
pub fn translate<A: Version>(
    message: &mut [u8],
    protocol: Protocol,
    (end, address, port): (End, A, u16),
    outside: Delta,
) {
    let Some(ip) = message.get(field::QUOTE..).and_then(A::quoted) else { return };
    let at = field::QUOTE + ip.header_length;
    let (address_at, port_at, old) = match end {
        End::Source => (field::QUOTE + A::SOURCE, at, ip.source),
        End::Destination => (field::QUOTE + A::DESTINATION, at + 2, ip.destination),
    };
    if message.len() < port_at + 2 {
        return;
    }
    let address_delta = A::delta(old, address);
    let old_port = read16(message, port_at);
    let port_delta = Delta::word(old_port, port);
    let delta = if A::ICMP_COVERS_ADDRESSES { outside } else { Delta::default() };
    let mut patch = Patch { message, delta };
    for (word, at) in address.octets().as_ref().chunks_exact(2).zip((address_at..).step_by(2)) {
        patch.put(at, u16::from_be_bytes([word[0], word[1]]));
    }
    if A::HEADER == ipv4::HEADER {
        patch.change(field::QUOTE + ipv4::CHECKSUM, |sum| address_delta.apply(sum));
    }
    patch.put(port_at, port);
    let of_both = address_delta.and(port_delta);
    if protocol == Protocol::Sctp {
        patch.sctp(at, port_at, old_port, usize::from(ip.total_length).saturating_sub(ip.header_length));
    } else {
        patch.change(at + transport::checksum_at(protocol), |sum| updated_checksum(protocol, sum, of_both));
    }
    patch.finish();
}

/// What an MTU leaves to somebody to whose packets so much is added: no less than every link takes. Whoever is told less ignores it (RFC 8201,
/// section 4), and would go on with what is too long. What is less by itself (0: it is not told; RFC 1191, section 5) stays.
pub fn room<A: Version>(mtu: u16, added: u16) -> u16 {
    mtu.saturating_sub(added).max(A::LEAST_MTU.min(mtu))
}

/// Lowers the MTU that a message tells by what is added on the way ([`room`]), if it is of the kind that tells one.
pub fn lower_mtu<A: Version>(message: &mut [u8], added: u16) {
    let Some(header) = message.first_chunk_mut::<{ field::QUOTE }>() else { return };
    if (header[field::TYPE], header[field::CODE]) != A::TOO_BIG {
        return;
    }
    let old = read16(header, field::MTU);
    let mut patch = Patch { message: header, delta: Delta::default() };
    patch.put(field::MTU, room::<A>(old, added));
    patch.finish();
}

/// Whether a message of IPv4 asks for an echo or is one, and its identifier; `None` if it is neither.
pub fn echo(message: &[u8]) -> Option<(bool, u16)> {
    const REPLY: u8 = 0;
    const REQUEST: u8 = 8;
    let header = message.first_chunk::<{ field::QUOTE }>()?;
    let is_request = match header[field::TYPE] {
        REQUEST => true,
        REPLY => false,
        _ => return None,
    };
    Some((is_request, read16(header, field::IDENTIFIER)))
}

/// The identifier of the echo, or of the reply to one, that an error of IPv4 is about.
pub fn quoted_echo(message: &[u8]) -> Option<u16> {
    let packet = message.get(field::QUOTE..)?;
    let at = u32::quoted(packet)?.header_length;
    Some(echo(packet.get(at..)?)?.1)
}

/// Gives an echo, or the reply to one, another identifier.
pub fn set_echo(message: &mut [u8], old: u16, new: u16) {
    let delta = Delta::word(old, new);
    let Some(header) = message.first_chunk_mut::<{ field::QUOTE }>() else { return };
    mend(header, field::CHECKSUM, delta);
    header[field::IDENTIFIER..field::IDENTIFIER + 2].copy_from_slice(&new.to_be_bytes());
}

/// The same as [`translate`] for an error of IPv4 about an echo or a reply to one ([`quoted_echo`]), whose identifier stands for the port.
pub fn translate_echo(message: &mut [u8], (end, address, identifier): (End, u32, u16)) {
    let Some(ip) = message.get(field::QUOTE..).and_then(u32::quoted) else { return };
    let at = field::QUOTE + ip.header_length;
    let (address_at, old) = match end {
        End::Source => (field::QUOTE + u32::SOURCE, ip.source),
        End::Destination => (field::QUOTE + u32::DESTINATION, ip.destination),
    };
    let Some(&[high, low]) = message.get(at + field::IDENTIFIER..).and_then(|rest| rest.first_chunk()) else {
        return;
    };
    let identifier_delta = Delta::word(u16::from_be_bytes([high, low]), identifier);
    let mut patch = Patch { message, delta: Delta::default() };
    patch.put(address_at, (address >> 16) as u16);
    patch.put(address_at + 2, address as u16);
    patch.change(field::QUOTE + ipv4::CHECKSUM, |sum| Delta::double(old, address).apply(sum));
    patch.put(at + field::IDENTIFIER, identifier);
    patch.change(at + field::CHECKSUM, |sum| identifier_delta.apply(sum));
    patch.finish();
}

/// A message under change, and what its checksum has to follow.
struct Patch<'a> {
    message: &'a mut [u8],
    delta: Delta,
}

impl Patch<'_> {
    /// Mends the message's own checksum.
    fn finish(self) {
        mend(self.message, field::CHECKSUM, self.delta);
    }

    fn put(&mut self, at: usize, new: u16) {
        self.change(at, |_| new);
    }

    /// Mends the checksum of a quoted packet of SCTP of which one port has changed, and of which there were so many bytes.
    fn sctp(&mut self, packet: usize, port_at: usize, old: u16, length: usize) {
        let new = read16(self.message, port_at);
        let [a, b, c, d] = sctp::change(length, port_at - packet, old, new);
        let at = packet + sctp::CHECKSUM;
        self.change(at, |word| word ^ u16::from_be_bytes([a, b]));
        self.change(at + 2, |word| word ^ u16::from_be_bytes([c, d]));
    }

    /// Changes a 16-bit word that is there, or nothing.
    fn change(&mut self, at: usize, new: impl Fn(u16) -> u16) {
        let Some(word) = self.message.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) else {
            return;
        };
        let old = u16::from_be_bytes(*word);
        *word = new(old).to_be_bytes();
        self.delta = self.delta.and(Delta::word(old, u16::from_be_bytes(*word)));
    }
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
        let quote = quoted::<u32>(&message).unwrap();
        assert_eq!((quote.protocol, quote.source, quote.destination), (17, 0xC633_6407, 0x0A00_0001));
        assert_eq!((quote.source_port, quote.destination_port), (40112, 53));
        for length in 0..40 {
            assert_eq!(quoted::<u32>(&message[..length]), None, "cut to {length}");
        }
        message[8 + 7] = 1;
        assert_eq!(quoted::<u32>(&message), None, "a later fragment has no ports");
        message[8 + 7] = 0;
        message[8] = 0x44;
        assert_eq!(quoted::<u32>(&message), None, "no header is that short");
        message[8] = 0x46;
        message[0] = 8;
        assert_eq!(quoted::<u32>(&message), None, "an echo request is no error");
    }

    #[test]
    fn nobody_hears_of_an_mtu_that_he_must_ignore() {
        let (six, four) = (room::<u128>, room::<u32>);
        assert_eq!(
            [1500, 1332, 1331, 1280, 1279, 0].map(|mtu| six(mtu, 52)),
            [1448, 1280, 1280, 1280, 1279, 0]
        );
        assert_eq!([1280, 96, 95, 68, 67, 0].map(|mtu| four(mtu, 28)), [1252, 68, 68, 68, 67, 0]);
    }
}

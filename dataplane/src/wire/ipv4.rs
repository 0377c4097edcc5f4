//! IPv4 headers (RFC 791).

use super::checksum::{self, Delta};
use super::{read16, read32};

mod field {
    pub const CLASS: usize = 1;
    pub const TOTAL_LENGTH: usize = 2;
    pub const IDENTIFICATION: usize = 4;
    pub const FRAGMENT: usize = 6;
    pub const TTL: usize = 8;
    pub const PROTOCOL: usize = 9;
}

/// Where the checksum is in a header.
pub(super) const CHECKSUM: usize = 10;
/// Where the source address is.
pub(super) const SOURCE: usize = 12;
/// Where the destination address is.
pub(super) const DESTINATION: usize = 16;

/// Length of a header without options.
pub const HEADER: usize = 20;

/// The bit by which a sender forbids fragments.
const DONT_FRAGMENT: u16 = 0x4000;
/// The bit of all fragments but the last.
const MORE_FRAGMENTS: u16 = 0x2000;

/// What a balancer needs of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Length of the header with options.
    pub header_length: usize,
    /// Length of header and payload.
    pub total_length: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol number of the payload.
    pub protocol: u8,
    /// Whether this is a fragment, first or later.
    pub is_fragment: bool,
    /// Whether a fragment of the same datagram follows on this one's data.
    pub more_fragments: bool,
    /// Where its data is in the datagram's, in bytes; 0 in the first fragment.
    pub offset: u16,
    /// What the fragments of a datagram have in common.
    pub identification: u16,
    /// Whether routers may not make fragments of it.
    pub dont_fragment: bool,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
}

/// Why a packet is not a good IPv4 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Version, header length or total length contradict each other or the frame.
    Header,
    /// The header's checksum is wrong.
    Checksum,
}

impl Ipv4 {
    /// Reads the header of a packet that may have padding behind it.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        let header = packet.first_chunk::<HEADER>().ok_or(Malformed::Header)?;
        let header_length = usize::from(header[0] & 0x0F) * 4;
        let total_length = read16(header, field::TOTAL_LENGTH);
        if header[0] >> 4 != 4
            || header_length < HEADER
            || header_length > packet.len()
            || usize::from(total_length) < header_length
            || usize::from(total_length) > packet.len()
        {
            return Err(Malformed::Header);
        }
        let sum_is_right = if header_length == HEADER {
            checksum::is_valid_20(header)
        } else {
            checksum::sum(&packet[..header_length]) == 0xFFFF
        };
        if !sum_is_right {
            return Err(Malformed::Checksum);
        }
        Ok(Ipv4::read(header, header_length))
    }

    /// Reads the header of a packet as an error quotes it, which may be cut off behind it, and changed by routers on the way.
    pub(super) fn quoted(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<HEADER>()?;
        let header_length = usize::from(header[0] & 0x0F) * 4;
        (header[0] >> 4 == 4 && header_length >= HEADER).then(|| Ipv4::read(header, header_length))
    }

    #[inline(always)]
    fn read(header: &[u8; HEADER], header_length: usize) -> Self {
        let fragment = read16(header, field::FRAGMENT);
        Ipv4 {
            header_length,
            total_length: read16(header, field::TOTAL_LENGTH),
            ttl: header[field::TTL],
            protocol: header[field::PROTOCOL],
            // More-fragments flag or an offset.
            is_fragment: fragment & 0x3FFF != 0,
            more_fragments: fragment & 0x2000 != 0,
            offset: fragment << 3,
            identification: read16(header, field::IDENTIFICATION),
            dont_fragment: fragment & 0x4000 != 0,
            source: read32(header, SOURCE),
            destination: read32(header, DESTINATION),
        }
    }
}

/// The header of a packet that this router makes: so many bytes in all, 64 hops, not to be fragmented.
pub fn header(length: u16, protocol: u8, source: u32, destination: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = 0x45;
    header[field::TOTAL_LENGTH..field::TOTAL_LENGTH + 2].copy_from_slice(&length.to_be_bytes());
    header[field::FRAGMENT] = 0x40;
    (header[field::TTL], header[field::PROTOCOL]) = (64, protocol);
    header[SOURCE..SOURCE + 4].copy_from_slice(&source.to_be_bytes());
    header[DESTINATION..DESTINATION + 4].copy_from_slice(&destination.to_be_bytes());
    mend(&mut header);
    header
}

/// Length of a packet, header included, and whether routers may not make fragments of it.
#[inline]
pub fn extent(header: &[u8; HEADER]) -> (u16, bool) {
    (read16(header, field::TOTAL_LENGTH), read16(header, field::FRAGMENT) & DONT_FRAGMENT != 0)
}

/// Makes a header that of a packet with another one inside: its class of service and ECN, what its fragments are put together by, and whether
/// there may be any.
pub fn carry(header: &mut [u8; HEADER], class: u8, identification: u16, may_be_split: bool) {
    header[field::CLASS] = class;
    // 0 is for Linux to fill in when it sends such a packet, anew for each fragment.
    header[field::IDENTIFICATION..field::FRAGMENT].copy_from_slice(&identification.max(1).to_be_bytes());
    let fragment = if may_be_split { 0 } else { DONT_FRAGMENT };
    header[field::FRAGMENT..field::TTL].copy_from_slice(&fragment.to_be_bytes());
    mend(header);
}

/// By what a sender tells a packet with this header from its others: the datagram's identification, mixed with the place in it. Each of a
/// datagram's fragments is a packet of its own in a tunnel, where it may be fragmented again (RFC 6864).
#[inline]
pub(super) fn number(header: &[u8; HEADER]) -> u16 {
    let offset = (read16(header, field::FRAGMENT) & 0x1FFF).wrapping_mul(0x9E37);
    read16(header, field::IDENTIFICATION) ^ offset
}

/// The header of a part of a packet: so many bytes with this header, that many behind the packet's first, and whether more follow.
pub fn of_fragment(whole: &[u8; HEADER], length: u16, offset: u16, more_follow: bool) -> [u8; HEADER] {
    let mut header = *whole;
    header[field::TOTAL_LENGTH..field::IDENTIFICATION].copy_from_slice(&length.to_be_bytes());
    let flag = if more_follow { MORE_FRAGMENTS } else { 0 };
    let fragment = flag | (offset / 8);
    header[field::FRAGMENT..field::TTL].copy_from_slice(&fragment.to_be_bytes());
    mend(&mut header);
    header
}

/// Sums a header from scratch.
fn mend(header: &mut [u8; HEADER]) {
    header[CHECKSUM..SOURCE].fill(0);
    let sum = !checksum::sum(header);
    header[CHECKSUM..SOURCE].copy_from_slice(&sum.to_be_bytes());
}

/// What of an address is the network's, if that has so many bits; more than 32 are 32.
pub const fn mask(length: u8) -> u32 {
    match u32::MAX.checked_shl(32u32.saturating_sub(length as u32)) {
        Some(mask) => mask,
        None => 0,
    }
}

/// The checksum's change when the TTL, the high byte of its word, becomes one less.
pub const TTL_DELTA: Delta = Delta::word(0x0100, 0x0000);

/// Gives a header another TTL, and sums it from scratch.
pub(super) fn set_ttl(header: &mut [u8; HEADER], ttl: u8) {
    header[field::TTL] = ttl;
    mend(header);
}

/// Decrements the TTL (which is not 0) and mends the checksum.
#[inline]
pub fn decrement_ttl(header: &mut [u8; HEADER]) {
    header[field::TTL] -= 1;
    update_checksum(header, TTL_DELTA);
}

/// Replaces the source address; `delta` is the change of the checksum.
#[inline]
pub fn set_source(header: &mut [u8; HEADER], address: u32, delta: Delta) {
    header[SOURCE..SOURCE + 4].copy_from_slice(&address.to_be_bytes());
    update_checksum(header, delta);
}

/// Replaces the destination address; `delta` is the change of the checksum.
#[inline]
pub fn set_destination(header: &mut [u8; HEADER], address: u32, delta: Delta) {
    header[DESTINATION..DESTINATION + 4].copy_from_slice(&address.to_be_bytes());
    update_checksum(header, delta);
}

#[inline]
fn update_checksum(header: &mut [u8; HEADER], delta: Delta) {
    let updated = delta.apply(read16(header, CHECKSUM));
    header[CHECKSUM..CHECKSUM + 2].copy_from_slice(&updated.to_be_bytes());
}

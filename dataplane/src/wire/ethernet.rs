//! Ethernet II headers.

use super::read16;

mod field {
    use std::ops::Range;

    pub const DESTINATION: Range<usize> = 0..6;
    pub const SOURCE: Range<usize> = 6..12;
    pub const TYPE: usize = 12;
}

/// Where destination and source are.
pub const ADDRESSES: std::ops::Range<usize> = 0..12;
/// Length of an 802.1Q tag, which is between the addresses and the type of what is inside.
pub const TAG: usize = 4;
/// Length of the header.
pub const HEADER: usize = 14;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86DD;
/// EtherType of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
pub const SERVICE_VLAN: u16 = 0x88A8;

/// A MAC address.
pub type Mac = [u8; 6];

/// What a router needs of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// To whom.
    pub destination: Mac,
    /// From whom.
    pub source: Mac,
    /// What is inside.
    pub ethertype: u16,
}

impl Ethernet {
    /// Reads the header; `None` if the frame is shorter than one.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let header = frame.first_chunk::<HEADER>()?;
        let mac = |range: std::ops::Range<usize>| -> Mac { std::array::from_fn(|i| header[range.start + i]) };
        Some(Ethernet {
            destination: mac(field::DESTINATION),
            source: mac(field::SOURCE),
            ethertype: read16(header, field::TYPE),
        })
    }
}

/// The header of a frame of this type with these addresses, destination and source.
#[inline]
pub fn header(ethertype: u16, addresses: &[u8; 12]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    write_addresses(&mut header, addresses);
    header[field::TYPE..].copy_from_slice(&ethertype.to_be_bytes());
    header
}

/// The control information of a frame's 802.1Q tag; `None` if it has none, or ends before the type of what is inside.
#[inline]
pub fn tag(frame: &[u8]) -> Option<u16> {
    let header = frame.first_chunk::<{ HEADER + TAG }>()?;
    (read16(header, field::TYPE) == VLAN).then(|| read16(header, HEADER))
}

/// Writes an 802.1Q tag with this control information between the addresses and the type of a frame that has room there.
#[inline]
pub fn write_tag(frame: &mut [u8], tag: u16) {
    frame[field::TYPE..HEADER].copy_from_slice(&VLAN.to_be_bytes());
    frame[HEADER..HEADER + 2].copy_from_slice(&tag.to_be_bytes());
}

/// Whether an address is multicast or broadcast.
#[inline]
pub const fn is_group(mac: &Mac) -> bool {
    mac[0] & 1 != 0
}

/// Writes destination and source, in this order, into a frame that has a header.
#[inline]
pub fn write_addresses(frame: &mut [u8; HEADER], addresses: &[u8; 12]) {
    frame[ADDRESSES].copy_from_slice(addresses);
}

//! What is unusual about packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proptest::sample::select;

use super::Datagram;
use super::ftp::Said;
use crate::wires::Tagged;

/// What is unusual about a packet.
#[derive(Clone, Debug)]
pub enum Odd {
    /// IPv4: options; IPv6: an extension header.
    Options,
    /// IPv4 without "don't fragment".
    MayFragment,
    /// Of this class and ECN.
    Class(u8),
    /// TCP with this maximum segment size.
    Mss(u16),
    /// TCP that acknowledges what is between these numbers.
    Sack(u32, u32),
    /// TCP with this reply of FTP.
    Said(Said),
    /// UDP without checksum.
    NoChecksum,
    /// Only so many bytes of the frame come.
    Truncated(usize),
    /// Of the byte at this place (modulo the frame's length) these bits are flipped, and the IPv4 header's checksum is that of what came out, or not.
    Flipped(usize, u8, bool),
    /// Bytes behind the packet.
    Longer(usize),
    /// It is for this MAC.
    To([u8; 6]),
    /// It is of this EtherType.
    EtherType(u16),
    /// It has another tag than its network.
    Tagged(Tagged),
    /// It comes in on the other port.
    WrongPort,
    /// Its sender is this one.
    Martian(u8),
    /// To another port of the virtual address, or from another one of the server.
    OtherPort,
    /// From a real server to the router itself.
    ToRouter,
    /// To a real server's own address, at another port.
    ToServer,
    /// A packet of this protocol.
    OtherProtocol(u8),
    /// UDP to a connection id of QUIC.
    Quic(Datagram),
    /// UDP with this behind its header, and bytes behind the packet.
    Payload(Vec<u8>, usize),
    /// A fragment, of the datagram with this identification the part with this number: 0, 1 or 2.
    Part(u8, u8),
}

/// Any.
pub(super) fn odd() -> impl Strategy<Value = Odd> {
    let mac = select(vec![[2, 0, 0, 0, 0, 3], [0xFF; 6], [1, 0, 0x5E, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]]);
    prop_oneof![
        3 => Just(Odd::Options),
        2 => Just(Odd::MayFragment),
        3 => Just(Odd::NoChecksum),
        1 => any::<u8>().prop_map(Odd::Class),
        5 => select(vec![20, 400, 500, 536, 1300, 1460]).prop_map(Odd::Mss),
        4 => (select(vec![1u32, 20, 29, 300]), select(vec![2u32, 53, 54, u32::MAX])).prop_map(|(from, to)| Odd::Sack(from, to)),
        3 => (0..80usize).prop_map(Odd::Truncated),
        6 => (0..90usize, 1..=255u8, any::<bool>()).prop_map(|(at, bits, is_summed)| Odd::Flipped(at, bits, is_summed)),
        1 => (0..20usize).prop_map(Odd::Longer),
        1 => mac.prop_map(Odd::To),
        1 => select(vec![0x8100, 0x88A8, 0x0806, 0x0800, 0x86DD, 0x88CC]).prop_map(Odd::EtherType),
        1 => Just(Odd::WrongPort),
        2 => tagged().prop_map(Odd::Tagged),
        2 => (0..12u8).prop_map(Odd::Martian),
        1 => Just(Odd::OtherPort),
        1 => Just(Odd::ToRouter),
        1 => Just(Odd::ToServer),
        1 => select(vec![1, 2, 6, 17, 47, 50, 58, 33]).prop_map(Odd::OtherProtocol),
        24 => (prop_oneof![6 => Just(1u8), 1 => Just(2)], 0..3u8).prop_map(|(id, part)| Odd::Part(id, part)),
    ]
}

/// Another tag than the network's.
fn tagged() -> impl Strategy<Value = Tagged> {
    prop_oneof![
        4 => (0..16u8).prop_map(Tagged::Priority),
        2 => Just(Tagged::Unknown),
        2 => Just(Tagged::Not),
        1 => Just(Tagged::Twice),
        1 => Just(Tagged::Service),
    ]
}

/// An address that no client has, or hardly one.
pub(super) fn martian(which: u8, is_six: bool) -> IpAddr {
    if is_six {
        let addresses: [u128; 6] =
            [0, 1, 0xFE80 << 112 | 1, 0xFF02 << 112 | 1, 0x2001_0db8 << 96 | 0x10, 0x2001_0db8 << 96 | 0x11];
        Ipv6Addr::from(addresses[usize::from(which) % addresses.len()]).into()
    } else {
        let addresses = [
            [0, 0, 0, 0],
            [0, 1, 2, 3],
            [127, 0, 0, 1],
            [224, 0, 0, 1],
            [239, 1, 1, 1],
            [240, 0, 0, 1],
            [255, 255, 255, 255],
            [192, 0, 2, 10],
            [192, 0, 2, 11],
            [10, 0, 0, 1],
        ];
        Ipv4Addr::from(addresses[usize::from(which) % addresses.len()]).into()
    }
}

//! Stage 1: from the bytes of an IPv6 frame to a [`Packet`], or out by a named way.

use super::Addresses;
use crate::counters::{Drop, Punt};
use crate::engine::packet::{Packet, Piece, Search};
use crate::engine::{Frame, Verdict};
use crate::service::Protocol;
use crate::snapshot::fold;
use crate::wire::ethernet::{self, Ethernet, Mac};
use crate::wire::ipv6::{ICMPV6, Ipv6};
use crate::wire::transport::Transport;

/// Types of ICMPv6 messages by which neighbours and routers find each other (RFC 4861).
const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

/// Parses an IPv6 frame that came in on a port with this MAC.
pub(super) fn parse(frame: &impl Frame, mac: &Mac) -> Result<(Packet, Addresses), Verdict> {
    let bytes = frame.bytes();
    let ethernet = Ethernet::parse(bytes).ok_or(Verdict::Drop(Drop::Runt))?;
    let is_group = ethernet::is_group(&ethernet.destination);
    if ethernet.destination != *mac && !is_group {
        return Err(Verdict::Drop(Drop::OtherHost));
    }
    if bytes.len() < frame.length() {
        return Err(Verdict::Drop(Drop::Scattered));
    }
    if frame.is_vlan_stripped() {
        return Err(Verdict::Punt(Punt::Vlan));
    }
    let packet = &bytes[ethernet::HEADER..];
    let ip = Ipv6::parse(packet).ok_or(Verdict::Drop(Drop::BadIpHeader))?;
    let segment = &packet[ip.header_length..usize::from(ip.total_length)];
    if ip.protocol == ICMPV6 {
        let is_discovery = segment.first().is_some_and(|kind| DISCOVERY.contains(kind));
        return Err(Verdict::Punt(match (is_discovery, is_group) {
            (true, _) => Punt::Neighbour,
            (false, true) => Punt::Multicast,
            (false, false) => Punt::Icmp,
        }));
    }
    if is_group {
        return Err(Verdict::Punt(Punt::Multicast));
    }
    if ip.is_routed {
        // The next host on its way is not the service.
        return Err(Verdict::Punt(Punt::OtherProtocol));
    }
    if ip.fragment.is_some() {
        return Err(Verdict::Punt(Punt::Fragment));
    }
    let protocol = Protocol::from_number(ip.protocol).ok_or(Verdict::Punt(Punt::OtherProtocol))?;
    let transport =
        Transport::parse(protocol, segment, segment.len()).ok_or(Verdict::Drop(Drop::BadTransportHeader))?;
    let packet = Packet {
        source: fold(ip.source),
        destination: fold(ip.destination),
        source_port: transport.source,
        destination_port: transport.destination,
        length: ip.total_length,
        transport: (ethernet::HEADER + ip.header_length) as u16,
        protocol,
        ttl: ip.hop_limit,
        flags: transport.flags,
        // Its fields are where they always are; no packet of IPv6 is odd.
        plain: true,
        piece: Piece::Whole,
        search: Search::Done,
        ..Packet::default()
    };
    Ok((packet, Addresses { source: ip.source, destination: ip.destination }))
}

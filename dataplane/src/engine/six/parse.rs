//! Stage 1: from the bytes of an IPv6 frame to a [`Packet`], or out by a named way.

use super::Addresses;
use crate::counters::{Drop, Punt};
use crate::engine::ipsec::is_ipsec;
use crate::engine::packet::{Packet, Piece};
use crate::engine::parse::link;
use crate::engine::{Frame, Verdict, fragments};
use crate::service::Protocol;
use crate::snapshot::{Snapshot, fold};
use crate::wire::ethernet::{self, Mac};
use crate::wire::ipv6::Ipv6;
use crate::wire::transport::Transport;
use crate::wire::version::{Ip, Version};

/// Types of ICMPv6 messages by which neighbours and routers find each other (RFC 4861).
const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

/// Parses an IPv6 frame that came in on a port with this MAC. A fragment that concerns no service leaves here.
pub(in crate::engine) fn parse(
    frame: &impl Frame,
    mac: &Mac,
    snapshot: &Snapshot,
) -> Result<(Packet, Addresses), Verdict> {
    let (_, is_group) = link(frame, mac)?;
    match packet(&frame.bytes()[ethernet::HEADER..], snapshot) {
        Err(verdict @ (Verdict::Drop(_) | Verdict::Punt(Punt::Neighbour))) => Err(verdict),
        _ if is_group => Err(Verdict::Punt(Punt::Multicast)),
        parsed => parsed,
    }
}

/// The packet that begins with an IPv6 header.
pub(in crate::engine) fn packet(packet: &[u8], snapshot: &Snapshot) -> Result<(Packet, Addresses), Verdict> {
    let ip = Ipv6::parse(packet).ok_or(Verdict::Drop(Drop::BadIpHeader))?;
    let segment = &packet[ip.header_length..usize::from(ip.total_length)];
    let is_later = ip.fragment.is_some_and(|fragment| fragment.offset > 0);
    let protocol = match Protocol::from_number(ip.protocol) {
        // The next host on its way is not the service.
        _ if ip.is_routed => return Err(Verdict::Punt(Punt::OtherProtocol)),
        Some(protocol) => protocol,
        // Needs no first one to be followed.
        None if snapshot.has_ipsec && is_ipsec(ip.protocol) => {
            return Err(Verdict::Punt(Punt::OtherProtocol));
        }
        // Of a later fragment it is what follows the first one's fragment header, be it an extension: it goes where the first has gone.
        None if is_later && ip.protocol != u128::ICMP => Protocol::Udp,
        None if ip.protocol != u128::ICMP => return Err(Verdict::Punt(Punt::OtherProtocol)),
        // It has a part of the queue to itself, so it must be what nobody beyond a router can send (RFC 4861, section 7.1; RFC 6980).
        None if ip.hop_limit == u8::MAX
            && ip.fragment.is_none()
            && segment.first().is_some_and(|kind| DISCOVERY.contains(kind)) =>
        {
            return Err(Verdict::Punt(Punt::Neighbour));
        }
        None => return Err(Verdict::Punt(Punt::Icmp)),
    };
    let concerns = || snapshot.concerns(ip.destination) || snapshot.concerns(ip.source);
    let (piece, transport) = match ip.fragment {
        Some(_) if !concerns() => return Err(Verdict::Punt(Punt::Fragment)),
        Some(_) => fragments::piece(packet, &Ip::from(&ip), protocol).map_err(Verdict::Drop)?,
        None => {
            let whole = Transport::parse(protocol, segment, segment.len());
            (Piece::Whole, whole.ok_or(Verdict::Drop(Drop::BadTransportHeader))?)
        }
    };
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
        // Its fields are where they always are; no whole packet of IPv6 is odd.
        plain: piece == Piece::Whole,
        piece,
        ..Packet::default()
    };
    Ok((packet, Addresses { source: ip.source, destination: ip.destination }))
}

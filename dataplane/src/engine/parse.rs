//! Stage 1: from bytes to a [`Packet`], or out by a named way.

use super::packet::{Packet, Piece, Work};
use super::resolve::Path;
use super::six::Places;
use super::{BURST, Frame, Verdict, fragments, ipsec, related, route, tunnel_errors};
use crate::counters::{Drop, Punt};
use crate::service::Protocol;
use crate::snapshot::Snapshot;
use crate::wire::ethernet::{self, Ethernet, Mac};
use crate::wire::ipv4::{Ipv4, Malformed};
use crate::wire::plain::{self, MacPattern, Plain};
use crate::wire::transport::Transport;
use crate::wire::version::{Ip, Version};

const TCP: u8 = Protocol::Tcp.number();
const UDP: u8 = Protocol::Udp.number();
const SCTP: u8 = Protocol::Sctp.number();

/// Stage 1: every packet of a burst that came in on a port with this MAC, but for those of IPv6.
#[inline(never)]
pub(super) fn parse_all<F: Frame>(
    path: &Path<'_>,
    mac: &Mac,
    burst: &mut [F],
    work: &mut Work,
    verdicts: &mut [Verdict; BURST],
) -> Places {
    burst.iter().for_each(Frame::prefetch);
    let pattern = if path.engine.express { MacPattern::new(mac) } else { MacPattern::NOBODY };
    let (mut count, mut six) = (0, Places::NONE);
    for index in 0..burst.len().min(BURST) {
        let packet = &mut work.packets[count % BURST];
        if parse_plain(&burst[index], pattern, packet) {
            // Most are.
        } else if six.take(&burst[index], index) {
            continue;
        } else if let Err(verdict) = parse_odd(path, &mut burst[index], mac, packet) {
            verdicts[index] = route::instead(path, &mut burst[index], verdict);
            continue;
        }
        packet.index = index as u8;
        count += 1;
    }
    work.count = count;
    six
}

/// Parses a frame if it is plain, as most are; then the packet becomes that of [`parse`]. Field by field, in its
/// place: a packet that is built elsewhere and copied here costs as much again, for the copy has to wait until
/// the smaller stores have reached the cache.
#[inline(always)]
fn parse_plain(frame: &impl Frame, mac: MacPattern, packet: &mut Packet) -> bool {
    let bytes = frame.bytes();
    let Some(headers) = bytes.first_chunk() else { return false };
    if (bytes.len() < frame.length()) | frame.is_vlan_stripped() {
        return false;
    }
    let Some(plain) = Plain::parse(headers, bytes.len(), mac) else { return false };
    packet.source = plain.source;
    packet.destination = plain.destination;
    packet.source_port = plain.source_port;
    packet.destination_port = plain.destination_port;
    packet.length = plain.length;
    packet.transport = plain::TRANSPORT as u16;
    packet.protocol = plain.protocol;
    packet.ttl = plain.ttl;
    packet.flags = plain.flags;
    packet.plain = true;
    true
}

/// Parses a frame that is not plain.
#[cold]
#[inline(never)]
fn parse_odd(path: &Path<'_>, frame: &mut impl Frame, mac: &Mac, packet: &mut Packet) -> Result<(), Verdict> {
    match parse(frame, mac, path.snapshot) {
        Ok(parsed) if parsed.piece != Piece::Whole => return Err(fragments::follow(path, frame, parsed)),
        Ok(parsed) => *packet = parsed,
        Err(Verdict::Punt(Punt::Icmp)) if tunnel_errors::is_told::<u32>(path, frame.bytes()) => {
            return Err(Verdict::Punt(Punt::TunnelError));
        }
        Err(Verdict::Punt(Punt::Icmp)) => return Err(related::follow::<u32>(path, frame)),
        Err(verdict @ Verdict::Punt(Punt::OtherProtocol)) => {
            return Err(ipsec::follow(path, frame).unwrap_or(verdict));
        }
        Err(verdict) => return Err(verdict),
    }
    Ok(())
}

/// Parses a frame that came in on a port with this MAC. A fragment that concerns no service leaves here; others are packets, without
/// ports if they are not the first of their datagram.
pub(super) fn parse(frame: &impl Frame, mac: &Mac, snapshot: &Snapshot) -> Result<Packet, Verdict> {
    let (ethertype, is_group) = link(frame, mac)?;
    match ethertype {
        ethernet::IPV4 if is_group => return Err(Verdict::Punt(Punt::Multicast)),
        ethernet::IPV4 => {}
        ethernet::VLAN | ethernet::SERVICE_VLAN => return Err(Verdict::Punt(Punt::Vlan)),
        _ => return Err(Verdict::Punt(Punt::NotIp)),
    }

    packet(&frame.bytes()[ethernet::HEADER..], snapshot)
}

/// The type of a whole frame that came in on a port with this MAC, and whether it was sent to several; it has an Ethernet header.
pub(super) fn link(frame: &impl Frame, mac: &Mac) -> Result<(u16, bool), Verdict> {
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
    Ok((ethernet.ethertype, is_group))
}

/// The packet that begins with an IPv4 header.
pub(super) fn packet(packet: &[u8], snapshot: &Snapshot) -> Result<Packet, Verdict> {
    let ip = Ipv4::parse(packet).map_err(|malformed| {
        Verdict::Drop(match malformed {
            Malformed::Header => Drop::BadIpHeader,
            Malformed::Checksum => Drop::BadIpChecksum,
        })
    })?;
    let protocol = match ip.protocol {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        SCTP => Protocol::Sctp,
        u32::ICMP => return Err(Verdict::Punt(Punt::Icmp)),
        _ => return Err(Verdict::Punt(Punt::OtherProtocol)),
    };
    if ip.is_fragment {
        if !snapshot.concerns(ip.destination) && !snapshot.concerns(ip.source) {
            return Err(Verdict::Punt(Punt::Fragment));
        }
        let (piece, transport) = fragments::piece(packet, &Ip::from(&ip), protocol).map_err(Verdict::Drop)?;
        return Ok(Packet { piece, ..Packet::new(&ip, protocol, transport) });
    }

    let length = usize::from(ip.total_length) - ip.header_length;
    let transport = Transport::parse(protocol, &packet[ip.header_length..], length)
        .ok_or(Verdict::Drop(Drop::BadTransportHeader))?;
    Ok(Packet::new(&ip, protocol, transport))
}

//! Stage 4: the packet becomes what goes out.

use super::packet::{Direction, Packet, Piece};
use super::resolve::Path;
use super::{Frame, Verdict, ftp, fullnat, tunnel};
use crate::counters::{Drop, Punt};
use crate::fib::NextHop;
use crate::service::{Helper, Mode};
use crate::snapshot::{Dest, Family};
use crate::wire::{ethernet, ipv4, transport};

/// Rewrites a packet of a connection with this dest and says where it goes.
#[inline]
pub(super) fn rewrite(path: &Path<'_>, packet: &Packet, dest: &Dest, frame: &mut impl Frame) -> Verdict {
    if let Some(tunnel) = &dest.tunnel {
        return tunnel::send(path, packet, dest, tunnel, frame);
    }
    let inward = packet.direction == Direction::In;
    let service = &path.snapshot.services[dest.service as usize];
    let mode = service.mode;
    if mode == Mode::Fullnat {
        return fullnat::send(path, packet, dest, (packet.source, packet.destination), frame);
    }
    let Hop { verdict, addresses } =
        match next_hop(path, dest, packet.direction, packet.length, packet.destination) {
            Ok(hop) => hop,
            Err(verdict) => return verdict,
        };
    if service.helper == Some(Helper::Ftp) {
        ftp::announce(path, packet, dest, frame);
    }
    if !write(packet, dest, inward, mode, addresses.as_ref(), frame) {
        return Verdict::Drop(Drop::BadIpHeader);
    }
    path.count(dest, packet.direction, packet.length);
    verdict
}

/// The next hop of a packet of a connection.
pub(super) struct Hop {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// The MACs, if they are known.
    pub addresses: Option<[u8; 12]>,
}

/// Where a packet of a connection with this dest goes, of so many bytes; to the client, if it goes out, at this address.
#[inline]
pub(super) fn next_hop<A: Family>(
    path: &Path<'_>,
    dest: &Dest,
    direction: Direction,
    length: u16,
    client: A,
) -> Result<Hop, Verdict> {
    let inward = direction == Direction::In;
    let service = &path.snapshot.services[dest.service as usize];
    let next_hop = if inward { dest.next_hop } else { A::fib(path.snapshot).look_up(client) };
    match next_hop {
        NextHop::Ready(adjacency) if length > adjacency.mtu => Err(Verdict::Drop(Drop::TooBig)),
        NextHop::Ready(adjacency) => {
            Ok(Hop { verdict: Verdict::Forward(adjacency.port), addresses: Some(adjacency.addresses) })
        }
        // Linux would deliver a packet to the virtual address to itself.
        NextHop::Unresolved(_) if service.mode == Mode::Dr => Err(Verdict::Drop(Drop::NoNeighbour)),
        NextHop::Unresolved(_) => Ok(Hop { verdict: Verdict::Punt(Punt::Unresolved), addresses: None }),
        // It is not forwarded, but it is its server's.
        NextHop::NoRoute if dest.is_here => {
            path.count(dest, direction, length);
            Err(Verdict::Punt(Punt::Local))
        }
        NextHop::NoRoute => Err(Verdict::Drop(Drop::NoRoute)),
    }
}

/// Writes all fields; the MACs if they are known. False if the frame has no room for the headers that were
/// parsed from it, which cannot be; the compiler needs the check once, instead of one for every field.
#[inline]
fn write(
    packet: &Packet,
    dest: &Dest,
    inward: bool,
    mode: Mode,
    addresses: Option<&[u8; 12]>,
    frame: &mut impl Frame,
) -> bool {
    let Some((headers, segment)) = frame.bytes_mut().split_at_mut_checked(usize::from(packet.transport))
    else {
        return false;
    };
    let Some((ethernet, rest)) = headers.split_first_chunk_mut::<{ ethernet::HEADER }>() else {
        return false;
    };
    let Some(ip) = rest.first_chunk_mut::<{ ipv4::HEADER }>() else { return false };
    let segment = packet.segment(segment);
    let has_ports = packet.piece != Piece::Later;
    if has_ports && segment.len() < transport::header_length(packet.protocol) {
        return false;
    }
    if let Some(addresses) = addresses {
        ethernet::write_addresses(ethernet, addresses);
    }
    ipv4::decrement_ttl(ip);
    match (mode, inward) {
        // A tunnel's packets do not come here, nor do those of full NAT.
        (Mode::Dr | Mode::Tunnel | Mode::Fullnat, _) => {}
        (Mode::Nat, true) => {
            ipv4::set_destination(ip, dest.four.address, dest.address_delta);
            if has_ports {
                transport::set_destination(
                    packet.protocol,
                    segment,
                    dest.server_port(packet.destination_port),
                    dest.transport_delta,
                );
            }
        }
        (Mode::Nat, false) => {
            ipv4::set_source(ip, dest.four.virtual_address, dest.address_delta.reversed());
            if has_ports {
                let delta = dest.transport_delta.reversed();
                let port = dest.virtual_port(packet.source_port);
                transport::set_source(packet.protocol, segment, port, delta);
            }
        }
    }
    true
}

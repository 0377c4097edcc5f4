//! Stages 4 and 5: the packet becomes what goes out.

use super::Addresses;
use crate::counters::Drop;
use crate::engine::express::{self, Tally};
use crate::engine::packet::{Direction, Packet, Piece};
use crate::engine::resolve::Path;
use crate::engine::rewrite::{Hop, next_hop};
use crate::engine::{Frame, Verdict, fullnat, tunnel};
use crate::fib::PortIndex;
use crate::service::Mode;
use crate::snapshot::{Dest, RENEW_AFTER};
use crate::wire::{ethernet, ipv6, transport};

/// The short way ([`express`]): rewrites a packet of an undisturbed connection, and says which port it goes out of.
#[inline(always)]
pub(in crate::engine) fn pass(
    path: &Path<'_>,
    packet: &Packet,
    frame: &mut impl Frame,
    tally: &mut Tally,
) -> Option<PortIndex> {
    let word = packet.word;
    let transform = path.snapshot.transform_of(word);
    let age = word.fine_age(path.now);
    if !express::is_undisturbed(packet, transform, age) {
        return None;
    }
    let dest = path.snapshot.dest_of(word)?;
    let adjacency = match packet.direction {
        Direction::In => &transform.adjacency,
        Direction::Out => path.snapshot.fibs.six.adjacency(path.addresses_of(packet)?.destination)?,
    };
    let traffic = transform.traffic.get(path.engine.worker)?;
    if packet.length > adjacency.mtu {
        return None;
    }
    if age >= RENEW_AFTER {
        express::renew(path, packet.slot, word)?;
        // A table that was taken over from another process, or has grown, knows no addresses: those that go on are known in a second.
        path.note_address(packet.slot, packet);
    }
    write(packet, dest, Some(&adjacency.addresses), frame)?;
    let (direction, bytes) = (packet.direction as usize, u64::from(packet.length));
    tally.add(direction, bytes);
    traffic.add(direction, 1, bytes);
    Some(adjacency.port)
}

/// Rewrites a packet of a connection with this dest and says where it goes.
#[inline(never)]
pub(in crate::engine) fn send(
    path: &Path<'_>,
    packet: &Packet,
    dest: &Dest,
    frame: &mut impl Frame,
) -> Verdict {
    let Some(&Addresses { source, destination }) = path.addresses_of(packet) else {
        return Verdict::Drop(Drop::BadIpHeader);
    };
    if let Some(tunnel) = &dest.tunnel {
        return tunnel::send(path, packet, dest, tunnel, frame);
    }
    if path.snapshot.services[dest.service as usize].mode == Mode::Fullnat {
        return fullnat::send(path, packet, dest, (source, destination), frame);
    }
    let hop = next_hop(path, dest, packet.direction, packet.length, destination);
    let Hop { verdict, addresses } = match hop {
        Ok(hop) => hop,
        Err(verdict) => return verdict,
    };
    if write(packet, dest, addresses.as_ref(), frame).is_none() {
        return Verdict::Drop(Drop::BadIpHeader);
    }
    path.count(dest, packet.direction, packet.length);
    verdict
}

/// Writes all fields; the MACs if they are known. `None` if the frame has no room for the headers that were parsed from it, which cannot
/// be; nothing is written then.
#[inline(always)]
fn write(packet: &Packet, dest: &Dest, macs: Option<&[u8; 12]>, frame: &mut impl Frame) -> Option<()> {
    let (headers, segment) = frame.bytes_mut().split_at_mut_checked(usize::from(packet.transport))?;
    let (ethernet, rest) = headers.split_first_chunk_mut::<{ ethernet::HEADER }>()?;
    let ip = rest.first_chunk_mut::<{ ipv6::HEADER }>()?;
    let segment = packet.segment(segment);
    let has_ports = packet.piece != Piece::Later;
    if has_ports && segment.len() < transport::header_length(packet.protocol) {
        return None;
    }
    if let Some(macs) = macs {
        ethernet::write_addresses(ethernet, macs);
    }
    ipv6::decrement_hop_limit(ip);
    // With direct routing there is no endpoint, and nothing more to change.
    if dest.endpoint.is_some() {
        match packet.direction {
            Direction::In => {
                ipv6::set_destination(ip, dest.six.address);
                if has_ports {
                    let port = dest.server_port(packet.destination_port);
                    transport::set_destination(packet.protocol, segment, port, dest.transport_delta);
                }
            }
            Direction::Out => {
                ipv6::set_source(ip, dest.six.virtual_address);
                if has_ports {
                    let port = dest.virtual_port(packet.source_port);
                    let delta = dest.transport_delta.reversed();
                    transport::set_source(packet.protocol, segment, port, delta);
                }
            }
        }
    }
    Some(())
}

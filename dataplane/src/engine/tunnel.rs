//! Stage 5 for tunnels: the packet goes into another one to the real server.
//!
//! What comes out is the client's packet with one hop less, behind outer headers ([`Encapsulation`](crate::wire::tunnel::Encapsulation)).
//! Everything that may be said against it is found out before anything is written: what is dropped is told as it came.
//!
//! The outer packet is of the real server's family, the one inside of the service's: nothing here asks which.
//!
//! A packet that is too long for the way with the headers around it is dropped, and its sender told the MTU that remains, if it must not
//! be fragmented ([`Inside::may_be_split`]). Else the outer packet may be, as in Linux IPVS: Linux sends the fragments ([`split`](super::split)).

use super::packet::{Direction, Packet};
use super::resolve::Path;
use super::rewrite::{Hop, next_hop};
use super::{Frame, Verdict};
use crate::counters::{Drop, Punt};
use crate::fib::{NextHop, PortIndex};
use crate::service::Protocol;
use crate::snapshot::{Dest, Tunnel};
use crate::table::Client;
use crate::wire::transport::SYN;
use crate::wire::tunnel::Inside;
use crate::wire::{ethernet, mss};

/// Puts a packet of a connection with this dest into its tunnel, counts it, and says where it goes.
#[inline(never)]
pub(super) fn send(
    path: &Path<'_>,
    packet: &Packet,
    dest: &Dest,
    tunnel: &Tunnel,
    frame: &mut impl Frame,
) -> Verdict {
    let begins = packet.protocol == Protocol::Tcp && packet.flags & SYN != 0;
    let segment_at = begins.then(|| usize::from(packet.transport) - ethernet::HEADER);
    let verdict = encapsulate(path, dest, tunnel, packet.client, segment_at, frame);
    if matches!(verdict, Verdict::Forward(_) | Verdict::Punt(Punt::Unresolved | Punt::ToFragment)) {
        path.count(dest, Direction::In, packet.length);
    }
    verdict
}

/// The port that a plain packet of an undisturbed connection goes out of, once `renew` has noted that it was seen: the end of the short
/// way for tunnels. `None`, and nothing is changed, if there is something to say about it.
#[inline(never)]
pub(super) fn pass(
    path: &Path<'_>,
    packet: &Packet,
    frame: &mut impl Frame,
    renew: impl FnOnce() -> Option<()>,
) -> Option<PortIndex> {
    let dest = path.snapshot.dest_of(packet.word)?;
    let (Some(tunnel), NextHop::Ready(adjacency)) = (&dest.tunnel, &dest.next_hop) else { return None };
    let inside = read(frame)?;
    let length = inside.length.checked_add(tunnel.overhead).filter(|&length| length <= adjacency.mtu)?;
    renew()?;
    // What is left to go wrong is a device's headroom; the long way says so.
    put(tunnel, &inside, length, (&adjacency.addresses, packet.client), None, frame).ok()?;
    path.count(dest, Direction::In, packet.length);
    Some(adjacency.port)
}

/// Puts the packet of a frame, which has been parsed, into the tunnel to its server, and says where it goes. `segment_at` is where
/// the TCP header is in a SYN.
#[inline(always)]
pub(super) fn encapsulate(
    path: &Path<'_>,
    dest: &Dest,
    tunnel: &Tunnel,
    client: Client,
    segment_at: Option<usize>,
    frame: &mut impl Frame,
) -> Verdict {
    let Some(inside) = read(frame) else { return Verdict::Drop(Drop::BadIpHeader) };
    let Some(length) = inside.length.checked_add(tunnel.overhead) else { return Verdict::Drop(Drop::TooBig) };
    let Hop { verdict, addresses } = match next_hop(path, dest, Direction::In, length, 0u32) {
        Ok(hop) => hop,
        Err(Verdict::Drop(Drop::TooBig)) if inside.may_be_split => {
            Hop { verdict: Verdict::Punt(Punt::ToFragment), addresses: None }
        }
        Err(verdict) => return verdict,
    };
    // Of a packet that Linux sends the addresses are Linux' affair.
    let addresses = addresses.unwrap_or_default();
    match put(tunnel, &inside, length, (&addresses, client), segment_at, frame) {
        Ok(()) => verdict,
        Err(reason) => Verdict::Drop(reason),
    }
}

/// The packet of a frame, for the headers around it.
#[inline(always)]
fn read(frame: &impl Frame) -> Option<Inside> {
    frame.bytes().get(ethernet::HEADER..).and_then(Inside::read)
}

/// Writes it all: the headers around the packet of a frame, which is so long with them, and inside a hop less and no greater MSS than fits.
#[inline(always)]
fn put(
    tunnel: &Tunnel,
    inside: &Inside,
    length: u16,
    (addresses, client): (&[u8; 12], Client),
    segment_at: Option<usize>,
    frame: &mut impl Frame,
) -> Result<(), Drop> {
    let overhead = usize::from(tunnel.overhead);
    if !frame.prepend(overhead) {
        return Err(Drop::NoHeadroom);
    }
    let parts = frame.bytes_mut().split_first_chunk_mut::<{ ethernet::HEADER }>();
    let parts = parts.and_then(|(ethernet, rest)| Some((ethernet, rest.get_mut(..usize::from(length))?)));
    let Some((ethernet, outer)) = parts else { return Err(Drop::BadIpHeader) };
    *ethernet = ethernet::header(tunnel.outer.ethertype(), addresses);
    let body = &mut outer[overhead..];
    inside.decrement_ttl(body);
    if let (Some(limit), Some(segment)) = (tunnel.mss, segment_at.and_then(|at| body.get_mut(at..))) {
        mss::clamp(segment, limit);
    }
    tunnel.encapsulation.wrap(outer, &tunnel.outer, inside, who(client));
    Ok(())
}

/// Twenty bits by which clients differ; of IPv4 the same in all routers.
fn who(client: Client) -> u32 {
    // Fibonacci hashing: what differs anywhere differs in the highest bits.
    (client.bits().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 44) as u32
}

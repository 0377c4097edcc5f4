//! Packets that concern no service: the data path routes them, if it is to ([`crate::snapshot::Snapshot::routing`]).
//!
//! They are found where packets leave the path for Linux, so packets of services have nothing to ask. What is routed is what a
//! router has no further interest in (RFC 1812, section 5.2; RFC 8200): a packet to this machine's MAC, from one host to another, whose
//! way leads out of a port. All others are Linux', as they are without this:
//!
//! * to or from an address of the router's own, or a virtual one; multicast, and addresses of a link alone;
//! * with IPv4 options or IPv6 hop-by-hop options, by which a host talks to the routers on the way;
//! * without a route, or with one out of an interface that is no port.
//!
//! Linux does not see what is routed here, nor do its firewall and its counters.

use super::resolve::Path;
use super::{Frame, Verdict, six, snat};
use crate::counters::{Drop, Punt};
use crate::fib::NextHop;
use crate::snapshot::{Family, Snapshot};
use crate::wire::ethernet;
use crate::wire::version::Ip;

/// What becomes of a packet that would get this verdict: if it is to be routed here, it is.
#[cold]
#[inline(never)]
pub(super) fn instead(path: &Path<'_>, frame: &mut impl Frame, verdict: Verdict) -> Verdict {
    let snapshot = path.snapshot;
    // A reason by which a packet that concerns nobody leaves, or one of a real server that is no reply.
    let is_open = matches!(
        verdict,
        Verdict::Punt(
            Punt::NoService | Punt::ServerReply | Punt::Icmp | Punt::OtherProtocol | Punt::Fragment
        )
    );
    if !is_open || !snapshot.routing && snapshot.snats.is_empty() {
        return verdict;
    }
    let routed = if six::is_six(frame) {
        route::<u128>(path, frame)
    } else if snapshot.snats.is_empty() {
        route::<u32>(path, frame)
    } else {
        snat::translate(path, frame).or_else(|| route::<u32>(path, frame))
    };
    routed.unwrap_or(verdict)
}

/// Routes a packet, if it is one to be routed.
fn route<A: Family>(path: &Path<'_>, frame: &mut impl Frame) -> Option<Verdict> {
    let snapshot = path.snapshot;
    let packet = frame.bytes().get(ethernet::HEADER..)?;
    let ip = A::parse(packet)?;
    let is_between_others = is_foreign(snapshot, ip.source) && is_foreign(snapshot, ip.destination);
    if !snapshot.routing || A::is_for_routers(packet) || !is_between_others {
        return None;
    }
    match way(snapshot, &ip, ip.destination)? {
        Ok(way) => way.send(path, &ip, frame),
        Err(verdict) => Some(verdict),
    }
}

/// Whether an address is one host's, not the router's own, and not on one link alone.
pub(super) fn is_foreign<A: Family>(snapshot: &Snapshot, address: A) -> bool {
    address.is_routable() && !A::fib(snapshot).is_own(address) && !snapshot.is_virtual(address)
}

/// Where a packet goes on: to be routed out of a port, or by Linux.
pub(super) struct Way {
    verdict: Verdict,
    macs: Option<[u8; 12]>,
}

/// The way of a packet to a destination, or what becomes of it if it must not go there; none if that is Linux' to say.
pub(super) fn way<A: Family>(
    snapshot: &Snapshot,
    ip: &Ip<A>,
    destination: A,
) -> Option<Result<Way, Verdict>> {
    let adjacency = match A::fib(snapshot).look_up(destination) {
        NextHop::Ready(adjacency) => Some(adjacency),
        NextHop::Unresolved(_) => None,
        NextHop::NoRoute => return None,
    };
    if ip.ttl <= 1 {
        return Some(Err(Verdict::Drop(Drop::TtlExpired)));
    }
    let is_too_long = adjacency.is_some_and(|adjacency| ip.total_length > adjacency.mtu);
    Some(match adjacency {
        _ if is_too_long && ip.dont_fragment => Err(Verdict::Drop(Drop::TooBig)),
        _ if is_too_long => Ok(Way { verdict: Verdict::Punt(Punt::ToFragment), macs: None }),
        None => Ok(Way { verdict: Verdict::Punt(Punt::Unresolved), macs: None }),
        Some(adjacency) => {
            Ok(Way { verdict: Verdict::Route(adjacency.port), macs: Some(adjacency.addresses) })
        }
    })
}

impl Way {
    /// Sends a packet on. None if the frame has no room for the headers that were parsed from it, which cannot be.
    pub fn send<A: Family>(self, path: &Path<'_>, ip: &Ip<A>, frame: &mut impl Frame) -> Option<Verdict> {
        let (ethernet, packet) = frame.bytes_mut().split_first_chunk_mut::<{ ethernet::HEADER }>()?;
        if let Some(macs) = &self.macs {
            ethernet::write_addresses(ethernet, macs);
        }
        A::decrement_ttl(packet);
        if let Verdict::Route(_) = self.verdict {
            let counters = &path.engine.counters;
            counters.routed.add(1);
            counters.routed_bytes.add(ip.total_length.into());
        }
        Some(self.verdict)
    }
}

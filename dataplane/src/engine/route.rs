//! Packets that concern no service: the data path routes them, if it is to ([`crate::snapshot::Snapshot::routing`]).
//!
//! They are found where packets leave the path for Linux, so packets of services have nothing to ask. What is routed is what a
//! router has no further interest in (RFC 1812, section 5.2; RFC 8200): a packet to this machine's MAC, from one host to another, whose
//! way leads out of a port. All others are Linux', as they are without this:
//!
//! * to or from an address of the router's own, or a virtual one; multicast, and addresses of a link alone;
//! * with IPv4 options or IPv6 hop-by-hop options, by which a host talks to the routers on the way;
//! * without a route, or with one out of an interface that is no port;
//! * fragments that have to be fragmented once more.
//!
//! Linux does not see what is routed here, nor do its firewall and its counters.

use super::resolve::Path;
use super::{Frame, Verdict, six};
use crate::counters::{Drop, Punt};
use crate::fib::NextHop;
use crate::snapshot::Family;
use crate::wire::ethernet;

/// What becomes of a packet that would get this verdict: if it is to be routed here, it is.
#[cold]
#[inline(never)]
pub(super) fn instead(path: &Path<'_>, frame: &mut impl Frame, verdict: Verdict) -> Verdict {
    // A reason by which a packet that concerns nobody leaves, or one of a real server that is no reply.
    let is_open = matches!(
        verdict,
        Verdict::Punt(
            Punt::NoService | Punt::ServerReply | Punt::Icmp | Punt::OtherProtocol | Punt::Fragment
        )
    );
    if !is_open || !path.snapshot.routing {
        return verdict;
    }
    let routed = if six::is_six(frame) { route::<u128>(path, frame) } else { route::<u32>(path, frame) };
    routed.unwrap_or(verdict)
}

/// Routes a packet: 1. is it one to be routed? 2. where to? 3. may it go there? 4. it goes.
fn route<A: Family>(path: &Path<'_>, frame: &mut impl Frame) -> Option<Verdict> {
    let (snapshot, counters) = (path.snapshot, &path.engine.counters);
    let packet = frame.bytes().get(ethernet::HEADER..)?;
    let ip = A::parse(packet)?;
    // 1.
    let is_ours = |address| A::fib(snapshot).is_own(address) || snapshot.is_virtual(address);
    let is_foreign = |address: A| address.is_routable() && !is_ours(address);
    if A::is_for_routers(packet) || !is_foreign(ip.source) || !is_foreign(ip.destination) {
        return None;
    }
    // 2.
    let adjacency = match A::fib(snapshot).look_up(ip.destination) {
        NextHop::Ready(adjacency) => Some(adjacency),
        NextHop::Unresolved(_) => None,
        NextHop::NoRoute => return None,
    };
    // 3.
    if ip.ttl <= 1 {
        return Some(Verdict::Drop(Drop::TtlExpired));
    }
    let is_too_long = adjacency.is_some_and(|adjacency| ip.total_length > adjacency.mtu);
    let (verdict, macs) = match adjacency {
        _ if is_too_long && ip.dont_fragment => return Some(Verdict::Drop(Drop::TooBig)),
        _ if is_too_long && ip.fragment.is_some() => return None,
        _ if is_too_long => (Verdict::Punt(Punt::ToFragment), None),
        None => (Verdict::Punt(Punt::Unresolved), None),
        Some(adjacency) => (Verdict::Route(adjacency.port), Some(adjacency.addresses)),
    };
    // 4.
    let (ethernet, packet) = frame.bytes_mut().split_first_chunk_mut::<{ ethernet::HEADER }>()?;
    if let Some(macs) = &macs {
        ethernet::write_addresses(ethernet, macs);
    }
    A::decrement_ttl(packet);
    if let Verdict::Route(_) = verdict {
        counters.routed.add(1);
        counters.routed_bytes.add(ip.total_length.into());
    }
    Some(verdict)
}
